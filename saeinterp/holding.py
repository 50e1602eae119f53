"""Which artifacts running processes use, so that a clean-up leaves them alone.

`<root>/.using/<host>-<pid>-<random>`: a process writes down what it uses in a file of its own, on which it keeps a
lock. The surprising choice: nobody tidies up after a killed process. The kernel drops its lock, and with it what the
file protects, so nothing can hang on a dead run.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import socket
import threading
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from saeinterp.errors import ArtifactError

log = logging.getLogger(__name__)

FOLDER = ".using"
_GATE = "gate"  # shared by who writes down a use, held alone by who removes
_MOST_ROOTS = 16  # files kept open; a process that goes through more has left the first behind

_LOCK = threading.Lock()
_FILES: dict[Path, tuple[int, IO[str], set[str]]] = {}
"""By root: the process it belongs to (a fork must not share its parent's), the file, and what stands in it."""


def hold(root: Path, folders: Iterable[str]) -> None:
    """Write down that this process uses these artifacts (`kind/name-recipe8`) for as long as it lives.

    Where that cannot be written, nothing is: who may not write below a root must trust who may.
    """
    folders = set(folders)
    with _LOCK:
        if not _new(root, folders):
            return
    try:
        # The gate before the lock, as who removes takes them.
        with _gate(root, fcntl.LOCK_SH), _LOCK:
            known = _FILES.get(root)
            _, handle, held = known if known is not None and known[0] == os.getpid() else _open(root)
            new = folders - held
            handle.write("".join(f"{folder}\n" for folder in sorted(new)))
            handle.flush()
            held.update(new)
    except OSError as error:
        log.debug("cannot write down what is used below %s: %s", root, error)


def _new(root: Path, folders: set[str]) -> bool:
    known = _FILES.get(root)
    return known is None or known[0] != os.getpid() or not folders <= known[2]


def held(root: Path) -> set[str]:
    """What running processes use.

    Raises:
        ArtifactError: Another user's process uses something, and its file may not be read.
    """
    found: set[str] = set()
    for path in (root / FOLDER).glob("*-*"):
        with contextlib.suppress(FileNotFoundError):
            if not _abandoned(path):
                try:
                    found.update(path.read_text(encoding="utf-8").split("\n"))
                except PermissionError as error:
                    raise ArtifactError(
                        "cannot see what another user's process uses",
                        got=str(path),
                        next_step="ask that user to run this, or to allow it: chmod a+r on the file",
                    ) from error
    return found - {""}


@contextlib.contextmanager
def removing(root: Path) -> Iterator[None]:
    """While the body runs, no process begins to use anything: for a look at what is held, and renames."""
    with _gate(root, fcntl.LOCK_EX):
        for path in (root / FOLDER).glob("*-*"):
            if _abandoned(path):
                path.unlink(missing_ok=True)
        yield


def locked(path: Path) -> bool:
    """Whether a running process has the lock of a file; a file system without locks counts as yes."""
    try:
        with path.open("r+") as handle:
            # Shared, so that two who look do not take each other for a holder.
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _abandoned(path: Path) -> bool:
    with _LOCK:
        own = [file.name for pid, file, _ in _FILES.values() if pid == os.getpid()]
    return str(path) not in own and not locked(path)


def _open(root: Path) -> tuple[int, IO[str], set[str]]:
    path = root / FOLDER / f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    handle = path.open("x", encoding="utf-8")
    fcntl.flock(handle, fcntl.LOCK_EX)
    _FILES[root] = (os.getpid(), handle, set())
    while len(_FILES) > _MOST_ROOTS:
        _FILES.pop(next(iter(_FILES)))[1].close()
    return _FILES[root]


@contextlib.contextmanager
def _gate(root: Path, kind: int) -> Iterator[None]:
    folder = root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _GATE).open("a") as handle:
        fcntl.flock(handle, kind)
        yield
