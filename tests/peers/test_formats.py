"""SAE folders exchanged with the real sparsify and SAELens, which run in an environment of their own (`make peers`)."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from saeinterp.errors import DataError
from saeinterp.sae import TopKSae
from saeinterp.sae.formats import convert, save_sae_lens

PYTHON = Path(__file__).resolve().parents[2] / ".venv-peers" / "bin" / "python"
D, M, K, N = 16, 64, 5, 300
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(480),
    pytest.mark.skipif(not PYTHON.exists(), reason="no .venv-peers: make peers (1.7 GB)"),
]


def exchange(action: str, folder: Path) -> None:
    script = Path(__file__).with_name("exchange.py")
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}
    done = subprocess.run(
        [str(PYTHON), "-W", "ignore", str(script), action, str(folder)], capture_output=True, text=True, env=env
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bool]]:
    """Folders written by the packages, and which of them we can represent."""
    folder = tmp_path_factory.mktemp("theirs")
    exchange("write", folder)
    return folder, json.loads((folder / "cases.json").read_text())


def sae_of_ours(*, activation: str = "topk", dtype: torch.dtype = torch.float32) -> TopKSae:
    source = torch.Generator().manual_seed(4)
    W_enc, W_dec = (torch.randn(M, D, generator=source) for _ in range(2))
    W_dec /= W_dec.norm(dim=1, keepdim=True)
    b_enc, b_dec = torch.randn(M, generator=source), 3 * torch.randn(D, generator=source)
    return TopKSae(W_enc, b_enc, W_dec, b_dec, k=K, activation=activation).to(dtype=dtype)  # type: ignore[arg-type]


OURS = {
    "topk": sae_of_ours(),
    "bfloat16": sae_of_ours(dtype=torch.bfloat16),
    "abs_topk": sae_of_ours(activation="abs_topk"),
}


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    """Folders of ours with the packages' answers, and what the packages said of them."""
    folder = tmp_path_factory.mktemp("ours")
    x = 2 * torch.randn(N, D, generator=torch.Generator().manual_seed(5)) + 1
    save_file({"x": x}, folder / "x.safetensors")
    for name, sae in OURS.items():
        sae.save(folder / f"sparsify-{name}")
        save_sae_lens(sae, folder / f"lens-{name}", hookpoint="layers.9", model_name="gpt2")
    exchange("read", folder)
    return folder, json.loads((folder / "results.json").read_text())


def agree(sae: TopKSae, answer: dict[str, Tensor]) -> None:
    """The same latents active with the same values, and the same reconstructions, on every row."""
    x = answer["x"]
    sae = sae.to(dtype=torch.float32)
    code = sae.encode(x)
    z = torch.zeros(len(x), sae.num_latents).scatter(1, code.indices, code.values)
    assert answer["z"].count_nonzero() > len(x)
    assert torch.equal(z != 0, answer["z"] != 0)
    torch.testing.assert_close(z, answer["z"], rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(sae.decode(code), answer["x_hat"], rtol=1e-5, atol=2e-5)


def test_their_saes_load_here_and_compute_the_same(theirs: tuple[Path, dict[str, bool]]) -> None:
    folder, cases = theirs
    usable = [name for name, fits in cases.items() if fits]
    assert {name.partition("-")[0] for name in usable} == {"sparsify", "lens"}
    assert {"lens-trained", "lens-trained-inference", "lens-rescaled", "sparsify-trained"} <= set(usable)
    for name in usable:
        agree(TopKSae.load(folder / name), load_file(folder / name / "answer.safetensors"))


def test_those_that_are_no_topk_sae_are_refused(theirs: tuple[Path, dict[str, bool]]) -> None:
    folder, cases = theirs
    foreign = [name for name, fits in cases.items() if not fits]
    assert len(foreign) > 5
    for name in foreign:
        with pytest.raises(DataError, match="Next:"):
            TopKSae.load(folder / name)


def test_a_bfloat16_sae_keeps_its_type_unless_it_is_folded(theirs: tuple[Path, dict[str, bool]]) -> None:
    folder, _ = theirs
    types = {name: TopKSae.load(folder / f"lens-{name}").W_enc.dtype for name in ("bfloat16", "bfloat16-both")}
    assert types == {"bfloat16": torch.bfloat16, "bfloat16-both": torch.float32}


def test_theirs_converted_load_in_the_other_package(theirs: tuple[Path, dict[str, bool]], tmp_path: Path) -> None:
    folder, cases = theirs
    answers: dict[str, dict[str, Tensor]] = {}
    for name in (name for name, fits in cases.items() if fits and name != "lens-absolute"):
        kind, _, rest = name.partition("-")
        other = "lens" if kind == "sparsify" else "sparsify"
        convert(folder / name, tmp_path / f"{other}-{rest}-from-{kind}", "sae-lens" if other == "lens" else "sparsify")
        answers[f"{other}-{rest}-from-{kind}"] = load_file(folder / name / "answer.safetensors")
    save_file({"x": next(iter(answers.values()))["x"]}, tmp_path / "x.safetensors")
    exchange("read", tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    for name, expected in answers.items():
        assert "error" not in results[name], results[name]
        found = load_file(tmp_path / name / "answer.safetensors")
        assert torch.equal(found["z"] != 0, expected["z"] != 0), name
        for tensor in ("z", "x_hat"):
            torch.testing.assert_close(found[tensor], expected[tensor], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("name", ["sparsify-topk", "sparsify-bfloat16", "lens-topk", "lens-bfloat16", "lens-abs_topk"])
def test_our_saes_load_there_and_compute_the_same(ours: tuple[Path, dict[str, dict[str, Any]]], name: str) -> None:
    folder, results = ours
    assert "error" not in results[name], results[name]
    sae = OURS[name.partition("-")[2]]
    assert results[name]["dtype"] == str(sae.W_enc.dtype)
    agree(sae, load_file(folder / name / "answer.safetensors"))


def test_sparsify_refuses_a_signed_sae_rather_than_misreading_it(ours: tuple[Path, dict[str, dict[str, Any]]]) -> None:
    _, results = ours
    assert "abs_topk" in results["sparsify-abs_topk"]["error"]


def test_sae_lens_sees_the_model_and_the_hook(ours: tuple[Path, dict[str, dict[str, Any]]]) -> None:
    _, results = ours
    assert results["lens-topk"]["model_name"] == "gpt2"
    assert results["lens-topk"]["hook_name"] == "blocks.9.hook_resid_post"
