"""The script of deployments/kubernetes/training-nodes.yaml on this machine: a pod is a shell, a node a torchrun."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from lab import ROOT, free_port
from processes import family, survivors

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
JOB = list(yaml.safe_load_all((ROOT / "deployments/kubernetes/training-nodes.yaml").read_text()))[1]
CONTAINER = JOB["spec"]["template"]["spec"]["containers"][0]
CALLS = "runs/.nodes/planted"


def _two_layers(training: dict[str, Any]) -> dict[str, Any]:
    return {**training, "capture": {"hookpoints": ["layers.0", "layers.1"]}}


@pytest.fixture
def pod(
    tmp_path: Path, tiny_training: dict[str, Any], prefect_url: str
) -> Iterator[Callable[[int], subprocess.Popen[bytes]]]:
    """Starts the pod of an index; two of them, with a process each, share the folder `runs`."""
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(_two_layers(tiny_training)))
    script = (
        CONTAINER["args"][0]
        .replace("/config/run.yaml", "run.yaml")
        .replace("launch.processes=16", "launch.processes=2")
    )
    # Several machines have several names; this one is both of them.
    script = script.replace("--nnodes=", "--local-addr=127.0.0.1, --nnodes=")
    values = {"NODES": "2", "CARDS": "1", "LEADER": f"127.0.0.1:{free_port()}", "CALLS": str(tmp_path / CALLS)}
    assert set(values) <= {item["name"] for item in CONTAINER["env"]}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "SAEINTERP"))}
    paths = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    own = {"SAEINTERP_ROOT": str(tmp_path / "runs"), "PREFECT_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    own["PREFECT_API_URL"] = prefect_url
    started: list[subprocess.Popen[bytes]] = []

    def start(index: int) -> subprocess.Popen[bytes]:
        with (tmp_path / f"pod-{index}.log").open("ab") as log:
            process = subprocess.Popen(
                [*CONTAINER["command"], script],
                cwd=tmp_path,
                env={**kept, **paths, **own, **values, "JOB_COMPLETION_INDEX": str(index)},
                stdout=log,
                stderr=log,
            )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            for item in reversed(family(process.pid)):
                item.kill()
            process.wait()


def _until(condition: Callable[[], Any], process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(2400):
        if condition():
            return
        assert process.poll() is None, log.read_text(errors="replace")
        time.sleep(0.1)
    raise AssertionError(log.read_text(errors="replace"))


def _ended(process: subprocess.Popen[bytes], log: Path) -> int:
    try:
        return process.wait(timeout=240)
    except subprocess.TimeoutExpired:
        raise AssertionError(log.read_text(errors="replace")[-6000:]) from None


def _weights(runs: Path) -> dict[str, str]:
    files = sorted(runs.glob("sae/*/sae.safetensors"))
    return {file.parent.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_two_nodes_of_which_one_is_replaced_train_what_two_processes_of_one_machine_train(
    pod: Callable[[int], subprocess.Popen[bytes]], tmp_path: Path, tiny_training: dict[str, Any], prefect_url: str
) -> None:
    calls = tmp_path / CALLS
    leader, log = pod(0), tmp_path / "pod-0.log"
    _until(lambda: list(calls.glob("call-*.json")), leader, log)
    training = [item for item in family(leader.pid) if "--rdzv-backend=c10d" in item.cmdline()]
    leader.send_signal(signal.SIGTERM)  # its node is drained
    assert _ended(leader, log) != 0
    assert training
    assert survivors(training, within=60) == []
    assert not (calls / "end.json").exists()

    leader = pod(0)
    follower = pod(1)  # it may come late
    assert _ended(leader, log) == 0, log.read_text()
    assert _ended(follower, tmp_path / "pod-1.log") == 0

    shutil.copytree(tmp_path / "runs", tmp_path / "alone", ignore=shutil.ignore_patterns("sae", ".nodes"))
    (tmp_path / "alone.yaml").write_text(yaml.safe_dump(_two_layers(tiny_training)))
    alone = ["run", "train-saes", "--config", "alone.yaml", "--root", "alone", "--set", "launch.processes=2"]
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", *alone],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PREFECT_HOME": str(tmp_path / "home"),
            "PREFECT_API_URL": prefect_url,
        },
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(_weights(tmp_path / "alone")) == 2
    assert _weights(tmp_path / "runs") == _weights(tmp_path / "alone")
