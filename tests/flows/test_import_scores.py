"""`saeinterp import scores`: outside tables on the command line, without Prefect."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app, preset_files
from saeinterp.config import CompareExplainersConfig, load_config

ROWS = [(10, 0.51, 0.42), (11, 0.62, 0.40), (12, 0.33, 0.35), (13, 0.71, 0.60), (14, 0.44, 0.30), (15, 0.58, 0.49)]
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(tmp_path: Path) -> Call:
    """Run `saeinterp import scores` on a table of two explainers: exit code, output, errors."""
    path = tmp_path / "paper.csv"
    path.write_text("latent,big,small\n" + "".join(f"{x},{a},{b}\n" for x, a, b in ROWS))

    def run(*options: str) -> tuple[int, str, str]:
        found = CliRunner().invoke(app, ["import", "scores", str(path), "--root", str(tmp_path / "runs"), *options])
        return found.exit_code, found.stdout, found.stderr

    return run


def test_a_table_ends_in_sentences_checks_and_a_report(call: Call) -> None:
    code, out, _ = call("--metric", "f1", "--hookpoint", "layers.4")
    assert code == 0
    assert out.startswith(
        "big and small show no detectable difference: per-latent F1, averaged over latents: 0.532 (big)"
    )
    report = Path(out.splitlines()[-1].removeprefix("Report: "))
    assert "big and small show no detectable difference" in report.read_text(encoding="utf-8")


def test_json_holds_comparisons_and_problems(call: Call) -> None:
    code, out, _ = call("--metric", "f1", "--explainer", "70B", "--explainer", "7B", "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["comparisons"]["ab"]["title_a"], found["comparisons"]["ab"]["primary"]["n"]) == ("70B", 6)
    assert found["problems"] == []
    assert Path(found["report"]).is_dir()


def test_always_yes_stands_beside_values_whose_class_balance_is_given(call: Call) -> None:
    code, out, _ = call("--metric", "f1", "--positives", "10", "--negatives", "10")
    assert code == 0
    assert "0.667 (always-yes)" in out


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ([], 2, "does not say which metric"),
        (["--metric", "recall"], 2, "metric"),
        (["--metric", "f1", "--explainer", "one"], 2, "does not name each explainer once"),
        (["--metric", "f1", "--margin", "0"], 2, "margin"),
    ],
)
def test_options_that_do_not_fit_end_with_what_would(call: Call, options: list[str], code: int, words: str) -> None:
    found, _, err = call(*options)
    assert found == code
    assert words in err


@pytest.mark.parametrize("name", ["qwen-7b-vs-72b", "qwen-7b-vs-72b-designed"])
def test_presets_of_the_published_comparison_load(name: str) -> None:
    path = next(file for file in preset_files() if file.stem == name)
    config = load_config(CompareExplainersConfig, path)
    assert config.self_scored is (name == "qwen-7b-vs-72b")
    assert [item.llm.model for item in config.explainers.values()][:2] == [
        "Qwen/Qwen2.5-72B-Instruct-AWQ",
        "Qwen/Qwen2.5-7B-Instruct",
    ]
    positives = config.examples.score_activating
    negatives = config.examples.score_random + config.examples.score_similar + config.examples.score_near_miss
    assert (positives, negatives) == ((50, 5) if config.self_scored else (30, 30))
