"""Room in a mirror: fetched files that were not used for longest go, manifests stay.

The surprising choice: what a running process of this machine uses stays whatever the limit says, since a step that
loses its input in the middle costs more than disk.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
from pathlib import Path

from saeinterp.artifacts.manifests import MANIFEST
from saeinterp.artifacts.places import cache_limit
from saeinterp.holding import held, removing

log = logging.getLogger(__name__)

FETCHED = ".fetched"
"""Below it a file for each artifact that is there with all its files; its time is that of the last use."""
PARTIAL = ".partial"
"""Below it what has come so far of files that are being fetched."""
OUTBOX = ".outbox"
"""Below it what is made and not sent yet, and for each artifact the lock of its upload."""
_SPARE_BYTES = 10**9  # of the disk, left to others


def make_room(root: Path, needed: int, *, keep: str = "") -> None:
    """Remove payloads that were not used for longest, until so many bytes fit into the limit and onto the disk.

    What a running process of this machine uses stays, so that the limit may be exceeded.
    """
    limit = cache_limit()
    short = needed + _SPARE_BYTES - shutil.disk_usage(root).free
    if limit is None and short <= 0:
        return
    sizes = {folder: _size(root, folder) for folder in known_folders(root)}
    over = max(short, 0 if limit is None else sum(sizes.values()) + needed - limit)
    if over <= 0:
        return
    with removing(root):
        using = held(root)
        for folder in sorted((item for item in sizes if sizes[item]), key=lambda item: _used(root, item)):
            if over > 0 and folder not in using and folder != keep:
                over -= drop(root, folder)
                log.info("removed the local copy of %s", folder)
    if over > 0 and limit is not None:
        log.warning("what is in use exceeds SAEINTERP_CACHE_LIMIT by %.1f MB", over / 1e6)


def drop(root: Path, folder: str) -> int:
    """Remove the local payload of an artifact and keep its manifest; returns the bytes."""
    (root / FETCHED / folder).unlink(missing_ok=True)
    size = 0
    for path in sorted((root / folder).rglob("*"), reverse=True):
        if path.is_dir():
            path.rmdir()
        elif path != root / folder / MANIFEST:
            size += path.stat().st_size
            path.unlink()
    return size


def known_folders(root: Path) -> list[str]:
    """The artifacts (`kind/name-recipe8`) whose manifest is in a mirror."""
    found = (path.parent.relative_to(root) for path in root.glob(f"[!.]*/*/{MANIFEST}"))
    return sorted(path.as_posix() for path in found)


def _size(root: Path, folder: str) -> int:
    size = 0
    for path in (root / folder).rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            if path.is_file() and path.name != MANIFEST:
                size += path.stat().st_size
    return size


def _used(root: Path, folder: str) -> float:
    for path in (root / FETCHED / folder, root / folder):
        with contextlib.suppress(FileNotFoundError):
            return path.stat().st_mtime
    return 0.0
