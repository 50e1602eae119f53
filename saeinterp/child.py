"""Runs a child process and leaves none behind, whatever happens to the caller.

The child shares the caller's process group (a Ctrl-C reaches it) and asks the kernel for SIGTERM when its parent
dies. The surprising choices: the end of its output, not of the direct child, counts as the end, because launchers
put processes of their own in between; every working process reports its pid, so that each can be killed. And the
child asks by itself, in a starter that becomes the command, since a `preexec_fn` makes `subprocess` fork: OpenBLAS
ends its threads at every fork, and a thread that is inside a product then waits for ever.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import logging
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

from saeinterp import errors
from saeinterp.errors import SaeinterpError

log = logging.getLogger(__name__)

Event = Literal["STARTED", "PROGRESS", "FINISHED", "FAILED"]
_EVENT = re.compile(rf"({'|'.join(get_args(Event))}) (\{{.*\}})")
_POLL_SECONDS = 0.2  # how late a timeout or a cancellation may land
_TAIL_LINES = 40  # a traceback of the launcher's follows the one that matters
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
_STARTER = (
    "import ctypes, os, signal, sys\n"
    f"ctypes.CDLL(None).prctl({_PR_SET_PDEATHSIG}, {int(signal.SIGTERM)})\n"
    "if os.getppid() != int(sys.argv[1]): sys.exit(1)  # it died before it was asked\n"
    "for ignored in (signal.SIGPIPE, signal.SIGXFSZ): signal.signal(ignored, signal.SIG_DFL)  # Python's own\n"
    "os.execvp(sys.argv[2], sys.argv[2:])\n"
)


class Exit(NamedTuple):
    """How a child ended."""

    code: int | None
    """Exit status of the direct child (negative: a signal); None when it was stopped for taking too long, or by
    `stop`."""
    tail: tuple[str, ...]
    """Its last lines, events left out."""


def die_with_parent() -> None:
    """Ask for SIGTERM when the parent dies (Linux; elsewhere the closed output pipe ends the child)."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def emit(event: Event, **values: Any) -> None:
    """Tell the supervising process something, on standard output.

    Raises:
        BrokenPipeError: It is gone, and so should this process be.
    """
    sys.stdout.write(f"{event} {json.dumps(values, default=repr)}\n")
    sys.stdout.flush()


def emit_error(error: SaeinterpError, **values: Any) -> None:
    """Tell the supervising process of an error, as a FAILED event; `values` are added to it."""
    parts = ("problem", "field", "got", "expected", "next_step")
    emit("FAILED", error=type(error).__name__, **{name: getattr(error, name) for name in parts}, **values)


def error_of(values: Mapping[str, Any]) -> SaeinterpError:
    """The error that a FAILED event tells of, in its own type where that is one of ours."""
    kind = getattr(errors, values["error"], SaeinterpError)
    parts = {name: values[name] for name in ("field", "got", "expected", "next_step")}
    return (kind if issubclass(kind, SaeinterpError) else SaeinterpError)(values["problem"], **parts)


def run_child(
    command: Sequence[str],
    *,
    env: Mapping[str, str],
    timeout: float,
    on_event: Callable[[Event, dict[str, Any]], None],
    on_line: Callable[[str], None],
    grace: float = 10.0,
    stop: threading.Event | None = None,
) -> Exit:
    """Run a command to its end and pass on its output; on any exception in this thread stop it first.

    Args:
        env: The whole environment.
        timeout: Seconds after which it is stopped.
        on_event: Called with what the child emitted.
        on_line: Called with every other line.
        grace: Seconds between SIGTERM and SIGKILL, for a last checkpoint.
        stop: Set by another thread to stop it.

    Raises:
        FileNotFoundError: There is no such program.
    """
    if shutil.which(command[0], path=env.get("PATH")) is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), command[0])
    process = subprocess.Popen(
        command if _LIBC is None else [sys.executable, "-I", "-S", "-c", _STARTER, str(os.getpid()), *command],
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    pump = threading.Thread(target=_pump, args=(process, lines), daemon=True, name=f"output of {process.pid}")
    pump.start()
    pids = {process.pid}
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    deadline = time.monotonic() + timeout
    try:
        while True:
            try:
                line = lines.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                line = ""
            if line is None:
                return Exit(process.wait(timeout=grace), tuple(tail))
            if time.monotonic() > deadline or (stop is not None and stop.is_set()):
                return Exit(None, tuple(tail))
            match = _EVENT.fullmatch(line)
            if match:
                values = json.loads(match[2])
                if match[1] == "STARTED":
                    pids.add(values["pid"])
                on_event(match[1], values)  # type: ignore[arg-type]
            elif line:
                tail.append(line)
                on_line(line)
    finally:
        _stop(process, pids, pump, grace)


def _pump(process: subprocess.Popen[str], lines: queue.SimpleQueue[str | None]) -> None:
    """Move output to where waiting can be interrupted; None marks its end."""
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            lines.put(line.rstrip())
    lines.put(None)


def _stop(process: subprocess.Popen[str], pids: set[int], pump: threading.Thread, grace: float) -> None:
    """End every process of the child: SIGTERM, time for a checkpoint, SIGKILL. Does nothing when all have ended."""
    if pump.is_alive():
        log.info("stopping %d child processes", len(pids))
        _signal(pids, signal.SIGTERM)
        pump.join(grace)
    if pump.is_alive():
        _signal(pids, signal.SIGKILL)
        pump.join(grace)
    if process.poll() is None:
        process.kill()
    process.wait()


def _signal(pids: set[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
