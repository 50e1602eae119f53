"""Layer health beside SAEBench's own functions, on the same rows (`make peers`, in an environment of its own).

SAEBench masks neither position 0 nor outliers and replaces every position, so here ours does the same. Its `mse` and
`explained_variance` are left out: they are not what they are named after.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from planted import vocabulary
from planted_health import random_sae, signed_identity
from safetensors.torch import save_file

from saeinterp.artifacts import ArtifactStore
from saeinterp.config import SubjectConfig
from saeinterp.health import RowMask, measure_reconstruction
from saeinterp.sae import TopKSae
from saeinterp.subject import Context, Subject, load_subject

PYTHON = Path(__file__).resolve().parents[2] / ".venv-peers" / "bin" / "python"
METRICS = ("loss_recovered", "kl_recovered", "cosine", "l0_mean", "ce_clean", "ce_spliced", "ce_zero")
NO_MASK = RowMask(special_ids=(), norm_limit=None, first=False)
BATCH = 4
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(480),
    pytest.mark.skipif(not PYTHON.exists(), reason="no .venv-peers: make peers (1.8 GB)"),
]


def partial_identity(d: int, *, k: int) -> TopKSae:
    """Gives back the k largest coordinates of a row: a reconstruction that is good and not perfect."""
    whole = signed_identity(d)
    return TopKSae(whole.W_enc, whole.b_enc, whole.W_dec, torch.linspace(-0.1, 0.1, d), k=k)


def contexts_of(tokens: torch.Tensor) -> list[Context]:
    """Contexts of one length, a document each."""
    length = tokens.shape[1]
    spans = np.arange(length, dtype=np.int32)
    return [
        Context(row, "health", ids.numpy().astype(np.int32), np.full(length, row, np.int32), spans, spans + 1)
        for row, ids in enumerate(tokens)
    ]


def theirs(folder: Path, model: Path, saes: dict[str, TopKSae], tokens: torch.Tensor) -> dict[str, dict[str, float]]:
    folder.mkdir()
    tensors = {
        f"{hookpoint}/{name}": getattr(sae, name).clone()
        for hookpoint, sae in saes.items()
        for name in ("W_enc", "b_enc", "W_dec", "b_dec")
    }
    save_file({"tokens": tokens, **tensors}, folder / "rows.safetensors")
    sites = {name: {"layer": int(name.partition(".")[2]), "k": sae.k} for name, sae in saes.items()}
    job = {"model": str(model), "batch": BATCH, "threads": 1, "sites": sites}
    (folder / "job.json").write_text(json.dumps(job))
    script = Path(__file__).with_name("saebench.py")
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [str(PYTHON), "-W", "ignore", str(script), str(folder)], capture_output=True, text=True, env=env
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, dict[str, float]] = json.loads((folder / "results.json").read_text())["sites"]
    return found


def agree(subject: Subject, saes: dict[str, TopKSae], tokens: torch.Tensor, peer: dict[str, dict[str, float]]) -> None:
    """The metrics of both within 1e-4 (CE in nats, the others are shares or counts)."""
    ours = measure_reconstruction(
        subject,
        contexts_of(tokens),
        saes,
        means={name: torch.zeros(sae.d_in) for name, sae in saes.items()},
        masks=dict.fromkeys(saes, NO_MASK),
        splice="all",
        batch_contexts=BATCH,
    )
    assert set(peer) == set(ours)
    for hookpoint, result in ours.items():
        rows = result.documents.total("tokens")
        assert rows == tokens.numel()
        for metric in METRICS:
            value = float(result.documents.value(metric))
            assert value == pytest.approx(peer[hookpoint][metric], abs=1e-4), (hookpoint, metric)


def test_on_the_planted_subject(planted_folder: Path, tmp_path: Path) -> None:
    subject = load_subject(
        SubjectConfig(model=str(planted_folder), dtype="float32"), store=ArtifactStore(tmp_path / "runs"), device="cpu"
    )
    draw = torch.Generator().manual_seed(0)
    words = torch.randint(3, len(vocabulary()), (16, 8), generator=draw)
    tokens = words.repeat_interleave(4, dim=1)  # runs of words, which this subject predicts
    tokens[:, 0] = 1  # BOS, counted by both
    saes = {"layers.0": partial_identity(64, k=12), "layers.1": random_sae(64), "layers.2": signed_identity(64)}
    peer = theirs(tmp_path / "job", planted_folder, saes, tokens)
    agree(subject, saes, tokens, peer)
    assert 0.3 < peer["layers.0"]["loss_recovered"] < 0.999
    assert peer["layers.2"]["loss_recovered"] == pytest.approx(1, abs=1e-4)


def test_on_a_real_model(smollm2: Path, tmp_path: Path) -> None:
    subject = load_subject(
        SubjectConfig(model=str(smollm2), dtype="float32"), store=ArtifactStore(tmp_path / "runs"), device="cpu"
    )
    from pydoc_data.topics import topics

    ids = subject.tokenizer("\n\n".join(topics[name] for name in sorted(topics)[:40])).input_ids
    tokens = torch.tensor(ids[: 8 * 48]).view(8, 48)
    saes = {"layers.10": partial_identity(576, k=200), "layers.20": partial_identity(576, k=400)}
    peer = theirs(tmp_path / "job", smollm2, saes, tokens)
    agree(subject, saes, tokens, peer)
    assert all(0 < site["loss_recovered"] < 1 for site in peer.values())
