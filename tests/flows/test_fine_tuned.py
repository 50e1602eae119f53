"""A real model against its fine-tuned variant: a LoRA trained here, then `compare-models` as a user runs it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import yaml
from planted_adapters import fine_tune

from saeinterp.artifacts import read_json
from saeinterp.config import CorpusSource
from saeinterp.subject.sources import read_source

pytestmark = [pytest.mark.slow, pytest.mark.timeout(580)]  # the first test also converts and tunes the model
Cli = Callable[..., "CompletedProcess[str]"]
PROBLEMS = CorpusSource(name="builtin:word-problems", limit=60)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> Path:
    """SmolLM2 fine-tuned on word problems drawn with another seed than those it is evaluated on."""
    texts = [text for text in read_source(PROBLEMS, seed=1) if text]
    evaluated = set(read_source(PROBLEMS, seed=0))
    assert not evaluated & set(texts)
    folder = tmp_path_factory.mktemp("tuned") / "word-problems-lora"
    losses = fine_tune(folder, smollm2, texts, steps=10)
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    return folder


def test_base_against_fine_tuned_on_the_text_it_was_tuned_for(
    cli: Cli, smollm2: Path, adapter: Path, tmp_path: Path
) -> None:
    config, root = tmp_path / "compare.yaml", tmp_path / "runs"
    content = {
        "subject_a": {"model": str(smollm2)},
        "subject_b": {"model": str(smollm2), "adapter": str(adapter)},
        "corpus": {
            "sources": [PROBLEMS.model_dump(exclude_defaults=True)],
            "context_length": 48,
            "fractions": {"train": 0.5, "health": 0.5, "explain": 0, "score": 0},
            "max_tokens": {"train": 800, "health": 800},
        },
        "capture": {"hookpoints": ["layers.12", "layers.20"]},
        "training": {"num_latents": 256, "k": 32, "epochs": 4, "batch_rows": 128},
        "launch": {"threads": 1, "together": 2},
        "absorption": {"enabled": False},
        "random_weights_control": False,
    }
    config.write_text(yaml.safe_dump(content))
    done = cli("run", "compare-models", "--config", str(config), "--root", str(root), OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    found: dict[str, list[float]] = {}
    for path in sorted(root.glob("health/*")):
        subject = read_json(path / "manifest.json")["inputs"][0]["name"]
        found.setdefault(subject, []).append(read_json(path / "health.json")["ce_clean"])
    base, tuned = (next(values for name, values in found.items() if ("lora" in name) == want) for want in (False, True))
    assert [len(base), len(tuned)] == [2, 2]
    # Ten small steps are worth tenths of a nat on problems neither has seen.
    assert max(tuned) < min(base) - 0.2
    (prepared,) = [path for path in root.glob("subject/*/subject.json") if "lora" in str(path)]
    assert read_json(prepared)["adapter"]["trained_on_matches"] is True
    (report,) = root.glob("report/*/report.md")
    text = report.read_text()
    assert "word-problems-lora" in text


def test_the_plan_of_a_fine_tuned_side_shares_nothing_with_its_base(
    cli: Cli, smollm2: Path, adapter: Path, tmp_path: Path
) -> None:
    """Two subjects, one corpus (the tokenizer is the base's), SAEs of their own."""
    sides = [f"subject_a.model={smollm2}", f"subject_b.model={smollm2}", f"subject_b.adapter={adapter}"]
    options = [*sides, "subject_b.weights=pretrained", "absorption.enabled=false", "random_weights_control=false"]
    arguments = [part for option in options for part in ("--set", option)]
    plan = cli("plan", "compare-models", *arguments, "--root", str(tmp_path / "runs"))
    assert plan.returncode == 0, plan.stderr
    kinds = [line.split()[2].partition("/")[0] for line in plan.stdout.splitlines() if line.startswith("to do")]
    assert {kind: kinds.count(kind) for kind in ("subject", "corpus", "activations", "sae")} == {
        "subject": 2,
        "corpus": 1,
        "activations": 2,
        "sae": 6,
    }
