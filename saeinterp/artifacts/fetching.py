"""From a bucket to its mirror: files are fetched where they are read, and compared with the manifest.

What differs is noted, so that the next run makes the artifact again; it looks once more before it believes the note,
since one machine's trouble must not take an artifact from all.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from saeinterp.artifacts.clearing import clear
from saeinterp.artifacts.files import file_sha256, read_json, write_atomic
from saeinterp.artifacts.manifests import MANIFEST, TIMING, payload_prefix, read_manifest
from saeinterp.artifacts.mirror import Mirror
from saeinterp.artifacts.room import FETCHED, PARTIAL, make_room
from saeinterp.errors import ArtifactError, DamagedArtifactError
from saeinterp.holding import hold

log = logging.getLogger(__name__)

_REFUSED = ".refused"
_AT_ONCE = 8


def fetch(mirror: Mirror, folder: str, name: str | None = None) -> None:
    """Make the payload of an artifact local, or one file or subfolder of it; checksums are compared.

    Raises:
        DamagedArtifactError: The bucket holds something else than the manifest says. It is remembered, so that
            the next run makes the artifact again.
        ArtifactError: It is gone from the bucket, the bucket does not answer, or the disk is full.
    """
    place, whole = mirror.root / folder, mirror.root / FETCHED / folder
    hold(mirror.root, [folder])
    if whole.exists():
        with contextlib.suppress(OSError):
            os.utime(whole)
        return
    if not mirror.knows(folder):
        raise _gone(mirror, folder)
    wanted = _wanted(mirror, folder, name)
    timing = name in (None, TIMING) and not (place / TIMING).exists()
    if name is not None and not wanted and not timing:
        return
    # Before the lock: it waits for a clean-up, which waits for the lock.
    make_room(mirror.root, sum(facts["bytes"] for facts in wanted.values()), keep=folder)
    with mirror.telling(), mirror.of(folder):
        wanted = _wanted(mirror, folder, name)
        prefix = payload_prefix(folder, read_manifest(place))
        size = sum(facts["bytes"] for facts in wanted.values())
        if size > 10**8:
            log.info("fetching %s: %d files, %.1f GB", mirror.bucket.address(folder), len(wanted), size / 1e9)
        _fetch_all(mirror, folder, prefix, wanted)
        if timing and (data := mirror.bucket.get(prefix + TIMING)) is not None:
            write_atomic(place / TIMING, data)
        if name is None:
            whole.parent.mkdir(parents=True, exist_ok=True)
            whole.touch()


def check(mirror: Mirror, folder: str) -> None:
    """Compare what is in the bucket with the manifest, as far as that takes no download: names and sizes.

    Local files that differ from it go. What was refused when somebody read it is fetched once more.

    Raises:
        DamagedArtifactError: Naming the first file that differs.
    """
    manifest = read_manifest(mirror.root / folder)
    with mirror.telling(), mirror.of(folder):
        for name in _wanted(mirror, folder, None):
            path = mirror.root / folder / name
            if path.is_file():
                log.warning("%s: the local copy of %s is damaged and is not used", folder, name)
                path.unlink()
            (mirror.root / FETCHED / folder).unlink(missing_ok=True)
    prefix = payload_prefix(folder, manifest)
    there = {entry.key.removeprefix(prefix): entry.bytes for entry in mirror.bucket.entries(prefix)}
    for name, facts in manifest["files"].items():
        if name not in there:
            raise _damaged(mirror, folder, f"{name} is missing")
        if there[name] != facts["bytes"]:
            raise _damaged(mirror, folder, f"{name} has {there[name]} bytes, its manifest says {facts['bytes']}")
    refused = _refused(mirror, folder)
    if refused is not None and refused in manifest["files"]:
        with mirror.telling(), mirror.of(folder):
            _fetch_all(mirror, folder, prefix, {refused: manifest["files"][refused]})
        (mirror.root / _REFUSED / folder).unlink(missing_ok=True)


def set_aside(mirror: Mirror, folder: str) -> None:
    """Delete a damaged artifact, so that it can be made again; its manifest goes first."""
    path = mirror.root / folder / MANIFEST
    known = path.read_bytes() if path.exists() else None
    if mirror.bucket.get(f"{folder}/{MANIFEST}") == known:  # else another run has made it again
        if (name := _refused(mirror, folder)) is not None:
            # Even before it: its size may be right, and after a kill in between it would count as sent.
            mirror.bucket.delete([payload_prefix(folder, read_manifest(path.parent)) + name])
        mirror.retract(folder)
        clear(mirror, folder)
    (mirror.root / _REFUSED / folder).unlink(missing_ok=True)


def _wanted(mirror: Mirror, folder: str, name: str | None) -> dict[str, Mapping[str, Any]]:
    """Files that are not local as the manifest says: all, or `name` and what lies below it."""
    place, wanted = mirror.root / folder, {}
    for file, facts in read_manifest(place).get("files", {}).items():
        if name is None or file == name or file.startswith(f"{name}/"):
            path = place / file
            same = path.is_file() and path.stat().st_size == facts["bytes"] and file_sha256(path) == facts["sha256"]
            if not same:
                wanted[file] = facts
    return wanted


def _fetch_all(mirror: Mirror, folder: str, prefix: str, wanted: Mapping[str, Mapping[str, Any]]) -> None:
    partial, stop = mirror.root / PARTIAL / prefix, threading.Event()
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="fetch") as pool:
        try:
            tasks = [
                pool.submit(
                    _fetch, mirror, folder, prefix + name, partial / name, mirror.root / folder / name, facts, stop
                )
                for name, facts in wanted.items()
            ]
            for task in tasks:
                task.result()
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    shutil.rmtree(mirror.root / PARTIAL / folder, ignore_errors=True)  # after a failure it is gone on with


def _fetch(
    mirror: Mirror, folder: str, key: str, target: Path, final: Path, facts: Mapping[str, Any], stop: threading.Event
) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    name, problem = final.relative_to(mirror.root / folder).as_posix(), ""
    for _ in range(2):  # the way may have damaged it
        if not mirror.bucket.download(key, target, size=facts["bytes"], stop=stop):
            if mirror.bucket.get(f"{folder}/{MANIFEST}") is None:
                raise _gone(mirror, folder)
            problem = f"{name} is missing"
        elif target.stat().st_size != facts["bytes"]:
            problem = f"{name} has {target.stat().st_size} bytes, its manifest says {facts['bytes']}"
        elif file_sha256(target) != facts["sha256"]:
            problem = f"{name} does not match its checksum"
        else:
            final.parent.mkdir(parents=True, exist_ok=True)
            os.replace(target, final)
            return
        target.unlink(missing_ok=True)
    _refuse(mirror, folder, name)
    raise _damaged(mirror, folder, problem)


def _refuse(mirror: Mirror, folder: str, name: str) -> None:
    path = mirror.root / _REFUSED / folder
    path.parent.mkdir(parents=True, exist_ok=True)
    value = {"manifest": file_sha256(mirror.root / folder / MANIFEST), "file": name}
    write_atomic(path, json.dumps(value).encode())


def _refused(mirror: Mirror, folder: str) -> str | None:
    """The file that was refused when somebody read it, if by this manifest."""
    try:
        value = read_json(mirror.root / _REFUSED / folder)
        same = value["manifest"] == file_sha256(mirror.root / folder / MANIFEST)
        return str(value["file"]) if same else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _damaged(mirror: Mirror, folder: str, problem: str) -> DamagedArtifactError:
    return DamagedArtifactError(
        f"damaged artifact: {problem}",
        field=folder,
        got=mirror.bucket.address(folder),
        next_step="run again; it will be rebuilt",
    )


def _gone(mirror: Mirror, folder: str) -> ArtifactError:
    return ArtifactError(
        "is not in the bucket",
        field=folder,
        got=mirror.url,
        expected="an artifact that was published and not removed",
        next_step="run its flow again: it makes what is missing and nothing else",
    )
