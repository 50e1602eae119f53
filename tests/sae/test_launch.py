"""The step as a user runs it: a real child process, killed, failing, timed out, orphaned, resumed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl
import pytest

from saeinterp.artifacts import Artifact, ArtifactStore
from saeinterp.config import LaunchConfig, TrainingConfig
from saeinterp.errors import ConfigError, DataError, TrainingError
from saeinterp.sae import TopKSae, TrainedLayers, launch_command, train_sae, train_sae_recipe, train_saes
from saeinterp.sae.rows import Rows
from saeinterp.subject import ActivationCache

CONFIG = TrainingConfig(num_latents=32, k=1, epochs=10, batch_rows=128, dead_after_rows=2000, checkpoint_seconds=0.02)
LAUNCH = LaunchConfig(threads=1)
FILES = ("cfg.json", "curves.parquet", "sae.safetensors", "training.json")
needs_proc = pytest.mark.skipif(not Path("/proc/self").exists(), reason="finds processes through /proc")


def directly(job: Path, launch: LaunchConfig) -> list[str]:
    """The training process without a launcher, which takes two seconds to start."""
    return [sys.executable, "-m", "saeinterp.sae.training", "--job", str(job)]


def train(activations: Artifact, store: ArtifactStore, **options: object) -> Artifact:
    arguments = {"hookpoint": "layers.1", "config": CONFIG, "launch": LAUNCH, "launcher": directly, **options}
    return train_sae(activations, store=store, **arguments)  # type: ignore[arg-type]


def contents(sae: Artifact) -> dict[str, bytes]:
    return {name: sae.file(name).read_bytes() for name in FILES}


def processes(root: Path) -> list[int]:
    """Processes whose command line names a job below `root`."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if b"job.json" in words and str(root).encode() in words:
            found.append(int(folder.name))
    return found


def wait_until(condition: Callable[[], object], *, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def checkpoints(root: Path) -> list[Path]:
    return sorted(root.glob(".work/sae/*/checkpoints/step-*.safetensors"))


@pytest.fixture(scope="module")
def trained(activations: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """What an uninterrupted run under `accelerate launch` makes."""
    store = ArtifactStore(tmp_path_factory.mktemp("trained"))
    return train(activations, store, launcher=launch_command)


def test_accelerate_launch_trains_an_sae_that_loads(trained: Artifact, activations: Artifact) -> None:
    sae = TopKSae.load(trained.path)
    summary = json.loads(trained.file("training.json").read_text())
    curves = pl.read_parquet(trained.file("curves.parquet"))
    assert (sae.num_latents, sae.k, sae.d_in) == (32, 1, 64)
    assert curves.columns == [
        "step", "rows_seen", "fvu_train", "fvu_heldout", "aux_loss", "l0", "dead", "revived", "lr"
    ]  # fmt: skip
    assert curves["fvu_heldout"][-1] == summary["fvu_heldout"] < 0.5 < curves["fvu_heldout"][0]
    assert curves["step"][-1] == summary["steps"] == summary["rows_seen"] // 128
    assert summary["rows_masked"]["position0"] > 0
    assert trained.counts()["rows"] == summary["rows"]
    assert pl.read_parquet(trained.file("timing.parquet")).columns == ["step", "seconds", "rows_per_second"]
    assert "timing.parquet" not in trained.manifest()["files"]


def test_the_recipe_ignores_what_only_changes_where_and_how_fast(activations: Artifact) -> None:
    def recipe(config: TrainingConfig = CONFIG, launch: LaunchConfig = LAUNCH, hookpoint: str = "layers.1") -> str:
        return train_sae_recipe(activations, hookpoint=hookpoint, config=config, launch=launch).hash

    assert recipe() == recipe(CONFIG.model_copy(update={"checkpoint_seconds": 9}))
    assert recipe() == recipe(launch=LAUNCH.model_copy(update={"timeout_minutes": 9, "parallel": 7, "memory_gb": 1}))
    different = {recipe(CONFIG.model_copy(update={"seed": 1})), recipe(hookpoint="layers.2")}
    assert recipe() not in different | {recipe(launch=LaunchConfig(threads=1, processes=2))}


def test_planning_does_not_load_torch() -> None:
    code = "import sys; from saeinterp.sae import train_sae_recipe; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_progress_counts_rows_up_to_the_end(activations: Artifact, store: ArtifactStore, trained: Artifact) -> None:
    seen: list[tuple[int, int, str]] = []
    sae = train(activations, store, progress=lambda *told: seen.append(told))
    done = [told[0] for told in seen]
    assert done == sorted(done)
    assert seen[-1] == (sae.counts()["rows_seen"], sae.counts()["rows_seen"], "rows")
    assert contents(sae) == contents(trained)  # the launcher changes nothing


@needs_proc
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_killed_at_random_points_it_ends_with_the_same_bytes(
    seed: int, activations: Artifact, store: ArtifactStore, trained: Artifact
) -> None:
    source = random.Random(seed)

    def kill() -> None:
        before = len(checkpoints(store.root)) and checkpoints(store.root)[-1]
        wait_until(lambda: checkpoints(store.root) and checkpoints(store.root)[-1] != before)
        time.sleep(source.uniform(0, 0.2))
        for pid in processes(store.root):
            os.kill(pid, signal.SIGKILL)

    for _ in range(1 + (seed == 3)):
        killer = threading.Thread(target=kill)
        killer.start()
        with pytest.raises(TrainingError, match=r"layers.1: the training process ended by signal 9"):
            train(activations, store)
        killer.join()
    assert checkpoints(store.root)
    assert contents(train(activations, store)) == contents(trained)
    assert not checkpoints(store.root)


def test_a_rehearsed_fault_fails_one_layer_and_a_retry_succeeds(
    activations: Artifact, store: ArtifactStore, trained: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAEINTERP_FAULT", "layers.1@5")
    with pytest.raises(TrainingError, match=r"layers.1: rehearsed failure before step 5"):
        train(activations, store)
    monkeypatch.delenv("SAEINTERP_FAULT")
    assert contents(train(activations, store)) == contents(trained)


def test_errors_of_the_child_keep_their_type_and_words(
    activations: Artifact, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = CONFIG.model_copy(update={"batch_rows": 10**6})
    with pytest.raises(DataError, match=r"split train: too few usable rows for one training batch.*batch_rows"):
        train(activations, store, config=few)
    with pytest.raises(ConfigError, match=r"no such hookpoint \(got 'layers.9'\)"):
        train(activations, store, hookpoint="layers.9")
    assert not (store.root / "sae").exists() or not list((store.root / "sae").iterdir())


def test_a_child_that_cannot_start_shows_its_last_lines(activations: Artifact, store: ArtifactStore) -> None:
    def broken(job: Path, launch: LaunchConfig) -> list[str]:
        return [sys.executable, "-c", "import sys; print('no such device'); sys.exit(7)"]

    with pytest.raises(TrainingError, match=r"ended with exit status 7; its last lines:\n    no such device\. Next"):
        train(activations, store, launcher=broken)


LONG = CONFIG.model_copy(update={"epochs": 10_000})


@needs_proc
def test_a_timeout_stops_the_child(activations: Artifact, store: ArtifactStore) -> None:
    with pytest.raises(TrainingError, match=r"longer than 0\.05 minutes.*goes on from the last checkpoint"):
        train(activations, store, config=LONG, launch=LaunchConfig(threads=1, timeout_minutes=0.05))
    assert not processes(store.root)


@needs_proc
def test_an_exception_in_the_callers_thread_stops_every_process(activations: Artifact, store: ArtifactStore) -> None:
    class Cancelled(BaseException):
        pass

    def cancel(done: int, total: int, what: str) -> None:
        if done:
            assert len(processes(store.root)) == 2  # the launcher and what it launched
            raise Cancelled

    config = LONG.model_copy(update={"checkpoint_seconds": 3600})
    with pytest.raises(Cancelled):
        train(activations, store, config=config, launcher=launch_command, progress=cancel)
    assert not processes(store.root)
    assert len(checkpoints(store.root)) == 1  # written on the way out


@pytest.fixture
def parent(activations: Artifact, store: ArtifactStore) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that trains for a long time under `accelerate launch`."""
    code = (
        "import sys; from pathlib import Path\n"
        "from saeinterp.artifacts import Artifact, ArtifactStore\n"
        "from saeinterp.config import LaunchConfig, TrainingConfig\n"
        "from saeinterp.sae import train_sae\n"
        "train_sae(Artifact.model_validate_json(sys.argv[1]), hookpoint='layers.1', launch=LaunchConfig(threads=1),\n"
        "    config=TrainingConfig.model_validate_json(sys.argv[2]), store=ArtifactStore(sys.argv[3]))\n"
    )
    arguments = [activations.model_dump_json(), LONG.model_dump_json(), str(store.root)]
    process = subprocess.Popen([sys.executable, "-c", code, *arguments])
    yield process
    process.kill()
    process.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_killing_the_parent_leaves_no_orphan(parent: subprocess.Popen[bytes], store: ArtifactStore) -> None:
    wait_until(lambda: checkpoints(store.root))
    assert len(processes(store.root)) >= 2
    parent.kill()
    parent.wait()
    wait_until(lambda: not processes(store.root), seconds=10)


def test_two_processes_do_what_one_does(activations: Artifact, store: ArtifactStore) -> None:
    """Rows are shared out, gradients summed by gloo: equal within rounding after 20 steps (float32 products)."""
    rows = len(Rows(ActivationCache.open(activations, "layers.1"), "train", memory_bytes=0))
    config = TrainingConfig(
        num_latents=32, k=1, batch_rows=rows // 20, epochs=1, lr=1e-3, dead_after_rows=1000, precision="float32"
    )
    saes = []
    for count in (1, 2):
        launch = LaunchConfig(processes=count, threads=1)
        sae = train(activations, store, config=config, launch=launch, launcher=launch_command)
        assert json.loads(sae.file("training.json").read_text())["processes"] == count
        saes.append((TopKSae.load(sae.path), sae.counts()["steps"]))
    (one, steps), (two, _) = saes
    assert steps == 20
    apart = {
        name: float((getattr(one, name) - getattr(two, name)).abs().max())
        for name in ("W_enc", "b_enc", "W_dec", "b_dec")
    }
    assert max(apart.values()) < 1e-5, apart


LAYERS = ("layers.1", "layers.2")
TOGETHER = LaunchConfig(threads=1, together=2)


def train_both(activations: Artifact, store: ArtifactStore, **options: object) -> TrainedLayers:
    arguments = {"hookpoints": LAYERS, "config": CONFIG, "launch": TOGETHER, "launcher": directly, **options}
    return train_saes(activations, store=store, **arguments)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def trained_second(activations: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The SAE of layers.2, trained alone."""
    return train(activations, ArtifactStore(tmp_path_factory.mktemp("second")), hookpoint="layers.2")


def test_layers_trained_together_have_the_bytes_of_layers_trained_alone(
    activations: Artifact, store: ArtifactStore, trained: Artifact, trained_second: Artifact
) -> None:
    seen: list[tuple[int, int, str]] = []
    saes, failures = train_both(activations, store, progress=lambda *told: seen.append(told))
    assert not failures
    assert contents(saes["layers.1"]) == contents(trained)
    assert contents(saes["layers.2"]) == contents(trained_second)
    total = sum(sae.counts()["rows_seen"] for sae in saes.values())
    assert seen[-1] == (total, total, "rows")
    # The recipes are those of layers trained alone.
    assert train(activations, store).path == saes["layers.1"].path


@pytest.mark.slow
@needs_proc
def test_layers_trained_together_resume_after_a_kill(
    activations: Artifact, store: ArtifactStore, trained: Artifact, trained_second: Artifact
) -> None:
    def kill() -> None:
        wait_until(lambda: len(checkpoints(store.root)) >= 3)
        for pid in processes(store.root):
            os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    saes, failures = train_both(activations, store)
    killer.join()
    assert set(saes) | set(failures) == set(LAYERS)
    assert all("ended by signal 9" in str(error) for error in failures.values())
    assert failures
    saes, failures = train_both(activations, store)
    assert not failures
    assert contents(saes["layers.1"]) == contents(trained)
    assert contents(saes["layers.2"]) == contents(trained_second)


def test_one_layer_of_several_fails_alone_and_is_resumed_alone(
    activations: Artifact,
    store: ArtifactStore,
    trained: Artifact,
    trained_second: Artifact,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SAEINTERP_FAULT", "layers.1@40")
    saes, failures = train_both(activations, store)
    assert list(failures) == ["layers.1"]
    assert "rehearsed failure before step 40" in str(failures["layers.1"])
    assert contents(saes["layers.2"]) == contents(trained_second)
    monkeypatch.delenv("SAEINTERP_FAULT")
    assert contents(train(activations, store)) == contents(trained)


@pytest.mark.slow
def test_overrides_give_a_layer_its_own_shape_and_recipe(
    activations: Artifact, store: ArtifactStore, trained: Artifact
) -> None:
    config = CONFIG.model_copy(update={"overrides": {"layers.2": {"num_latents": 24, "k": 2, "epochs": 3}}})
    saes, failures = train_both(activations, store, config=config)
    assert not failures
    other = TopKSae.load(saes["layers.2"].path)
    assert (other.num_latents, other.k) == (24, 2)
    assert contents(saes["layers.1"]) == contents(trained)  # untouched by what differs elsewhere


@pytest.mark.slow
def test_whole_saes_dealt_out_over_processes_are_those_of_one(
    activations: Artifact, store: ArtifactStore, trained: Artifact, trained_second: Artifact
) -> None:
    launch = LaunchConfig(threads=1, together=2, processes=2, spread="saes")
    saes, failures = train_both(activations, store, launch=launch, launcher=launch_command)
    assert not failures
    assert contents(saes["layers.1"]) == contents(trained)
    assert contents(saes["layers.2"]) == contents(trained_second)


def test_a_launcher_of_ones_own_must_start_the_configured_number_of_processes(
    activations: Artifact, store: ArtifactStore
) -> None:
    launch = LaunchConfig(threads=1, processes=2, command=(sys.executable,))
    words = r"launch.processes: the launcher started another number of processes.*got 1.*Expected 2"
    with pytest.raises(TrainingError, match=words):
        train(activations, store, launch=launch, launcher=launch_command)


@pytest.mark.slow
def test_a_changed_setting_meets_no_checkpoint_of_the_old_one(
    activations: Artifact, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another configuration is another artifact; only a checkpoint copied by hand is refused, by the field."""
    monkeypatch.setenv("SAEINTERP_FAULT", "layers.1@60")
    with pytest.raises(TrainingError, match="rehearsed"):
        train(activations, store)
    monkeypatch.delenv("SAEINTERP_FAULT")
    changed = CONFIG.model_copy(update={"lr": 0.03})
    old, new = (
        store.root / ".work" / train_sae_recipe(activations, hookpoint="layers.1", config=config, launch=LAUNCH).folder
        for config in (CONFIG, changed)
    )
    assert checkpoints(store.root)
    shutil.copytree(old / "checkpoints", new / "checkpoints")
    with pytest.raises(
        TrainingError, match=r"the checkpoint was made with another training.lr \(got 'empty'\). Expected 0.03"
    ):
        train(activations, store, config=changed)
