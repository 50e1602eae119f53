"""What every flow file shares: its task runner, and `python -m flows.NAME --config FILE`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, cast

from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from pydantic import BaseModel

from flows.naming import run_name

WORKERS = "SAEINTERP_WORKERS"


def runner() -> TaskRunner[PrefectFuture[Any]]:
    """Threads, as many as `SAEINTERP_WORKERS` says (default two): the heavy work sits in child processes.

    Tasks are submitted in dependency order, so a waiting task only ever waits for one that already runs.
    """
    threads: ThreadPoolTaskRunner[Any] = ThreadPoolTaskRunner(max_workers=int(os.environ.get(WORKERS, "2")))
    return cast("TaskRunner[PrefectFuture[Any]]", threads)


def named_by_config() -> str:
    """The name of the flow run that starts, from its configuration."""
    return run_name(flow_run.parameters["config"])


def main(flow: Callable[..., Any], model: type[BaseModel]) -> None:
    """Run one flow from its module, with the options of `saeinterp run`."""
    from flows.cli import run_module

    run_module(flow, model)
