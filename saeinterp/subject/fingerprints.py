"""Content fingerprints of local files, cheap enough to enter a recipe before anything runs.

The surprising choice: files above 64 MiB are sampled (size, head, tail and 64 blocks in between), because a
recipe must be known within a second and hashing a 14 GB checkpoint takes half a minute. Weights that were
trained further differ everywhere, so a sample sees it; a bit flipped by hand in one spot it would not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

_WHOLE = 64 << 20
_BLOCK = 64 << 10
_BLOCKS = 64


def file_fingerprint(path: Path) -> str:
    """SHA-256 hex of a file's content, sampled above 64 MiB; remembered by size and modification time."""
    stat = path.stat()
    return _file_fingerprint(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4096)
def _file_fingerprint(path: Path, size: int, mtime_ns: int) -> str:
    with path.open("rb") as handle:
        if size <= _WHOLE:
            return hashlib.file_digest(handle, "sha256").hexdigest()
        digest = hashlib.sha256(str(size).encode())
        for index in range(_BLOCKS + 1):
            handle.seek((size - _BLOCK) * index // _BLOCKS)
            digest.update(handle.read(_BLOCK))
    return digest.hexdigest()


def files_fingerprint(paths: Sequence[Path], *, root: Path) -> str:
    """SHA-256 hex over names (relative to `root`) and contents of several files, in sorted order."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{path.relative_to(root).as_posix()}\0{file_fingerprint(path)}\n".encode())
    return digest.hexdigest()
