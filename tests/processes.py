"""Which processes a process has, and whether they are gone."""

from __future__ import annotations

import time
from collections.abc import Iterable

import psutil


def family(pid: int) -> list[psutil.Process]:
    """A process and all below it."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def survivors(processes: Iterable[psutil.Process], *, within: float) -> list[psutil.Process]:
    """Those that still run after so many seconds."""
    processes = list(processes)
    deadline = time.monotonic() + within
    while left := [item for item in processes if _runs(item)]:
        if time.monotonic() > deadline:
            return left
        time.sleep(0.1)
    return []


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
