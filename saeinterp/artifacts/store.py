"""The store: finds artifacts by recipe and builds those that are missing."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from saeinterp.artifacts import fetching, outbox
from saeinterp.artifacts.files import fsync_folder, process_alive
from saeinterp.artifacts.manifests import MANIFEST, read_manifest, remedy, write_manifest
from saeinterp.artifacts.mirror import Mirror, mirror_of
from saeinterp.artifacts.places import mark, place_of
from saeinterp.artifacts.recipes import Recipe, Ref, folder_of
from saeinterp.artifacts.references import Artifact, verify_artifact
from saeinterp.artifacts.workspace import Workspace, work_folder
from saeinterp.errors import ArtifactError, DamagedArtifactError
from saeinterp.holding import hold

log = logging.getLogger(__name__)

_ANY = "[!.]*"


class Build:
    """One recipe opened for building; see `ArtifactStore.open`.

    Attributes:
        artifact: The finished artifact, or None while it is being made.
    """

    def __init__(
        self, store: ArtifactStore, recipe: Recipe, space: Workspace | None = None, artifact: Artifact | None = None
    ) -> None:
        self.recipe = recipe
        self.artifact = artifact
        self._store = store
        self._space = space
        self._started = time.time()

    @property
    def space(self) -> Workspace:
        """Where to write."""
        assert self._space is not None, "this artifact is already there"
        return self._space

    def publish(self) -> Artifact:
        """Write the manifest and make what lies in `space.out` the artifact.

        Raises:
            ArtifactError: It cannot be published; with object storage it is kept, and sent by the next run.
        """
        out, final = self.space.out, self._store.root / self.recipe.folder
        write_manifest(out, self.recipe, counts=self.space.counts, seconds=time.time() - self._started)
        artifact = self._store.artifact(self.recipe)
        if self._store.mirror is not None:
            outbox.publish(self._store.mirror, artifact.id, out)
            self.artifact = artifact
            return artifact
        try:
            os.rename(out, final)
        except OSError as error:
            if not (final / MANIFEST).exists():
                raise ArtifactError(
                    f"cannot publish: {error.strerror}",
                    got=str(final),
                    next_step="remove that folder and run again",
                ) from error
            log.info("%s was published by another run; using that one", artifact.id)
        fsync_folder(final.parent)
        self.artifact = artifact
        return artifact

    def finished(self) -> Artifact:
        """The artifact, which must be there by now."""
        assert self.artifact is not None, "not published"
        return self.artifact


class ArtifactStore:
    """The artifacts below one root: a folder, or a prefix in object storage.

    Args:
        root: A folder or `s3://bucket/prefix`; default is the environment variable `SAEINTERP_ROOT`, else `./runs`.

    Attributes:
        root: The folder; for object storage the local one that mirrors it, which also holds scratch, checkpoints and
            replies of language models.
        url: `s3://bucket/prefix`, or None.

    Raises:
        ConfigError: An address that is not supported.
    """

    def __init__(self, root: str | Path | None = None) -> None:
        self._place = place_of(root)
        self.root, self.url = self._place

    def __repr__(self) -> str:
        return f"ArtifactStore({self.shown!r})"

    @property
    def shown(self) -> str:
        """The root as a user names it."""
        return self.url or str(self.root)

    @property
    def mirror(self) -> Mirror | None:
        """What this machine has of the bucket; None for a store in a folder."""
        return None if self.url is None else mirror_of(self._place)

    def artifact(self, ref: Ref) -> Artifact:
        """A reference to the artifact of a recipe, there or not."""
        path = self.root / folder_of(ref)
        return Artifact(kind=ref.kind, name=ref.name, hash=ref.hash, path=path, url=self.url)

    def named(self, item: Mapping[str, str]) -> Artifact:
        """The same for an artifact as a manifest names its inputs: kind, name, recipe."""
        path = self.root / item["kind"] / f"{item['name']}-{item['recipe'][:8]}"
        return Artifact(kind=item["kind"], name=item["name"], hash=item["recipe"], path=path, url=self.url)

    def folders(self, kind: str = _ANY) -> list[Path]:
        """The folders of all finished artifacts of a kind, sorted; payloads in object storage are not fetched."""
        if self.mirror is not None:
            self.mirror.sync(None if kind == _ANY else kind)
        return sorted(path.parent for path in self.root.glob(f"{kind}/*/{MANIFEST}"))

    def hold(self, *used: Ref) -> None:
        """Keep a clean-up (`saeinterp artifacts gc`) from removing these while this process runs."""
        if self.root.is_dir():
            hold(self.root, [folder_of(ref) for ref in used])

    def find(self, recipe: Recipe, *, verify: bool = True) -> Artifact | None:
        """The finished artifact of a recipe, or None.

        Args:
            verify: Also compare file sizes and checksums with the manifest; checksums of what is in object storage
                once it is read.

        Raises:
            DamagedArtifactError: A finished folder exists but does not match its manifest.
        """
        path = self.root / recipe.folder
        if self.mirror is not None:
            if not self.mirror.learn(recipe.folder):
                return None
        elif not (path / MANIFEST).exists():
            return None
        manifest = read_manifest(path)
        if manifest["recipe"] != recipe.hash:
            raise DamagedArtifactError("manifest belongs to another recipe", got=str(path), next_step=remedy(path))
        artifact = self.artifact(recipe)
        if verify and self.mirror is not None:
            fetching.check(self.mirror, recipe.folder)
        elif verify:
            verify_artifact(artifact)
        return artifact

    def build(self, recipe: Recipe, write: Callable[[Workspace], None]) -> Artifact:
        """Return the artifact of `recipe`, making it with `write` when it is not there.

        `write` fills `workspace.out` and may set `workspace.counts`. See `open` for damage, races and errors.
        """
        with self.open(recipe) as build:
            if build.artifact is None:
                write(build.space)
                build.publish()
            return build.finished()

    @contextlib.contextmanager
    def open(self, recipe: Recipe) -> Iterator[Build]:
        """Open a recipe for building: `artifact` is set where it exists; else fill `space` and call `publish`.

        For steps that make several artifacts at once, and publish each as soon as it is done. A damaged artifact is
        moved aside to `<root>/.damaged` (one in object storage is deleted) and made again. When two runs race, the
        first to publish wins and the other adopts its folder. Without `publish` nothing becomes visible, and
        `space.work` is kept.

        Raises:
            ArtifactError: The root cannot be written, or the disk is full.
        """
        with self._writing():
            # For this user alone, since what follows from a text may be as private as the text; `chmod` it to share.
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            mark(self._place)
        self.hold(recipe, *recipe.inputs)
        try:
            existing = self.find(recipe)
        except DamagedArtifactError as error:
            self._set_aside(recipe, error)
            existing = None
        if self.mirror is not None:
            # Also of what is there: its sender may have been killed right after the manifest.
            if outbox.resume(self.mirror, recipe.folder):
                existing = self.artifact(recipe)
            elif existing is None:
                self.mirror.require_writable()
        if existing is not None:
            log.info("%s is already there", existing.id)
            yield Build(self, recipe, artifact=existing)
            return
        scratch = self.root / ".scratch"
        with self._writing():
            (self.root / recipe.folder).parent.mkdir(parents=True, exist_ok=True)
            scratch.mkdir(parents=True, exist_ok=True)
        self.sweep()
        with work_folder(self.root / ".work" / recipe.folder) as work:
            place = f"{recipe.folder.replace('/', '_')}-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
            out = scratch / place
            out.mkdir()
            build = Build(self, recipe, Workspace(out=out, work=work))
            try:
                yield build
            except OSError as error:
                if error.errno in (28, 122):  # ENOSPC, EDQUOT
                    raise ArtifactError(
                        "the disk is full",
                        field=recipe.folder,
                        got=str(self.root),
                        next_step=f"free space or set {self._variable} to a larger disk, then run again",
                    ) from error
                raise
            finally:
                shutil.rmtree(out, ignore_errors=True)
            if build.artifact is not None:  # a step that failed keeps what it can resume from
                shutil.rmtree(work, ignore_errors=True)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ArtifactError(
                f"cannot write to the artifact folder: {error.strerror}",
                field=self._variable,
                got=str(self.root),
                expected="a folder this user may write to",
                next_step=f"set {self._variable} to another folder or fix its permissions",
            ) from error

    @property
    def _variable(self) -> str:
        """Where a user says in which folder it lies."""
        return "SAEINTERP_ROOT" if self.url is None else "SAEINTERP_CACHE"

    def sweep(self) -> int:
        """Remove scratch folders left by processes of this host that are gone; returns how many."""
        removed = 0
        for folder in (self.root / ".scratch").glob("*"):
            _, _, tail = folder.name.rpartition(f"-{socket.gethostname()}-")
            pid = tail.split("-")[0]
            if pid.isdigit() and not process_alive(int(pid)):
                shutil.rmtree(folder, ignore_errors=True)
                removed += 1
        return removed

    def _set_aside(self, recipe: Recipe, error: DamagedArtifactError) -> None:
        if self.mirror is not None:
            fetching.set_aside(self.mirror, recipe.folder)
            log.warning("%s Deleted; making it again.", error)
            return
        grave = self.root / ".damaged"
        grave.mkdir(parents=True, exist_ok=True)
        target = grave / f"{recipe.folder.replace('/', '_')}-{uuid.uuid4().hex[:8]}"
        os.rename(self.root / recipe.folder, target)
        log.warning("%s Moved to %s; making it again.", error, target)
