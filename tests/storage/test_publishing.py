"""Artifacts in object storage: sent with the manifest last, fetched with checksums, one winner of two writers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from s3 import DENIED, Proxy, Request, TestBucket, denying_writes

from saeinterp.artifacts import MANIFEST, Artifact, ArtifactStore, Recipe, Workspace, open_artifact
from saeinterp.artifacts import parts as sending
from saeinterp.errors import ArtifactError, DamagedArtifactError

Machine = Callable[[str], ArtifactStore]
ROOT = Path(__file__).resolve().parents[2]
FILES = {"data.txt": b"planted\n" * 100, "deep/er/numbers.bin": bytes(range(256)) * 40}


def recipe(*inputs: Artifact, **config: object) -> Recipe:
    return Recipe(kind="thing", name="demo", version=1, config=config, inputs=inputs)


def writer(calls: list[str] | None = None, files: dict[str, bytes] | None = None) -> Callable[[Workspace], None]:
    def write(space: Workspace) -> None:
        if calls is not None:
            calls.append("made")
        for name, data in (FILES if files is None else files).items():
            path = space.out / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        space.counts = {"files": len(FILES)}

    return write


def payload(artifact: Artifact) -> dict[str, bytes]:
    return {
        path.relative_to(artifact.path).as_posix(): path.read_bytes()
        for path in artifact.path.rglob("*")
        if path.is_file() and path.name != MANIFEST
    }


def local_files(artifact: Artifact) -> set[str]:
    return {path.relative_to(artifact.place).as_posix() for path in artifact.place.rglob("*") if path.is_file()}


def test_what_one_machine_makes_another_finds_and_reads(machine: Machine, bucket: TestBucket, tmp_path: Path) -> None:
    calls: list[str] = []
    made = machine("a").build(recipe(a=1), writer(calls))
    other = machine("b")
    found = other.build(recipe(a=1), writer(calls))
    assert calls == ["made"]
    assert payload(found) == payload(made) == FILES
    assert found.path.is_relative_to(tmp_path / "b")
    assert found.counts() == {"files": 2}
    assert [key for key in bucket.listed() if key.endswith(MANIFEST)] == [f"{made.id}/{MANIFEST}"]
    assert json.loads(bucket.read(f"{made.id}/{MANIFEST}"))["recipe"] == recipe(a=1).hash


def test_looking_for_an_artifact_fetches_no_file_of_it(machine: Machine) -> None:
    machine("a").build(recipe(a=1), writer())
    found = machine("b").find(recipe(a=1))
    assert found is not None
    assert found.exists
    assert found.has("data.txt")
    assert not found.has("other.txt")
    assert local_files(found) == {MANIFEST}
    assert found.file("data.txt").read_bytes() == FILES["data.txt"]
    assert local_files(found) == {MANIFEST, "data.txt"}
    assert sorted(payload(found)) == sorted(FILES)


def test_a_reference_leads_to_the_files_on_a_machine_where_they_never_were(machine: Machine, tmp_path: Path) -> None:
    text = machine("a").build(recipe(a=1), writer()).model_dump_json()
    machine("b")
    moved = Artifact.model_validate_json(text.replace(str(tmp_path / "a"), "/nowhere"))
    assert payload(moved) == FILES
    assert moved.path.is_relative_to(tmp_path / "b")


def test_a_store_named_by_the_folder_of_its_mirror_is_the_same_store(machine: Machine, bucket: TestBucket) -> None:
    made = machine("a").build(recipe(a=1), writer())
    found = ArtifactStore(made.path.parent.parent).find(recipe(a=1))
    assert found == made
    assert ArtifactStore(made.path.parent.parent).url == bucket.url


def test_what_an_artifact_was_made_from_is_known_beside_it(machine: Machine) -> None:
    store = machine("a")
    first = store.build(recipe(a=1), writer())
    store.build(recipe(first, a=2), writer())
    found = machine("b").find(recipe(first, a=2))
    assert found is not None
    (item,) = found.manifest()["inputs"]
    behind = found.beside(item)
    assert behind.exists
    assert local_files(behind) == {MANIFEST}
    assert payload(behind) == FILES


def test_the_manifest_is_sent_last_and_only_where_there_is_none(machine: Machine, proxy: Proxy) -> None:
    made = machine("a").build(recipe(a=1), writer())
    sent = proxy.puts()
    assert sent[-1] == f"{made.id}/{MANIFEST}"
    assert len(sent) == 1 + len(FILES)
    (last,) = [request for request in proxy.seen if request.method == "PUT" and request.key == sent[-1]]
    assert last.headers["if-none-match"] == "*"


def test_of_two_writers_the_first_to_publish_wins_and_the_other_adopts_its_bytes(
    machine: Machine, bucket: TestBucket
) -> None:
    """Bytes that differ, as of two kinds of hardware: neither may overwrite what the other's manifest promises."""
    slow, other = machine("a"), {"data.txt": b"the slow one's", "deep/er/numbers.bin": b"1"}
    with slow.open(recipe(a=1)) as build:
        writer(files=other)(build.space)
        first = machine("b").build(recipe(a=1), writer())
        second = build.publish()
    assert payload(second) == payload(first) == FILES
    assert len([key for key in bucket.listed() if key.endswith("data.txt")]) == 1, "the loser's files are gone"
    found = machine("c").find(recipe(a=1))
    assert found is not None
    assert payload(found) == FILES


def test_two_processes_that_make_one_recipe_at_once_end_with_one_artifact(bucket: TestBucket, tmp_path: Path) -> None:
    code = """
    import sys, time, uuid
    from pathlib import Path
    from saeinterp.artifacts import ArtifactStore, Recipe
    ready, other, text = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    def write(space):
        (space.out / "data.txt").write_text(text)
        (space.out / "big.bin").write_bytes(text.encode() * 50_000)
        ready.touch()
        while not other.exists():
            time.sleep(0.01)
    made = ArtifactStore().build(Recipe("thing", "demo", 1, {"race": 1}), write)
    print(made.file("data.txt").read_text(), made.file("big.bin").stat().st_size)
    """
    flags = [tmp_path / "first", tmp_path / "second"]
    processes = []
    for index, name in enumerate("ab"):
        env = {**os.environ, "SAEINTERP_CACHE": str(tmp_path / name)}
        command = [sys.executable, "-c", textwrap.dedent(code), str(flags[index]), str(flags[1 - index]), f"by {name}"]
        processes.append(subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True))
    said = [process.communicate(timeout=200)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert said[0] == said[1]
    assert said[0].strip() in {"by a 200000", "by b 200000"}
    assert len(bucket.listed()) == 3


@pytest.mark.parametrize("damage", ["other bytes", "truncated", "missing"])
def test_a_damaged_object_is_refused_by_name_and_the_next_run_makes_it_again(
    machine: Machine, bucket: TestBucket, damage: str
) -> None:
    made = machine("a").build(recipe(a=1), writer())
    (key,) = [key for key in bucket.listed() if key.endswith("data.txt")]
    good = bucket.read(key)
    if damage == "missing":
        bucket.delete(key)
    else:
        bucket.write(key, good[:-1] if damage == "truncated" else b"X" + good[1:])
    store, calls = machine("b"), []
    found = store.find(recipe(a=1), verify=False)
    assert found is not None
    with pytest.raises(DamagedArtifactError, match=rf"^{re.escape(made.id)}: damaged artifact: data\.txt") as caught:
        _ = found.path
    assert bucket.url in str(caught.value)
    assert "Next: run again; it will be rebuilt." in str(caught.value)
    again = store.build(recipe(a=1), writer(calls))
    assert calls == ["made"]
    assert payload(again) == FILES
    assert bucket.read(key) == good
    fresh = machine("c").find(recipe(a=1))
    assert fresh is not None
    assert payload(fresh) == FILES


def test_a_truncated_object_is_noticed_before_anybody_reads_it(machine: Machine, bucket: TestBucket) -> None:
    machine("a").build(recipe(a=1), writer())
    (key,) = [key for key in bucket.listed() if key.endswith("data.txt")]
    bucket.write(key, b"short")
    with pytest.raises(DamagedArtifactError, match=r"data\.txt has 5 bytes, its manifest says 800"):
        machine("b").find(recipe(a=1))


def test_an_unreadable_manifest_in_the_bucket_is_made_again(machine: Machine, bucket: TestBucket) -> None:
    made = machine("a").build(recipe(a=1), writer())
    bucket.write(f"{made.id}/{MANIFEST}", b"{")
    calls: list[str] = []
    assert payload(machine("b").build(recipe(a=1), writer(calls))) == FILES
    assert calls == ["made"]


def test_a_manifest_that_names_a_place_outside_of_its_folder_is_refused(
    machine: Machine, bucket: TestBucket, tmp_path: Path
) -> None:
    """Whoever may write to the bucket may not write to the machines that read it."""
    made = machine("a").build(recipe(a=1), writer())
    manifest = json.loads(bucket.read(f"{made.id}/{MANIFEST}"))
    manifest["files"]["../../../../planted.txt"] = manifest["files"]["data.txt"]
    bucket.write(f"{made.id}/{MANIFEST}", json.dumps(manifest).encode())
    bucket.write("x/../../../outside-12345678/manifest.json", json.dumps(manifest).encode())
    with pytest.raises(DamagedArtifactError, match="outside of its folder"):
        machine("b").find(recipe(a=1))
    with pytest.raises(DamagedArtifactError, match="outside of its folder"):
        open_artifact(machine("b").root / made.id)
    assert [path.name for path in machine("b").folders()] == [made.path.name]
    assert not list(tmp_path.rglob("planted.txt"))
    assert not list(tmp_path.rglob("outside-*"))


def test_a_local_copy_that_was_damaged_is_fetched_again(machine: Machine) -> None:
    store, calls = machine("a"), []
    made = store.build(recipe(a=1), writer(calls))
    (made.path / "data.txt").write_bytes(b"Y" + FILES["data.txt"][1:])
    found = store.build(recipe(a=1), writer(calls))
    assert payload(found) == FILES
    assert calls == ["made"]


def test_what_was_removed_from_the_bucket_is_not_there_any_more(machine: Machine, bucket: TestBucket) -> None:
    store = machine("a")
    made = store.build(recipe(a=1), writer())
    for key in bucket.listed():
        bucket.delete(key)
    assert store.find(recipe(a=1)) is None
    assert not made.exists
    assert not (made.place / MANIFEST).exists()


def test_a_bucket_that_denies_writes_is_told_of_before_the_step_runs(machine: Machine, proxy: Proxy) -> None:
    proxy.rule = denying_writes
    calls: list[str] = []
    with pytest.raises(ArtifactError) as caught:
        machine("a").build(recipe(a=1), writer(calls))
    assert calls == []
    error = caught.value
    assert error.field == "SAEINTERP_ROOT"
    assert str(error.got).startswith("s3://planted-")
    assert "the bucket denies writing: Access Denied" in error.problem
    assert error.expected is not None
    assert error.next_step is not None


def test_what_could_not_be_sent_is_kept_and_goes_up_without_being_made_again(
    machine: Machine, proxy: Proxy, bucket: TestBucket
) -> None:
    store, calls = machine("a"), []
    proxy.rule = lambda request: (403, DENIED) if request.key.endswith(MANIFEST) and request.method == "PUT" else None
    with pytest.raises(ArtifactError, match="denies writing"):
        store.build(recipe(a=1), writer(calls))
    assert store.find(recipe(a=1)) is None
    proxy.rule, proxy.seen = lambda request: None, []
    made = store.build(recipe(a=1), writer(calls))
    assert calls == ["made"]
    assert payload(made) == FILES
    assert proxy.puts() == [f"{made.id}/{MANIFEST}"], "files that are there whole are not sent again"
    assert not [path for path in (store.root / ".outbox").rglob("*") if path.suffix != ".lock" and path.is_file()]


def test_a_server_that_stumbles_is_asked_again(machine: Machine, proxy: Proxy) -> None:
    """Every object is refused once as if the server were busy."""
    stumbled: set[str] = set()

    def rule(request: Request) -> tuple[int, bytes] | None:
        if request.method != "PUT" or request.key in stumbled:
            return None
        stumbled.add(request.key)
        return 503, DENIED.replace(b"AccessDenied", b"SlowDown")

    proxy.rule = rule
    made = machine("a").build(recipe(a=1), writer())
    assert f"{made.id}/{MANIFEST}" in stumbled
    found = machine("b").find(recipe(a=1))
    assert found is not None
    assert payload(found) == FILES


def test_a_large_file_goes_on_at_the_part_where_its_upload_stopped(
    machine: Machine, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, bucket: TestBucket
) -> None:
    monkeypatch.setattr(sending, "PART_BYTES", 5 * 2**20)
    data = os.urandom(23 * 2**20)
    store, calls, files = machine("a"), [], {"big.bin": data}

    def part_of(request: Request) -> str | None:
        found = re.search(r"partNumber=(\d+)", request.path)
        return found[1] if found else None

    proxy.rule = lambda request: (403, DENIED) if part_of(request) == "4" else None
    with pytest.raises(ArtifactError, match="denies"):
        store.build(recipe(a=1), writer(calls, files))
    sent = {part_of(request) for request in proxy.seen} - {None, "4"}
    proxy.rule, proxy.seen = lambda request: None, []
    made = store.build(recipe(a=1), writer(calls, files))
    assert calls == ["made"]
    assert {part_of(request) for request in proxy.seen} - {None} == {"1", "2", "3", "4", "5"} - sent
    found = machine("b").find(recipe(a=1))
    assert found is not None
    assert found.file("big.bin").read_bytes() == data
    assert made.id == found.id
    assert not bucket.client.list_multipart_uploads(Bucket=bucket.name).get("Uploads")
