"""Training killed by SIGKILL at random points, from files and from the running model, by one process and by two."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from saeinterp.artifacts import Artifact, ArtifactStore, read_json
from saeinterp.config import CaptureConfig, CorpusConfig, CorpusSource, LaunchConfig, SubjectConfig, TrainingConfig
from saeinterp.sae import TrainedLayers, train_saes
from saeinterp.subject import build_corpus, collect_activations, prepare_subject

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self").exists(), reason="finds processes through /proc"),
]
FILES = ("cfg.json", "curves.parquet", "sae.safetensors", "training.json")
LAYERS = ("layers.1", "layers.2")
CONFIG = TrainingConfig(num_latents=32, k=2, epochs=12, batch_rows=128, dead_after_rows=2000, checkpoint_seconds=0.05)
CAPTURE = CaptureConfig(hookpoints=LAYERS, buffer_rows=1500, source="stream")


class Road:
    """A subject, its text, its activations, and how to train on them."""

    def __init__(self, folder: Path, planted_folder: Path, planted_corpus: Path) -> None:
        store = ArtifactStore(folder)
        self.subject = prepare_subject(SubjectConfig(model=str(planted_folder), dtype="float32"), store=store)
        corpus = CorpusConfig(sources=(CorpusSource(name=str(planted_corpus)),))
        self.corpus = build_corpus(self.subject, config=corpus, store=store)
        self.activations = collect_activations(
            self.subject, self.corpus, config=CAPTURE, splits=("train", "health"), store=store
        )
        self._folder = folder
        self._whole: dict[tuple[bool, int], dict[str, Artifact]] = {}

    def whole(self, *, stream: bool, processes: int) -> dict[str, Artifact]:
        """What an uninterrupted run makes."""
        key = stream, processes
        if key not in self._whole:
            store = ArtifactStore(self._folder / f"whole-{stream}-{processes}")
            saes, failures = self.train(store, stream=stream, processes=processes)
            assert not failures
            self._whole[key] = saes
        return self._whole[key]

    def train(self, store: ArtifactStore, *, stream: bool, processes: int) -> TrainedLayers:
        """Both layers together."""
        text = {"subject": self.subject, "corpus": self.corpus, "capture": CAPTURE, "device": "cpu"} if stream else {}
        return train_saes(
            self.activations,
            hookpoints=LAYERS,
            config=CONFIG,
            launch=LaunchConfig(threads=1, together=2, processes=processes),
            store=store,
            **text,  # type: ignore[arg-type]
        )


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory, planted_folder: Path, planted_corpus: Path) -> Road:
    return Road(tmp_path_factory.mktemp("road"), planted_folder, planted_corpus)


def contents(sae: Artifact) -> dict[str, bytes]:
    return {name: sae.file(name).read_bytes() for name in FILES}


def trainers(root: Path) -> list[int]:
    """Training processes and launchers whose job lies below `root`."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if b"job.json" in words and str(root).encode() in words:
            found.append(int(folder.name))
    return found


def wait_until(condition: Callable[[], object], *, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.005)


def newest(root: Path) -> float:
    """When the last checkpoint was written."""
    return max((path.stat().st_mtime for path in root.glob(".work/sae/*/checkpoints/step-*")), default=0.0)


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("stream", [False, True], ids=["cache", "stream"])
def test_killed_at_random_points_it_ends_with_the_same_bytes(
    road: Road, tmp_path: Path, stream: bool, processes: int
) -> None:
    whole = road.whole(stream=stream, processes=processes)
    source = random.Random(f"{stream} {processes}")
    store = ArtifactStore(tmp_path / "killed")
    resumed = 0

    def kill(before: float) -> None:
        wait_until(lambda: newest(store.root) > before)
        time.sleep(source.uniform(0, 0.4))
        pids = trainers(store.root)
        source.shuffle(pids)
        # Sometimes one of several, whose death must end the others too.
        for pid in pids[: source.choice([1, len(pids)])]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                assert not Path(f"/proc/{pid}").exists()

    for _ in range(2):
        killer = threading.Thread(target=kill, args=(newest(store.root),))
        killer.start()
        trained = road.train(store, stream=stream, processes=processes)
        killer.join()
        resumed += bool(trained.failures)
        assert not trainers(store.root), "a process was left behind"
    assert resumed, "nothing was killed in time"
    saes, failures = road.train(store, stream=stream, processes=processes)
    assert not failures
    for hookpoint in LAYERS:
        assert contents(saes[hookpoint]) == contents(whole[hookpoint])


def test_streamed_training_is_as_good_as_training_from_files(road: Road) -> None:
    for hookpoint in LAYERS:
        files, streamed = (
            read_json(road.whole(stream=stream, processes=1)[hookpoint].file("training.json"))
            for stream in (False, True)
        )
        assert streamed["fvu_heldout"] == pytest.approx(files["fvu_heldout"], abs=0.01)
        assert streamed["steps"] == pytest.approx(files["steps"], rel=0.05)
        assert streamed["rows_masked"]["position0"] == files["rows_masked"]["position0"]


@pytest.mark.parametrize("stream", [False, True], ids=["cache", "stream"])
def test_two_processes_end_where_one_does(road: Road, stream: bool) -> None:
    for hookpoint in LAYERS:
        one, two = (
            read_json(road.whole(stream=stream, processes=count)[hookpoint].file("training.json"))["fvu_heldout"]
            for count in (1, 2)
        )
        assert two == pytest.approx(one, abs=0.005)
