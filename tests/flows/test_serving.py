"""Flows that serve their models: every model started once, only when it is needed, one at a time."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import psutil
import pytest
import yaml
from explain.fake_vllm import write_python
from processes import family, survivors

from flows.explaining import in_serving_order
from saeinterp.config import CompareExplainersConfig, ExplainerConfig, LLMConfig, ScorerConfig

ROOT = Path(__file__).resolve().parents[2]
Cli = Callable[..., "CompletedProcess[str]"]


slow = pytest.mark.slow  # every one runs a whole flow


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One artifact folder for the story told by the tests below, in order."""
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def served_config(tmp_path_factory: pytest.TempPathFactory, planted_config: Path, planted_folder: Path) -> Path:
    """The planted comparison with two explainers and a scorer on servers of the run's own."""
    folder = tmp_path_factory.mktemp("served-config")
    python = write_python(folder)
    config: dict[str, Any] = yaml.safe_load(planted_config.read_text())

    def llm(name: str, **options: object) -> dict[str, Any]:
        model = folder / name
        shutil.copytree(planted_folder, model, dirs_exist_ok=True)
        return {"provider": "vllm", "model": str(model), "serving": {"python": str(python)}, **options}

    config["capture"]["hookpoints"] = ["layers.1", "layers.2"]
    config["random_weights_control"] = False
    config["explainer_a"] = {"kind": "llm", "label": "first", "llm": llm("one"), "logit_lens": False}
    config["explainer_b"] = {"kind": "llm", "label": "second", "llm": llm("two"), "logit_lens": False}
    config["scorer"] = {"llm": llm("judge"), "examples_per_prompt": 1}
    path = folder / "served.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def run(cli: Cli, config: Path, root: Path, *args: str, **env: str) -> CompletedProcess[str]:
    return cli("run", "compare-explainers", "--config", str(config), "--root", str(root), *args, **env)


def started(root: Path) -> list[str]:
    """The models of the servers that were started, in order."""
    logs = sorted((root / "serving").glob("*.log"), key=lambda path: path.stat().st_ctime)
    return [re.split(r"-\d{8}T", path.name)[0] for path in logs]


@slow
def test_a_plan_names_the_servers_and_what_is_missing(cli: Cli, served_config: Path, root: Path) -> None:
    done = cli("plan", "compare-explainers", "--config", str(served_config), "--root", str(root))
    assert done.returncode == 0, done.stderr
    servers = re.findall(r"^server +vLLM for \S+/(\w+) is started", done.stdout, re.MULTILINE)
    assert servers == ["one", "two", "judge"]
    assert "missing" not in done.stdout
    done = cli(
        *("plan", "compare-explainers", "--config", str(served_config), "--root", str(root)),
        *("--set", "scorer.llm.serving.python=/nowhere/python"),
    )
    assert "missing  llm.serving.python: this Python does not run" in done.stdout


@slow
def test_a_second_scorer_that_explains_too_is_served_once(cli: Cli, served_config: Path, root: Path) -> None:
    llm = yaml.safe_load(served_config.read_text())["explainer_b"]["llm"]
    second = json.dumps({"llm": llm, "examples_per_prompt": 1})
    arguments = ("--config", str(served_config), "--root", str(root), "--set", f"second_scorer={second}")
    done = cli("plan", "compare-explainers", *arguments)
    assert done.returncode == 0, done.stderr
    servers = re.findall(r"^server +vLLM for \S+/(\w+) is started", done.stdout, re.MULTILINE)
    assert servers == ["one", "two", "judge"]
    assert "16 scores" in done.stdout  # two scorers, two layers, two explainers and two controls


@slow
def test_a_server_that_does_not_come_up_ends_the_run_with_a_next_step(
    cli: Cli, served_config: Path, root: Path
) -> None:
    failing = "explainer_b.llm.serving.env={FAKE_DIES: 'RuntimeError: CUDA out of memory'}"
    done = run(cli, served_config, root, "--set", failing)
    assert done.returncode == 1
    assert "CUDA out of memory" in done.stderr
    assert "Next: free the memory" in done.stderr
    assert started(root) == ["one", "two"]


@slow
def test_every_model_is_started_once_and_none_is_left_running(cli: Cli, served_config: Path, root: Path) -> None:
    done = run(cli, served_config, root)
    assert done.returncode == 0, done.stderr
    # A had answered before the run above ended.
    assert started(root)[2:] == ["two", "judge"]
    assert [item for item in psutil.process_iter(["cmdline"]) if str(served_config.parent) in _line(item)] == []
    (report,) = (root / "report").glob("*/results.json")
    assert json.loads(report.read_text())


@slow
def test_a_finished_run_starts_none(cli: Cli, served_config: Path, root: Path) -> None:
    before = started(root)
    done = run(cli, served_config, root)
    assert done.returncode == 0, done.stderr
    assert started(root) == before
    done = cli("plan", "compare-explainers", "--config", str(served_config), "--root", str(root))
    assert "server  " not in done.stdout


@slow
def test_a_server_that_dies_in_the_middle_fails_its_layers_and_a_second_run_completes(
    served_config: Path, root: Path, prefect_url: str, cli: Cli, tmp_path: Path
) -> None:
    changed = tmp_path / "changed.yaml"
    config = yaml.safe_load(served_config.read_text())
    config["explainer_a"]["llm"]["max_tokens"] = 47  # another recipe: explained and scored anew
    changed.write_text(yaml.safe_dump(config))
    known = set((root / "serving").glob("*.log"))
    kept = len(_replies(root))
    command = [sys.executable, "-m", "flows.cli", "run", "compare-explainers", "-c", str(changed), "--root", str(root)]
    env = {**os.environ, "PREFECT_API_URL": prefect_url}
    with subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 200
        while len(_replies(root)) < kept + 3:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        (log,) = set((root / "serving").glob("*.log")) - known
        os.kill(int(re.search(r"^PIDS (\d+)", log.read_text(), re.MULTILINE)[1]), signal.SIGKILL)  # type: ignore[index]
        _, text = process.communicate(timeout=200)
    assert process.returncode == 1
    assert "SIGKILL" in text
    assert str(log) in text
    had = _replies(root)
    done = run(cli, changed, root)
    assert done.returncode == 0, done.stderr
    now = _replies(root)
    assert now[: len(had)] == had
    # Nothing that had been answered was asked again.
    assert {item["key"] for item in had}.isdisjoint(item["key"] for item in now[len(had) :])


@slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="finds orphans through /proc")
def test_a_killed_flow_leaves_no_server(served_config: Path, prefect_url: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "flows.cli", "run", "compare-explainers", "-c", str(served_config)]
    command += ["--root", str(tmp_path / "root")]
    env = {**os.environ, "PREFECT_API_URL": prefect_url}
    with subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 200
        while not _replies(tmp_path / "root"):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        running = family(process.pid)
        assert any("api_server" in _line(item) for item in running)
        process.kill()
    assert survivors(running, within=60) == []


def _replies(root: Path) -> list[dict[str, Any]]:
    """The whole lines of the response cache, oldest file first."""
    files = sorted((root / "llm-cache").glob("*.jsonl"), key=lambda path: path.stat().st_mtime)
    lines = [line for path in files for line in path.read_text().splitlines(keepends=True)]
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def vllm(model: str) -> LLMConfig:
    return LLMConfig(provider="vllm", model=model)


def explainers(**models: str | None) -> dict[str, ExplainerConfig]:
    return {
        name: ExplainerConfig(kind="top-tokens") if model is None else ExplainerConfig(llm=vllm(model))
        for name, model in models.items()
    }


def judges(names: str, model: str) -> dict[str, ScorerConfig]:
    return dict.fromkeys(names, ScorerConfig(llm=vllm(model)))


def test_explainers_of_one_model_stand_together_and_those_whose_model_judges_come_last() -> None:
    given = explainers(a="large", b="small", c="large", d=None)
    assert in_serving_order(given, [judges("abcd", "other")]) == ["a", "c", "b", "d"]
    assert in_serving_order(given, [judges("abcd", "large")]) == ["b", "d", "a", "c"]
    assert in_serving_order(given, [judges("abcd", "other"), judges("abcd", "large")]) == ["b", "d", "a", "c"]
    own = {name: ScorerConfig(llm=item.llm) for name, item in given.items()}
    assert in_serving_order(given, [{**own, **judges("d", "small")}]) == ["a", "c", "d", "b"]


def test_servers_that_are_attached_keep_the_order_given() -> None:
    attached = LLMConfig(provider="openai", model="m", base_url="http://127.0.0.1:9/v1")
    config = CompareExplainersConfig(
        explainer_a=ExplainerConfig(label="x", llm=attached),
        explainer_b=ExplainerConfig(label="y", llm=attached),
        scorer=ScorerConfig(llm=attached),
    )
    assert in_serving_order(config.explainers, [dict.fromkeys("ab", config.scorer)]) == ["a", "b"]
