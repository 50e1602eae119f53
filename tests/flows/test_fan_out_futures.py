"""What becomes of tasks on a Dask cluster after others failed or were lost, as on threads."""

from __future__ import annotations

import os
import time
import uuid
from typing import Any

import dask
import pytest
from distributed import Client, LocalCluster
from prefect import allow_failure, flow, task
from prefect.futures import PrefectFuture
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Completed
from prefect.task_runners import ThreadPoolTaskRunner
from prefect_dask.task_runners import PrefectDaskFuture

from tasks.cluster import StepFuture, Watch
from tasks.fan_out import FanOut

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
    return ", ".join(sae if isinstance(sae, str) else "none" for sae in saes)


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
    ahead = together.submit([allow_failure(sae) for sae in saes.values()])
    measured = {layer: health.submit(sae, wait_for=[allow_failure(ahead)]) for layer, sae in saes.items()}
    graded = {f"grade {layer}": health.submit(item) for layer, item in measured.items()}
    every: dict[str, PrefectFuture[Any]] = {**graded, "ahead": ahead, **measured}
    for future in every.values():
        future.wait()
    return {
        name: (future.state.name, future.result(raise_on_failure=False) if future.state.is_completed() else None)
        for name, future in every.items()
    }


WANTED = {
    "ahead": ("Completed", "sae 0, none, sae 2"),
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
