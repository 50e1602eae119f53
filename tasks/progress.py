"""Show progress of a task: a bar where the command line drew one, log lines elsewhere; and a progress artifact.

Short tasks have no artifact: it is made with the first line, and renewed with each. Sending it never holds up the
task, since steps report from event loops too, and a server that is away must not stop them.
"""

from __future__ import annotations

import contextvars
import logging
import re
import threading
import time
from typing import Protocol, cast
from uuid import UUID

import httpx
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.exceptions import PrefectException
from prefect.logging import get_run_logger

from saeinterp.progress import Progress
from tasks.site import stop_if_dropped

log = logging.getLogger(__name__)

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
    """A progress callback for the running task, named `task` in bars and lines; it also ends tasks nobody waits for."""
    logger = get_run_logger()
    go_on = stop_if_dropped()
    artifact = _ProgressArtifact(task)
    started = last = time.monotonic()
    shown = False

    def report(done: int, total: int, what: str) -> None:
        nonlocal last, shown
        go_on()
        if _display is not None:
            _display.update(task, done, total, what)
        now = time.monotonic()
        ended = shown and done >= total
        if not done or not total or (now - last < SECONDS_BETWEEN_LINES and not ended):
            return
        last = now
        shown = not ended
        artifact.show(100 * min(done / total, 1.0), f"{task}: {done:,} of {total:,} {what}")
        if _display is not None or ended:
            return
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


class _ProgressArtifact:
    """How far one task run is, on its page in the UI."""

    def __init__(self, task: str) -> None:
        self._key = re.sub(r"[^a-z0-9]+", "-", task.lower()).strip("-")
        self._context = contextvars.copy_context()  # says which run the artifact belongs to
        self._lock = threading.Lock()
        self._sending = False
        self._latest: tuple[float, str] | None = None
        self._id: UUID | None = None

    def show(self, percent: float, text: str) -> None:
        """Send it soon; where one is being sent still, only the latest follows."""
        with self._lock:
            self._latest = (percent, text)
            if self._sending:
                return
            self._sending = True
        threading.Thread(target=self._context.copy().run, args=(self._send,), daemon=True).start()

    def _send(self) -> None:
        while True:
            with self._lock:
                if self._latest is None:
                    self._sending = False
                    return
                (percent, text), self._latest = self._latest, None
            try:
                if self._id is None:
                    self._id = cast("UUID", create_progress_artifact(percent, key=self._key, description=text))
                else:
                    update_progress_artifact(self._id, percent, description=text)
            except (httpx.HTTPError, OSError, RuntimeError, PrefectException) as error:
                log.debug("progress of %s was not sent: %s", self._key, error)
