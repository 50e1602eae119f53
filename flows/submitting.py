"""`saeinterp submit`: start a run of a deployed flow from anywhere.

Find the deployment, check the parameters, create the run, and follow it where that is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import saeinterp
from flows.catalogue import model_of, preset_file
from flows.naming import run_name
from flows.server import connected
from flows.terminal import COMPLETED, FAILED, INTERRUPTED, err, out
from flows.watching import Watch, report_link
from saeinterp.config import override, parse_config, read_yaml
from saeinterp.errors import ConfigError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun
    from prefect.client.schemas.responses import DeploymentResponse

USUAL = "gpu"
"""The deployment that a bare flow name means where there are several."""
PLACEHOLDER = "PATH/TO/"


def submit_run(name: str, *, preset: str | None, source: str | None, assignments: list[str], watch: bool) -> int:
    """The whole command; returns its exit code.

    Raises:
        ConfigError: No such flow or deployment, or wrong parameters: no run was made.
        ServerError: The server cannot be used.
    """
    with connected() as client:
        target = find(client, name)
        values = parameters(target, preset=preset, source=source, assignments=assignments)
        run = submit(client, target, values)
        out.print(f"{target.name}: {run.name}", markup=False)
        out.print(f"flow run {run.id}", markup=False)
        out.print(f"in the UI {url_of(run)}", markup=False)
        for text in warnings(client, target):
            err.print(f"note: {text}", style="yellow", markup=False)
        if not watch:
            out.print(f"log lines: prefect flow-run logs {run.id}", markup=False)
            return COMPLETED
        try:
            return follow(client, run)
        except KeyboardInterrupt:
            err.print(f"Stopped watching. The run goes on; to end it: prefect flow-run cancel {run.id}", markup=False)
            return INTERRUPTED


def follow(client: SyncPrefectClient, run: FlowRun) -> int:
    """Print what the run does until it ends, and where its report is; returns the exit code."""
    ended = Watch(client, run, out=out, err=err).until_the_end()
    assert ended.state is not None
    if link := report_link(client, ended):
        out.print(f"report {link}", markup=False)
    if ended.state.is_completed():
        return COMPLETED
    message = f": {ended.state.message}" if ended.state.message else ""
    err.print(f"{ended.state.name}{message}", style="red", markup=False)
    err.print(f"What failed runs again, alone, after: prefect flow-run retry {run.id}", style="yellow", markup=False)
    return FAILED


def url_of(run: FlowRun) -> str:
    """The run's page in the server's UI."""
    from prefect.utilities.urls import url_for

    return url_for("flow-run", run.id) or str(run.id)


class Target(NamedTuple):
    """A deployment and the flow that it runs."""

    flow: str
    deployment: DeploymentResponse

    @property
    def name(self) -> str:
        """`FLOW/DEPLOYMENT`."""
        return f"{self.flow}/{self.deployment.name}"


def find(client: SyncPrefectClient, name: str) -> Target:
    """The deployment that `FLOW` or `FLOW/DEPLOYMENT` names: alone its only one, else its `gpu`.

    Raises:
        ConfigError: There is no such flow or deployment, or a bare name could mean several.
    """
    from prefect.client.schemas.filters import FlowFilter, FlowFilterName

    flow, slash, wanted = name.partition("/")
    model_of(flow)
    found = client.read_deployments(flow_filter=FlowFilter(name=FlowFilterName(any_=[flow])), limit=200)
    by_name = {item.name: item for item in found}
    if not by_name:
        raise ConfigError(
            "this flow is not deployed on the server",
            field="FLOW",
            got=flow,
            next_step="deploy it: prefect --no-prompt deploy --prefect-file deployments/prefect.yaml --all",
        )
    names = ", ".join(f"{flow}/{item}" for item in sorted(by_name))
    if slash:
        if wanted not in by_name:
            raise ConfigError("no such deployment", field="FLOW", got=name, expected=names)
        return Target(flow, by_name[wanted])
    if len(by_name) == 1:
        return Target(flow, found[0])
    if USUAL not in by_name:
        raise ConfigError("the flow has several deployments", field="FLOW", got=name, expected=f"one of {names}")
    return Target(flow, by_name[USUAL])


def parameters(target: Target, *, preset: str | None, source: str | None, assignments: list[str]) -> dict[str, Any]:
    """The configuration to run with, checked against the flow's model: a preset's or a file's, else the deployment's.

    Raises:
        ConfigError: A value is wrong, or still the placeholder of a preset.
    """
    if preset is not None and source is not None:
        raise ConfigError("a preset and a file are two configurations", field="--preset", expected="one of them")
    if source is not None and source.startswith("preset:"):
        preset, source = source.removeprefix("preset:"), None
    if preset is not None:
        values, told = read_yaml(preset_file(preset, field="--preset")), f"preset {preset}"
    elif source is not None:
        values, told = read_yaml(source), source
    else:
        values, told = dict(target.deployment.parameters.get("config") or {}), f"parameters of {target.name}"
    config = parse_config(model_of(target.flow), override(values, assignments), source=told)
    checked = config.model_dump(mode="json", exclude_unset=True)
    for where, text in _texts(checked):
        if text.startswith(PLACEHOLDER):
            raise ConfigError(
                "still the preset's placeholder",
                field=where,
                got=text,
                next_step=f"set it to a path on the worker's machine: -p {where}=PATH",
            )
    return checked


def _texts(values: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """Every text in nested values, with the key it stands under."""
    if isinstance(values, str):
        yield where, values
    elif isinstance(values, Mapping):
        for key, value in values.items():
            yield from _texts(value, f"{where}.{key}" if where else str(key))
    elif isinstance(values, list):
        for value in values:
            yield from _texts(value, where)


def submit(client: SyncPrefectClient, target: Target, values: dict[str, Any]) -> FlowRun:
    """Create the run.

    Raises:
        ConfigError: The server refuses the parameters, as when the flow was deployed by another version.
    """
    from prefect.exceptions import PrefectHTTPStatusError

    name = run_name(parse_config(model_of(target.flow), values))
    try:
        return client.create_flow_run_from_deployment(target.deployment.id, parameters={"config": values}, name=name)
    except PrefectHTTPStatusError as error:
        if error.response.status_code not in (400, 409, 422):
            raise
        raise ConfigError(
            f"the server refuses the parameters: {error.response.text}",
            field=target.name,
            next_step=f"deploy the flow again with this version ({saeinterp.__version__})",
        ) from error


def warnings(client: SyncPrefectClient, target: Target) -> Iterator[str]:
    """What may keep the run from starting, or make it differ from what was checked here."""
    from prefect.client.schemas.filters import WorkerFilter, WorkerFilterStatus

    deployed = target.deployment.version
    if deployed and deployed != saeinterp.__version__:
        yield f"deployed by saeinterp {deployed}, checked by {saeinterp.__version__}"
    pool = target.deployment.work_pool_name
    if target.deployment.paused:
        yield "the deployment is paused: the run waits"
    if pool is None:
        return
    online = WorkerFilter(status=WorkerFilterStatus(any_=["ONLINE"]))
    if not client.read_workers_for_work_pool(pool, worker_filter=online):
        yield f"no worker is online for pool {pool}: the run waits (there: saeinterp ops worker --pool {pool})"
