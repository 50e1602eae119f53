"""Steps as tasks of a Dask cluster: what Prefect's own runner for Dask lacks for runs of hours.

Workers are looked at before they get anything to do, and a task whose workers all died fails like any other (with
Prefect's runner waiting for it would raise in the flow, and the other layers with it): see `tasks.cluster`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, cast

import dask
from prefect import allow_failure
from prefect.client.schemas.objects import RunInput
from prefect.futures import PrefectFuture
from prefect.settings import get_current_settings
from prefect.tasks import Task
from prefect.utilities.collections import visit_collection
from prefect_dask.client import PrefectDaskClient
from prefect_dask.task_runners import DaskTaskRunner, PrefectDaskFuture

from saeinterp.errors import ConfigError
from saeinterp.hardware import hardware
from tasks.cluster import ADDRESS, FanOutError, StepFuture, Watch, futures_in
from tasks.site import Site, mark
from tasks.workers import ask, examine

log = logging.getLogger(__name__)

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS")


class FanOut(DaskTaskRunner):
    """Prefect's runner for Dask, for our steps.

    Attributes:
        site: What the flow's process has, in the processes of workers; None in the flow's own.
        mark: A folder of the flow's process that they must see, likewise.
        patience: Seconds to wait for workers where there are none; None for ten minutes of a cluster that wants none.
    """

    site: Site | None = None
    mark: str | None = None
    patience: float | None = None

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
            examine(client)
            self._watch = Watch(client, cluster=self._cluster, patience=self.patience)
        return cast("PrefectDaskClient", self._client)

    def other_machines(self) -> list[str]:
        """Names of the machines of workers other than this process's, which its loopback is not that of."""
        return sorted(set(ask(self.client, socket.gethostname).values()) - {socket.gethostname()})

    def submit(  # type: ignore[override]
        self,
        task: Task[..., Any],
        parameters: dict[str, Any],
        wait_for: Iterable[PrefectFuture[Any]] | None = None,
        dependencies: dict[str, set[RunInput]] | None = None,
    ) -> StepFuture:
        """Submit a task; see Prefect's own."""
        wait_for = list(wait_for or ())
        watch = self.client and self._watch  # made with the client
        once = partial(super().submit, task, parameters, wait_for, dependencies)
        return StepFuture(once, inputs=futures_in(parameters, wait_for), watch=watch)

    def _optimize_futures(self, expr: Any) -> Any:
        def visit(item: Any) -> Any:
            if isinstance(item, allow_failure):
                future: Any = item.unwrap()
                return future.tolerant(self.client) if isinstance(future, StepFuture) else item
            return item.wrapped_future if isinstance(item, PrefectDaskFuture) else item

        return visit_collection(expr, visit_fn=visit, return_data=True)

    def duplicate(self) -> FanOut:
        """Another one with the same settings."""
        again: FanOut = super().duplicate()
        again.site, again.mark, again.patience = self.site, self.mark, self.patience
        return again

    def __getstate__(self) -> dict[str, Any]:
        # It is pickled as part of the flow, on its way to a worker.
        left = {name: value for name, value in self.__dict__.items() if name not in ("_client", "_cluster", "_watch")}
        there = {"site": self.site or Site.here(), "mark": self.mark or mark()}
        return {**left, "_client": None, "_cluster": None, **there}


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
