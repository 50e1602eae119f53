"""Whether a step that runs in another process than its flow may run there, and whether anybody still wants it.

A worker of a cluster has an environment of its own. With another artifact folder it would look for inputs where there
are none, and with another version it would give numbers that cannot be compared under the same recipe. What the flow
has therefore travels with its task runner, and every step looks at it first: workers may join at any time.
"""

from __future__ import annotations

import logging
import os
import platform
import socket
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from prefect.context import FlowRunContext

import saeinterp
from saeinterp.artifacts import ArtifactStore
from saeinterp.errors import ConfigError
from tasks.cards import SLOTS

_REMEDIES = {
    "root": "start the worker with the flow's SAEINTERP_ROOT: a folder on storage that both see, or an address",
    "saeinterp": "install the flow's version of saeinterp where the worker runs, and restart it",
    "torch": "install the flow's version of torch where the worker runs, and restart it",
    "python": "start the worker with the flow's version of Python",
    "slots": f"start the worker with {SLOTS} set to its number of cards (or name:number)",
}
_FIELDS = {"root": "SAEINTERP_ROOT", "slots": SLOTS}


class Site(NamedTuple):
    """What a process has that its results depend on."""

    root: str
    saeinterp: str
    torch: str
    python: str
    slots: bool
    """Whether tasks take slots of GPUs."""

    @classmethod
    def here(cls) -> Site:
        """That of this process."""
        try:
            torch = version("torch")
        except PackageNotFoundError:
            torch = "none"
        return cls(
            root=ArtifactStore().shown,
            saeinterp=saeinterp.__version__,
            torch=torch,
            python=".".join(platform.python_version_tuple()[:2]),
            slots=bool(os.environ.get(SLOTS, "").strip()),
        )

    def admit(self, other: Site, *, who: str) -> None:
        """Refuse a worker that differs.

        Raises:
            ConfigError: Names the first thing that does.
        """
        for name, wanted in self._asdict().items():
            got = getattr(other, name)
            # Slots on workers alone are fine: the flow's process computes nothing.
            if got == wanted or (name == "slots" and not wanted):
                continue
            raise ConfigError(
                f"{who} differs from the flow",
                field=_FIELDS.get(name, name),
                got=got,
                expected=repr(wanted),
                next_step=_REMEDIES[name],
            )


def admitted() -> None:
    """Return if the flow's steps may run in this process.

    Raises:
        ConfigError: This is a worker that differs from the flow, or does not see its files.
    """
    context = FlowRunContext.get()
    runner: Any = context.task_runner if context else None
    site: Site | None = getattr(runner, "site", None)
    if site is None:
        return
    site.admit(Site.here(), who=f"the Dask worker on {platform.node()}")
    if "://" not in site.root and not sees(runner.mark):
        raise ConfigError(
            f"the Dask worker on {platform.node()} does not see the flow's files there",
            field="SAEINTERP_ROOT",
            got=site.root,
            expected="one folder on shared storage",
            next_step="mount it at the same path on every machine",
        )
    _log_to_the_run()


def _log_to_the_run() -> None:
    """Send the library's log lines to the run, as a flow's own process does; a worker was started without asking so."""
    ours, extra = logging.getLogger("saeinterp"), logging.getLogger("prefect.extra")
    for handler in extra.handlers:
        if handler not in ours.handlers:
            ours.addHandler(handler)


def mark() -> str:
    """A folder that is there as long as this process runs a flow on workers, named as scratch of this process."""
    place = f"fan-out-{socket.gethostname()}-{os.getpid()}-mark"
    return str(ArtifactStore().root / ".scratch" / place)


def sees(folder: str) -> bool:
    """Whether this process sees a folder, for being asked on a worker."""
    return Path(folder).is_dir()


class DroppedError(BaseException):
    """The flow that wanted a step is gone; no step may take this for a failure of its own."""


def stop_if_dropped() -> Callable[[], None]:
    """What the running step calls now and then: it raises `DroppedError` once the cluster has given up the step.

    A cluster cannot interrupt a thread, so without this a cancelled flow's training would go on for hours.
    """
    worker_module: Any = sys.modules.get("distributed.worker")
    key = getattr(worker_module.thread_state, "key", None) if worker_module else None
    if key is None:
        return lambda: None
    worker = worker_module.get_worker()

    def look() -> None:
        task = worker.state.tasks.get(key)
        if task is None or task.state == "cancelled":
            raise DroppedError("the flow was cancelled, or its process is gone")

    return look
