"""Runs a server and leaves none of its processes behind: `python -m saeinterp.supervisor --grace 20 -- COMMAND`.

Whoever starts it holds its standard input open; closing that, or dying by whatever signal, ends the server. The
surprising choice: a process between the two, because servers have processes of their own, which would outlive a
SIGKILL of the caller. On Linux it adopts those that lose their parent, so that none is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

import psutil

from saeinterp.child import die_with_parent

_POLL_SECONDS = 0.2
_PR_SET_CHILD_SUBREAPER = 36


def supervise(command: Sequence[str], *, grace: float, unset: Sequence[str] = ()) -> int:
    """Run a command until it ends or standard input closes; then end what it started.

    Args:
        grace: Seconds between SIGTERM and SIGKILL.
        unset: Environment variables that the command shall not have.

    Returns:
        Its exit status, as shells give it: 128 and the number of the signal that ended it.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    stopping: list[int] = []
    # A Ctrl-C is for the caller, who decides what becomes of the server.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: stopping.append(number))
    parent = os.getppid()
    process = subprocess.Popen(
        command,
        env={name: value for name, value in os.environ.items() if name not in unset},
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        # For the case that this process is killed; only one prepared system call runs between fork and exec.
        preexec_fn=die_with_parent,
    )
    while process.poll() is None and not stopping and os.getppid() == parent:
        readable, _, _ = select.select([sys.stdin], [], [], _POLL_SECONDS)
        if readable and not os.read(sys.stdin.fileno(), 1):
            break
    # What a server that ended by itself leaves behind has nothing to finish.
    _end(process, grace if process.poll() is None else 0.0)
    code = process.wait()
    return code if code >= 0 else 128 - code


def _end(process: subprocess.Popen[bytes], grace: float) -> None:
    """SIGTERM to the server's group, time to leave in order, SIGKILL to all that is left."""
    deadline = time.monotonic() + grace
    _signal_group(process.pid, signal.SIGTERM)
    while time.monotonic() < deadline and _running(process):
        time.sleep(_POLL_SECONDS)
    _signal_group(process.pid, signal.SIGKILL)
    while left := _running(process):
        for child in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        time.sleep(_POLL_SECONDS)


def _running(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The processes below this one that have not ended; adopted ones that have are laid to rest."""
    process.poll()
    left = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.status() != psutil.STATUS_ZOMBIE:
                left.append(child)
            elif child.pid != process.pid and child.ppid() == os.getpid():
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(child.pid, os.WNOHANG)
    return left


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def main() -> None:
    parser = argparse.ArgumentParser(description="Run a server; end it and its processes when standard input closes.")
    parser.add_argument("--grace", type=float, required=True, help="seconds between SIGTERM and SIGKILL")
    parser.add_argument("--unset", action="append", default=[], help="environment variable to leave out")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    sys.exit(supervise(options.command, grace=options.grace, unset=options.unset))


if __name__ == "__main__":
    main()
