"""Follow a flow run on the server until it ends: states of its tasks and its log lines, as they come.

The server is asked every two seconds, since that outlives its restarts and needs no second port.
"""

from __future__ import annotations

import re
import time
from datetime import datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

import httpx
from prefect.exceptions import PrefectHTTPStatusError
from rich.console import Console

from flows.terminal import ServerError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun, Log, TaskRun
    from prefect.states import State

INTERVAL = 2.0  # seconds
PATIENCE = 300.0  # seconds without a server
LATE = timedelta(seconds=30)  # log lines arrive in batches, so older ones come after newer ones
PAGE = 200
_NOISE = re.compile(  # what states say already, and how a worker starts any run
    r"(Created|Submitted) task run|Finished in state|Beginning flow run|Worker .* submitting flow run|"
    r"Flow run .* submitted to infrastructure|Running \d+ deployment pull step|Executing deployment step|"
    r"Deployment step .* completed|All deployment steps completed"
)
_COLOURS = {"COMPLETED": "green", "FAILED": "red", "CRASHED": "red", "CANCELLED": "yellow", "CANCELLING": "yellow"}


class Watch:
    """One flow run as it was last seen."""

    def __init__(self, client: SyncPrefectClient, run: FlowRun, *, out: Console, err: Console) -> None:
        self._client = client
        self._run = run
        self._out, self._err = out, err
        self._states: dict[UUID, UUID] = {}
        self._lines: set[UUID] = set()
        self._newest: datetime | None = None

    def until_the_end(self) -> FlowRun:
        """Print what happens until the run has ended.

        Raises:
            ServerError: The server stays away; the run goes on without being watched.
        """
        lost: float | None = None
        while True:
            try:
                run = self._client.read_flow_run(self._run.id)
                ended = run.state is not None and run.state.is_final()
                if ended:
                    time.sleep(INTERVAL)  # the last log lines are on their way
                self._look(run)
            except httpx.TransportError as error:
                lost = self._wait_for_server(lost, error)
            except PrefectHTTPStatusError as error:
                if error.response.status_code < 500:  # else it is restarting, or a proxy finds it away
                    raise
                lost = self._wait_for_server(lost, error)
            else:
                lost = None
                if ended:
                    return run
            time.sleep(INTERVAL)

    def _wait_for_server(self, lost: float | None, error: Exception) -> float:
        now = time.monotonic()
        if lost is None:
            self._err.print("The server does not answer; waiting for it. The run does not depend on this command.")
            return now
        if now - lost > PATIENCE:
            raise ServerError(
                f"the server has not answered for {PATIENCE:.0f} s ({type(error).__name__})",
                field="PREFECT_API_URL",
                next_step=f"start it again; the run goes on by itself: prefect flow-run inspect {self._run.id}",
            ) from error
        return lost

    def _look(self, run: FlowRun) -> None:
        """Print what is new, in the order it happened."""
        news: list[tuple[datetime, str, str]] = []
        if run.state is not None and self._is_new(run.id, run.state):
            news.append(_told(run.state, "run"))
        for task in self._tasks():
            if task.state is not None and self._is_new(task.id, task.state):
                news.append(_told(task.state, task.name))
        news += [
            (line.timestamp, line.message, "" if line.level < 30 else "yellow" if line.level < 40 else "red")
            for line in self._log()
            if not _NOISE.match(line.message)
        ]
        for when, text, style in sorted(news, key=lambda item: item[0]):
            self._out.print(f"{when.astimezone():%H:%M:%S}  {text}", style=style or None, markup=False)

    def _is_new(self, thing: UUID, state: State) -> bool:
        if self._states.get(thing) == state.id:
            return False
        self._states[thing] = state.id
        return state.name not in ("Pending", "NotReady")

    def _tasks(self) -> list[TaskRun]:
        from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

        only = FlowRunFilter(id=FlowRunFilterId(any_=[self._run.id]))
        found: list[TaskRun] = []
        while True:
            page = self._client.read_task_runs(flow_run_filter=only, limit=PAGE, offset=len(found))
            found += page
            if len(page) < PAGE:
                return found

    def _log(self) -> list[Log]:
        from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId, LogFilterTimestamp
        from prefect.client.schemas.sorting import LogSort

        since = None if self._newest is None else LogFilterTimestamp(after_=self._newest - LATE)
        wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[self._run.id]), timestamp=since)
        found: list[Log] = []
        while True:
            page = self._client.read_logs(wanted, limit=PAGE, offset=len(found), sort=LogSort.TIMESTAMP_ASC)
            found += page
            if len(page) < PAGE:
                break
        fresh = [line for line in found if line.id not in self._lines]
        self._lines.update(line.id for line in fresh)
        if found:
            self._newest = found[-1].timestamp
        return fresh


def _told(state: State, name: str) -> tuple[datetime, str, str]:
    words = f"{state.name or state.type.value.title()}"
    if state.message and state.is_final() and not state.is_completed():
        words += f": {state.message}"
    return state.timestamp, f"{name}: {words}", _COLOURS.get(state.type.value, "")


def report_link(client: SyncPrefectClient, run: FlowRun) -> str | None:
    """Where the run's report lies, from the link that the run published."""
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey
    from prefect.client.schemas.sorting import ArtifactSort

    wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]), key=ArtifactFilterKey(like_="%-report"))
    for artifact in client.read_artifacts(artifact_filter=wanted, sort=ArtifactSort.CREATED_DESC):
        if link := re.search(r"\((file:[^)]*)\)", str(artifact.data)):
            return link.group(1)
    return None
