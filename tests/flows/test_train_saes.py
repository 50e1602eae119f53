"""`train-saes` from the running model: no training rows on disk, layers trained in one process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.slow
Cli = Callable[..., "CompletedProcess[str]"]


@pytest.fixture
def config(planted_folder: Path, planted_corpus: Path, tmp_path: Path) -> Callable[..., Path]:
    """A configuration file; keyword arguments replace fields of `capture`."""

    def write(**capture: Any) -> Path:
        path = tmp_path / "train.yaml"
        content = {
            "subject": {"model": str(planted_folder), "dtype": "float32"},
            "corpus": {"sources": [{"name": str(planted_corpus)}], "context_length": 64},
            "capture": {"hookpoints": ["layers.1", "layers.2"], "buffer_rows": 2000, **capture},
            "training": {
                "num_latents": 20, "k": 1, "epochs": 4, "batch_rows": 256, "dead_after_rows": 2000,
                "overrides": {"layers.2": {"num_latents": 24}},
            },
            "launch": {"threads": 1},
        }  # fmt: skip
        path.write_text(yaml.safe_dump(content))
        return path

    return write


def splits(root: Path) -> list[list[str]]:
    return sorted(sorted(json.loads(path.read_text())["splits"]) for path in root.glob("activations/*/cache.json"))


def test_a_corpus_past_the_disk_budget_is_streamed_and_planned_so(
    cli: Cli, config: Callable[..., Path], tmp_path: Path
) -> None:
    """By `auto`: the budget holds the held-out rows and not the training rows."""
    path, root = config(disk_budget_gb=0.002), tmp_path / "runs"
    done = cli("run", "train-saes", "--config", str(path), "--root", str(root))
    assert done.returncode == 0, done.stderr
    assert splits(root) == [["health"]]
    trained = {
        summary["hookpoint"]: summary
        for summary in (json.loads(file.read_text()) for file in root.glob("sae/*/training.json"))
    }
    assert {name: summary["num_latents"] for name, summary in trained.items()} == {"layers.1": 20, "layers.2": 24}
    assert all(summary["fvu_heldout"] < 0.7 for summary in trained.values())
    plan = cli("plan", "train-saes", "--config", str(path), "--root", str(root))
    assert "0 of " in plan.stdout, plan.stdout


def test_an_override_for_a_layer_that_is_not_captured_is_refused(
    cli: Cli, config: Callable[..., Path], tmp_path: Path
) -> None:
    path = config(hookpoints=["layers.1"])
    done = cli("run", "train-saes", "--config", str(path), "--root", str(tmp_path / "runs"))
    assert done.returncode != 0
    assert "training.overrides: 'layers.2' is not among capture.hookpoints (layers.1)" in " ".join(done.stderr.split())
