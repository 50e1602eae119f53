"""Show progress of a task: a bar where the command line drew one, log lines elsewhere."""

from __future__ import annotations

import time
from typing import Protocol

from prefect.logging import get_run_logger

from saeinterp.progress import Progress

SECONDS_BETWEEN_LINES = 10.0


class Display(Protocol):
    """A terminal display that can hold several bars."""

    def update(self, task: str, done: int, total: int, what: str) -> None: ...


_display: Display | None = None


def show_on(display: Display | None) -> None:
    """Send progress of all tasks of this process to `display`; None goes back to log lines."""
    global _display
    _display = display


def listener(task: str) -> Progress:
    """A progress callback for the running task, named `task` in bars and lines."""
    logger = get_run_logger()
    started = last = time.monotonic()

    def report(done: int, total: int, what: str) -> None:
        nonlocal last
        if _display is not None:
            _display.update(task, done, total, what)
            return
        now = time.monotonic()
        if now - last < SECONDS_BETWEEN_LINES or not done or not total:
            return
        last = now
        rate = done / max(now - started, 1e-9)
        left = (total - done) / rate if rate else 0.0
        logger.info(
            "%s: %s of %s %s (%.0f%%), about %.0f s left",
            task,
            f"{done:,}",
            f"{total:,}",
            what,
            100 * done / total,
            left,
        )

    return report
