"""Files as the store writes and reads them: JSON, whole or not at all; checksums; whether a process lives."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import Any

_KNOWN: dict[tuple[str, int, int], str] = {}


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


def file_sha256(path: Path) -> str:
    """SHA-256 of a file in hex digits; one with the size and time it had before in this process is not read again."""
    stat = path.stat()
    key = (str(path), stat.st_size, stat.st_mtime_ns)
    if key not in _KNOWN:
        with path.open("rb") as handle:
            _KNOWN[key] = hashlib.file_digest(handle, "sha256").hexdigest()
    return _KNOWN[key]


def process_alive(pid: int) -> bool:
    """Whether a process of this host runs, whoever's it is."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def fsync_folder(path: Path) -> None:
    """Make sure that what was renamed into a folder survives a loss of power."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
