"""Steps on a Dask cluster as Prefect's futures: how they end where the cluster loses them, and what goes on then.

Dask ends whatever was to come after a task that it gave up. What tolerates the failure of that task (see `tasks.step`)
is therefore submitted again, with the failure in its place.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import time
from collections.abc import Callable
from typing import Any

import distributed
import httpx
from prefect import allow_failure
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectException
from prefect.logging import get_run_logger
from prefect.states import Completed, Crashed, Pending, State
from prefect.utilities.collections import visit_collection
from prefect_dask.task_runners import PrefectDaskFuture

from saeinterp.errors import SaeinterpError

ADDRESS = "SAEINTERP_DASK_ADDRESS"
PATIENCE = 600.0
"""Seconds that a flow waits for a cluster in which no worker is left, before its tasks fail."""
_POLL_SECONDS = 5.0
_AGAIN = "retry the run: what was finished is kept"


class FanOutError(SaeinterpError):
    """A cluster cannot be reached, or lost a task."""


class StepFuture(PrefectDaskFuture[Any]):
    """A task on the cluster; one that the cluster loses ends as crashed.

    Args:
        submit: Submits it to the cluster, with what its inputs are by then.
        inputs: What it cannot do without, and what it tolerates the failure of.
        watch: Of the cluster.
    """

    def __init__(
        self,
        submit: Callable[[], PrefectDaskFuture[Any]],
        *,
        inputs: tuple[list[StepFuture], list[StepFuture]],
        watch: Watch,
    ) -> None:
        future = submit()
        super().__init__(wrapped_future=future.wrapped_future, task_run_id=future.task_run_id)
        self._submit, self._watch = submit, watch
        self._needed, self._tolerated = inputs
        self._handed_over: distributed.Future | None = None

    def tolerant(self, client: distributed.Client) -> Any:
        """What takes its place in the input of a task that tolerates its failure."""
        if self._final_state is not None and self._wrapped_future.status != "finished":
            return _tolerated(self._final_state)
        if self._handed_over is None or self._handed_over.status == "error":
            self._handed_over = client.submit(_tolerated, self._wrapped_future, pure=False, priority=1)
            self._handed_over.task_run_id = self._task_run_id
        return self._handed_over

    def wait(self, timeout: float | None = None) -> None:
        """Wait until it has ended, however it ends, or the time is over."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._final_state is None:
            left = _POLL_SECONDS if deadline is None else min(_POLL_SECONDS, deadline - time.monotonic())
            if left < 0:
                return
            try:
                self._final_state = self._wrapped_future.result(timeout=left)
            except TimeoutError as error:
                status = self._wrapped_future.status
                if status in ("error", "cancelled"):
                    self._end(error)
                elif status != "finished" and (lost := self._watch.lost()) is not None:
                    self._crash(lost)
                # Else it runs, or its state is on the way here.
            except Exception as error:  # noqa: BLE001 - whatever the cluster has to say
                self._end(error)

    def result(self, timeout: float | None = None, raise_on_failure: bool = True) -> Any:
        """The task's result; an error of the cluster is raised or returned like the task's own."""
        self.wait(timeout)
        if self._final_state is None:
            raise TimeoutError(f"Task run {self._task_run_id} did not complete within {timeout} seconds")
        return self._final_state.result(raise_on_failure=raise_on_failure, _sync=True)  # type: ignore[call-overload]

    def _end(self, error: Exception) -> None:
        """End with what Dask says, or start again where that is about an input whose failure this one tolerates."""
        if not self._ended_by_input(error):
            self._crash(error)
            return
        for item in (*self._needed, *self._tolerated):
            item._look()
        if any(item._final_state is not None and item._wrapped_future.status == "error" for item in self._needed):
            # As Prefect calls it; the failure is reported once, by the task where it arose.
            self._final_state = Pending(name="NotReady", message="the cluster lost a task that this one needs")
            return
        again = self._submit()
        self._wrapped_future, self._task_run_id = again.wrapped_future, again.task_run_id
        self._handed_over = None

    def _look(self) -> None:
        """Take notice of an error, without waiting for anything."""
        if self._final_state is None and self._wrapped_future.status == "error":
            self._end(self._wrapped_future.exception())

    def _ended_by_input(self, error: Exception) -> bool:
        if isinstance(error, distributed.scheduler.KilledWorker):
            return bool(error.task != self._wrapped_future.key)
        futures = [item._wrapped_future for item in (*self._needed, *self._tolerated)]
        return self._wrapped_future.status == "error" and any(future.status == "error" for future in futures)

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


def _tolerated(state: State[Any]) -> State[Any]:
    """A state as one that a task may always start after; a failure's result is its error.

    `allow_failure` would not do: Dask makes a plain tuple of it, in its look for futures and between workers.
    """
    if state.is_completed():
        return state
    if state.is_pending():  # not ready
        return Completed(data=None)
    error = state.result(raise_on_failure=False, _sync=True)  # type: ignore[call-overload]
    return Completed(data=error)


def futures_in(*inputs: Any) -> tuple[list[StepFuture], list[StepFuture]]:
    """The steps among the inputs of a task: those it needs, and those whose failure it tolerates."""
    needed: list[StepFuture] = []
    tolerated: list[StepFuture] = []

    def visit(item: Any, context: dict[str, Any]) -> Any:
        if isinstance(item, StepFuture):
            (tolerated if isinstance(context.get("annotation"), allow_failure) else needed).append(item)
        return item

    visit_collection(inputs, visit_fn=visit, return_data=False, context={})
    return needed, tolerated


class Watch:
    """Whether a cluster still has workers, or may get some.

    Args:
        client: Of the cluster.
        cluster: Where the run made it.
        patience: Seconds to wait for workers where there are none. Without it ten minutes, in which the time is not
            counted that a cluster of jobs (SLURM's, say) waits for some it has asked for.
    """

    def __init__(self, client: distributed.Client, *, cluster: Any = None, patience: float | None = None) -> None:
        self._client, self._cluster = client, cluster
        self._patience = PATIENCE if patience is None else patience
        self._limited = patience is not None
        self._none_since: float | None = None
        self._told = False

    def lost(self) -> FanOutError | None:
        """The error that tasks end with once nobody has been there to run them for too long."""
        if self._workers():
            self._none_since, self._told = None, False
            return None
        asked_for = 0 if self._limited else self._asked_for()
        if not self._told:
            self._told = True
            get_run_logger().warning(
                "no Dask worker is there; waiting for one (%s), or cancel this run",
                f"{asked_for} are asked for" if asked_for else f"up to {self._patience:.0f} seconds: start workers",
            )
        if asked_for:
            self._none_since = None
            return None
        now = time.monotonic()
        if self._none_since is None:
            self._none_since = now
        if now - self._none_since < self._patience:
            return None
        return FanOutError(
            f"no Dask worker has been there for {self._patience:.0f} seconds",
            field=ADDRESS,
            got=self._client.scheduler.address if self._client.scheduler else None,
            next_step=f"start workers, then {_AGAIN}",
        )

    def _asked_for(self) -> int:
        # Processes of this machine wait in no queue: they start, or they never will.
        local = self._cluster is None or isinstance(self._cluster, distributed.LocalCluster)
        return 0 if local else len(self._cluster.plan)

    def _workers(self) -> int:
        try:
            return len(self._client.scheduler_info(n_workers=-1)["workers"])
        except (OSError, TypeError, KeyError):  # the scheduler is away
            return 0
