"""Steps as tasks of a Dask cluster: what Prefect's own runner for Dask lacks for runs of hours.

Workers are looked at before they get anything to do, a task whose workers all died fails like any other (with Prefect's
runner waiting for it would raise in the flow, and the other layers with it), and a cluster without workers is told of
and, in the end, given up.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import os
import socket
import time
import uuid
from collections.abc import Mapping
from typing import Any, cast

import dask
import distributed
import httpx
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectException
from prefect.logging import get_run_logger
from prefect.settings import get_current_settings
from prefect.states import Crashed
from prefect_dask.client import PrefectDaskClient
from prefect_dask.task_runners import DaskTaskRunner, PrefectDaskFuture

from saeinterp.artifacts import ArtifactStore
from saeinterp.errors import ConfigError, SaeinterpError
from saeinterp.hardware import hardware
from tasks.site import Site, sees

log = logging.getLogger(__name__)

ADDRESS = "SAEINTERP_DASK_ADDRESS"
PATIENCE = 600.0
"""Seconds that a flow waits for a cluster in which no worker is left, before its tasks fail."""
_POLL_SECONDS = 5.0
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS")
_AGAIN = "retry the run: what was finished is kept"


class FanOutError(SaeinterpError):
    """A cluster cannot be reached, or lost a task."""


class FanOut(DaskTaskRunner):
    """Prefect's runner for Dask, for our steps.

    Attributes:
        site: What the flow's process has, in the processes of workers; None in the flow's own.
    """

    site: Site | None = None

    @property
    def client(self) -> PrefectDaskClient:
        """The cluster's client; with the first look at it the workers are looked at too.

        Raises:
            FanOutError: There is no cluster.
            ConfigError: A worker differs from this process, or there is no server that workers could report to.
        """
        if self._client is None:
            if not get_current_settings().api.url:
                raise ConfigError(
                    "tasks in other processes need a Prefect server to report to, and a temporary one has no address",
                    field="PREFECT_API_URL",
                    next_step="start one (saeinterp ops server) and set its address and password, or "
                    "leave SAEINTERP_TASK_RUNNER out",
                )
            with _connecting(self.address):
                client = DaskTaskRunner.client.fget(self)  # type: ignore[attr-defined]
            _examine(client)
            self._watch = _Watch(client)
        return cast("PrefectDaskClient", self._client)

    def other_machines(self) -> list[str]:
        """Names of the machines of workers other than this process's, which its loopback is not that of."""
        return sorted(set(_ask(self.client, socket.gethostname).values()) - {socket.gethostname()})

    def submit(self, *args: Any, **kwargs: Any) -> PrefectDaskFuture[Any]:  # type: ignore[override]
        """Submit a task; see Prefect's own."""
        future = super().submit(*args, **kwargs)
        return StepFuture(future.task_run_id, future.wrapped_future, self._watch)

    def duplicate(self) -> FanOut:
        """Another one with the same settings."""
        again: FanOut = super().duplicate()
        again.site = self.site
        return again

    def __getstate__(self) -> dict[str, Any]:
        # It is pickled as part of the flow, on its way to a worker.
        left = {name: value for name, value in self.__dict__.items() if name not in ("_client", "_cluster", "_watch")}
        return {**left, "_client": None, "_cluster": None, "site": self.site or Site.here()}


class StepFuture(PrefectDaskFuture[Any]):
    """A task on the cluster; one that the cluster loses ends as crashed."""

    def __init__(self, task_run_id: uuid.UUID, wrapped_future: distributed.Future, watch: _Watch) -> None:
        super().__init__(wrapped_future=wrapped_future, task_run_id=task_run_id)
        self._watch = watch

    def wait(self, timeout: float | None = None) -> None:
        """Wait until it has ended, however it ends, or the time is over."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._final_state is None:
            left = _POLL_SECONDS if deadline is None else min(_POLL_SECONDS, deadline - time.monotonic())
            if left < 0:
                return
            try:
                self._final_state = self._wrapped_future.result(timeout=left)
            except Exception as error:  # noqa: BLE001 - whatever the cluster has to say
                waiting = self._wrapped_future.status == "pending"
                lost = self._watch.lost() if waiting else error
                if lost is not None:
                    self._crash(lost)

    def result(self, timeout: float | None = None, raise_on_failure: bool = True) -> Any:
        """The task's result; an error of the cluster is raised or returned like the task's own."""
        self.wait(timeout)
        if self._final_state is None:
            raise TimeoutError(f"Task run {self._task_run_id} did not complete within {timeout} seconds")
        return self._final_state.result(raise_on_failure=raise_on_failure, _sync=True)  # type: ignore[call-overload]

    def _crash(self, cause: Exception) -> None:
        error = cause
        if isinstance(cause, distributed.scheduler.KilledWorker):
            # In words of ours, and without the key of a task that nobody knows by it.
            error = FanOutError(
                f"every Dask worker that ran this died ({cause.allowed_failures + 1}, the last one "
                f"{cause.last_worker.address})",
                next_step=f"look into the worker's log (often memory: fewer workers a machine), then {_AGAIN}",
            )
        elif isinstance(cause, concurrent.futures.CancelledError):
            error = FanOutError("the Dask scheduler is gone", next_step=f"start it and its workers, then {_AGAIN}")
        elif not isinstance(cause, SaeinterpError):
            error = FanOutError(f"the Dask cluster lost this: {type(cause).__name__}: {cause}", next_step=_AGAIN)
        self._final_state = Crashed(message=str(error), data=error)
        # The process that would have said so is gone.
        with contextlib.suppress(httpx.HTTPError, PrefectException), get_client(sync_client=True) as client:
            client.set_task_run_state(self._task_run_id, Crashed(message=str(error)), force=True)


class _Watch:
    """Whether a cluster still has workers."""

    def __init__(self, client: distributed.Client) -> None:
        self._client = client
        self._none_since: float | None = None

    def lost(self) -> FanOutError | None:
        """The error that tasks end with once nobody has been there to run them for too long."""
        if self._workers():
            self._none_since = None
            return None
        now = time.monotonic()
        if self._none_since is None:
            self._none_since = now
            get_run_logger().warning(
                "no Dask worker is there; waiting for one (up to %.0f minutes): start workers, or cancel this run",
                PATIENCE / 60,
            )
        if now - self._none_since < PATIENCE:
            return None
        return FanOutError(
            f"no Dask worker has been there for {PATIENCE / 60:.0f} minutes",
            field=ADDRESS,
            got=self._client.scheduler.address if self._client.scheduler else None,
            next_step=f"start workers, then {_AGAIN}",
        )

    def _workers(self) -> int:
        try:
            return len(self._client.scheduler_info(n_workers=-1)["workers"])
        except (OSError, TypeError, KeyError):  # the scheduler is away
            return 0


def local_options(options: Mapping[str, Any], *, workers: int) -> dict[str, Any]:
    """Settings of a cluster of processes on this machine; what the user gave wins.

    Connections are encrypted, with keys made for this run: whoever could open one would run code as this user, and the
    loopback is open to all users of a machine.
    """
    found = {
        "n_workers": workers,
        "threads_per_worker": 1,
        # Dask restarts workers whose memory, mapped files included, comes near their share of the machine's.
        "memory_limit": 0,
        "dashboard_address": None,
        "security": True,
        **options,
    }
    count = str(max(1, hardware().cores // max(1, int(found["n_workers"] or 1))))
    # Dask's default is one, for numpy beside threads of its own; workers take the user's own values from here anyway.
    variables = {name: os.environ.get(name, count) for name in _THREAD_VARIABLES}
    dask.config.set({"distributed.nanny.pre-spawn-environ": variables})
    return found


@contextlib.contextmanager
def _connecting(address: str | None) -> Any:
    try:
        yield
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise FanOutError(
            f"no Dask cluster: {type(error).__name__}: {error}",
            field=ADDRESS if address else "SAEINTERP_DASK_OPTIONS",
            got=address,
            next_step="start the scheduler (dask scheduler), or correct the address" if address else None,
        ) from error


def _examine(client: distributed.Client) -> None:
    """Refuse workers that differ from this process, or do not see its artifacts.

    Raises:
        FanOutError: A worker lacks saeinterp.
        ConfigError: A worker has another root, version or setting, or does not see the flow's files.
    """
    here = Site.here()
    for address, site in _ask(client, Site.here).items():
        here.admit(site, who=f"the Dask worker {address}")
    store = ArtifactStore()
    if "://" in here.root:  # object storage is the same for all
        return
    store.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Named as scratch of this process, which is swept where it dies before the end of this.
    mark = store.root / ".scratch" / f"fan-out-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    mark.mkdir(parents=True)
    try:
        blind = [address for address, there in _ask(client, sees, str(mark)).items() if not there]
    finally:
        mark.rmdir()
    if blind:
        raise ConfigError(
            "a Dask worker does not see the flow's files there",
            field="SAEINTERP_ROOT",
            got=f"{here.root} on {', '.join(sorted(blind))}",
            expected="one folder on shared storage",
            next_step="mount it at the same path on every machine",
        )


def _ask(client: distributed.Client, what: Any, *args: Any) -> dict[str, Any]:
    """The answer of every worker."""
    answers: dict[str, Any] = client.run(what, *args, on_error="return")
    for address, answer in answers.items():
        if isinstance(answer, BaseException):
            raise FanOutError(
                f"the Dask worker {address} cannot run steps: {type(answer).__name__}: {answer}",
                field=ADDRESS,
                next_step="install the same version of saeinterp there (pip install 'saeinterp[dask]')",
            ) from answer
    return answers
