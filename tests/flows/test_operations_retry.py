"""One layer of three fails; a retry, from the UI or from a terminal, runs that layer and what depends on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from operations import TERMINAL, Operations

pytestmark = pytest.mark.slow

FAILING = {"SAEINTERP_FAULT": "layers.1@20"}
AGAIN = {
    "train-layer layers.1 subject",
    "measure-health layers.1 subject",
    "grade-side subject",
    "render-report train-saes",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("retried")


@pytest.fixture(scope="module")
def deployment(operations: Operations, root: Path) -> str:
    return operations.deploy("train-saes", "flows/train_saes.py:train_saes", root=root, env=FAILING)


def fail(operations: Operations, deployment: str, config: dict[str, Any]) -> str:
    """A run of which layer 1 failed; the cause is then mended."""
    operations.set_env(deployment, **FAILING)
    run = operations.submit(deployment, config)
    state = operations.wait(run, *TERMINAL)
    assert state["type"] == "FAILED", operations.story(run)
    assert state["message"].startswith("layers.1 (subject) failed; the report holds the others.")
    operations.set_env(deployment, SAEINTERP_FAULT=None)
    return run


def check(operations: Operations, run: str) -> None:
    """The second attempt completed, and ran what had failed and what depends on it."""
    operations.until(lambda: any(task.attempt == 2 for task in operations.tasks(run)), 120, "nobody takes the retry")
    state = operations.wait(run, *TERMINAL)
    assert state["type"] == "COMPLETED", operations.story(run)
    second = [task for task in operations.tasks(run) if task.attempt == 2]
    assert {task.name for task in second if task.state == "Completed"} == AGAIN
    first = [task for task in operations.tasks(run) if task.attempt == 1]
    finished = {task.name for task in first if task.state in ("Completed", "Cached")}
    # What many layers share ran ahead of their tasks, in the first attempt alone.
    assert {task.name for task in second if task.state == "Cached"} == finished - AGAIN - {"measure-together subject"}


def test_retried_from_the_ui(operations: Operations, deployment: str, tiny_training: dict[str, Any]) -> None:
    run = fail(operations, deployment, tiny_training)
    # What its button sends.
    state = {"type": "SCHEDULED", "name": "AwaitingRetry", "message": "Retry from the UI"}
    operations.call("POST", f"/flow_runs/{run}/set_state", {"state": state, "force": True})
    check(operations, run)


def test_retried_from_a_terminal(operations: Operations, deployment: str, tiny_training: dict[str, Any]) -> None:
    # Another layer 1, so that the run above left nothing of it; the other layers are there.
    settings = {**tiny_training["training"], "overrides": {"layers.1": {"seed": 1}}}
    run = fail(operations, deployment, {**tiny_training, "training": settings})
    assert not any("cannot be resolved into an exception" in line for line in operations.logs(run))
    done = operations.prefect("flow-run", "retry", run)
    assert done.returncode == 0, done.stderr + done.stdout
    check(operations, run)
