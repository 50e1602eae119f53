"""Clean-ups: what kept reports need stays, what runs use stays, a kill leaves nothing half-removed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest

from saeinterp.artifacts import MANIFEST, ArtifactStore
from saeinterp.errors import ArtifactError, ConfigError
from saeinterp.holding import hold
from saeinterp.inventory import take_inventory
from saeinterp.keeping import Rules, plan_clean_up, plan_removal, remove

NOW = Rules(older_than=timedelta(0), keep_reports=100)
"""All reports are kept, and nothing is left for being young."""

BUILD = """
import json, sys
from saeinterp.artifacts import ArtifactStore, Recipe
store = ArtifactStore(sys.argv[1])
made = {}
for kind, name, inputs in json.loads(sys.argv[2]):
    recipe = Recipe(kind=kind, name=name, version=1, config={"name": name}, inputs=tuple(made[item] for item in inputs))
    def write(space):
        (space.out / "data.txt").write_text(name * 100)
    made[f"{kind}/{name}"] = store.build(recipe, write)
print(json.dumps({key: item.id for key, item in made.items()}), flush=True)
if sys.argv[3] == "stay":
    sys.stdin.read()
"""
GRAPH = [
    ["corpus", "text", []],
    ["activations", "wide", ["corpus/text"]],
    ["sae", "layers.1", ["activations/wide"]],
    ["sae", "layers.2", ["activations/wide"]],
    ["report", "old", ["sae/layers.1"]],
    ["activations", "orphan", ["corpus/text"]],
]


def start(store: ArtifactStore, graph: list[list[object]] = GRAPH, *, then: str = "leave") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(BUILD), str(store.root), json.dumps(graph), then]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def ids(store: ArtifactStore) -> dict[str, str]:
    """A small lineage, made by a process that has ended."""
    with start(store) as process:
        assert process.stdout is not None
        return json.loads(process.stdout.readline())


@pytest.fixture
def staying(store: ArtifactStore) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Processes that use the whole lineage, for as long as the test lasts."""
    started: list[subprocess.Popen[str]] = []

    def begin() -> subprocess.Popen[str]:
        process = start(store, then="stay")
        started.append(process)
        assert process.stdout is not None
        process.stdout.readline()
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def names(store: ArtifactStore) -> set[str]:
    return set(take_inventory(store).artifacts)


def going(store: ArtifactStore, rules: Rules) -> set[str]:
    return {item.what for item in plan_clean_up(store, rules)}


def test_sizes_come_from_manifests_and_are_those_of_the_files(store: ArtifactStore, ids: dict[str, str]) -> None:
    item = take_inventory(store).artifacts[ids["sae/layers.1"]]
    assert item.bytes == sum(path.stat().st_size for path in item.artifact.path.iterdir())
    (item.artifact.path / "data.txt").unlink()
    assert take_inventory(store).artifacts[item.id].bytes == item.bytes


def test_a_clean_up_removes_what_no_report_was_made_from(store: ArtifactStore, ids: dict[str, str]) -> None:
    planned = plan_clean_up(store, NOW)
    assert {item.what for item in planned} == {ids["sae/layers.2"], ids["activations/orphan"]}
    gone = [store.root / item.what for item in planned]
    assert sum(item.bytes for item in planned) == sum(file.stat().st_size for path in gone for file in path.rglob("*"))
    assert remove(store, planned, lambda: plan_clean_up(store, NOW)) == planned
    assert names(store) == {ids[key] for key in ("corpus/text", "activations/wide", "sae/layers.1", "report/old")}
    assert not any(path.exists() for path in gone)
    assert list((store.root / ".trash").iterdir()) == []


def test_what_an_interrupted_run_could_go_on_with_is_left_for_a_day(store: ArtifactStore, ids: dict[str, str]) -> None:
    assert going(store, Rules()) == set()
    _age(store, ids["activations/orphan"], hours=25)
    assert going(store, Rules()) == {ids["activations/orphan"]}
    assert going(store, Rules(older_than=timedelta(days=30))) == set()


def test_reports_go_by_number_or_by_age(store: ArtifactStore, ids: dict[str, str]) -> None:
    with start(store, [["corpus", "other", []], ["report", "new", ["corpus/other"]]]) as process:
        process.communicate()
    for name in names(store):
        if "new" not in name and "other" not in name:
            _age(store, name, hours=48)
    everything = set(ids.values())
    assert going(store, Rules(keep_reports=1)) == everything
    assert going(store, Rules(keep_reports=2)) == {ids["sae/layers.2"], ids["activations/orphan"]}
    assert going(store, Rules(older_than=timedelta(hours=36))) == everything
    # Either of the two keeps a report.
    assert ids["report/old"] not in going(store, Rules(keep_reports=2, older_than=timedelta(hours=36)))
    assert going(store, Rules(keep_reports=1, keep=(ids["report/old"], "activations"))) == {ids["sae/layers.2"]}


def test_what_a_running_process_uses_stays_and_is_free_once_it_is_killed(
    store: ArtifactStore, ids: dict[str, str], staying: Callable[[], subprocess.Popen[str]]
) -> None:
    process = staying()
    assert going(store, NOW) == set()
    with pytest.raises(ArtifactError, match="a running process uses it"):
        plan_removal(store, [ids["activations/orphan"]], force=True)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert going(store, NOW) == {ids["sae/layers.2"], ids["activations/orphan"]}


def test_a_run_that_starts_after_the_plan_was_shown_keeps_what_it_uses(
    store: ArtifactStore, ids: dict[str, str], staying: Callable[[], subprocess.Popen[str]]
) -> None:
    agreed = plan_clean_up(store, NOW)
    staying()
    assert remove(store, agreed, lambda: plan_clean_up(store, NOW)) == []
    assert names(store) == set(ids.values())


def test_removing_by_name_refuses_what_others_were_made_from(store: ArtifactStore, ids: dict[str, str]) -> None:
    wide = ids["activations/wide"]
    with pytest.raises(ArtifactError, match="2 others were made from it") as caught:
        plan_removal(store, [wide])
    assert ids["report/old"] in str(caught.value)
    assert "--force" in str(caught.value)
    (planned,) = plan_removal(store, [wide], force=True)
    assert planned.path == store.root / wide
    both = plan_removal(store, [ids["report/old"], str(store.root / ids["sae/layers.1"])])
    assert {item.what for item in both} == {ids["report/old"], ids["sae/layers.1"]}
    with pytest.raises(ConfigError, match=r"such as sae/layers\.1"):
        plan_removal(store, ["sae/layers.1"])


def test_leftovers_of_killed_steps_go_and_those_of_running_ones_stay(store: ArtifactStore, ids: dict[str, str]) -> None:
    code = """
    import sys, time
    from saeinterp.artifacts import ArtifactStore, Recipe
    with ArtifactStore(sys.argv[1]).open(Recipe(kind="thing", name="demo", version=1, config={})) as build:
        (build.space.out / "half").write_text("half")
        (build.space.work / "checkpoint").write_text("5")
        print("writing", flush=True)
        time.sleep(600)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(store.root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        left = {ids["sae/layers.2"], ids["activations/orphan"]}
        assert going(store, NOW) == left
        process.kill()
    more = {name.split("/")[0] for name in going(store, NOW) - left}
    assert more == {".scratch", ".work"}
    assert {name for name in going(store, Rules()) if name.startswith(".work")} == set()
    planned = plan_clean_up(store, NOW)
    remove(store, planned, lambda: plan_clean_up(store, NOW))
    assert list((store.root / ".scratch").iterdir()) == []
    assert [path for path in (store.root / ".work").rglob("*") if path.is_file() and path.suffix != ".lock"] == []


def test_a_clean_up_killed_while_deleting_leaves_nothing_half_and_the_next_one_ends_it(
    store: ArtifactStore, ids: dict[str, str]
) -> None:
    code = """
    import sys, time, shutil
    from saeinterp import keeping
    from saeinterp.artifacts import ArtifactStore
    store = ArtifactStore(sys.argv[1])
    rules = keeping.Rules(older_than=keeping.timedelta(0), keep_reports=100)
    def stuck(path):
        next(path.iterdir()).unlink()
        print("deleting", flush=True)
        time.sleep(600)
    shutil.rmtree = stuck
    keeping.remove(store, keeping.plan_clean_up(store, rules), lambda: keeping.plan_clean_up(store, rules))
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(store.root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "deleting\n"
        process.kill()
    assert names(store) == {ids[key] for key in ("corpus/text", "activations/wide", "sae/layers.1", "report/old")}
    for manifest in store.root.glob(f"[!.]*/*/{MANIFEST}"):
        assert (manifest.parent / "data.txt").exists()
    left = plan_clean_up(store, NOW)
    assert {item.what.split("/")[0] for item in left} == {".trash"}
    remove(store, left, lambda: plan_clean_up(store, NOW))
    assert list((store.root / ".trash").iterdir()) == []
    with start(store) as process:  # and what went is made again by whoever asks
        process.communicate()
    assert names(store) == set(ids.values())


def test_stored_replies_go_only_where_asked(store: ArtifactStore, ids: dict[str, str]) -> None:
    folder = store.root / "llm-cache"
    folder.mkdir()
    dead, own = (
        folder / f"{os.uname().nodename}-4194303-aa.jsonl",
        folder / f"{os.uname().nodename}-{os.getpid()}-b.jsonl",
    )
    for path in (dead, own):
        path.write_text("{}\n")
    assert not any(name.startswith("llm-cache") for name in going(store, NOW))
    assert {name for name in going(store, NOW._replace(replies=True)) if "/" in name and "llm" in name} == {
        f"llm-cache/{dead.name}"
    }


def test_an_unreadable_artifact_goes_and_one_that_a_report_needs_stops_the_clean_up(
    store: ArtifactStore, ids: dict[str, str]
) -> None:
    (store.root / ids["activations/orphan"] / MANIFEST).write_text("{")
    assert take_inventory(store).artifacts[ids["activations/orphan"]].problem == "unreadable manifest"
    assert ids["activations/orphan"] in going(store, NOW)
    # What it was made from would otherwise look as if nothing needed it.
    (store.root / ids["sae/layers.1"] / MANIFEST).write_text("{")
    with pytest.raises(ArtifactError, match=r"layers\.1.*run its flow again"):
        going(store, NOW)


def test_an_artifact_root_is_the_users_alone(store: ArtifactStore, ids: dict[str, str]) -> None:
    assert store.root.stat().st_mode & 0o777 == 0o700
    shutil.rmtree(store.root)
    store.root.mkdir(mode=0o755)
    with start(store) as process:
        process.communicate()
    assert store.root.stat().st_mode & 0o777 == 0o755  # whoever made it decided


def test_folders_of_other_programs_are_none_of_ours(store: ArtifactStore, ids: dict[str, str]) -> None:
    """`./runs` is a common name, and so is `manifest.json`."""
    folder = store.root / "webapp" / "dist"
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_text("{}")
    assert not any("webapp" in name for name in names(store) | going(store, NOW))


def test_the_checkpoint_of_a_task_that_waits_for_its_turn_stays(store: ArtifactStore, ids: dict[str, str]) -> None:
    """It has written down what it is about to make, and has not begun."""
    work = store.root / ".work" / "sae" / "layers.9-1a2b3c4d"
    work.mkdir(parents=True)
    (work / "step.safetensors").write_text("state")
    assert ".work/sae/layers.9-1a2b3c4d" in going(store, NOW)
    hold(store.root, ["sae/layers.9-1a2b3c4d"])
    assert ".work/sae/layers.9-1a2b3c4d" not in going(store, NOW)


def test_files_of_replies_that_are_not_ours_are_left_alone(store: ArtifactStore, ids: dict[str, str]) -> None:
    folder = store.root / "llm-cache"
    folder.mkdir(exist_ok=True)
    for name in ("merged.jsonl", "a-b-c.jsonl", "host-12-0a1b2c3d.jsonl"):
        (folder / name).write_text("{}\n")
    rules = Rules(older_than=timedelta(0), keep_reports=100, replies=True)
    assert {name for name in going(store, rules) if "llm-cache" in name} == {"llm-cache/host-12-0a1b2c3d.jsonl"}


def _age(store: ArtifactStore, name: str, *, hours: float) -> None:
    path = store.root / name / MANIFEST
    manifest = json.loads(path.read_text())
    manifest["made"]["at"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 3600 * hours))
    path.write_text(json.dumps(manifest))
