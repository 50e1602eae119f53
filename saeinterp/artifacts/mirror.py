"""The local mirror of a bucket: every manifest that is known, and payloads once somebody reads them.

`<kind>/<name>-<recipe8>/manifest.json` in the bucket names the artifact's files; they lie beside it below
`<digest>/`, the digest of their checksums. The surprising choice: that digest. Two machines that make one recipe at
the same time may differ in a bit of a weight; with names of their own neither overwrites what the manifest of the other
promises, and whichever manifest comes first is whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import socket
import threading
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from saeinterp.artifacts.bucket import Bucket
from saeinterp.artifacts.files import file_sha256, read_json, write_atomic
from saeinterp.artifacts.manifests import (
    MANIFEST,
    TIMING,
    as_far_as_read,
    first_problem,
    payload_prefix,
    read_manifest,
)
from saeinterp.artifacts.places import FIELD, Place, mark
from saeinterp.artifacts.room import FETCHED, drop, known_folders, make_room
from saeinterp.artifacts.workspace import waiting_lock
from saeinterp.errors import ArtifactError, DamagedArtifactError
from saeinterp.holding import hold

log = logging.getLogger(__name__)

_REFUSED = ".refused"
_AT_ONCE = 8
_PROBE = "saeinterp.json"
_FOLDER = re.compile(r"[^./][^/]*/[^/]+-[0-9a-f]{8}")  # nothing in a bucket leads out of the mirror
_PAYLOAD = re.compile(r"(([^/]+/[^/]+-[0-9a-f]{8})/[0-9a-f]{16})/.")


class Remains(NamedTuple):
    """Objects that no manifest names."""

    prefix: str
    bytes: int
    newest: datetime


@lru_cache(maxsize=64)
def mirror_of(place: Place) -> Mirror:
    """The mirror at a place, one for all of a process."""
    assert place.url is not None
    return Mirror(place.root, place.url)


class Mirror:
    """What this machine has of a bucket.

    Args:
        root: Its folder.
        url: `s3://bucket/prefix`.
    """

    def __init__(self, root: Path, url: str) -> None:
        self.root, self.url, self.bucket = root, url, Bucket(url)
        self._asked: set[str] = set()
        self._writable = False
        self._lock = threading.Lock()

    def learn(self, folder: str) -> bool:
        """Ask the bucket for an artifact: its manifest, and those of what it was made from. False: it is not there."""
        data = self.bucket.get(f"{folder}/{MANIFEST}")
        self._asked.add(folder)
        if data is None:
            self.forget(folder)
            return False
        self.adopt(folder, data)
        self._learn_inputs(folder)
        return True

    def knows(self, folder: str) -> bool:
        """Whether an artifact is there; the bucket is asked once, for what no manifest here has told of."""
        if (self.root / folder / MANIFEST).exists():
            return True
        return folder not in self._asked and self.learn(folder)

    def adopt(self, folder: str, data: bytes) -> None:
        """Make a manifest the local one; a payload that it does not describe goes."""
        path = self.root / folder / MANIFEST
        if path.exists() and path.read_bytes() == data:
            return
        names = [*as_far_as_read(data).get("files", ())]
        odd = [name for name in names if name.startswith("/") or ".." in name.split("/") or name == MANIFEST]
        if odd or not _FOLDER.fullmatch(folder):
            raise DamagedArtifactError(
                "not a manifest of ours: it names a place outside of its folder",
                field=folder,
                got=odd[0] if odd else folder,
                expected="files below it",
                next_step="find out who wrote it, then delete it from the bucket",
            )
        with self._telling(), self._of(folder):
            mark(Place(self.root, self.url))
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if path.exists() and as_far_as_read(path.read_bytes()).get("files") != as_far_as_read(data).get("files"):
                drop(self.root, folder)
            write_atomic(path, data)

    def fetch(self, folder: str, name: str | None = None) -> None:
        """Make the payload of an artifact local, or one file or subfolder of it; checksums are compared.

        Raises:
            DamagedArtifactError: The bucket holds something else than the manifest says. It is remembered, so that
                the next run makes the artifact again.
            ArtifactError: It is gone from the bucket, the bucket does not answer, or the disk is full.
        """
        place, whole = self.root / folder, self.root / FETCHED / folder
        hold(self.root, [folder])
        if whole.exists() or (name is not None and (place / name).is_file()):
            with contextlib.suppress(OSError):
                os.utime(whole)
            return
        if not self.knows(folder):
            raise self._gone(folder)
        with self._telling(), self._of(folder):
            manifest = read_manifest(place)
            wanted = {
                file: facts
                for file, facts in manifest["files"].items()
                if (name is None or file == name or file.startswith(f"{name}/"))
                and not ((place / file).is_file() and (place / file).stat().st_size == facts["bytes"])
            }
            size = sum(facts["bytes"] for facts in wanted.values())
            make_room(self.root, size, keep=folder)
            if size > 10**8:
                log.info("fetching %s: %d files, %.1f GB", self.bucket.address(folder), len(wanted), size / 1e9)
            with self._scratch(folder) as scratch:
                prefix = payload_prefix(folder, manifest)
                with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="fetch") as pool:
                    tasks = [pool.submit(self._fetch, folder, prefix, scratch, *item) for item in wanted.items()]
                    for task in tasks:
                        task.result()
                if name in (None, TIMING) and self.bucket.download(prefix + TIMING, scratch / TIMING):
                    os.replace(scratch / TIMING, place / TIMING)
            if name is None:
                whole.parent.mkdir(parents=True, exist_ok=True)
                whole.touch()

    def check(self, folder: str) -> None:
        """Compare what is in the bucket with the manifest, as far as that takes no download: names and sizes.

        Raises:
            DamagedArtifactError: Naming the first file that differs, here or when somebody read it.
        """
        problem, manifest = self._problem_known(folder), read_manifest(self.root / folder)
        if (self.root / FETCHED / folder).exists() and (local := first_problem(self.root / folder, manifest)):
            log.warning("%s: the local copy is damaged (%s) and is not used", folder, local)
            with self._of(folder):
                drop(self.root, folder)
        if problem is None:
            prefix = payload_prefix(folder, manifest)
            there = {entry.key.removeprefix(prefix): entry.bytes for entry in self.bucket.entries(prefix)}
            for name, facts in manifest["files"].items():
                if name not in there:
                    problem = f"{name} is missing"
                elif there[name] != facts["bytes"]:
                    problem = f"{name} has {there[name]} bytes, its manifest says {facts['bytes']}"
        if problem is not None:
            raise self._damaged(folder, problem)

    def sync(self) -> None:
        """Make the local manifests those of the bucket."""
        etags = {}
        for entry in self.bucket.entries():
            folder, _, name = entry.key.rpartition("/")
            if name == MANIFEST and _FOLDER.fullmatch(folder):
                etags[folder] = entry.etag

        def update(folder: str) -> None:
            path = self.root / folder / MANIFEST
            if path.exists() and hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() == etags[folder]:
                return
            data = self.bucket.get(f"{folder}/{MANIFEST}")
            if data is not None:
                self.adopt(folder, data)

        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="sync") as pool:
            for _ in pool.map(update, etags):
                pass
        for folder in known_folders(self.root):
            if folder not in etags:
                self.forget(folder)

    def retract(self, folder: str) -> None:
        """Delete the manifest of an artifact, so that it is not there any more; its files are left to `clear`."""
        self.bucket.delete([f"{folder}/{MANIFEST}"])
        self.forget(folder)

    def clear(self, prefix: str) -> None:
        """Delete what lies below a prefix of the bucket."""
        self.bucket.delete_below(f"{prefix}/")

    def remains(self) -> Iterator[Remains]:
        """What uploads that came to nothing left in the bucket."""
        named: dict[str, str] = {}
        found: dict[str, tuple[int, datetime]] = {}
        sent = [(entry.key, entry.bytes, entry.modified) for entry in self.bucket.entries()]
        sent += [(key, 0, begun) for key, _, begun in self.bucket.uploads()]
        for key, size, modified in sent:
            match = _PAYLOAD.match(key)
            if match is None:  # a manifest, or not ours
                continue
            folder, prefix = match[2], match[1]
            if folder not in named:
                path = self.root / folder / MANIFEST
                named[folder] = payload_prefix(folder, as_far_as_read(path.read_bytes())) if path.exists() else ""
            if f"{prefix}/" != named[folder]:
                known = found.get(prefix)
                found[prefix] = (size, modified) if known is None else (known[0] + size, max(known[1], modified))
        for prefix, (size, newest) in sorted(found.items()):
            yield Remains(prefix, size, newest)

    def require_writable(self) -> None:
        """Find out before hours of work whether the bucket takes what comes of it; asked once per process.

        Raises:
            ArtifactError: It does not.
        """
        with self._lock:
            if not self._writable:
                self.bucket.put(_PROBE, b'{"format": 1}\n')
                self._writable = True

    def settle(self, folder: str, made: Path) -> None:
        """Make a folder whose content is in the bucket the local copy."""
        final, whole = self.root / folder, self.root / FETCHED / folder
        with self._telling(), self._of(folder):
            self._discard(folder)
            for path in (final.parent, whole.parent):
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.rename(made, final)
            whole.touch()

    def forget(self, folder: str) -> None:
        """Remove what is local of an artifact."""
        if (self.root / folder).exists():
            with self._telling(), self._of(folder):
                self._discard(folder)

    def _discard(self, folder: str) -> None:
        (self.root / FETCHED / folder).unlink(missing_ok=True)
        trash = self.root / ".trash"
        trash.mkdir(mode=0o700, parents=True, exist_ok=True)
        gone = trash / f"{folder.replace('/', '_')}-{uuid.uuid4().hex[:8]}"
        with contextlib.suppress(FileNotFoundError):
            os.rename(self.root / folder, gone)
        shutil.rmtree(gone, ignore_errors=True)

    def set_aside(self, folder: str) -> None:
        """Delete a damaged artifact, so that it can be made again; its manifest goes first."""
        path = self.root / folder / MANIFEST
        known = path.read_bytes() if path.exists() else None
        if self.bucket.get(f"{folder}/{MANIFEST}") == known:  # else another run has made it again
            self.retract(folder)
            self.clear(folder)
        (self.root / _REFUSED / folder).unlink(missing_ok=True)

    def _learn_inputs(self, folder: str) -> None:
        """Manifests of ancestors, each asked for once; those that were removed are no concern."""
        waiting = [folder]
        while waiting:
            path = self.root / waiting.pop() / MANIFEST
            for item in as_far_as_read(path.read_bytes()).get("inputs", ()) if path.exists() else ():
                parent = f"{item['kind']}/{item['name']}-{item['recipe'][:8]}"
                if parent in self._asked or not _FOLDER.fullmatch(parent):
                    continue
                self._asked.add(parent)
                if not (self.root / parent / MANIFEST).exists():
                    data = self.bucket.get(f"{parent}/{MANIFEST}")
                    if data is None:
                        continue
                    self.adopt(parent, data)
                waiting.append(parent)

    def _fetch(self, folder: str, prefix: str, scratch: Path, name: str, facts: Mapping[str, Any]) -> None:
        target, final = scratch / name, self.root / folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        problem = ""
        for _ in range(2):  # the way may have damaged it
            if not self.bucket.download(prefix + name, target):
                if self.bucket.get(f"{folder}/{MANIFEST}") is None:
                    raise self._gone(folder)
                problem = f"{name} is missing"
            elif target.stat().st_size != facts["bytes"]:
                problem = f"{name} has {target.stat().st_size} bytes, its manifest says {facts['bytes']}"
            elif file_sha256(target) != facts["sha256"]:
                problem = f"{name} does not match its checksum"
            else:
                final.parent.mkdir(parents=True, exist_ok=True)
                os.replace(target, final)
                return
        self._refuse(folder, problem)
        raise self._damaged(folder, problem)

    def _refuse(self, folder: str, problem: str) -> None:
        path = self.root / _REFUSED / folder
        path.parent.mkdir(parents=True, exist_ok=True)
        value = {"manifest": file_sha256(self.root / folder / MANIFEST), "problem": problem}
        write_atomic(path, json.dumps(value).encode())

    def _problem_known(self, folder: str) -> str | None:
        try:
            value = read_json(self.root / _REFUSED / folder)
        except (OSError, ValueError):
            return None
        same = value["manifest"] == file_sha256(self.root / folder / MANIFEST)
        return str(value["problem"]) if same else None

    def _damaged(self, folder: str, problem: str) -> DamagedArtifactError:
        return DamagedArtifactError(
            f"damaged artifact: {problem}",
            field=folder,
            got=self.bucket.address(folder),
            next_step="run again; it will be rebuilt",
        )

    def _gone(self, folder: str) -> ArtifactError:
        return ArtifactError(
            "is not in the bucket",
            field=folder,
            got=self.url,
            expected="an artifact that was published and not removed",
            next_step="run its flow again: it makes what is missing and nothing else",
        )

    def _of(self, folder: str) -> contextlib.AbstractContextManager[None]:
        return waiting_lock(self.root / FETCHED / f"{folder}.lock", what=f"{folder}, which is being fetched")

    @contextlib.contextmanager
    def _scratch(self, folder: str) -> Iterator[Path]:
        name = f"{folder.replace('/', '_')}-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        path = self.root / ".scratch" / name
        path.mkdir(parents=True)
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ArtifactError(
                f"cannot write to the local mirror: {error.strerror or error}",
                field="SAEINTERP_CACHE",
                got=str(self.root),
                expected=f"a folder this user may write to, with room for what is read of {FIELD}",
                next_step="set SAEINTERP_CACHE to another folder, free space or fix its permissions",
            ) from error
