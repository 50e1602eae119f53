"""The manifest of an artifact: recipe, versions, inputs, counts, checksums; written last, so that it means whole."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import socket
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from saeinterp.artifacts.files import file_sha256, write_atomic
from saeinterp.artifacts.recipes import Recipe
from saeinterp.errors import DamagedArtifactError
from saeinterp.hardware import hardware

MANIFEST = "manifest.json"
TIMING = "timing.parquet"  # wall times and rows/s: never part of checksums
FORMAT = 1
_NAME = re.compile(r"[^./\\\x00-\x1f][^/\\\x00-\x1f]*")  # one component of a path, and none that is hidden
_RECIPE = re.compile(r"[0-9a-f]{8,64}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FOLDER = re.compile(rf"{_NAME.pattern}/{_NAME.pattern}-[0-9a-f]{{8}}")
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


def write_manifest(out: Path, recipe: Recipe, *, counts: Mapping[str, Any], seconds: float) -> None:
    """Describe the files of a finished folder, in a file of its own that appears at once."""
    files = {}
    for path in sorted(p for p in out.rglob("*") if p.is_file() and p.name != TIMING):
        files[path.relative_to(out).as_posix()] = {
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
        "counts": counts,
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
    write_atomic(out / MANIFEST, (json.dumps(manifest, indent=1, allow_nan=False) + "\n").encode())


def read_manifest(path: Path) -> dict[str, Any]:
    """Read the manifest of a folder.

    Raises:
        DamagedArtifactError: It is not there, unreadable, or lacks something.
    """
    try:
        return parse_manifest((path / MANIFEST).read_bytes(), path)
    except OSError as error:
        raise DamagedArtifactError("unreadable manifest", got=str(path), next_step=remedy(path)) from error


def parse_manifest(data: bytes, path: Path) -> dict[str, Any]:
    """The same of bytes; `path` is where they lie, for the error."""
    try:
        manifest = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamagedArtifactError("unreadable manifest", got=str(path), next_step=remedy(path)) from error
    if not isinstance(manifest, dict):
        raise DamagedArtifactError("unreadable manifest", got=str(path), next_step=remedy(path))
    missing = {"format", "recipe", "files", "counts", "inputs", "made"} - manifest.keys()
    if missing:
        raise DamagedArtifactError(f"manifest lacks {sorted(missing)}", got=str(path), next_step=remedy(path))
    if (odd := _odd(manifest)) is not None:
        raise DamagedArtifactError(f"not a manifest of ours: {odd}", got=str(path), next_step=remedy(path))
    return manifest


def is_folder(text: str) -> bool:
    """Whether it is `kind/name-recipe8`, so that it leads nowhere but two folders down."""
    return _FOLDER.fullmatch(text) is not None


def _odd(manifest: Mapping[str, Any]) -> str | None:
    """What no step would have written: whoever may write to a bucket may not write to the machines that read it."""

    def text(value: object, pattern: re.Pattern[str]) -> bool:
        return isinstance(value, str) and pattern.fullmatch(value) is not None

    for field, kind in {"files": dict, "counts": dict, "made": dict, "inputs": list}.items():
        if not isinstance(manifest[field], kind):
            return f"`{field}` is no {'list' if kind is list else 'object'}"
    for name, facts in manifest["files"].items():
        odd = name == MANIFEST or "\\" in name or "\0" in name or {"", ".", ".."} & set(name.split("/"))
        if odd:
            return f"it names a place outside of its folder, or itself: {name!r}"
        size = facts.get("bytes") if isinstance(facts, dict) else None
        if type(size) is not int or size < 0 or not text(facts.get("sha256"), _SHA256):
            return f"size or checksum of {name!r}"
    for item in (manifest, *manifest["inputs"]):
        whole = isinstance(item, dict) and (item is manifest or {"kind", "name", "recipe"} <= item.keys())
        if not whole or not text(item.get("recipe"), _RECIPE):
            return "a recipe that is none"
        if not all(text(item[field], _NAME) for field in ("kind", "name") if field in item):
            return "a kind or a name that is none"
    return None


def first_problem(
    folder: Path, manifest: Mapping[str, Any], *, only: Callable[[str], bool] | None = None
) -> str | None:
    """What is wrong with the files of a folder by its manifest; None where all match in size and SHA-256."""
    for name, expected in manifest["files"].items():
        if only is not None and not only(name):
            continue
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["bytes"]:
            return f"{name} has {path.stat().st_size} bytes, its manifest says {expected['bytes']}"
        if file_sha256(path) != expected["sha256"]:
            return f"{name} does not match its checksum"
    return None


def payload_prefix(folder: str, manifest: Mapping[str, Any]) -> str:
    """Where the files of an artifact (`kind/name-recipe8`) lie in object storage, below the prefix of the store."""
    text = json.dumps(manifest.get("files", {}), sort_keys=True, separators=(",", ":"))
    return f"{folder}/{hashlib.sha256(text.encode()).hexdigest()[:16]}/"


def as_far_as_read(data: bytes) -> dict[str, Any]:
    """A manifest, empty where it cannot be read: whoever uses the artifact is told then."""
    try:
        return parse_manifest(data, Path(MANIFEST))
    except DamagedArtifactError:
        return {}


def remedy(path: Path) -> str:
    """What to do about a damaged folder."""
    return f"remove {path} and run again; it will be rebuilt"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
