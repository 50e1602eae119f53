"""Lists, removals and clean-ups of a store in a bucket, and of its local mirror."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from s3 import Proxy, TestBucket, denying_writes

from saeinterp.artifacts import MANIFEST, Artifact, ArtifactStore, Recipe, Workspace
from saeinterp.artifacts.room import make_room
from saeinterp.inventory import take_inventory
from saeinterp.keeping import Rules, plan_clean_up, plan_removal, remove

Machine = Callable[[str], ArtifactStore]
ROOT = Path(__file__).resolve().parents[2]
OLD = timedelta(0)


def make(store: ArtifactStore, kind: str, name: str, size: int, *inputs: Artifact) -> Artifact:
    def write(space: Workspace) -> None:
        (space.out / "data.bin").write_bytes(b"x" * size)

    return store.build(Recipe(kind, name, 1, {"name": name}, inputs), write)


def graph(store: ArtifactStore) -> dict[str, Artifact]:
    wide = make(store, "activations", "wide", 5000)
    sae = make(store, "sae", "layers.1", 300, wide)
    made = [wide, sae, make(store, "report", "health", 40, sae), make(store, "sae", "layers.2", 2000, wide)]
    return {f"{item.kind}/{item.name}": item for item in made}


def cli(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows.cli", *args]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **env}, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=280, check=False,
    )  # fmt: skip


def payloads(store: ArtifactStore) -> list[str]:
    """Ids of what has files on this machine."""
    return sorted({path.parent.name for path in store.root.glob("[!.]*/*/data.bin")})


def test_a_machine_that_never_saw_the_store_lists_and_shows_it_without_fetching(
    machine: Machine, bucket: TestBucket, tmp_path: Path
) -> None:
    made = graph(machine("a"))
    done = cli("artifacts", "list", "--json", SAEINTERP_CACHE=str(tmp_path / "b"))
    assert done.returncode == 0, done.stderr
    listed = {item["id"]: item for item in json.loads(done.stdout)}
    assert sorted(listed) == sorted(item.id for item in made.values())
    wide = listed[made["activations/wide"].id]
    assert wide["path"] == f"{bucket.url}/{wide['id']}"
    assert wide["bytes"] > 5000
    assert len(wide["made_into"]) == 2
    assert payloads(machine("b")) == []
    shown = cli("artifacts", "show", made["sae/layers.1"].id, "--root", bucket.url)
    assert f"path        {bucket.url}/{made['sae/layers.1'].id}" in shown.stdout
    assert "data.bin 300 B" in shown.stdout


def test_what_is_removed_on_one_machine_is_gone_on_the_others(
    machine: Machine, bucket: TestBucket, tmp_path: Path
) -> None:
    made = graph(machine("a"))
    gone = made["sae/layers.2"].id
    done = cli("artifacts", "rm", gone, "--yes", "--root", bucket.url, SAEINTERP_CACHE=str(tmp_path / "c"))
    assert done.returncode == 0, done.stderr
    assert f"below {bucket.url}" in done.stdout
    assert not [key for key in bucket.listed() if key.startswith(gone)]
    assert gone not in take_inventory(machine("a")).artifacts
    assert not (machine("a").root / gone / MANIFEST).exists()
    assert len(take_inventory(machine("b")).artifacts) == 3


def test_an_artifact_that_others_were_made_from_is_not_removed_unasked(
    machine: Machine, bucket: TestBucket, tmp_path: Path
) -> None:
    made = graph(machine("a"))
    done = cli("artifacts", "rm", made["activations/wide"].id, "--yes", SAEINTERP_CACHE=str(tmp_path / "c"))
    assert done.returncode == 1
    assert "2 others were made from it" in " ".join(done.stderr.split())
    assert len(bucket.listed()) == 8


def test_a_clean_up_deletes_what_no_report_needs_and_what_uploads_left(machine: Machine, bucket: TestBucket) -> None:
    made = graph(machine("a"))
    bucket.write("sae/layers.9-12345678/0123456789abcdef/data.bin", b"of a killed upload")
    bucket.client.create_multipart_upload(Bucket=bucket.name, Key="runs/sae/layers.8-12345678/fedcba9876543210/big.bin")
    bucket.write("notes/mine.txt", b"not ours")
    bucket.write("mine/of-12345678/sub/folder.txt", b"not ours")
    store = machine("b")
    rules = Rules(older_than=OLD, keep_reports=1)
    planned = plan_clean_up(store, rules)
    assert {item.what for item in planned} == {
        made["sae/layers.2"].id,
        "sae/layers.9-12345678/0123456789abcdef",
        "sae/layers.8-12345678/fedcba9876543210",
    }
    fresh = {item.what for item in plan_clean_up(store, Rules())}
    # The server says of every upload in parts that it began years ago.
    assert fresh == {"sae/layers.8-12345678/fedcba9876543210"}, "within a day everything may still be needed"
    assert len(remove(store, planned, lambda: plan_clean_up(store, rules))) == 3
    left = {key.rsplit("/", 2)[0] for key in bucket.listed() if key.endswith("data.bin")}
    assert left == {made[name].id for name in ("activations/wide", "sae/layers.1", "report/health")}
    assert {"notes/mine.txt", "mine/of-12345678/sub/folder.txt"} <= set(bucket.listed())
    assert not bucket.client.list_multipart_uploads(Bucket=bucket.name).get("Uploads")


def test_what_a_running_process_of_this_machine_uses_stays(machine: Machine, tmp_path: Path) -> None:
    made = graph(machine("a"))
    code = "import sys; from saeinterp.artifacts import ArtifactStore; s = ArtifactStore()\n" \
        "for path in s.folders('sae'): s.named(dict(kind='sae', name=path.name[:-9], recipe=path.name[-8:])).path\n" \
        "print('using', flush=True); sys.stdin.read()"  # fmt: skip
    user = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "SAEINTERP_CACHE": str(tmp_path / "b")},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with user:
        assert user.stdout is not None
        assert user.stdout.readline() == "using\n"
        planned = plan_clean_up(machine("b"), Rules(older_than=OLD, keep_reports=0))
        assert [item.what for item in planned] == [made["report/health"].id]
    assert len(plan_clean_up(machine("b"), Rules(older_than=OLD, keep_reports=0))) == 4


def test_the_mirror_keeps_to_its_limit_and_drops_what_was_not_used_for_longest(
    machine: Machine, bucket: TestBucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = machine("a")
    made = [make(store, "thing", f"n{index}", 1_000_000) for index in range(4)]
    code = "import sys; from saeinterp.artifacts import ArtifactStore, Artifact\n" \
        "for text in sys.argv[1:]: Artifact.model_validate_json(text).path"  # fmt: skip
    machine("b")
    env = {**os.environ, "SAEINTERP_CACHE_LIMIT": "2.5 MB"}

    def read(*indices: int) -> None:
        for index in indices:  # a process each, since what a process uses stays for as long as it lives
            subprocess.run(
                [sys.executable, "-c", code, made[index].model_dump_json().replace(str(tmp_path / "a"), "/nowhere")],
                cwd=ROOT, env=env, check=True, timeout=200,
            )  # fmt: skip

    read(0, 1)
    for index, item in enumerate(made[:2]):  # at equal times nothing would follow
        os.utime(machine("b").root / ".fetched" / item.id, (index, index))
    read(0, 2)
    assert payloads(machine("b")) == sorted(made[index].path.name for index in (0, 2))
    read(3)
    assert len(payloads(machine("b"))) == 2
    assert made[3].path.name in payloads(machine("b"))
    assert len(list(machine("b").root.glob(f"thing/*/{MANIFEST}"))) == 4, "manifests stay"
    assert len(bucket.listed()) == 8, "the bucket loses nothing"


def test_what_a_process_uses_is_not_dropped_for_the_limit(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SAEINTERP_CACHE_LIMIT", "1MB")
    store = machine("a")
    made = [make(store, "thing", f"n{index}", 900_000) for index in range(3)]
    assert payloads(store) == sorted(item.path.name for item in made)
    assert "exceeds SAEINTERP_CACHE_LIMIT" in caplog.text


def test_what_was_never_sent_is_not_dropped_and_is_told_of_by_a_clean_up(
    machine: Machine, bucket: TestBucket, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAEINTERP_CACHE_LIMIT", "1kB")
    store = machine("a")
    make(store, "thing", "first", 10)
    proxy.rule = denying_writes
    with pytest.raises(Exception, match="denies"):
        make(store, "thing", "kept", 5000)
    make_room(store.root, 10**6)
    (waiting,) = [item for item in plan_clean_up(store, Rules(older_than=OLD)) if item.what.startswith(".outbox")]
    assert waiting.why == "made here, and never sent to the bucket"
    assert not [item for item in plan_clean_up(store, Rules()) if item.what.startswith(".outbox")]
    proxy.rule = lambda request: None
    made = make(store, "thing", "kept", 5000)
    assert made.file("data.bin").stat().st_size == 5000
    planned = plan_clean_up(store, Rules(older_than=OLD))
    assert not [item for item in planned if item.what.startswith(".outbox")]


def test_an_artifact_is_removed_by_id_alone(machine: Machine, bucket: TestBucket) -> None:
    """The process that asks holds nothing, and no manifest is left that names deleted files."""
    made = graph(machine("a"))
    store = machine("b")

    def plan() -> list:
        return plan_removal(store, [made["report/health"].id])

    assert len(remove(store, plan(), plan)) == 1
    assert not [key for key in bucket.listed() if key.startswith("report/")]


def test_doctor_tries_the_bucket(bucket: TestBucket, proxy: Proxy, tmp_path: Path) -> None:
    env = {"PREFECT_HOME": str(tmp_path / "prefect")}
    done = cli("doctor", **env)
    line = next(text for text in done.stdout.splitlines() if "object storage" in text)
    assert line == f"ok       object storage: {bucket.url} can be listed, read, written and cleaned"
    assert bucket.listed() == []
    proxy.rule = denying_writes
    done = cli("doctor", **env)
    assert done.returncode == 1
    assert f"problem  object storage: {bucket.url}: the bucket denies writing" in done.stdout
