"""Kill -9 while sending and fetching, run again: the bytes of a store in a folder, and nothing made twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from s3 import Proxy, Request, TestBucket

from saeinterp.artifacts import ArtifactStore

pytestmark = pytest.mark.slow
Machine = Callable[[str], ArtifactStore]
ROOT = Path(__file__).resolve().parents[2]
BUILD = """
import sys
from pathlib import Path
import numpy as np
from saeinterp.artifacts import ArtifactStore, Recipe, parts
parts.PART_BYTES = 5 * 2**20
made = Path(sys.argv[1])
def write(space):
    with made.open("a") as handle:
        handle.write("made\\n")
    values = np.random.default_rng(0)
    for index in range(6):
        (space.out / f"small{index}.bin").write_bytes(values.bytes(30_000))
    for index in range(2):
        (space.out / f"large{index}.bin").write_bytes(values.bytes(18 * 2**20))
artifact = ArtifactStore().build(Recipe("thing", "demo", 1, {"a": 1}), write)
if sys.argv[2] == "read":
    artifact.path
"""


def start(calls: Path, then: str = "end", **env: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", textwrap.dedent(BUILD), str(calls), then]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, **env})


def sums(store: ArtifactStore) -> dict[str, Any]:
    (folder,) = store.folders("thing")
    return dict(store.named({"kind": "thing", "name": "demo", "recipe": folder.name[-8:]}).manifest()["files"])


def slowly(request: Request) -> None:
    """A rule that makes sending and fetching last long enough to be killed in."""
    if request.method in ("PUT", "POST") or (request.method == "GET" and request.key.endswith(".bin")):
        time.sleep(0.1)


@pytest.mark.parametrize("seed", [0, 1])
def test_an_upload_killed_at_random_points_ends_with_the_bytes_of_a_local_store(
    machine: Machine, bucket: TestBucket, proxy: Proxy, tmp_path: Path, seed: int
) -> None:
    reference, calls = tmp_path / "local", tmp_path / "calls"
    assert start(tmp_path / "other", SAEINTERP_ROOT=str(reference)).wait(timeout=200) == 0
    expected = sums(ArtifactStore(reference))
    machine("a")
    proxy.rule = slowly
    source, kills, parts = random.Random(seed), 0, 0
    for _ in range(6):
        before, process = len(proxy.puts()), start(calls)
        wanted = before + source.randint(1, 5)
        while process.poll() is None and len(proxy.puts()) < wanted:
            time.sleep(0.005)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait(timeout=200)
    assert start(calls).wait(timeout=200) == 0
    assert kills >= 3
    assert calls.read_text() == "made\n", "what is finished is not made again"
    fresh = machine("b")
    assert sums(fresh) == expected
    (folder,) = fresh.folders("thing")
    found = fresh.named({"kind": "thing", "name": "demo", "recipe": folder.name[-8:]})
    for name in expected:
        assert found.file(name).read_bytes() == (reference / "thing" / folder.name / name).read_bytes()
    parts = [request.path for request in proxy.seen if "partNumber" in request.path]
    assert len(parts) < 2 * 4 + 4 * kills + 1, "parts that had arrived are not sent again"
    assert not bucket.client.list_multipart_uploads(Bucket=bucket.name).get("Uploads")
    assert len(bucket.listed()) == 9


def test_a_download_killed_in_the_middle_leaves_nothing_half_and_goes_on(
    machine: Machine, proxy: Proxy, tmp_path: Path
) -> None:
    calls = tmp_path / "calls"
    machine("a")
    assert start(calls).wait(timeout=200) == 0
    store = machine("b")
    proxy.rule = slowly
    for wanted in (2, 4, 6):
        proxy.seen = []
        process = start(calls, "read")
        while process.poll() is None and sum(r.method == "GET" and ".bin" in r.key for r in proxy.seen) < wanted:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=200)
    assert start(calls, "read").wait(timeout=200) == 0
    assert calls.read_text() == "made\n"
    (folder,) = store.folders("thing")
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "a" / store.root.name / "thing" / folder.name / path.name).read_bytes()
    assert len(list(folder.iterdir())) == 9
    assert not [path for path in (store.root / ".partial").rglob("*") if path.is_file()]
