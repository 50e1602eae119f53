"""Checkpoints of one training run: a safetensors file a step, written whole or not at all, the last two kept.

Scalars travel as JSON in the file's own header. The surprising choice: one file rather than a folder, because a
rename then publishes tensors and scalars together.
"""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

log = logging.getLogger(__name__)

KEEP = 2
_PATTERN = "step-*.safetensors"


class Checkpoint(NamedTuple):
    """What a run resumes from."""

    tensors: dict[str, Tensor]
    scalars: dict[str, Any]


def save_checkpoint(folder: Path, *, step: int, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> bool:
    """Write one checkpoint and drop all but the newest `KEEP`; returns False when the disk is full.

    A full disk leaves the previous checkpoints as they were and lets training go on: it may not need another.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{step:012d}.safetensors"
    temporary = folder / f".{final.name}.tmp"
    try:
        save_file(dict(tensors), temporary, metadata={"scalars": json.dumps(scalars)})
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, final)
        handle_folder = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle_folder)
        finally:
            os.close(handle_folder)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        if not disk_full(error):
            raise
        log.warning("checkpoint of step %d not written, the disk is full: %s; training goes on", step, folder)
        return False
    for old in sorted(folder.glob(_PATTERN))[:-KEEP]:
        old.unlink()
    return True


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest readable checkpoint, or None; an unreadable one is passed over with a warning."""
    for path in sorted(folder.glob(_PATTERN), reverse=True):
        try:
            with safe_open(path, "pt") as handle:
                # Cloned: a view of the mapped file may lie unaligned, and alignment can change bits.
                tensors = {name: handle.get_tensor(name).clone() for name in handle.keys()}  # noqa: SIM118
                return Checkpoint(tensors, json.loads(handle.metadata()["scalars"]))
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            log.warning("checkpoint %s is unreadable (%s); trying the one before", path, error)
    return None


def disk_full(error: OSError | SafetensorError) -> bool:
    """Whether a write failed because the disk or the quota is used up."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    # safetensors wraps the system's error in its own and keeps only the text.
    return "No space left" in str(error) or "os error 28" in str(error) or "quota" in str(error).lower()
