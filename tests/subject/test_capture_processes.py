"""Activations collected by several real processes: the bytes of one, killed and resumed or not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from saeinterp.artifacts import Artifact, ArtifactStore
from saeinterp.config import CaptureConfig, CorpusConfig, CorpusSource, Placement, SubjectConfig
from saeinterp.errors import CaptureError, ConfigError, DataError
from saeinterp.subject import (
    activations,
    build_corpus,
    capture_processes,
    collect_activations,
    collect_activations_recipe,
    prepare_subject,
    shards,
)
from saeinterp.subject.capture_processes import seats

needs_proc = pytest.mark.skipif(not Path("/proc/self").exists(), reason="finds processes through /proc")
# Small batches, so that a process is at work long enough to be killed in the middle.
TWO = CaptureConfig(hookpoints=("layers.0", "layers.2"), batch_contexts=1, processes=2)


@pytest.fixture(autouse=True)
def _many_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only planning looks at the size of a shard, and planning is the parent's."""
    monkeypatch.setattr(shards, "SHARD_ROWS", 800)


@pytest.fixture(scope="module")
def inputs(
    planted_folder: Path, planted_corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Artifact, Artifact]:
    """The planted subject and its corpus."""
    store = ArtifactStore(tmp_path_factory.mktemp("inputs"))
    subject = prepare_subject(SubjectConfig(model=str(planted_folder), dtype="float32"), store=store)
    config = CorpusConfig(sources=(CorpusSource(name=str(planted_corpus), limit=120),), context_length=32)
    return subject, build_corpus(subject, config=config, store=store)


@pytest.fixture(scope="module")
def whole(inputs: tuple[Artifact, Artifact], tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """What one process makes of it, undisturbed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SHARD_ROWS", 800)
        store = ArtifactStore(tmp_path_factory.mktemp("whole"))
        config = TWO.model_copy(update={"processes": 1})
        return collect_activations(*inputs, config=config, store=store, device="cpu")


def processes(root: Path) -> dict[str, int]:
    """Job file -> pid of the processes at work below `root`."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        found |= {Path(word).name: int(folder.name) for word in words if word.startswith(f"{root}/.work/activations/")}
    return found


def finished(root: Path) -> dict[str, int]:
    """Whole shards in the work folder, with the inode that tells whether one was written again."""
    return {
        str(path.relative_to(path.parent.parent)): path.stat().st_ino
        for path in root.glob(".work/activations/*/layers.*/*.parquet")
    }


def inodes(made: Artifact) -> dict[str, int]:
    return {str(path.relative_to(made.path)): path.stat().st_ino for path in made.path.glob("layers.*/*.parquet")}


def wait_until(condition: Callable[[], object], *, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.005)


def test_two_processes_make_the_bytes_of_one(
    inputs: tuple[Artifact, Artifact], whole: Artifact, store: ArtifactStore
) -> None:
    seen: list[tuple[int, int, str]] = []
    started: set[str] = set()

    def progress(*told: Any) -> None:
        started.update(processes(store.root))
        seen.append(told)

    made = collect_activations(*inputs, config=TWO, store=store, device="cpu", progress=progress)
    assert len(inodes(made)) > 20
    assert made.manifest()["files"] == whole.manifest()["files"]
    assert made.hash == whole.hash
    assert started == {"job-0.json", "job-1.json"}
    rows = made.counts()["rows"]
    assert seen[-1] == (rows, rows, "tokens")
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)


@pytest.mark.slow
@needs_proc
def test_after_one_process_is_killed_only_missing_shards_are_done_again(
    inputs: tuple[Artifact, Artifact], whole: Artifact, store: ArtifactStore
) -> None:
    def kill() -> None:
        wait_until(lambda: len(finished(store.root)) >= 4 and "job-1.json" in processes(store.root))
        os.kill(processes(store.root)["job-1.json"], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(CaptureError, match=r"process 1 of 2 ended by signal 9.*Next: run again: only missing shards"):
        collect_activations(*inputs, config=TWO, store=store, device="cpu")
    killer.join()
    assert not processes(store.root)  # the other one was stopped, too
    kept = finished(store.root)
    assert 4 <= len(kept) < len(inodes(whole))
    seen: list[int] = []
    made = collect_activations(
        *inputs, config=TWO, store=store, device="cpu", progress=lambda done, *_: seen.append(done)
    )
    assert made.manifest()["files"] == whole.manifest()["files"]
    assert kept.items() <= inodes(made).items()
    assert seen[0] > 0  # it goes on from what was there


@pytest.fixture
def parent(inputs: tuple[Artifact, Artifact], store: ArtifactStore) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that collects with two processes of its own."""
    code = (
        "import sys\n"
        "from saeinterp.artifacts import Artifact, ArtifactStore\n"
        "from saeinterp.config import CaptureConfig\n"
        "from saeinterp.subject import collect_activations, shards\n"
        "import torch; torch.set_num_threads(1)\n"
        "shards.SHARD_ROWS = 800\n"
        "subject, corpus = (Artifact.model_validate_json(text) for text in sys.argv[1:3])\n"
        "collect_activations(subject, corpus, config=CaptureConfig.model_validate_json(sys.argv[3]),\n"
        "    store=ArtifactStore(sys.argv[4]), device='cpu')\n"
    )
    arguments = [*(item.model_dump_json() for item in inputs), TWO.model_dump_json(), str(store.root)]
    process = subprocess.Popen([sys.executable, "-c", code, *arguments])
    yield process
    process.kill()
    process.wait()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_when_the_parent_is_killed_no_process_is_left_and_any_number_goes_on(
    parent: subprocess.Popen[bytes], inputs: tuple[Artifact, Artifact], whole: Artifact, store: ArtifactStore
) -> None:
    wait_until(lambda: len(finished(store.root)) >= 4 and len(processes(store.root)) == 2)
    parent.kill()
    parent.wait()
    wait_until(lambda: not processes(store.root), seconds=10)
    kept = finished(store.root)
    assert len(kept) < len(inodes(whole))
    config = TWO.model_copy(update={"processes": 1})
    made = collect_activations(*inputs, config=config, store=store, device="cpu")
    assert made.manifest()["files"] == whole.manifest()["files"]
    assert kept.items() <= inodes(made).items()


@pytest.mark.slow
@needs_proc
def test_an_exception_in_the_callers_thread_stops_every_process(
    inputs: tuple[Artifact, Artifact], store: ArtifactStore
) -> None:
    class Cancelled(BaseException):
        pass

    def cancel(done: int, total: int, what: str) -> None:
        if done:
            assert processes(store.root)
            raise Cancelled

    with pytest.raises(Cancelled):
        collect_activations(*inputs, config=TWO, store=store, device="cpu", progress=cancel)
    assert not processes(store.root)


@pytest.mark.slow
def test_with_every_shard_there_no_process_is_started(
    inputs: tuple[Artifact, Artifact], whole: Artifact, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(activations, "summarise_rows", dies)
        with pytest.raises(KeyboardInterrupt):
            collect_activations(*inputs, config=TWO, store=store, device="cpu")

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(capture_processes, "run_child", never)
    made = collect_activations(*inputs, config=TWO, store=store, device="cpu")
    assert made.manifest()["files"] == whole.manifest()["files"]


@pytest.mark.slow
def test_errors_of_a_process_keep_their_type_and_words(
    inputs: tuple[Artifact, Artifact], planted_folder: Path, store: ArtifactStore, tmp_path: Path
) -> None:
    wrong = TWO.model_copy(update={"hookpoints": ("layers.7",)})
    with pytest.raises(ConfigError, match=r"layer 7 does not exist: the subject has 3 layers.*did you mean"):
        collect_activations(*inputs, config=wrong, store=store, device="cpu")
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in planted_folder.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    weights = load_file(broken / "model.safetensors")
    weights["model.embed_tokens.weight"] *= float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    subject = prepare_subject(SubjectConfig(model=str(broken), dtype="float32"), store=store)
    with pytest.raises(DataError, match=r"layers\.0: the subject produced NaN or infinite.*context \d+, document"):
        collect_activations(subject, inputs[1], config=TWO, store=store, device="cpu")


def test_a_process_that_cannot_start_shows_its_last_lines(
    inputs: tuple[Artifact, Artifact], store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture_processes, "_MODULE", "saeinterp.subject.no_such_module")
    with pytest.raises(CaptureError, match=r"ended with exit status 1; its last lines:\n.*no_such_module"):
        collect_activations(*inputs, config=TWO, store=store, device="cpu")


def test_how_many_processes_work_is_no_part_of_the_recipe(inputs: tuple[Artifact, Artifact]) -> None:
    recipes = {
        collect_activations_recipe(*inputs, config=TWO.model_copy(update={"processes": count})).hash for count in (1, 2)
    }
    assert len(recipes) == 1


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a machine with four would look to the parent, which only counts them."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)


@pytest.mark.usefixtures("four_gpus")
def test_gpus_are_shared_out() -> None:
    def visible(placement: Placement, count: int, environment: dict[str, str] | None = None) -> list[str | None]:
        return [seat.visible for seat in seats(placement, count, environment=environment or {})]

    spread = Placement(device_map="auto")
    assert visible(Placement(), 3) == ["0", "1", "2"]
    assert visible(Placement(device="cuda"), 2, {"CUDA_VISIBLE_DEVICES": "7,5,GPU-ab,1"}) == ["7", "5"]
    assert visible(spread, 2) == ["0,1", "2,3"]
    assert visible(spread, 2, {"CUDA_VISIBLE_DEVICES": "7,5,GPU-ab,1"}) == ["7,5", "GPU-ab,1"]
    assert visible(Placement(device="cuda:2"), 3) == [None] * 3  # all on the one that is named
    assert visible(Placement(device="cpu"), 2) == [None] * 2
    assert visible(Placement(device_map={"": "cpu"}), 2) == [None] * 2


@pytest.mark.usefixtures("four_gpus")
def test_gpus_that_do_not_go_round_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"processes: 4 GPUs cannot be shared out to 5.*at most 4.*cuda:0 all"):
        seats(Placement(), 5, environment={})
    with pytest.raises(ConfigError, match=r"4 GPUs cannot be shared out to 3 processes.*a divisor of 4"):
        seats(Placement(device_map="auto"), 3, environment={})
