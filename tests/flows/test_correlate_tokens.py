"""`correlate-tokens` and `compare-interpretability` on a planted subject: what goes with what is known beforehand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import polars as pl
import pytest
import yaml
from planted import CLASSES
from planted_problems import write_planted_problems

from saeinterp.artifacts import ArtifactStore, read_json
from saeinterp.config import CompareInterpretabilityConfig, CorrelateTokensConfig, parse_config
from saeinterp.errors import ConfigError

Cli = Callable[..., "CompletedProcess[str]"]


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Problems whose second and fourth word of the reasoning are of known classes, which are their tags."""
    return write_planted_problems(tmp_path_factory.mktemp("problems") / "planted-train.jsonl")


@pytest.fixture
def values(planted_folder: Path, problems: Path) -> dict[str, Any]:
    """Six SAEs of two layers and three slots would be too many: two layers, two slots."""
    return {
        "corpus": {
            "source": {"name": str(problems)},
            "id_column": "id",
            "tags_column": "tags",
            "samples": 400,
            "max_tokens": 128,
        },
        "positions": {"select": "even:2@cot"},
        "capture": {"hookpoints": ["layers.0", "layers.2"]},
        "training": {
            "num_latents": 16,
            "k": 1,
            "epochs": 60,
            "batch_rows": 64,
            "dead_after_rows": 2000,
            "eval_rows": 400,
        },
        "launch": {"threads": 1},
        "concepts": {"grammar": "column"},
        "enrichment": {"permutations": 40, "half_samples": 20},
    }


def write(path: Path, values: dict[str, Any]) -> str:
    path.write_text(yaml.safe_dump(values))
    return str(path)


def found(root: Path, kind: str) -> list[Path]:
    return sorted(path for path in (root / kind).iterdir() if (path / "manifest.json").exists())


@pytest.mark.slow
def test_latents_go_with_the_planted_tokens_of_their_own_position(
    cli: Cli, values: dict[str, Any], planted_folder: Path, tmp_path: Path
) -> None:
    values |= {"subject": {"model": str(planted_folder), "dtype": "float32"}, "random_weights_control": False}
    root = tmp_path / "runs"
    config = write(tmp_path / "planted.yaml", values)
    done = cli("run", "correlate-tokens", "--config", config, "--root", str(root))
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = found(root, "enrichment")
    labels = pl.read_parquet(folder / "labels-robust.parquet").filter("monosemantic")
    place = {0: "first", 1: "second"}
    for layer in ("layers.0", "layers.2"):
        for slot, name in place.items():
            here = labels.filter((pl.col("layer") == layer) & (pl.col("position") == slot))
            said = {text.removeprefix(f"{name}-") for text in texts(folder, here)}
            assert said <= set(CLASSES), "a latent was called after the other position's token"
            assert len(said) >= 6, said
    assert labels["id"].str.contains(r"^L[02]_P[01]_F\d+$").all()

    rates = read_json(folder / "rates.json")["rates"]
    (whole,) = (row for row in rates if row["scope"] == "model" and row["rate"] == "monosemantic")
    assert whole["value"] >= 0.8
    assert {name: null["mean"] for name, null in whole["nulls"].items()} == pytest.approx(
        {"free": 0.0, "strata": 0.0}, abs=0.02
    )
    assert whole["nulls"]["strata"]["p"] == pytest.approx(1 / 41)

    (report,) = found(root, "report")
    text = (report / "report.md").read_text()
    assert "L0_P1_F" in text
    assert "second-" in text
    # Everything is there: nothing is made again.
    again = cli("plan", "correlate-tokens", "--config", config, "--root", str(root))
    assert "0 of" in again.stdout, again.stdout


def texts(folder: Path, labels: pl.DataFrame) -> list[str]:
    """The first token of each label."""
    words = pl.read_parquet(folder / "pairs-robust.parquet").select("id", "token", "text")
    return labels.join(words, on=["id", "token"], how="left")["text"].to_list()


@pytest.mark.slow
def test_a_failed_position_costs_its_layer_and_a_second_run_only_trains_that(
    cli: Cli, values: dict[str, Any], planted_folder: Path, tmp_path: Path
) -> None:
    values |= {"subject": {"model": str(planted_folder), "dtype": "float32"}, "random_weights_control": False}
    values["enrichment"] = {"permutations": 5, "half_samples": 5}
    root = tmp_path / "runs"
    arguments = ("run", "correlate-tokens", "--config", write(tmp_path / "c.yaml", values), "--root", str(root))
    failed = cli(*arguments, SAEINTERP_FAULT="layers.2@1@5")
    assert failed.returncode == 1, failed.stdout + failed.stderr
    assert "layers.2@1" in failed.stdout + failed.stderr
    (folder,) = found(root, "enrichment")
    assert {row["hookpoint"] for row in read_json(folder / "rates.json")["rates"]} == {None, "layers.0"}
    assert len(found(root, "sae")) == 3
    before = {path.name: path.stat().st_mtime_ns for path in (root / "sae").glob("*/sae.safetensors")}
    again = cli(*arguments)
    assert again.returncode == 0, again.stdout + again.stderr
    assert len(found(root, "sae")) == 4
    after = {path.name: path.stat().st_mtime_ns for path in (root / "sae").glob("*/sae.safetensors")}
    assert before.items() <= after.items()


@pytest.mark.slow
def test_two_models_are_compared_on_their_shared_problems(
    cli: Cli, values: dict[str, Any], planted_folder: Path, tmp_path: Path
) -> None:
    subject = {"model": str(planted_folder), "dtype": "float32"}
    values |= {"subject_a": subject, "subject_b": {**subject, "weights": "random"}, "names": ["Planted", "Random"]}
    values["enrichment"] = {"permutations": 10, "half_samples": 10, "presets": ["robust", "seed-gsm8k-chi2"]}
    root = tmp_path / "runs"
    config = write(tmp_path / "c.yaml", values)
    done = cli("run", "compare-interpretability", "--config", config, "--root", str(root))
    assert done.returncode == 0, done.stdout + done.stderr
    # The side with random weights is the other's control: nothing is trained twice.
    assert len(found(root, "sae")) == 8
    assert len(found(root, "interpretability-comparison")) == 1
    (report,) = found(root, "report")
    text = (report / "report.md").read_text()
    assert "Planted" in text
    assert "Random" in text
    assert "this pair of SAEs" in text


@pytest.mark.slow
def test_sides_that_read_other_problems_are_refused_unless_allowed(
    cli: Cli, values: dict[str, Any], planted_folder: Path, tmp_path: Path
) -> None:
    subject = {"model": str(planted_folder), "dtype": "float32"}
    values |= {
        "subject_a": subject,
        "subject_b": {**subject, "weights": "random"},
        "corpus_b": {"seed": 1},
        "match_problems": False,
    }
    values["enrichment"] = {"permutations": 2, "half_samples": 2}
    root = tmp_path / "runs"
    arguments = ("run", "compare-interpretability", "--config", write(tmp_path / "c.yaml", values))
    refused = cli(*arguments, "--root", str(root))
    assert refused.returncode == 1
    assert "problem" in refused.stderr
    assert "allow_unmatched" in refused.stderr
    allowed = cli(*arguments, "--root", str(root), "--set", "comparison.allow_unmatched=true")
    assert allowed.returncode == 0, allowed.stdout + allowed.stderr
    assert len(found(root, "sae")) == 8


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[dict[str, Any]], Any]:
    """The plan of two models over an empty folder."""

    def make(settings: dict[str, Any]) -> Any:
        from flows.compare_interpretability import compare_interpretability
        from flows.plan import make_plan

        monkeypatch.setenv("SAEINTERP_ROOT", str(tmp_path / "runs"))
        config = parse_config(CompareInterpretabilityConfig, settings)
        return make_plan(compare_interpretability, config, store=ArtifactStore())

    return make


def test_a_plan_counts_every_layer_position_seed_and_control(
    planned: Callable[[dict[str, Any]], Any], values: dict[str, Any], planted_folder: Path
) -> None:
    subject = {"model": str(planted_folder), "dtype": "float32"}
    values |= {"subject_a": subject, "subject_b": subject, "training_b": {"k": 2}, "seeds": [0, 1, 2]}
    values["corpus"]["training"] = 300
    plan = planned(values)
    kinds = [step.recipe.kind for step in plan.steps]
    # Two sides with three seeds, and the control with one for each K: two layers by two positions.
    assert kinds.count("sae") == (2 * 3 + 2) * 4
    assert kinds.count("enrichment") == 8
    assert kinds.count("activations") == 2
    sizes = [step.cost.size for step in plan.steps if step.recipe.kind == "activations"]
    assert sizes == [700 * 4 * (2 * 64 + 16)] * 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positions": {"select": "middle"}}, "positions.select.*none of all"),
        ({"positions": {"select": "all"}}, "pool"),
        ({"positions": {"select": "latent:6"}}, "needs thoughts"),
        ({"positions": {"select": "even:6@cot", "thoughts": {"feedback": "identity"}}}, "no continuous thoughts"),
        ({"concepts": {"grammar": "regex"}}, "pattern"),
        ({"concepts": {"grammar": "regex", "pattern": "("}}, "no regular expression"),
        ({"capture": {"source": "stream"}}, "stream"),
        ({"training": {"saes": {"layers.0": "x"}}}, "training.saes"),
        ({"seeds": [1, 1]}, "seeds"),
        ({"enrichment": {"presets": []}}, "presets"),
        ({"corpus": {"samples": 1}}, "samples"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_runs(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(CorrelateTokensConfig, changes)
