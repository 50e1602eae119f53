"""`saeinterp plan --scale`: the full-size presets by arithmetic, on a machine that has none of their models."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows.cli import app

Cli = Callable[..., subprocess.CompletedProcess[str]]
FULL = [
    ("compare-models", "llama2-finance"),
    ("compare-explainers", "qwen-7b-vs-72b"),
    ("compare-explainers", "qwen-7b-vs-72b-designed"),
    ("compare-interpretability", "gsm8k-llama-1b-vs-gpt2"),
    ("compare-interpretability", "gsm8k-llama-1b-vs-gpt2-matched"),
]


def _scale(tmp_path: Path, flow: str, preset: str, *options: str) -> dict[str, Any]:
    arguments = ["plan", flow, "--config", f"preset:{preset}", "--root", str(tmp_path / "runs"), "--scale", "--json"]
    done = CliRunner().invoke(app, [*arguments, *options])
    assert done.exit_code == 0, done.output
    assert not (tmp_path / "runs").exists()
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize(("flow", "preset"), FULL)
def test_a_full_size_preset_is_priced_offline_with_its_assumptions(tmp_path: Path, flow: str, preset: str) -> None:
    found = _scale(tmp_path, flow, preset)
    total = found["total"]
    assert min(total["tokens"], total["size"], total["flops"], total["gpu_hours"]) > 0
    for by in ("steps", "by_kind", "by_layer"):
        rows = found[by] if by == "steps" else found[by].values()
        for quantity in ("tokens", "size", "flops", "requests", "llm_tokens"):
            assert sum(row[quantity] for row in rows) == pytest.approx(total[quantity])
    assert any("deployments/sizes.yaml" in line for line in found["assumed"])
    assert (total["requests"] > 0) == (flow == "compare-explainers")


def test_requests_are_those_that_the_preset_asks_for(tmp_path: Path) -> None:
    found = _scale(tmp_path, "compare-explainers", "qwen-7b-vs-72b-designed")
    # 300 latents by two explainers; 60 examples by five a request, for two explainers, top tokens and two controls.
    assert found["by_kind"]["explanations"]["requests"] == 300 * 2
    assert found["by_kind"]["scores"]["requests"] == 300 * 12 * 5
    assert found["by_layer"]["layers.4"]["requests"] == 300 * (2 + 12 * 5)


def test_training_of_the_layers_of_llama_is_what_the_formula_says(tmp_path: Path) -> None:
    found = _scale(tmp_path, "train-saes", "llama2-layers")
    rows = 100_000_000
    # 400 latents at k = 32 are trained by five dense products; the model runs to block 28 for all layers at once.
    own = [row["flops"] for row in found["steps"] if row["kind"] == "sae" and row["layer"]]
    assert own == [5 * 2 * 4096 * 400 * rows] * 5
    (shared,) = [row["flops"] for row in found["steps"] if row["kind"] == "sae" and not row["layer"]]
    block = 4 * 4096 * 4096 + 3 * 4096 * 11008
    assert shared == rows * 29 * (2 * block + 4 * 1024 * 4096)


def test_hours_follow_the_card_and_the_utilisation_that_are_named(tmp_path: Path) -> None:
    one = _scale(tmp_path, "train-saes", "llama2-layers", "--gpu", "mine=1e15", "--utilisation", "0.5")
    other = _scale(tmp_path, "train-saes", "llama2-layers", "--gpu", "mine=2e15", "--utilisation", "0.125")
    assert (one["gpu"], one["utilisation"]) == ("mine", 0.5)
    assert one["total"]["gpu_hours"] == pytest.approx(one["total"]["flops"] / (1e15 * 0.5) / 3600)
    assert other["total"]["gpu_hours"] == pytest.approx(2 * one["total"]["gpu_hours"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--scale", "--gpu", "abacus"], "A100"),
        (["--scale", "--utilisation", "1.5"], "at most 1"),
        (["--scale", "--set", "subject.model=nobody/knows"], "deployments/sizes.yaml"),
        (["--json"], "--scale"),
    ],
)
def test_what_cannot_be_priced_is_refused_with_what_can(tmp_path: Path, options: list[str], words: str) -> None:
    arguments = ["plan", "train-saes", "--config", "preset:llama2-layers", "--root", str(tmp_path)]
    done = CliRunner().invoke(app, [*arguments, *options])
    assert done.exit_code in (1, 2), done.output
    assert words in done.output + (done.stderr or "")


def test_the_tables_say_what_they_rest_on(tmp_path: Path) -> None:
    arguments = ["plan", "compare-models", "--config", "preset:llama2-finance", "--root", str(tmp_path), "--scale"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    for words in ("layers.28", "GPU-hours", "H100", "0.3", "assumed", "not counted  absorption"):
        assert words in done.output
