"""The store: content-addressed, atomic, integrity-checked, safe under kills and races."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from saeinterp.artifacts import Artifact, ArtifactStore, Recipe, Workspace, write_json
from saeinterp.errors import ArtifactError, DamagedArtifactError


def recipe(**config: object) -> Recipe:
    return Recipe(kind="thing", name="demo", version=1, config=config)


def writer(text: str, calls: list[str] | None = None):
    def write(space: Workspace) -> None:
        if calls is not None:
            calls.append(text)
        (space.out / "data.txt").write_text(text)
        space.counts = {"letters": len(text)}

    return write


def test_the_same_recipe_is_built_once_and_found_again(store: ArtifactStore) -> None:
    calls: list[str] = []
    first = store.build(recipe(a=1), writer("hello", calls))
    second = store.build(recipe(a=1), writer("other", calls))
    assert first == second
    assert calls == ["hello"]
    assert first.counts() == {"letters": 5}
    assert store.build(recipe(a=2), writer("x")).path != first.path


def test_a_recipe_changes_with_configuration_version_and_inputs_but_not_with_key_order() -> None:
    base = Recipe(kind="thing", name="demo", version=1, config={"a": 1, "b": 2})
    assert base.hash == Recipe(kind="thing", name="renamed", version=1, config={"b": 2, "a": 1}).hash
    others = [
        Recipe(kind="thing", name="demo", version=2, config={"a": 1, "b": 2}),
        Recipe(kind="thing", name="demo", version=1, config={"a": 1, "b": 3}),
        Recipe(kind="thing", name="demo", version=1, config={"a": 1, "b": 2}, inputs=(base,)),
    ]
    assert len({base.hash, *(other.hash for other in others)}) == 4


def test_an_artifact_and_its_recipe_count_the_same_as_input(store: ArtifactStore) -> None:
    made = store.build(recipe(a=1), writer("hello"))
    downstream = [Recipe(kind="next", name="n", version=1, config={}, inputs=(ref,)) for ref in (made, recipe(a=1))]
    assert downstream[0].hash == downstream[1].hash


def test_a_failing_step_leaves_nothing_visible_and_no_scratch(store: ArtifactStore) -> None:
    def fail(space: Workspace) -> None:
        (space.out / "half.txt").write_text("half")
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        store.build(recipe(a=1), fail)
    assert store.find(recipe(a=1)) is None
    assert not list((store.root / ".scratch").iterdir())


def test_work_survives_a_failure_and_is_gone_after_success(store: ArtifactStore) -> None:
    seen: list[list[str]] = []

    def flaky(space: Workspace) -> None:
        seen.append(sorted(path.name for path in space.work.iterdir()))
        (space.work / "checkpoint").write_text("5")
        if len(seen) == 1:
            raise RuntimeError("killed")
        (space.out / "data.txt").write_text("done")

    with pytest.raises(RuntimeError):
        store.build(recipe(a=1), flaky)
    store.build(recipe(a=1), flaky)
    assert seen == [[], ["checkpoint"]]
    assert not (store.root / ".work" / recipe(a=1).folder).exists()


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "manifest"])
def test_damage_is_refused_by_name_and_mended_by_building_again(store: ArtifactStore, damage: str) -> None:
    made = store.build(recipe(a=1), writer("hello"))
    data = made.path / "data.txt"
    if damage == "flip":
        data.write_text("jello")
    elif damage == "truncate":
        data.write_text("hel")
    elif damage == "delete":
        data.unlink()
    else:
        (made.path / "manifest.json").write_text("{")
    with pytest.raises(DamagedArtifactError) as caught:
        ArtifactStore(store.root).find(recipe(a=1))
    assert made.path.name in str(caught.value)
    again = store.build(recipe(a=1), writer("hello"))
    assert data.read_text() == "hello"
    assert again == made
    assert len(list((store.root / ".damaged").iterdir())) == 1


def test_a_folder_without_manifest_is_invisible_and_not_clobbered_silently(store: ArtifactStore) -> None:
    folder = store.root / recipe(a=1).folder
    folder.mkdir(parents=True)
    (folder / "precious.txt").write_text("mine")
    assert store.find(recipe(a=1)) is None
    with pytest.raises(ArtifactError, match="cannot publish"):
        store.build(recipe(a=1), writer("hello"))
    assert (folder / "precious.txt").read_text() == "mine"


def test_a_root_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("not a folder")
    with pytest.raises(ArtifactError, match="SAEINTERP_ROOT") as caught:
        ArtifactStore(blocker / "runs").build(recipe(a=1), writer("hello"))
    assert "another folder" in str(caught.value)


SLOW_WRITER = """
import sys, time
from saeinterp.artifacts import ArtifactStore, Recipe
def write(space):
    (space.out / "data.txt").write_text("hello")
    print("writing", flush=True)
    time.sleep(float(sys.argv[2]))
    (space.out / "more.txt").write_text("world")
made = ArtifactStore(sys.argv[1]).build(Recipe(kind="thing", name="demo", version=1, config={"a": 1}), write)
print(made.path)
"""


def start(root: Path, seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SLOW_WRITER), str(root), str(seconds)], stdout=subprocess.PIPE, text=True
    )


def test_kill_nine_while_writing_leaves_nothing_visible_and_is_swept(store: ArtifactStore) -> None:
    process = start(store.root, 60)
    assert process.stdout is not None
    process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert store.find(recipe(a=1)) is None
    assert len(list((store.root / ".scratch").iterdir())) == 1
    store.build(recipe(a=1), writer("hello"))
    assert not list((store.root / ".scratch").iterdir())


def test_two_processes_that_build_one_recipe_at_once_both_end_well(store: ArtifactStore) -> None:
    both = [start(store.root, 1.0), start(store.root, 1.0)]
    results = [process.communicate(timeout=60)[0].splitlines() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert results[0][-1] == results[1][-1]
    found = store.find(recipe(a=1))
    assert isinstance(found, Artifact)
    assert (found.path / "more.txt").read_text() == "world"


def test_times_and_hosts_stay_out_of_checksums(store: ArtifactStore, tmp_path: Path) -> None:
    def write(space: Workspace) -> None:
        write_json(space.out / "result.json", {"b": 2, "a": 1})
        (space.out / "timing.parquet").write_text(str(time.time()))

    one = store.build(recipe(a=1), write).manifest()
    other = ArtifactStore(tmp_path / "elsewhere").build(recipe(a=1), write).manifest()
    assert list(one["files"]) == ["result.json"]
    assert json.dumps({**one, "made": None}) == json.dumps({**other, "made": None})


def test_nan_never_reaches_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "x.json", {"value": float("nan")})


def test_a_run_that_waited_for_another_has_a_work_folder_all_the_same(store: ArtifactStore) -> None:
    """The other one removes the folder when it is done, just before its lock goes."""
    folder = store.root / ".work" / recipe(a=1).folder
    folder.mkdir(parents=True)
    with (folder.parent / f"{folder.name}.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        done: list[Artifact] = []

        def write(space: Workspace) -> None:
            (space.work / "checkpoint").write_text("state")
            (space.out / "data.txt").write_text("made")

        waiting = threading.Thread(target=lambda: done.append(store.build(recipe(a=1), write)))
        waiting.start()
        time.sleep(0.07)  # it has tried once
        folder.rmdir()
    waiting.join(timeout=30)
    assert [item.counts() for item in done] == [{}]
