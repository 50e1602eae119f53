"""The whole road on a planted subject, through a real Prefect server and real HTTP."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import httpx
import polars as pl
import pytest
import yaml
from explain.oracle import Oracle

Cli = Callable[..., "CompletedProcess[str]"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One artifact folder for the story told by the tests below, in order."""
    return tmp_path_factory.mktemp("story")


def run(cli: Cli, config: Path, root: Path, *args: str, **env: str) -> CompletedProcess[str]:
    return cli("run", "compare-explainers", "--config", str(config), "--root", str(root), *args, **env)


def states_of_latest_run(url: str) -> dict[str, str]:
    """Task run name -> state name, from the server."""
    flow_run = httpx.post(f"{url}/flow_runs/filter", json={"limit": 1, "sort": "START_TIME_DESC"}).json()[0]
    query = {"flow_runs": {"id": {"any_": [flow_run["id"]]}}, "limit": 200}
    return {item["name"]: item["state_name"] for item in httpx.post(f"{url}/task_runs/filter", json=query).json()}


def report_folders(root: Path) -> list[Path]:
    return sorted((path.parent for path in (root / "report").glob("*/manifest.json")), key=lambda p: p.stat().st_mtime)


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


def test_a_layer_that_fails_fails_alone_and_the_report_names_it(
    cli: Cli, planted_config: Path, root: Path, prefect_url: str
) -> None:
    done = run(cli, planted_config, root, SAEINTERP_FAULT="layers.1@3")
    assert done.returncode == 1, done.stderr
    states = states_of_latest_run(prefect_url)
    assert states["train-layer layers.1 subject"] == "Failed"
    assert states["train-layer layers.2 subject"] == "Completed"
    assert states["score-explanations layers.2 oracle"] == "Completed"
    text = (report_folders(root)[-1] / "report.md").read_text()
    assert "layers.1" in text
    assert "training" in text
    assert "layers.1" in done.stderr


def test_running_again_runs_only_what_failed(cli: Cli, planted_config: Path, root: Path, prefect_url: str) -> None:
    done = run(cli, planted_config, root)
    assert done.returncode == 0, done.stderr
    again = {name for name, state in states_of_latest_run(prefect_url).items() if state != "Cached"}
    assert {name for name in again if "layers." in name} == {name for name in again if "layers.1" in name}
    assert {"train-layer layers.1 subject", "score-explanations layers.1 oracle"} <= again


def test_a_third_run_does_nothing_twice(
    cli: Cli, planted_config: Path, root: Path, prefect_url: str, oracle: Oracle
) -> None:
    before = oracle.requests
    done = run(cli, planted_config, root)
    assert done.returncode == 0, done.stderr
    assert set(states_of_latest_run(prefect_url).values()) == {"Cached"}
    assert oracle.requests == before


def test_the_oracle_recovers_the_planted_truth_and_permuted_explanations_do_not(root: Path) -> None:
    comparison = sorted((root / "explainer-comparison").glob("*/latents.parquet"), key=lambda p: p.stat().st_mtime)[-1]
    latents = pl.read_parquet(comparison)
    scored = latents.filter(pl.col("status_a") == "scored")
    assert scored.height >= 6
    assert scored["f1_a"].mean() >= 0.95
    permuted = scored["f1_permuted"].mean()
    empty = scored["f1_empty"].mean()
    assert permuted < 0.6
    assert abs(permuted - empty) < 0.6


def test_a_third_explainer_is_ranked_and_only_its_own_work_is_done(
    cli: Cli, planted_config: Path, root: Path, prefect_url: str, oracle: Oracle
) -> None:
    again = {
        "label": "oracle again",
        "logit_lens": False,
        "llm": {"provider": "openai", "model": "oracle", "base_url": oracle.url, "seed": 1},
    }
    more = ["--set", f"more_explainers=[{json.dumps(again)}]", "--set", "self_scored=true"]
    done = run(cli, planted_config, root, *more)
    assert done.returncode == 0, done.stderr
    made = {name for name, state in states_of_latest_run(prefect_url).items() if state != "Cached"}
    assert {name for name in made if name.startswith(("train", "measure", "freeze"))} == set()
    explained = {name for name in made if name.startswith("explain-latents")}
    assert explained == {f"explain-latents layers.{layer} oracle again" for layer in range(3)}
    assert len([name for name in made if name.startswith("compare-scores")]) == 3
    assert "rank-explainers oracle, top-tokens and oracle again" in made
    pairs = read(next((root / "explainer-pairs").glob("*")), "pairs.json")
    ranks = {item["title"]: item["rank"] for item in pairs["ranking"]}
    assert set(ranks) == {"oracle", "oracle again", "top-tokens"}
    assert ranks["oracle"] == ranks["oracle again"] == 1
    verdicts = {(item["title_a"], item["title_b"]): item["verdict"] for item in pairs["pairs"]}
    assert verdicts["oracle", "oracle again"] == "equivalent"
    comparison = read(root / "explainer-comparison" / pairs["pairs"][0]["comparison"].split("/")[-1], "comparison.json")
    assert (comparison["self_scored"], comparison["pairs"], comparison["matched"]) == (True, 3, True)
    text = (report_folders(root)[-1] / "report.md").read_text()
    assert text.index("### Ranking") < text.index("### Every pair") < text.index("### A and B")
    assert "Two things changed at once" in text


def test_a_second_scorer_judges_everything_and_leaves_the_first_as_it_was(
    cli: Cli, planted_config: Path, root: Path, prefect_url: str, oracle: Oracle
) -> None:
    llm = {"provider": "openai", "model": "oracle", "base_url": oracle.url, "max_tokens": 1}
    more = ["--set", f"second_scorer={json.dumps({'kind': 'fuzz', 'llm': llm})}"]
    planned = cli("plan", "compare-explainers", "--config", str(planted_config), "--root", str(root), *more)
    assert "to make: 12 scores, 1 explainer-comparison, 1 scorer-agreement, 1 report" in planned.stdout
    assert "up to 960 LLM requests" in planned.stdout  # 4 x 3 layers, 20 latents of 18 examples, 5 to a request
    before = {path: path.read_bytes() for path in (root / "explainer-comparison").glob("*/comparison.json")}
    done = run(cli, planted_config, root, *more)
    assert done.returncode == 0, done.stderr
    made = {name for name, state in states_of_latest_run(prefect_url).items() if state != "Cached"}
    judged = {name for name in made if name.startswith("score-explanations")}
    assert len(judged) == 12
    assert all(name.endswith(", second scorer") for name in judged)
    assert not [name for name in made if name.startswith(("train", "explain", "make-control", "freeze"))]
    assert {path: path.read_bytes() for path in before} == before
    found = read(next((root / "scorer-agreement").glob("*")), "scorers.json")
    assert (found["scorer"], found["second_scorer"]) == ("oracle (detection)", "oracle (fuzz)")
    (pair,) = found["pairs"]
    assert pair["second"]["paired"]["mean_a"] > 0.95
    assert all(row["ok"] for row in found["comparability"] if row["severity"] == "hard")
    text = (report_folders(root)[-1] / "report.md").read_text()
    assert "### Second scorer" in text
    assert found["sentences"][0]["text"].split(": ")[0] in text


def test_one_explainer_is_set_against_its_controls_by_both_scorers(
    cli: Cli, planted_config: Path, root: Path, prefect_url: str, oracle: Oracle, tmp_path: Path
) -> None:
    config = yaml.safe_load(planted_config.read_text())
    config["explainer"] = config.pop("explainer_a")
    del config["explainer_b"]
    config["second_scorer"] = {"kind": "fuzz", "llm": config["scorer"]["llm"]}
    path = tmp_path / "one.yaml"
    path.write_text(yaml.safe_dump(config))
    before = oracle.requests
    done = cli("run", "explain-features", "--config", str(path), "--root", str(root))
    assert done.returncode == 0, done.stderr
    assert oracle.requests == before  # all of it was asked for above
    made = {name for name, state in states_of_latest_run(prefect_url).items() if state != "Cached"}
    assert {name for name in made if name.startswith("compare-scores")} == {
        "compare-scores against controls",
        "compare-scores against controls, second scorer",
    }
    results = read(report_folders(root)[-1], "results.json")
    assert [side["title"] for side in results["explainers"]["sides"]] == ["empty", "oracle"]
    (pair,) = results["scorers"]["pairs"]
    assert [item["verdict"] for item in pair["judged"]] == ["different", "different"]
    assert pair["same_sign"]


def test_several_explanations_per_latent_are_planned_scored_and_split(
    cli: Cli, planted_config: Path, root: Path, prefect_url: str
) -> None:
    more = ["--set", "explainer_a.samples=2", "--set", "explainer_a.llm.temperature=0.5"]
    planned = cli("plan", "compare-explainers", "--config", str(planted_config), "--root", str(root), *more)
    lines = [line for line in planned.stdout.splitlines() if line.startswith("to do")]
    asked = [re.search(r"(\w+)/.* about ([\d,]+) LLM requests", line) for line in lines]
    found = {(match[1], match[2]) for match in asked if match}
    # 20 latents twice; 18 examples of each, 5 to a request; controls are made of the first explanation alone.
    assert found == {("explanations", "40"), ("scores", "160"), ("scores", "80")}
    done = run(cli, planted_config, root, *more)
    assert done.returncode == 0, done.stderr
    results = read(report_folders(root)[-1], "results.json")
    rows = {(row["explainer"], row["hookpoint"]): row for row in results["variance"]}
    assert set(rows) == {("oracle", f"layers.{layer}") for layer in range(3)}
    # The oracle says the same whatever the seed.
    assert {row["sampling"]["value"] for row in rows.values()} == {0.0}
    assert {row["sampling"]["n"] for row in rows.values()} == {2}
    text = (report_folders(root)[-1] / "report.md").read_text()
    assert "### Several explanations per latent" in text


def test_a_simulation_is_compared_by_its_correlation(
    cli: Cli, planted_config: Path, root: Path, prefect_url: str
) -> None:
    done = run(cli, planted_config, root, "--set", "scorer.kind=simulation", "--set", "comparison.metric=correlation")
    assert done.returncode == 0, done.stderr
    made = {name for name, state in states_of_latest_run(prefect_url).items() if state != "Cached"}
    assert not [name for name in made if name.startswith(("train", "explain"))]
    stored = (root / "explainer-comparison").glob("*/comparison.json")
    folder = max(stored, key=lambda path: path.stat().st_mtime).parent
    found = read(folder, "comparison.json")
    assert found["metric"] == "correlation"
    assert found["primary"]["mean_a"] > 0.999
    assert found["primary"]["n"] == found["n_latents"] == found["n_scored"]
    latents = pl.read_parquet(folder / "latents.parquet").filter(status_a="scored")
    assert latents["correlation_empty"].to_list() == [0.0] * latents.height
    assert {item["name"]: item["mean"] for item in found["controls"]}["empty"] == 0
    text = (report_folders(root)[-1] / "report.md").read_text()
    assert found["sentence"] in text
    assert "Windows predicted: " in text
    assert "Usable verdicts" not in text
    assert "per-latent correlation, averaged over latents" in found["sentence"]


def test_the_report_lists_every_layer_and_its_files_are_there(root: Path) -> None:
    folder = report_folders(root)[-1]
    for name in ("report.html", "report.md", "results.json"):
        assert (folder / name).stat().st_size > 1000
    assert list((folder / "tables").glob("*.parquet"))
    text = (folder / "report.md").read_text()
    for layer in ("layers.0", "layers.1", "layers.2"):
        assert layer in text


def test_prefect_shows_summary_link_and_table(prefect_url: str, root: Path) -> None:
    items = httpx.post(f"{prefect_url}/artifacts/latest/filter", json={"limit": 50}).json()
    kinds = {item["key"]: item["type"] for item in items}
    assert kinds["compare-explainers-summary"] == "markdown"
    assert kinds["compare-explainers-layers"] == "table"
    link = next(item for item in items if item["key"] == "compare-explainers-report")
    assert "report.html" in str(link["data"])


def test_a_damaged_artifact_is_made_again_not_reported_cached(
    cli: Cli, planted_config: Path, root: Path, prefect_url: str
) -> None:
    folder = next(path.parent for path in (root / "sae").glob("*layers.2*/sae.safetensors"))
    good = (folder / "sae.safetensors").read_bytes()
    (folder / "sae.safetensors").write_bytes(good[:-1] + b"x")
    done = run(cli, planted_config, root)
    assert done.returncode == 0, done.stderr
    assert (folder / "sae.safetensors").read_bytes() == good
    remade = [name for name, state in states_of_latest_run(prefect_url).items() if state == "Completed"]
    assert any(name.startswith("train-layer layers.2") for name in remade)


def test_an_artifact_folder_that_was_moved_is_found_whole(
    cli: Cli, planted_config: Path, root: Path, tmp_path: Path, oracle: Oracle
) -> None:
    before = oracle.requests
    moved = tmp_path / "moved"
    shutil.move(root, moved)
    try:
        done = run(cli, planted_config, moved)
    finally:
        shutil.move(moved, root)
    assert done.returncode == 0, done.stderr
    assert str(moved) in done.stdout
    assert oracle.requests == before


def test_the_plan_of_a_finished_run_has_nothing_to_do(cli: Cli, planted_config: Path, root: Path) -> None:
    done = cli("plan", "compare-explainers", "--config", str(planted_config), "--root", str(root))
    assert done.returncode == 0, done.stderr
    assert "to do" not in done.stdout.replace("0 of", "").split("steps to do")[0]
    assert "0 of " in done.stdout


def test_a_plan_on_an_empty_folder_writes_nothing(cli: Cli, planted_config: Path, tmp_path: Path) -> None:
    done = cli("plan", "compare-explainers", "--config", str(planted_config), "--root", str(tmp_path / "empty"))
    assert done.returncode == 0, done.stderr
    assert "LLM requests" in done.stdout
    assert not (tmp_path / "empty").exists()


def test_the_secret_key_is_written_nowhere(root: Path) -> None:
    holders = [path for path in root.rglob("*") if path.is_file() and b"sk-planted-secret" in path.read_bytes()]
    assert holders == []
