"""The local mirror of a bucket: every manifest that is known, and payloads once somebody reads them.

`<kind>/<name>-<recipe8>/manifest.json` in the bucket names the artifact's files; they lie beside it below
`<digest>/`, the digest of their checksums. The surprising choice: that digest. Two machines that make one recipe at
the same time may differ in a bit of a weight; with names of their own neither overwrites what the manifest of the other
promises, and whichever manifest comes first is whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

from saeinterp.artifacts.bucket import Bucket
from saeinterp.artifacts.files import write_atomic
from saeinterp.artifacts.manifests import MANIFEST, as_far_as_read, is_folder, read_manifest
from saeinterp.artifacts.places import FIELD, Place, mark
from saeinterp.artifacts.room import FETCHED, PARTIAL, drop, known_folders
from saeinterp.artifacts.workspace import waiting_lock
from saeinterp.errors import ArtifactError
from saeinterp.holding import held

_AT_ONCE = 8
_PROBE = "saeinterp.json"


def mirror_of(place: Place) -> Mirror:
    """The mirror at a place, one for all of a process."""
    assert place.url is not None
    return _mirror(place.root, place.url, os.getpid())  # a fork must not share its parent's connections


@lru_cache(maxsize=64)
def _mirror(root: Path, url: str, _process: int) -> Mirror:
    return Mirror(root, url)


class Mirror:
    """What this machine has of a bucket.

    Args:
        root: Its folder.
        url: `s3://bucket/prefix`.
    """

    def __init__(self, root: Path, url: str) -> None:
        self.root, self.url, self.bucket = root, url, Bucket(url)
        self._writable = False
        self._still = False
        self._lock = threading.Lock()

    def learn(self, folder: str) -> bool:
        """Ask the bucket for an artifact: its manifest, and those of what it was made from. False: it is not there."""
        if not is_folder(folder):
            raise ArtifactError("no id of an artifact", field=FIELD, got=folder, expected="kind/name-recipe8")
        data = self.bucket.get(f"{folder}/{MANIFEST}")
        if data is None:
            self.forget(folder)
            return False
        self.adopt(folder, data)
        self._learn_inputs(folder)
        return True

    def knows(self, folder: str) -> bool:
        """Whether an artifact is there; the bucket is asked for what no manifest here has told of."""
        return (self.root / folder / MANIFEST).exists() or self.learn(folder)

    def adopt(self, folder: str, data: bytes) -> None:
        """Make a manifest the local one, readable or not: whoever uses it is told. Other files than it names go."""
        path = self.root / folder / MANIFEST
        if path.exists() and path.read_bytes() == data:
            return
        with self.telling(), self.of(folder):
            mark(Place(self.root, self.url))
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self._known(folder).get("files") != as_far_as_read(data).get("files"):
                (self.root / FETCHED / folder).unlink(missing_ok=True)
                if not self._in_use(folder):  # else each file is compared before it is next read
                    drop(self.root, folder)
            write_atomic(path, data)

    def sync(self, kind: str | None = None) -> None:
        """Make the local manifests, or those of one kind, those of the bucket."""
        if self._still:
            return
        prefix, etags = "" if kind is None else f"{kind}/", {}
        for entry in self.bucket.entries(prefix):
            folder, _, name = entry.key.rpartition("/")
            if name == MANIFEST and is_folder(folder):  # nothing in a bucket leads out of the mirror
                etags[folder] = entry.etag

        def update(folder: str) -> None:
            path = self.root / folder / MANIFEST
            etag = etags.get(folder)
            with contextlib.suppress(FileNotFoundError):
                if etag == hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest():
                    return
            # What the list lacks may have been published since it was made.
            data = self.bucket.get(f"{folder}/{MANIFEST}")
            if data is not None:
                self.adopt(folder, data)
            elif etag is None:
                self.forget(folder)

        gone = [folder for folder in known_folders(self.root) if folder.startswith(prefix) and folder not in etags]
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="sync") as pool:
            for _ in pool.map(update, [*etags, *gone]):
                pass
        for path in self.root.glob(f"{kind or '[!.]*'}/*"):  # was removed while a process used it, which has ended
            folder = path.relative_to(self.root).as_posix()
            if is_folder(folder) and path.is_dir() and not (path / MANIFEST).exists():
                self.forget(folder, unless_known=True)

    @contextlib.contextmanager
    def still(self) -> Iterator[None]:
        """While the body runs, `sync` leaves the mirror as it is; for who has called it and now holds locks."""
        self._still = True
        try:
            yield
        finally:
            self._still = False

    def retract(self, folder: str) -> None:
        """Delete the manifest of an artifact, so that it is not there any more; its files are left to `clear`."""
        self.bucket.delete([f"{folder}/{MANIFEST}"])
        self.forget(folder)

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
        """Make a folder whose content is in the bucket the local copy; who reads an equal one keeps it throughout."""
        final, whole = self.root / folder, self.root / FETCHED / folder
        with self.telling(), self.of(folder):
            for path in (final.parent, whole.parent):
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if whole.exists() and self._known(folder).get("files") == read_manifest(made)["files"]:
                os.replace(made / MANIFEST, final / MANIFEST)
                shutil.rmtree(made)
                return
            whole.unlink(missing_ok=True)
            if final.exists():
                names = sorted(path.relative_to(made) for path in made.rglob("*") if path.is_file())
                for name in sorted(names, key=lambda name: name == Path(MANIFEST)):  # the manifest last
                    (final / name).parent.mkdir(parents=True, exist_ok=True)
                    os.replace(made / name, final / name)
                shutil.rmtree(made)
            else:
                os.rename(made, final)
            whole.touch()

    def forget(self, folder: str, *, unless_known: bool = False) -> None:
        """Remove what is local of an artifact; of one that a process here uses only the manifest, so far."""
        if (self.root / folder).exists():
            with self.telling(), self.of(folder):
                if unless_known and (self.root / folder / MANIFEST).exists():
                    return
                (self.root / FETCHED / folder).unlink(missing_ok=True)
                if self._in_use(folder):
                    (self.root / folder / MANIFEST).unlink(missing_ok=True)
                    return
                shutil.rmtree(self.root / PARTIAL / folder, ignore_errors=True)
                trash = self.root / ".trash"
                trash.mkdir(mode=0o700, parents=True, exist_ok=True)
                gone = trash / f"{folder.replace('/', '_')}-{uuid.uuid4().hex[:8]}"
                with contextlib.suppress(FileNotFoundError):
                    os.rename(self.root / folder, gone)
                shutil.rmtree(gone, ignore_errors=True)

    def of(self, folder: str) -> contextlib.AbstractContextManager[None]:
        """Alone with what is local of an artifact; never wait for another lock inside."""
        return waiting_lock(self.root / FETCHED / f"{folder}.lock", what=f"{folder}, which is being fetched")

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        """Errors of the local disk as ours."""
        try:
            yield
        except OSError as error:
            raise ArtifactError(
                f"cannot write to the local mirror: {error.strerror or error}",
                field="SAEINTERP_CACHE",
                got=str(self.root),
                expected=f"a folder this user may write to, with room for what is read of {FIELD}",
                next_step="free space, set SAEINTERP_CACHE to another folder or SAEINTERP_CACHE_LIMIT, or fix its "
                "permissions, then run again",
            ) from error

    def _known(self, folder: str) -> dict[str, Any]:
        try:
            return as_far_as_read((self.root / folder / MANIFEST).read_bytes())
        except FileNotFoundError:
            return {}

    def _in_use(self, folder: str) -> bool:
        try:
            return folder in held(self.root)
        except ArtifactError:  # nobody knows what another user's process uses
            return True

    def _learn_inputs(self, folder: str) -> None:
        """Manifests of ancestors, each asked for once; those that were removed are no concern."""
        waiting, asked = [folder], {folder}
        while waiting:
            for item in self._known(waiting.pop()).get("inputs", ()):
                parent = f"{item['kind']}/{item['name']}-{item['recipe'][:8]}"
                if parent in asked or not is_folder(parent):
                    continue
                asked.add(parent)
                if not (self.root / parent / MANIFEST).exists():
                    data = self.bucket.get(f"{parent}/{MANIFEST}")
                    if data is None:
                        continue
                    self.adopt(parent, data)
                waiting.append(parent)
