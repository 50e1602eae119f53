"""What a person sees while a flow runs here: bars on a terminal, log lines elsewhere; then the files."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from tasks.progress import show_on

GRACE_SECONDS = 5.0


class Bars:
    """One bar per running task; a finished one disappears."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bars: dict[str, TaskID] = {}
        self._lock = threading.Lock()

    def update(self, task: str, done: int, total: int, what: str) -> None:
        """Draw `done` of `total` for a task."""
        with self._lock:
            if task not in self._bars:
                self._bars[task] = self._progress.add_task(task, total=total, what=what)
            self._progress.update(self._bars[task], completed=done, total=total, what=what)
            if total and done >= total:
                self._progress.remove_task(self._bars.pop(task))


@contextlib.contextmanager
def watch(console: Console) -> Iterator[None]:
    """Show bars while the body runs, if `console` is a terminal."""
    if not console.is_terminal:
        yield
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[what]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        show_on(Bars(progress))
        try:
            yield
        finally:
            show_on(None)


@contextlib.contextmanager
def leave_on_interrupt() -> Iterator[None]:
    """Make Ctrl-C end the process soon.

    Prefect waits for running tasks, which can take hours. It gets `GRACE_SECONDS` to report the run as crashed;
    then child processes are ended and the process leaves. Artifacts are atomic, so nothing is lost by it.
    """

    def interrupt(signum: int, frame: FrameType | None) -> None:
        threading.Thread(target=_leave, daemon=True).start()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _leave() -> None:
    time.sleep(GRACE_SECONDS)
    sys.stderr.write("Interrupted. Run the same command again: finished steps are kept, unfinished ones resume.\n")
    sys.stderr.flush()
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.terminate()
    os._exit(130)


def print_ending(state: Any, outcome: Any, *, out: Console, err: Console) -> bool:
    """Print the failures and the report's files; returns whether the run completed."""
    from flows.ending import IncompleteError, Outcome

    if isinstance(outcome, IncompleteError):
        outcome = outcome.outcome
    if not isinstance(outcome, Outcome):
        err.print(f"Failed: {state.message}", style="red", markup=False)
        return False
    for line in outcome.failures:
        err.print(f"Failed: {line}", style="red", markup=False)
    if outcome.failures:
        err.print("Run the same command again: only what failed runs again.", style="yellow")
    folder = Path(outcome.report)
    rows = [
        ("open in a browser", folder / "report.html"),
        ("read or paste", folder / "report.md"),
        ("compute with", folder / "results.json"),
        ("tables (Parquet)", folder / "tables"),
    ]
    out.print("The report:")
    for what, path in rows:
        if not path.exists():  # not every flow makes all of them
            continue
        out.print(f"  {what:<18} {_short(path)}", markup=False)
    return not outcome.failures


def _short(path: Path) -> str:
    with contextlib.suppress(ValueError):
        return f"./{path.relative_to(Path.cwd())}"
    return str(path)
