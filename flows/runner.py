"""What every flow file shares: its task runner, and `python -m flows.NAME --config FILE`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any, cast

from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from pydantic import BaseModel

from flows.naming import run_name
from flows.settings import ADAPT, ADDRESS, CLUSTER, OPTIONS, PATIENCE, RUNNER, WORKERS
from saeinterp.errors import ConfigError, MissingDependencyError


def runner() -> TaskRunner[PrefectFuture[Any]]:
    """What runs the steps: threads, or with `SAEINTERP_TASK_RUNNER=dask` the processes of a Dask cluster.

    There are as many threads as `SAEINTERP_WORKERS` says (default two): the heavy work sits in child processes. Tasks
    are submitted in dependency order, so a waiting task only ever waits for one that already runs.

    Raises:
        ConfigError: A setting cannot be read.
        MissingDependencyError: The extra `dask` is not installed.
    """
    workers = int(os.environ.get(WORKERS, "2"))
    name = os.environ.get(RUNNER, "").strip() or "threads"
    if name == "dask":
        patience = _seconds(PATIENCE)
        fan_out = _dask(workers)
        fan_out.patience = patience
        return cast("TaskRunner[PrefectFuture[Any]]", fan_out)
    if name != "threads":
        raise ConfigError("no such task runner", field=RUNNER, got=name, expected="threads or dask")
    threads: ThreadPoolTaskRunner[Any] = ThreadPoolTaskRunner(max_workers=workers)
    return cast("TaskRunner[PrefectFuture[Any]]", threads)


def _dask(workers: int) -> Any:
    try:
        from tasks.fan_out import FanOut, local_options
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("dask", "distributed", "prefect_dask"):
            raise
        raise MissingDependencyError(
            "prefect-dask is not installed",
            field=RUNNER,
            got="dask",
            next_step="pip install 'saeinterp[dask]', on every machine with workers",
        ) from error
    address, cluster = (os.environ.get(name, "").strip() for name in (ADDRESS, CLUSTER))
    options, adapt = _mapping(OPTIONS), _mapping(ADAPT)
    if address:
        if cluster or options or adapt:
            raise ConfigError(
                f"{CLUSTER}, {OPTIONS} and {ADAPT} make a cluster, and {ADDRESS} names one that is there",
                field=ADDRESS,
                got=address,
                next_step="leave one or the other out",
            )
        return FanOut(address=address)
    if not cluster:
        options = local_options(options, workers=workers)
    try:
        return FanOut(cluster_class=cluster or None, cluster_kwargs=options, adapt_kwargs=adapt)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"no such class: {error}", field=CLUSTER, got=cluster, expected="such as dask_jobqueue.SLURMCluster"
        ) from error


def _seconds(name: str) -> float | None:
    text = os.environ.get(name, "").strip()
    if not text:
        return None
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not found > 0:
        raise ConfigError("cannot be read", field=name, got=text, expected="seconds, such as 3600")
    return found


def _mapping(name: str) -> dict[str, Any]:
    text = os.environ.get(name, "").strip()
    try:
        found = json.loads(text or "{}")
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ConfigError("cannot be read", field=name, got=text, expected='JSON such as {"n_workers": 4}')
    return found


def named_by_config() -> str:
    """The name of the flow run that starts, from its configuration."""
    return run_name(flow_run.parameters["config"])


def main(flow: Callable[..., Any], model: type[BaseModel]) -> None:
    """Run one flow from its module, with the options of `saeinterp run`."""
    from flows.cli import run_module

    run_module(flow, model)
