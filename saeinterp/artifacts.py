"""Immutable artifact folders addressed by recipe.

Everything a step makes is a folder `<root>/<kind>/<name>-<recipe8>/` whose `manifest.json` is written
last; a folder without one is invisible. The surprising choice: a recipe hashes the recipes of its
inputs, never their bytes, so every recipe of a run is known before anything is computed (`plan` rests
on it), and equal recipes mean equal folders with or without a scheduler's memory.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import platform
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any, Protocol

from pydantic import BaseModel, ConfigDict

from saeinterp.errors import ArtifactError, DamagedArtifactError, DataError
from saeinterp.hardware import hardware
from saeinterp.holding import hold

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
TIMING = "timing.parquet"  # wall times and rows/s: never part of checksums
FORMAT = 1
_RECORDED_PACKAGES = (
    "saeinterp",
    "torch",
    "transformers",
    "accelerate",
    "numpy",
    "scipy",
    "pyarrow",
    "polars",
)


class Ref(Protocol):
    """What a recipe needs to know of an input: a `Recipe` not yet built or an `Artifact` that exists."""

    @property
    def kind(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def hash(self) -> str: ...


@dataclass(frozen=True)
class Recipe:
    """What determines an artifact's content.

    Attributes:
        kind: The folder below the root, such as `sae`.
        name: Readable part of the folder name, such as `layers.9`.
        version: The step's own version; raise it whenever the same configuration gives other bytes.
        config: JSON values that change the result, and only those.
        inputs: The recipes or artifacts this one is made from, in a fixed order.
    """

    kind: str
    name: str
    version: int
    config: Mapping[str, Any]
    inputs: tuple[Ref, ...] = ()

    @cached_property
    def hash(self) -> str:
        """Sixteen hex digits of SHA-256 over the canonical JSON of the recipe."""
        body = {
            "kind": self.kind,
            "version": self.version,
            "config": self.config,
            "inputs": [[ref.kind, ref.hash] for ref in self.inputs],
        }
        text = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def folder(self) -> str:
        """The path below the root: `<kind>/<name>-<recipe8>`."""
        return f"{self.kind}/{self.name}-{self.hash[:8]}"


class Artifact(BaseModel):
    """A small reference to a finished artifact: what tasks pass to each other instead of tensors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    name: str
    hash: str
    path: Path

    @property
    def id(self) -> str:
        """`kind/name-recipe8`, as printed in reports."""
        return f"{self.kind}/{self.name}-{self.hash[:8]}"

    def manifest(self) -> dict[str, Any]:
        """The artifact's manifest: recipe, versions, inputs, counts, checksums, timings."""
        return _read_manifest(self.path)

    def counts(self) -> dict[str, Any]:
        """The counts the step recorded (rows, tokens, latents ...)."""
        counts: dict[str, Any] = self.manifest()["counts"]
        return counts

    def file(self, name: str) -> Path:
        """The path of one payload file; raises `DamagedArtifactError` when it is not there."""
        path = self.path / name
        if not path.exists():
            raise DamagedArtifactError(f"{self.id} lacks {name}", got=str(self.path), next_step=_remedy(self.path))
        return path


@dataclass
class Workspace:
    """Where a step writes: `out` becomes the artifact, `work` survives a kill for the step to resume from.

    Attributes:
        out: An empty folder; what lies in it when the step returns is published.
        work: A folder of this recipe alone that is kept until the artifact is published (checkpoints).
    """

    out: Path
    work: Path
    counts: dict[str, Any] = field(default_factory=dict)


class Build:
    """One recipe opened for building; see `ArtifactStore.open`.

    Attributes:
        artifact: The finished artifact, or None while it is being made.
    """

    def __init__(self, recipe: Recipe, final: Path, space: Workspace | None, artifact: Artifact | None) -> None:
        self.recipe = recipe
        self.artifact = artifact
        self._final = final
        self._space = space
        self._started = time.time()

    @property
    def space(self) -> Workspace:
        """Where to write."""
        assert self._space is not None, "this artifact is already there"
        return self._space

    def publish(self) -> Artifact:
        """Write the manifest and make what lies in `space.out` the artifact."""
        out, final = self.space.out, self._final
        _write_manifest(self.recipe, self.space, seconds=time.time() - self._started)
        artifact = Artifact(kind=self.recipe.kind, name=self.recipe.name, hash=self.recipe.hash, path=final)
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
        _fsync_folder(final.parent)
        self.artifact = artifact
        return artifact

    def finished(self) -> Artifact:
        """The artifact, which must be there by now."""
        assert self.artifact is not None, "not published"
        return self.artifact


class ArtifactStore:
    """The artifacts below one root folder.

    Args:
        root: A folder; default is the environment variable `SAEINTERP_ROOT`, else `./runs`.
    """

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = Path(root or os.environ.get("SAEINTERP_ROOT") or "runs").expanduser().absolute()

    def __repr__(self) -> str:
        return f"ArtifactStore({str(self.root)!r})"

    def hold(self, *used: Ref) -> None:
        """Keep a clean-up (`saeinterp artifacts gc`) from removing these while this process runs."""
        if self.root.is_dir():
            hold(self.root, [f"{ref.kind}/{ref.name}-{ref.hash[:8]}" for ref in used])

    def find(self, recipe: Recipe, *, verify: bool = True) -> Artifact | None:
        """The finished artifact of a recipe, or None.

        Args:
            verify: Also compare file sizes and checksums with the manifest.

        Raises:
            DamagedArtifactError: A finished folder exists but does not match its manifest.
        """
        path = self.root / recipe.folder
        if not (path / MANIFEST).exists():
            return None
        manifest = _read_manifest(path)
        if manifest["recipe"] != recipe.hash:
            raise DamagedArtifactError("manifest belongs to another recipe", got=str(path), next_step=_remedy(path))
        artifact = Artifact(kind=recipe.kind, name=recipe.name, hash=recipe.hash, path=path)
        if verify:
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
        moved aside to `<root>/.damaged` and made again. When two runs race, the first to publish wins and the other
        adopts its folder. Without `publish` nothing becomes visible, and `space.work` is kept.

        Raises:
            ArtifactError: The root cannot be written, or the disk is full.
        """
        with self._writing():
            # For this user alone, since what follows from a text may be as private as the text; `chmod` it to share.
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.hold(recipe, *recipe.inputs)
        try:
            existing = self.find(recipe)
        except DamagedArtifactError as error:
            self._set_aside(recipe, error)
            existing = None
        if existing is not None:
            log.info("%s is already there", existing.id)
            yield Build(recipe, existing.path, None, existing)
            return
        scratch = self.root / ".scratch"
        with self._writing():
            (self.root / recipe.folder).parent.mkdir(parents=True, exist_ok=True)
            scratch.mkdir(parents=True, exist_ok=True)
        self.sweep()
        with _work_folder(self.root / ".work" / recipe.folder) as work:
            place = f"{recipe.folder.replace('/', '_')}-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
            out = scratch / place
            out.mkdir()
            build = Build(recipe, self.root / recipe.folder, Workspace(out=out, work=work), None)
            try:
                yield build
            except OSError as error:
                if error.errno in (28, 122):  # ENOSPC, EDQUOT
                    raise ArtifactError(
                        "the disk is full",
                        field=recipe.folder,
                        got=str(self.root),
                        next_step="free space or set SAEINTERP_ROOT to a larger disk, then run again",
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
                field="SAEINTERP_ROOT",
                got=str(self.root),
                expected="a folder this user may write to",
                next_step="set SAEINTERP_ROOT to another folder or fix its permissions",
            ) from error

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
        grave = self.root / ".damaged"
        grave.mkdir(parents=True, exist_ok=True)
        target = grave / f"{recipe.folder.replace('/', '_')}-{uuid.uuid4().hex[:8]}"
        os.rename(self.root / recipe.folder, target)
        log.warning("%s Moved to %s; making it again.", error, target)


_VERIFIED: dict[tuple[str, int, int], str] = {}


def open_artifact(folder: str | Path) -> Artifact:
    """The finished artifact that lies in a folder, taken for what its manifest says, wherever the folder lies.

    Raises:
        DataError: The folder is not there, or holds no finished artifact.
        DamagedArtifactError: Its manifest is unreadable.
    """
    folder = Path(folder).expanduser().absolute()
    if not (folder / MANIFEST).is_file():
        raise DataError(
            f"no {MANIFEST}: not a finished artifact" if folder.is_dir() else "no such folder",
            field=str(folder),
            expected="a folder that a step has finished, such as runs/report/layer-health-1a2b3c4d",
            next_step="check the path; what is being made appears once it is done",
        )
    manifest = _read_manifest(folder)
    return Artifact(
        kind=manifest.get("kind", folder.parent.name),
        name=manifest.get("name", folder.name.rpartition("-")[0]),
        hash=manifest["recipe"],
        path=folder,
    )


def verify_artifact(artifact: Artifact, *, only: Callable[[str], bool] | None = None) -> None:
    """Compare every payload file with the manifest's sizes and SHA-256 sums.

    A file whose size and modification time were seen before in this process is not read again.

    Args:
        only: Says by its name whether a file is compared; default is every one.

    Raises:
        DamagedArtifactError: Naming the folder and the first file that differs.
    """
    for name, expected in artifact.manifest()["files"].items():
        if only is not None and not only(name):
            continue
        path = artifact.path / name
        problem = None
        if not path.is_file():
            problem = f"{name} is missing"
        elif path.stat().st_size != expected["bytes"]:
            problem = f"{name} has {path.stat().st_size} bytes, its manifest says {expected['bytes']}"
        elif file_sha256(path) != expected["sha256"]:
            problem = f"{name} does not match its checksum"
        if problem:
            raise DamagedArtifactError(
                f"damaged artifact: {problem}",
                field=artifact.id,
                got=str(artifact.path),
                next_step=_remedy(artifact.path),
            )


def write_json(path: Path, value: object) -> None:
    """Write JSON with sorted keys and a final newline; NaN and infinities are refused."""
    path.write_text(
        json.dumps(value, sort_keys=True, indent=1, allow_nan=False, ensure_ascii=False) + "\n",
        encoding="utf-8",
    )


def read_json(path: Path) -> Any:
    """Read a JSON file written by `write_json`."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_atomic(path: Path, data: bytes) -> None:
    """Write a whole file under a temporary name, flush it to disk, then rename it into place."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}")
    try:
        with temporary.open("wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_manifest(recipe: Recipe, space: Workspace, *, seconds: float) -> None:
    files = {}
    for path in sorted(p for p in space.out.rglob("*") if p.is_file() and p.name != TIMING):
        files[path.relative_to(space.out).as_posix()] = {
            "bytes": path.stat().st_size,
            "sha256": file_sha256(path),
        }
    if not files:
        raise AssertionError(f"step {recipe.kind} wrote no files")
    manifest = {
        "format": FORMAT,
        "kind": recipe.kind,
        "name": recipe.name,
        "recipe": recipe.hash,
        "version": recipe.version,
        "config": recipe.config,
        "inputs": [{"kind": ref.kind, "name": ref.name, "recipe": ref.hash} for ref in recipe.inputs],
        "counts": space.counts,
        "files": files,
        # Differs between equal runs; nothing above this line may depend on it.
        "made": {
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "seconds": round(seconds, 3),
            "host": socket.gethostname(),
            "platform": platform.platform(),
            "hardware": hardware()._asdict(),
            "python": platform.python_version(),
            "versions": {name: _version(name) for name in _RECORDED_PACKAGES},
        },
    }
    write_atomic(space.out / MANIFEST, (json.dumps(manifest, indent=1, allow_nan=False) + "\n").encode())


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedArtifactError("unreadable manifest", got=str(path), next_step=_remedy(path)) from error
    missing = {"format", "recipe", "files", "counts", "inputs", "made"} - manifest.keys()
    if missing:
        raise DamagedArtifactError(f"manifest lacks {sorted(missing)}", got=str(path), next_step=_remedy(path))
    return manifest


def file_sha256(path: Path) -> str:
    """SHA-256 of a file in hex digits; one with the size and time it had before in this process is not read again."""
    stat = path.stat()
    key = (str(path), stat.st_size, stat.st_mtime_ns)
    if key not in _VERIFIED:
        with path.open("rb") as handle:
            _VERIFIED[key] = hashlib.file_digest(handle, "sha256").hexdigest()
    return _VERIFIED[key]


def _remedy(path: Path) -> str:
    return f"remove {path} and run again; it will be rebuilt"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def process_alive(pid: int) -> bool:
    """Whether a process of this host runs, whoever's it is."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _fsync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _lock(handle: IO[str]) -> None:
    """Take the lock; a clean-up that only looks whether it is held has it for a moment."""
    for last in (False, False, False, True):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if last:
                raise
            time.sleep(0.05)


@contextlib.contextmanager
def _work_folder(path: Path) -> Iterator[Path]:
    """A folder that survives a kill, held by at most one process.

    The kernel drops the lock when its holder dies, so nothing can hang on a dead run. A second run of the
    same recipe that finds it held works in a folder of its own; results are equal either way.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with (path.parent / f"{path.name}.lock").open("w") as handle:
        try:
            _lock(handle)
        except BlockingIOError:
            private = path.with_name(f"{path.name}-{os.getpid()}-{uuid.uuid4().hex[:8]}")
            private.mkdir()
            try:
                yield private
            finally:
                shutil.rmtree(private, ignore_errors=True)
            return
        path.mkdir(exist_ok=True)  # only now: who held the lock before may have removed it when it was done
        yield path


def dependencies(artifacts: Sequence[Artifact]) -> list[dict[str, str]]:
    """The direct inputs of the given artifacts, each once, in order of first mention."""
    seen: dict[str, dict[str, str]] = {}
    for artifact in artifacts:
        for item in artifact.manifest()["inputs"]:
            seen.setdefault(item["recipe"], item)
    return list(seen.values())
