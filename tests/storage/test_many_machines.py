"""What machines and processes that share a bucket do to each other at bad moments, and what one bad object does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from s3 import DENIED, Proxy, Request, TestBucket

from saeinterp.artifacts import MANIFEST, Artifact, ArtifactStore, Recipe, Workspace
from saeinterp.artifacts import bucket as buckets
from saeinterp.artifacts.clearing import clear, remains
from saeinterp.artifacts.mirror import Mirror
from saeinterp.errors import ArtifactError, DamagedArtifactError
from saeinterp.holding import hold, removing
from saeinterp.inventory import take_inventory
from saeinterp.keeping import Rules, plan_clean_up

Machine = Callable[[str], ArtifactStore]
ROOT = Path(__file__).resolve().parents[2]
FILES = {"data.txt": b"planted\n" * 100, "other.txt": b"2"}


def recipe(**config: object) -> Recipe:
    return Recipe(kind="thing", name="demo", version=1, config=config)


def writer(files: dict[str, bytes] = FILES) -> Callable[[Workspace], None]:
    def write(space: Workspace) -> None:
        for name, data in files.items():
            (space.out / name).write_bytes(data)

    return write


def unwanted(space: Workspace) -> None:
    raise AssertionError("made again")


def payload(artifact: Artifact) -> dict[str, bytes]:
    return {name: (artifact.path / name).read_bytes() for name in FILES}


def elsewhere(artifact: Artifact, root: Path) -> Artifact:
    """The reference as another machine gets it."""
    return Artifact.model_validate_json(artifact.model_dump_json().replace(str(root), "/nowhere"))


def answer(status: int, code: str) -> tuple[int, bytes]:
    return status, DENIED.replace(b"AccessDenied", code.encode())


def test_what_was_not_there_when_asked_is_read_once_another_machine_has_made_it(machine: Machine) -> None:
    assert machine("a").find(recipe(a=1)) is None
    made = machine("b").build(recipe(a=1), writer())
    root = machine("b").root
    machine("a")
    reference = elsewhere(made, root)
    assert reference.exists
    assert payload(reference) == FILES


@pytest.mark.parametrize(
    "odd",
    [
        [],
        {"inputs": 7},
        {"inputs": [{"kind": 3}]},
        {"inputs": [{"kind": "..", "name": "x", "recipe": "12345678"}]},
        {"files": [1]},
        {"files": {"data.txt": {}}},
        {"files": {"/data.txt": {"bytes": 1, "sha256": "0" * 64}}},
        {"kind": ".outbox"},
        {"recipe": "../../12345678"},
    ],
)
def test_an_absurd_manifest_is_listed_as_such_and_stops_nothing(
    machine: Machine, bucket: TestBucket, odd: list[Any] | dict[str, Any]
) -> None:
    made = machine("a").build(recipe(a=1), writer())
    good = bucket.read(f"{made.id}/{MANIFEST}")
    absurd = json.dumps({**json.loads(good), **odd} if isinstance(odd, dict) else odd)
    bucket.write("thing/odd-12345678/manifest.json", absurd.encode())
    store = machine("b")
    listed = take_inventory(store).artifacts
    assert listed[made.id].problem is None
    assert listed["thing/odd-12345678"].problem is not None
    assert store.mirror is not None
    assert not list(remains(store.mirror))
    bucket.write("thing/odd-12345678/manifest.json", good)
    assert "another recipe" in str(take_inventory(store).artifacts["thing/odd-12345678"].problem)
    bucket.write(
        "thing/odd-12345678/manifest.json", json.dumps({**json.loads(good), "recipe": "1234567890abcdef"}).encode()
    )
    assert take_inventory(store).artifacts["thing/odd-12345678"].problem is None


def test_what_is_made_again_while_its_removal_goes_on_stays_whole(machine: Machine, bucket: TestBucket) -> None:
    store = machine("a")
    made = store.build(recipe(a=1), writer())
    assert store.mirror is not None
    store.mirror.retract(made.id)
    machine("b").build(recipe(a=1), writer())  # equal files: equal names
    clear(store.mirror, made.id)
    found = machine("c").find(recipe(a=1))
    assert found is not None
    assert payload(found) == FILES


def test_files_that_a_removal_elsewhere_takes_during_an_upload_are_sent_again(
    machine: Machine, bucket: TestBucket, proxy: Proxy
) -> None:
    """The upload skips what is there; then it goes, before the manifest comes."""

    def rule(request: Request) -> None:
        if request.method == "PUT" and request.key.endswith(MANIFEST):
            for key in bucket.listed():
                bucket.delete(key)

    proxy.rule = rule
    machine("a").build(recipe(a=1), writer())
    found = machine("b").find(recipe(a=1))
    assert found is not None
    assert payload(found) == FILES


def test_a_local_failure_is_no_reason_to_delete_a_good_artifact(
    machine: Machine, bucket: TestBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine("a").build(recipe(a=1), writer())
    before = bucket.listed()
    found = machine("b").find(recipe(a=1))
    assert found is not None
    download = buckets.Bucket.download

    def cleaned(self: buckets.Bucket, key: str, path: Path, **more: Any) -> bool:
        shutil.rmtree(path.parent)
        return download(self, key, path, **more)

    with monkeypatch.context() as patch:
        patch.setattr(buckets.Bucket, "download", cleaned)
        with pytest.raises(ArtifactError, match="cannot write to the local mirror") as caught:
            _ = found.path
    assert not isinstance(caught.value, DamagedArtifactError)
    assert payload(machine("b").build(recipe(a=1), unwanted)) == FILES
    assert bucket.listed() == before


def test_what_was_refused_once_is_looked_at_again_before_it_is_made_again(
    machine: Machine, bucket: TestBucket, proxy: Proxy
) -> None:
    machine("a").build(recipe(a=1), writer())
    store = machine("b")
    found = store.find(recipe(a=1))
    assert found is not None
    proxy.rule = lambda request: answer(404, "NoSuchKey") if request.key.endswith("data.txt") else None
    with pytest.raises(DamagedArtifactError, match=r"data\.txt is missing"):
        _ = found.path
    proxy.rule = lambda request: None
    assert payload(store.build(recipe(a=1), unwanted)) == FILES


def test_a_list_beside_a_run_takes_neither_what_was_just_published_nor_what_is_read(
    machine: Machine, bucket: TestBucket
) -> None:
    store = machine("a")
    store.build(recipe(a=1), writer())
    assert store.mirror is not None
    other, made = Mirror(store.root, store.mirror.url), []  # as of another process
    entries = other.bucket.entries

    def late(prefix: str = "") -> Iterator[buckets.Entry]:
        listed = list(entries(prefix))
        made.append(store.build(recipe(a=2), writer()))
        yield from listed

    other.bucket.entries = late  # type: ignore[method-assign]
    other.sync()
    assert (made[0].place / MANIFEST).exists()
    assert (made[0].place / "data.txt").exists()
    bucket.delete(f"{made[0].id}/{MANIFEST}")
    Mirror(store.root, store.mirror.url).sync()
    assert (made[0].place / "data.txt").exists(), "this process uses it"
    assert not made[0].exists


def test_a_second_publisher_of_equal_files_leaves_those_that_are_read(machine: Machine) -> None:
    store = machine("a")
    with store.open(recipe(a=1)) as second:
        writer()(second.space)
        with store.open(recipe(a=1)) as first:
            writer()(first.space)
            made = first.publish()
        before = (made.path / "data.txt").stat().st_ino
        second.publish()
    assert (made.path / "data.txt").stat().st_ino == before
    assert not list((store.root / ".outbox").glob("*/*/*"))


def test_a_fetch_that_makes_room_and_a_clean_up_do_not_wait_for_each_other(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = machine("a").build(recipe(a=1), writer())
    root = machine("a").root
    store = machine("b")
    store.find(recipe(a=1))
    assert store.mirror is not None
    mirror = store.mirror
    monkeypatch.setenv("SAEINTERP_CACHE_LIMIT", "100B")
    hold(store.root, [made.id])

    def look() -> None:
        with mirror.of(made.id):
            pass

    fetch = threading.Thread(target=lambda: payload(elsewhere(made, root)), daemon=True)
    cleaning = threading.Thread(target=look, daemon=True)
    with removing(store.root):  # a clean-up is at it, and looks at what the fetch is about to read
        fetch.start()
        fetch.join(2)
        cleaning.start()
        cleaning.join(60)
        assert not cleaning.is_alive()
    fetch.join(120)
    assert not fetch.is_alive()
    hold(store.root, ["thing/unrelated-12345678"])


@pytest.mark.parametrize("code", [(412, "PreconditionFailed"), (409, "ConditionalRequestConflict")])
def test_servers_tell_in_several_ways_that_another_was_first(
    machine: Machine, bucket: TestBucket, proxy: Proxy, code: tuple[int, str]
) -> None:
    slow = machine("a")
    said: list[str] = []

    def rule(request: Request) -> tuple[int, bytes] | None:
        if request.method != "PUT" or not request.key.endswith(MANIFEST) or said:
            return None
        said.append(request.key)
        return answer(*code)

    proxy.rule = rule  # once, and there is no manifest: as if the first one's had been removed since
    made = slow.build(recipe(a=1), writer())
    assert said
    assert f"{made.id}/{MANIFEST}" in bucket.listed()


def test_a_kill_right_after_the_manifest_leaves_nothing_behind_for_ever(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = machine("a")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Mirror, "settle", killed)
        with pytest.raises(KeyboardInterrupt):
            store.build(recipe(a=1), writer())
    assert list((store.root / ".outbox").glob("*/*/*"))
    assert payload(store.build(recipe(a=1), unwanted)) == FILES
    assert not list((store.root / ".outbox").glob("*/*/*"))


def test_a_damaged_object_is_deleted_before_its_manifest_so_that_no_upload_takes_it_for_sent(
    machine: Machine, bucket: TestBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = machine("a")
    store.build(recipe(a=1), writer())
    (key,) = [key for key in bucket.listed() if key.endswith("data.txt")]
    head = bucket.client.head_object(Bucket=bucket.name, Key=f"runs/{key}")
    data = b"X" + FILES["data.txt"][1:]
    bucket.client.put_object(Bucket=bucket.name, Key=f"runs/{key}", Body=data, Metadata=head["Metadata"])
    other = machine("b")
    found = other.find(recipe(a=1))
    assert found is not None
    with pytest.raises(DamagedArtifactError, match="checksum"):
        _ = found.path

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("saeinterp.artifacts.fetching.clear", killed)
        with pytest.raises(KeyboardInterrupt):
            other.build(recipe(a=1), writer())
    machine("c").build(recipe(a=1), writer())
    assert bucket.read(key) == FILES["data.txt"]


def test_one_file_that_was_fetched_and_damaged_since_is_fetched_again(machine: Machine) -> None:
    machine("a").build(recipe(a=1), writer())
    store = machine("b")
    found = store.find(recipe(a=1))
    assert found is not None
    found.file("data.txt").write_bytes(b"Y" + FILES["data.txt"][1:])
    assert found.file("data.txt").read_bytes() == FILES["data.txt"]
    found.file("data.txt").write_bytes(b"Z" + FILES["data.txt"][1:])
    assert payload(found) == FILES


def test_a_large_download_goes_on_where_it_broke(
    machine: Machine, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "_RANGE_BYTES", 1000)
    data = os.urandom(4500)
    machine("a").build(recipe(a=1), writer({"big.bin": data}))
    found = machine("b").find(recipe(a=1))
    assert found is not None
    proxy.rule = lambda request: (
        answer(403, "AccessDenied") if request.headers.get("range") == "bytes=3000-3999" else None
    )
    with pytest.raises(ArtifactError, match="denies reading"):
        _ = found.path
    (left,) = plan_clean_up(machine("b"), Rules(older_than=timedelta(0)))
    assert left.why == "fetched in part"
    assert not plan_clean_up(machine("b"), Rules()), "within a day it may be gone on with"
    proxy.rule, proxy.seen = lambda request: None, []
    assert found.file("big.bin").read_bytes() == data
    assert [request.headers["range"] for request in proxy.seen if "range" in request.headers] == [
        "bytes=3000-3999",
        "bytes=4000-4499",
    ]
    assert not list((machine("b").root / ".partial").rglob("*.bin"))


def test_a_fetch_that_fails_leaves_the_rest_where_it_is(machine: Machine, proxy: Proxy, bucket: TestBucket) -> None:
    names = [f"f{index:03}" for index in range(120)]
    machine("a").build(recipe(a=1), writer({name: name.encode() for name in names}))
    found = machine("b").find(recipe(a=1))
    assert found is not None
    proxy.rule = lambda request: answer(403, "AccessDenied") if request.key.endswith("/f000") else None
    proxy.seen = []
    with pytest.raises(ArtifactError, match="denies reading"):
        _ = found.path
    assert len(proxy.seen) < 60


def test_an_upload_goes_up_anew_where_its_parts_may_not_be_listed(
    machine: Machine, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saeinterp.artifacts.parts.PART_BYTES", 5 * 2**20)
    store, data = machine("a"), os.urandom(7 * 2**20)
    proxy.rule = lambda request: answer(403, "AccessDenied") if "partNumber=2" in request.path else None
    with pytest.raises(ArtifactError, match="denies"):
        store.build(recipe(a=1), writer({"big.bin": data}))
    proxy.rule = lambda request: (
        answer(403, "AccessDenied") if request.method == "GET" and "uploadId=" in request.path else None
    )
    store.build(recipe(a=1), unwanted)
    proxy.rule = lambda request: None
    found = machine("b").find(recipe(a=1))
    assert found is not None
    assert found.file("big.bin").read_bytes() == data


def test_a_process_that_forks_reads_the_bucket_in_its_child(bucket: TestBucket) -> None:
    code = """
    import os, signal
    from saeinterp.artifacts import ArtifactStore, Recipe
    recipe, store = Recipe("thing", "demo", 1, {}), ArtifactStore()
    store.build(recipe, lambda space: (space.out / "data.txt").write_text("hello"))
    child = os.fork()
    if child == 0:
        signal.alarm(100)
        os._exit(0 if store.find(recipe) is not None else 1)
    assert os.waitpid(child, 0)[1] == 0
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr


def test_a_list_of_one_kind_lists_nothing_else_of_the_bucket(machine: Machine, proxy: Proxy) -> None:
    store = machine("a")
    made = store.build(recipe(a=1), writer())
    proxy.seen = []
    assert store.folders("report") == []
    assert all("prefix=runs%2Freport%2F" in request.path for request in proxy.seen)
    assert store.folders("thing") == [made.place]
