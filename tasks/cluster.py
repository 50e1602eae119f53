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
from prefect.states import Crashed, Failed, Pending
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
            if self._final_state.is_pending():
                return allow_failure(self._final_state)
            # One that crashed is not tolerated by Prefect.
            return allow_failure(Failed(message=self._final_state.message, data=self._final_state.data))
        if self._handed_over is None or self._handed_over.status == "error":
            # The mark would not live through Dask's look for futures in the input, so a task of its own makes it.
            self._handed_over = client.submit(allow_failure, self._wrapped_future, pure=False, priority=1)
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
