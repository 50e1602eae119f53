"""What becomes of tasks on a Dask cluster after others failed or were lost, as on threads."""

from __future__ import annotations

import logging
import os
import time
import uuid
from typing import Any

import dask
import httpx
import pytest
from distributed import Client, LocalCluster, Scheduler, SpecCluster
from distributed.deploy.spec import ProcessInterface
from lab import free_port
from prefect import allow_failure, flow, task
from prefect.futures import PrefectFuture
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Completed
from prefect.task_runners import ThreadPoolTaskRunner
from prefect_dask.task_runners import PrefectDaskFuture

from saeinterp.errors import ConfigError
from tasks.cluster import StepFuture, Watch
from tasks.fan_out import FanOut
from tasks.step import ahead
from tasks.workers import advice, show_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@task
def trains(layer: str) -> str:
    return f"sae {layer}"


@task
def fails() -> str:
    raise ValueError("this layer diverged")


@task
def dies() -> str:
    os._exit(1)


@task
def together(saes: list[Any]) -> str:
    return ", ".join("failed" if isinstance(sae, Exception) else str(sae) for sae in saes)


@task
def health(sae: str) -> str:
    return f"health of {sae}"


class Slow:
    """A state that takes long on its way; `wait` looks at shorter intervals."""

    def __reduce__(self) -> tuple[Any, ...]:
        return arrive, ()


def arrive() -> Any:
    time.sleep(1)
    return Completed(data="arrived")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two worker processes; a task is given to one worker only."""
    with (
        pytest.MonkeyPatch.context() as patch,
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
    ):
        patch.setenv("SAEINTERP_ROOT", str(tmp_path_factory.mktemp("runs")))
        with LocalCluster(n_workers=2, threads_per_worker=1, memory_limit=0, dashboard_address=None) as made:
            yield made


def lanes(bad: Any) -> dict[str, tuple[str, Any]]:
    """Two good layers and a bad one, submitted as flows submit them; state and result of every task."""
    good = {"0": trains.submit("0"), "2": trains.submit("2")}
    # Dask blames what waits in line on a worker for its death, too.
    saes = {"0": good["0"], "1": bad.submit(wait_for=good.values()), "2": good["2"]}
    first = together.submit([allow_failure(sae) for sae in saes.values()])
    measured = {layer: health.submit(sae, wait_for=[allow_failure(first)]) for layer, sae in saes.items()}
    graded = {f"grade {layer}": health.submit(item) for layer, item in measured.items()}
    every: dict[str, PrefectFuture[Any]] = {**graded, "ahead": first, **measured}
    for future in every.values():
        future.wait()
    return {
        name: (future.state.name, future.result(raise_on_failure=False) if future.state.is_completed() else None)
        for name, future in every.items()
    }


WANTED = {
    "ahead": ("Completed", "sae 0, failed, sae 2"),
    "0": ("Completed", "health of sae 0"),
    "1": ("NotReady", None),
    "2": ("Completed", "health of sae 2"),
    "grade 0": ("Completed", "health of health of sae 0"),
    "grade 1": ("NotReady", None),
    "grade 2": ("Completed", "health of health of sae 2"),
}


def run(prefect_url: str, bad: Any, runner: Any) -> dict[str, tuple[str, Any]]:
    with temporary_settings({PREFECT_API_URL: prefect_url}):
        found: dict[str, tuple[str, Any]] = flow(lanes, task_runner=runner, persist_result=False)(bad)
    return found


def test_a_failed_layer_leaves_the_others_what_they_have_on_threads(prefect_url: str, cluster: Any) -> None:
    assert run(prefect_url, fails, ThreadPoolTaskRunner(max_workers=4)) == WANTED
    assert run(prefect_url, fails, FanOut(address=cluster.scheduler_address)) == WANTED


def test_a_layer_whose_worker_dies_leaves_the_others_theirs(prefect_url: str, cluster: Any) -> None:
    assert run(prefect_url, dies, FanOut(address=cluster.scheduler_address)) == WANTED


def test_a_state_that_is_long_on_its_way_is_waited_for(cluster: Any) -> None:
    with Client(cluster, set_as_default=False) as client:

        def submit() -> PrefectDaskFuture[Any]:
            return PrefectDaskFuture(wrapped_future=client.submit(Slow, pure=False), task_run_id=uuid.uuid4())

        future = StepFuture(submit, inputs=([], []), watch=Watch(client))
        deadline = time.monotonic() + 120
        while future.wrapped_future.status != "finished":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        future.wait(timeout=0.2)
        assert future.result(timeout=60) == "arrived"


def in_a_flow(prefect_url: str, what: Any, runner: Any = None) -> Any:
    with temporary_settings({PREFECT_API_URL: prefect_url}):
        return flow(what, task_runner=runner or ThreadPoolTaskRunner(max_workers=1), persist_result=False)()


@ahead
def says(label: str) -> None:
    logging.getLogger("saeinterp.sae.launch").warning("planted line of the library, %s", label)


def test_lines_of_the_library_on_a_worker_reach_the_run(prefect_url: str, cluster: Any) -> None:
    def body() -> uuid.UUID:
        (future,) = says.submit(label="here")
        future.wait()
        assert future.state.is_completed(), future.state
        found: uuid.UUID = future.task_run_id
        return found

    task_run = in_a_flow(prefect_url, body, FanOut(address=cluster.scheduler_address))
    deadline = time.monotonic() + 60
    wanted = {"logs": {"task_run_id": {"any_": [str(task_run)]}}}
    while True:
        lines = httpx.post(f"{prefect_url}/logs/filter", json=wanted, timeout=30).json()
        if any("planted line" in line["message"] for line in lines):
            break
        assert time.monotonic() < deadline, lines
        time.sleep(0.5)


def test_a_worker_that_does_not_see_the_flows_files_runs_no_step(prefect_url: str, cluster: Any) -> None:
    def body() -> str:
        (future,) = says.submit(label="here")
        return str(future.result(raise_on_failure=False))

    runner = FanOut(address=cluster.scheduler_address)
    runner.mark = "/nowhere"
    assert "does not see the flow's files" in in_a_flow(prefect_url, body, runner)


def test_workers_that_do_not_reach_the_flows_server_are_refused(cluster: Any) -> None:
    url = f"http://127.0.0.1:{free_port()}/api"
    with (
        Client(cluster, set_as_default=False) as client,
        temporary_settings({PREFECT_API_URL: url}),
        pytest.raises(ConfigError, match="does not reach the flow's Prefect server") as refused,
    ):
        show_server(client)
    assert url in str(refused.value)
    assert "loopback" in str(refused.value)


def test_an_open_cluster_and_workers_as_dask_starts_them_are_warned_of(cluster: Any) -> None:
    options = {"n_workers": 1, "processes": False, "dashboard_address": None}
    with (
        LocalCluster(**options, threads_per_worker=2, memory_limit="1GB", host="0.0.0.0", protocol="tcp") as careless,
        Client(careless, set_as_default=False) as client,
    ):
        said = "\n".join(advice(client.scheduler_info(n_workers=-1)))
    for part in ("not encrypted", "--nthreads 1", "--memory-limit 0"):
        assert part in said
    with Client(cluster, set_as_default=False) as client:
        assert advice(client.scheduler_info(n_workers=-1)) == []


class Queued(ProcessInterface):
    """A job whose worker never comes."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__()


def test_workers_that_wait_in_a_queue_are_waited_for(prefect_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.cluster.PATIENCE", 0.0)
    scheduler = {"cls": Scheduler, "options": {"dashboard_address": None, "host": "127.0.0.1"}}

    def body() -> None:
        with (
            SpecCluster(scheduler=scheduler, worker={"cls": Queued}) as jobs,
            Client(jobs, set_as_default=False) as own,
        ):
            watch = Watch(own, cluster=jobs)
            jobs.scale(2)
            assert watch.lost() is None
            limited = Watch(own, cluster=jobs, patience=1e-3)
            limited.lost()
            time.sleep(0.1)
            assert "no Dask worker" in str(limited.lost())
            jobs.scale(0)
            assert "no Dask worker" in str(watch.lost())

    in_a_flow(prefect_url, body)
