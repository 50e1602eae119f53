"""Every part of a lab killed in the middle, then what docs/how-to/failures.md says is done: nothing is lost.

After each, no process is left and the slots come free. Runs hold slots of eight pretend cards, so that what a killed
holder still has does not stop the next test; the last one waits until all are free.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import yaml
from explain.fake_vllm import write_python
from operations import TERMINAL, Operations, manifests
from processes import family, survivors

from tasks.cards import LEASE_SECONDS, SLOTS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(not Path("/proc").exists(), reason="finds orphans through /proc"),
]

CARDS = tuple(f"gpu-{number}" for number in range(8))
STOPPED = 40.0  # seconds from a cancellation until nothing runs
GONE = 20.0  # seconds that what a killed process had started lives on at most
HOLDS = r"holds gpu-(\d)"
ENTRYPOINT = "flows/train_saes.py:train_saes"


@pytest.fixture(scope="module")
def training(tiny_training: dict[str, Any]) -> dict[str, Any]:
    """Two layers at once, long enough to have a middle."""
    settings = {**tiny_training["training"], "epochs": 24, "checkpoint_seconds": 0.2}
    return {**tiny_training, "capture": {"hookpoints": ["layers.0", "layers.1"]}, "training": settings}


class Reference(NamedTuple):
    """An uninterrupted run."""

    root: Path
    files: dict[str, str]
    together: set[tuple[str, ...]]
    """Cards that were held at the same moment."""
    visible: dict[str, str]
    """`CUDA_VISIBLE_DEVICES` of each layer's training process."""
    held: dict[str, str]
    """Card of each task."""


@pytest.fixture(scope="module")
def reference(operations: Operations, training: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Reference:
    operations.make_limits(*CARDS, "vllm")
    root = tmp_path_factory.mktemp("uninterrupted")
    run = operations.submit(operations.deploy("train-saes", ENTRYPOINT, root=root, env={SLOTS: "2"}), training)
    seen: set[tuple[str, ...]] = set()
    visible: dict[str, str] = {}

    def look() -> bool:
        slots = operations.slots(*CARDS)
        assert max(slots.values()) <= 1
        seen.add(tuple(sorted(name for name, taken in slots.items() if taken)))
        visible.update(_visible(root))
        return operations.state(run)["type"] in TERMINAL

    operations.until(look, 280, lambda: operations.story(run))
    assert operations.state(run)["type"] == "COMPLETED", operations.story(run)
    measured = "measure-together subject"  # the last to take a card; lines of a log arrive a while later
    operations.until(lambda: measured in operations.task_lines(run, HOLDS), 60, lambda: operations.story(run))
    return Reference(root, manifests(root), seen, visible, operations.task_lines(run, HOLDS))


def test_a_flow_on_two_cards_uses_both_at_once_and_its_processes_see_theirs_alone(reference: Reference) -> None:
    assert ("gpu-0", "gpu-1") in reference.together
    layers = {name: reference.held[f"train-layer {name} subject"] for name in ("layers.0", "layers.1")}
    assert set(layers.values()) == {"0", "1"}
    assert reference.visible == layers
    # What computes in the flow's own process takes a card too, one at a time.
    assert {"capture-activations subject", "measure-together subject"} <= reference.held.keys()


class Case:
    """A run that trains in a folder where the activations are there already."""

    def __init__(self, operations: Operations, root: Path, reference: Reference, config: dict[str, Any]) -> None:
        self.operations, self.root, self.reference = operations, root, reference
        shutil.copytree(
            reference.root,
            root,
            ignore=shutil.ignore_patterns("sae", "health", "grades", "report", ".prefect", ".using"),
        )
        deployment = operations.deploy("train-saes", ENTRYPOINT, root=root, env={SLOTS: str(len(CARDS))})
        self._since = time.time()
        self.run = operations.submit(deployment, config)

    def retry(self) -> None:
        """Once no process of the last attempt runs."""
        self._since = time.time()
        self.operations.retry(self.run)

    def in_the_middle(self) -> list[psutil.Process]:
        """Wait for a checkpoint of this attempt; the flow's process and all below it."""
        trainer = self.operations.until(self._trainer, 240, lambda: self.operations.story(self.run))
        flow = next(item for item in trainer.parents() if "prefect.engine" in (item.cmdline() or []))
        return family(flow.pid)

    def _trainer(self) -> psutil.Process | None:
        """A process that trains, once one of this attempt has written a checkpoint."""
        kept = self.root.glob(".work/sae/*/checkpoints/*")
        if not any(path.stat().st_mtime > self._since for path in kept if path.exists()):
            return None
        return next((item for item in psutil.process_iter(["cmdline"]) if self._trains(item)), None)

    def _trains(self, process: psutil.Process) -> bool:
        line = process.info["cmdline"] or []
        return "saeinterp.sae.training" in line and any(item.startswith(str(self.root)) for item in line)


@pytest.fixture(scope="module")
def dead_machine(operations: Operations, reference: Reference, training: dict[str, Any], tmp_path_factory: Any) -> Case:
    """A run that dies with its worker, so that nobody is left to say so; it is looked at again in the end."""
    operations.make_zombie_automation(within=120)
    return Case(operations, tmp_path_factory.mktemp("machine") / "dead", reference, training)


def test_a_machine_that_dies_leaves_no_process(operations: Operations, dead_machine: Case) -> None:
    running = dead_machine.in_the_middle()
    assert operations.worker is not None
    operations.worker.kill()
    running[0].kill()
    operations.worker.wait()
    assert survivors(running, within=GONE) == []
    assert operations.state(dead_machine.run)["type"] == "RUNNING"
    assert any(operations.slots(*CARDS).values())
    operations.start_worker()


def test_one_run_cancelled_killed_and_left_without_its_server_ends_as_an_uninterrupted_one(
    operations: Operations, reference: Reference, training: dict[str, Any], tmp_path: Path
) -> None:
    """Each time it is in the middle of training, and goes on from where it was."""
    case = Case(operations, tmp_path / "unlucky", reference, training)

    running = case.in_the_middle()
    started = time.monotonic()
    operations.cancel(case.run)
    assert survivors(running, within=STOPPED) == []
    assert operations.wait(case.run, *TERMINAL, within=STOPPED)["type"] == "CANCELLED"
    assert time.monotonic() - started < STOPPED
    case.retry()

    running = case.in_the_middle()
    running[0].kill()
    assert survivors(running, within=GONE) == []
    assert operations.wait(case.run, *TERMINAL)["type"] == "CRASHED"
    case.retry()

    case.in_the_middle()
    assert operations.server is not None
    operations.server.kill()
    operations.server.wait()
    operations.start_server()
    assert operations.wait(case.run, *TERMINAL)["type"] == "COMPLETED", operations.story(case.run)
    assert manifests(case.root) == reference.files
    assert any("goes on from the checkpoint" in line for line in operations.logs(case.run))


def test_a_killed_worker_ends_its_runs_in_order_and_they_go_on_when_retried(
    operations: Operations, reference: Reference, training: dict[str, Any], tmp_path: Path
) -> None:
    case = Case(operations, tmp_path / "unattended", reference, training)
    running = case.in_the_middle()
    assert operations.worker is not None
    operations.worker.kill()
    operations.worker.wait()
    assert survivors(running, within=STOPPED) == []
    assert operations.wait(case.run, *TERMINAL)["type"] == "CRASHED"
    operations.start_worker()
    case.retry()
    assert operations.wait(case.run, *TERMINAL)["type"] == "COMPLETED", operations.story(case.run)
    assert manifests(case.root) == reference.files


def test_a_killed_rank_takes_the_others_with_it_and_its_layer_goes_on_when_retried(
    operations: Operations, training: dict[str, Any], reference: Reference, tmp_path: Path
) -> None:
    config = {**training, "launch": {"threads": 1, "processes": 2}, "capture": {"hookpoints": ["layers.0"]}}
    case = Case(operations, tmp_path / "ranks", reference, config)
    running = case.in_the_middle()
    ranks = [item for item in running if "saeinterp.sae.training" in item.cmdline() and _is_rank(item)]
    assert len(ranks) >= 2
    layer = re.search(r"/sae/(layers\.\d)-", " ".join(ranks[0].cmdline()))[1]  # type: ignore[index]
    ranks[0].kill()
    state = operations.wait(case.run, *TERMINAL)
    assert state["type"] == "FAILED", operations.story(case.run)
    assert state["message"].startswith(f"{layer} (subject) failed")
    assert survivors(running, within=GONE) == []
    case.retry()
    assert operations.wait(case.run, *TERMINAL)["type"] == "COMPLETED", operations.story(case.run)


def test_a_killed_vllm_and_a_cancelled_scoring_leave_no_server_and_lose_no_reply(
    operations: Operations, reference: Reference, planted_config: Path, planted_folder: Path, tmp_path: Path
) -> None:
    config: dict[str, Any] = yaml.safe_load(planted_config.read_text())
    model = shutil.copytree(planted_folder, tmp_path / "judge")
    serving = {"python": str(write_python(tmp_path)), "env": {"FAKE_DELAY": "0.05"}}
    llm = {"provider": "vllm", "model": str(model), "serving": serving, "concurrency": 2}
    config["capture"]["hookpoints"] = ["layers.1"]
    config["random_weights_control"] = False
    config["explainer_a"] = {"kind": "llm", "label": "served", "llm": llm, "logit_lens": False}
    config["scorer"] = {"llm": llm, "examples_per_prompt": 1}
    config["absorption"] = {"enabled": False}
    root = tmp_path / "scored"
    entrypoint = "flows/compare_explainers.py:compare_explainers"
    run = operations.submit(
        operations.deploy("compare-explainers", entrypoint, root=root, env={SLOTS: str(len(CARDS))}), config
    )

    def while_scoring() -> tuple[psutil.Process, list[psutil.Process]]:
        before = _replies(root)
        operations.until(lambda: _replies(root) > before + 20, 280, lambda: operations.story(run))
        server = next(item for item in psutil.process_iter(["cmdline"]) if _serves(item, model))
        flow = next(item for item in server.parents() if "prefect.engine" in item.cmdline())
        return server, family(flow.pid)

    server, running = while_scoring()
    assert operations.slots("vllm") == {"vllm": 1}
    server.kill()
    assert operations.wait(run, *TERMINAL)["type"] == "FAILED", operations.story(run)
    assert survivors(running, within=STOPPED) == []
    assert operations.slots("vllm") == {"vllm": 0}
    kept = _keys(root)

    operations.retry(run)
    _, running = while_scoring()
    operations.cancel(run)
    assert survivors(running, within=STOPPED) == []
    assert operations.wait(run, *TERMINAL, within=STOPPED)["type"] == "CANCELLED"
    operations.until(lambda: operations.slots("vllm") == {"vllm": 0}, 10, "the slot of the server is not free")

    operations.retry(run)
    assert operations.wait(run, *TERMINAL)["type"] == "COMPLETED", operations.story(run)
    # Nothing that had been answered was asked again.
    assert len(_keys(root)) == len(set(_keys(root)))
    assert set(kept) <= set(_keys(root))


def test_in_the_end_the_dead_machines_run_is_marked_crashed_and_every_slot_is_free(
    operations: Operations, dead_machine: Case
) -> None:
    """The leases of killed holders outlived a killed server, on disk, and ended by themselves."""
    dead_machine.operations.wait(dead_machine.run, "CRASHED", within=240)
    operations.until(
        lambda: not any(operations.slots().values()), LEASE_SECONDS + 60, lambda: f"held: {operations.slots()}"
    )


def _visible(root: Path) -> dict[str, str]:
    """Layer to the `CUDA_VISIBLE_DEVICES` of its running training process."""
    found = {}
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        match = re.search(r"/sae/(layers\.\d)-\w{8}/job\.json", line)
        if match and str(root) in line and "saeinterp.sae.training" in line:
            with contextlib.suppress(psutil.Error, KeyError):
                found[match[1]] = process.environ()["CUDA_VISIBLE_DEVICES"]
    return found


def _is_rank(process: psutil.Process) -> bool:
    """One that trains, not the launcher above it."""
    return "torch.distributed.run" not in process.cmdline()


def _serves(process: psutil.Process, model: Path) -> bool:
    line = process.info["cmdline"] or []
    return "vllm.entrypoints.openai.api_server" in line and str(model) in line and "saeinterp.supervisor" not in line


def _keys(root: Path) -> list[str]:
    lines = [line for path in (root / "llm-cache").glob("*.jsonl") for line in path.read_text().splitlines(True)]
    return [line.split('"')[3] for line in lines if line.endswith("\n")]


def _replies(root: Path) -> int:
    return len(_keys(root))
