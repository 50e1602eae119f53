"""Where a step writes: scratch that becomes the artifact, and a work folder that survives a kill."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

log = logging.getLogger(__name__)


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


@contextlib.contextmanager
def waiting_lock(path: Path, *, what: str) -> Iterator[None]:
    """Hold a lock that other processes and threads may have for long; `what` says in the log what is waited for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting for %s by another process", what)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


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
def work_folder(path: Path) -> Iterator[Path]:
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
