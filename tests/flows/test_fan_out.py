"""Flows whose steps run in the processes of a real Dask cluster: same bytes, and nothing is lost when parts die."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import yaml
from dask_cluster import DaskCluster
from explain.oracle import Oracle
from operations import TERMINAL, Operations, manifests
from planted_problems import write_planted_problems
from processes import survivors
from s3 import KEYS, TestBucket, s3_server

from flows.runner import runner
from saeinterp.errors import ConfigError
from tasks.site import Site

ROOT = Path(__file__).resolve().parents[2]
TRAINS = "saeinterp.sae.training"
THREADS = {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}  # bits may depend on their number
DASK = {"SAEINTERP_TASK_RUNNER": "dask", "SAEINTERP_WORKERS": "2"}
Cli = Callable[..., "CompletedProcess[str]"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def tokens(planted_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """`correlate-tokens` over four sites, in seconds."""
    problems = write_planted_problems(tmp_path_factory.mktemp("problems") / "planted-train.jsonl")
    return {
        "subject": {"model": str(planted_folder), "dtype": "float32"},
        "corpus": {
            "source": {"name": str(problems)},
            "id_column": "id",
            "tags_column": "tags",
            "samples": 200,
            "max_tokens": 128,
        },
        "positions": {"select": "even:2@cot"},
        "capture": {"hookpoints": ["layers.0", "layers.2"]},
        "training": {
            "num_latents": 16,
            "k": 1,
            "epochs": 4,
            "batch_rows": 64,
            "dead_after_rows": 2000,
            "eval_rows": 200,
        },
        "launch": {"threads": 1},
        "concepts": {"grammar": "column"},
        "enrichment": {"permutations": 5, "half_samples": 5},
        "random_weights_control": False,
    }


@pytest.fixture(scope="module")
def examples(tiny_training: dict[str, Any], oracle: Oracle) -> dict[str, Any]:
    """`explain-features` over two layers, in seconds."""
    return {
        **tiny_training,
        "capture": {"hookpoints": ["layers.0", "layers.1"]},
        "examples": {"latents": "all", "window": 16, "max_share": 0.6, "score_activating": 4, "score_random": 4},
        "explainer": {"kind": "top-tokens"},
        "scorer": {"llm": {"provider": "openai", "model": "oracle", "base_url": oracle.url, "max_tokens": 1}},
    }


@pytest.fixture(scope="module")
def long_training(tiny_training: dict[str, Any]) -> dict[str, Any]:
    """Two layers that each train for some seconds, with checkpoints."""
    settings = {**tiny_training["training"], "epochs": 24, "checkpoint_seconds": 0.2}
    return {**tiny_training, "capture": {"hookpoints": ["layers.0", "layers.1"]}, "training": settings}


def write(folder: Path, config: dict[str, Any]) -> str:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return str(path)


def command(flow: str, config: str, root: Path) -> list[str]:
    return [sys.executable, "-m", "flows.cli", "run", flow, "--config", config, "--root", str(root)]


def environment(prefect_url: str, **more: str) -> dict[str, str]:
    return {**os.environ, "PREFECT_API_URL": prefect_url, **THREADS, **more}


def run(cli: Cli, flow: str, config: str, root: Path | str, **env: str) -> CompletedProcess[str]:
    return cli("run", flow, "--config", config, "--root", str(root), **{**THREADS, **env})


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[DaskCluster]:
    """A scheduler and two workers that share `tmp_path / "runs"` with the flow."""
    made = DaskCluster(tmp_path / "dask", artifacts=tmp_path / "runs", **THREADS)
    try:
        made.add_workers(2)
        yield made
    finally:
        made.close()


def on(cluster: DaskCluster) -> dict[str, str]:
    return {**DASK, "SAEINTERP_DASK_ADDRESS": cluster.address}


@pytest.fixture(scope="module")
def reference(
    prefect_url: str, long_training: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """What `train-saes` makes on threads."""
    folder = tmp_path_factory.mktemp("reference")
    with_threads = command("train-saes", write(folder, long_training), folder / "runs")
    done = subprocess.run(
        with_threads, cwd=ROOT, env=environment(prefect_url), capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return manifests(folder / "runs")


def test_health_on_processes_that_the_flow_starts_makes_the_same_bytes_as_on_threads(
    cli: Cli, long_training: dict[str, Any], reference: dict[str, str], tmp_path: Path
) -> None:
    done = run(cli, "train-saes", write(tmp_path, long_training), tmp_path / "runs", **DASK)
    assert done.returncode == 0, done.stdout + done.stderr
    assert manifests(tmp_path / "runs") == reference


def test_examples_and_associations_on_started_workers_make_the_same_bytes(
    cli: Cli, cluster: DaskCluster, examples: dict[str, Any], tokens: dict[str, Any], tmp_path: Path
) -> None:
    for flow, config in {"explain-features": examples, "correlate-tokens": tokens}.items():
        file = write(tmp_path, config)
        for root, where in ((tmp_path / "threads", {}), (tmp_path / "runs", on(cluster))):
            done = run(cli, flow, file, root, **where)
            assert done.returncode == 0, done.stdout + done.stderr
    made, wanted = manifests(tmp_path / "runs"), manifests(tmp_path / "threads")
    assert {name for name in {*made, *wanted} if made.get(name) != wanted.get(name)} == set()


class Started:
    """A flow of the command line that runs on a cluster meanwhile."""

    def __init__(self, prefect_url: str, config: str, root: Path, cluster: DaskCluster, **env: str) -> None:
        self.cluster = cluster
        self.process = subprocess.Popen(
            command("train-saes", config, root),
            cwd=ROOT,
            env=environment(prefect_url, **on(cluster), **env),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def end(self, *, within: float = 240) -> tuple[int, str]:
        """Its exit code and what it said."""
        try:
            said, _ = self.process.communicate(timeout=within)
        except subprocess.TimeoutExpired:
            self.process.kill()
            said, _ = self.process.communicate()
            raise AssertionError(f"it hangs: {said}\n{self.cluster.log()}") from None
        return self.process.returncode, said


def checkpointed(root: Path, *, within: float = 120) -> None:
    """Wait until a layer has a checkpoint."""
    deadline = time.monotonic() + within
    while not list(root.glob(".work/sae/*/checkpoints/*")):
        assert time.monotonic() < deadline, "no checkpoint"
        time.sleep(0.05)


def test_workers_that_share_nothing_but_a_bucket_make_the_same_bytes(
    cli: Cli,
    prefect_url: str,
    long_training: dict[str, Any],
    reference: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with s3_server(tmp_path / "s3.log") as url:
        for name, value in {**KEYS, "AWS_ENDPOINT_URL": url}.items():
            monkeypatch.setenv(name, value)
        bucket = TestBucket(url, "planted-fan-out")
        machines = DaskCluster(tmp_path / "dask", artifacts=bucket.url, **THREADS)
        try:
            machines.add_workers(1, SAEINTERP_CACHE=str(tmp_path / "a"))
            machines.add_workers(1, SAEINTERP_CACHE=str(tmp_path / "b"))
            config = write(tmp_path, long_training)
            cache = str(tmp_path / "c")
            done = run(cli, "train-saes", config, bucket.url, SAEINTERP_CACHE=cache, **on(machines))
            assert done.returncode == 0, done.stdout + done.stderr
        finally:
            machines.close()
        made = {key.removesuffix("/manifest.json"): bucket.read(key) for key in bucket.listed() if "manifest" in key}
    sums = {
        name: json.dumps({file: facts["sha256"] for file, facts in json.loads(data)["files"].items()}, sort_keys=True)
        for name, data in made.items()
    }
    assert sums == reference
    # Each made some: what one makes, the other fetches.
    assert all(any((tmp_path / name).glob("*/sae/*/sae.safetensors")) for name in "ab")


def test_workers_that_die_in_the_middle_cost_nothing(
    prefect_url: str,
    cluster: DaskCluster,
    long_training: dict[str, Any],
    reference: dict[str, str],
    tmp_path: Path,
) -> None:
    config, root = write(tmp_path, long_training), tmp_path / "runs"
    started = Started(prefect_url, config, root, cluster)
    worker, child = cluster.of_child(TRAINS)
    checkpointed(root)
    worker.kill()
    assert survivors([child], within=30) == [], "a killed worker left its training process"
    code, said = started.end()
    assert code == 0, said + cluster.log()
    assert manifests(root) == reference


def test_a_layer_whose_workers_all_die_fails_alone_and_the_next_run_makes_it(
    prefect_url: str, long_training: dict[str, Any], tmp_path: Path
) -> None:
    config, root = write(tmp_path, long_training), tmp_path / "runs"
    none_again = {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0"}
    cluster = DaskCluster(tmp_path / "dask", artifacts=root, **THREADS, **none_again)
    try:
        cluster.add_workers(2)
        started = Started(prefect_url, config, root, cluster)
        worker, _ = cluster.of_child(TRAINS)
        checkpointed(root)
        worker.kill()
        code, said = started.end()
        assert code == 1, said
        assert "every Dask worker that ran this died" in said, said
        assert len(list(root.glob("sae/*/manifest.json"))) == 1, "the other layer went with it"
        assert len(list(root.glob("health/*/manifest.json"))) == 1, "the other layer has no health"
        assert list(root.glob("report/*/report.html")), "no report of what is there"
        cluster.add_workers(1)
        code, said = Started(prefect_url, config, root, cluster).end()
        assert code == 0, said
        assert len(list(root.glob("sae/*/manifest.json"))) == 2
    finally:
        cluster.close()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_training_on_workers_ends_with_the_flow_that_wanted_it(
    prefect_url: str, cluster: DaskCluster, long_training: dict[str, Any], how: signal.Signals, tmp_path: Path
) -> None:
    long_training = {**long_training, "training": {**long_training["training"], "epochs": 20_000}}
    root = tmp_path / "runs"
    started = Started(prefect_url, write(tmp_path, long_training), root, cluster)
    cluster.of_child(TRAINS)
    checkpointed(root)
    started.process.send_signal(how)
    started.end(within=60)
    assert survivors(cluster.children(TRAINS), within=60) == [], cluster.log()
    assert [worker.poll() for worker in cluster.workers] == [None, None], "a worker went with it"


def test_a_flow_whose_scheduler_dies_ends_and_says_so(
    prefect_url: str, cluster: DaskCluster, long_training: dict[str, Any], tmp_path: Path
) -> None:
    config, root = write(tmp_path, long_training), tmp_path / "runs"
    soon = {"DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "8s"}  # it is looked for so long
    started = Started(prefect_url, config, root, cluster, **soon)
    cluster.of_child(TRAINS)
    checkpointed(root)
    training = cluster.children(TRAINS)
    cluster.scheduler.kill()
    code, said = started.end()
    assert code == 1, said
    assert survivors(training, within=60) == [], "training went on without anybody to tell"
    assert "the Dask scheduler is gone" in said, said


def test_workers_that_differ_from_the_flow_are_refused_before_anything_runs(
    cli: Cli, tiny_training: dict[str, Any], tmp_path: Path
) -> None:
    config = write(tmp_path, tiny_training)
    cluster = DaskCluster(tmp_path / "dask", artifacts=tmp_path / "elsewhere", **THREADS)
    try:
        cluster.add_workers(1)
        done = run(cli, "train-saes", config, tmp_path / "runs", **on(cluster))
    finally:
        cluster.close()
    assert done.returncode == 2, done.stdout + done.stderr
    assert "SAEINTERP_ROOT" in done.stderr, done.stderr
    assert str(tmp_path / "elsewhere") in done.stderr
    assert not list((tmp_path / "runs").glob("subject/*"))


def test_a_worker_that_joins_later_and_differs_runs_no_step(
    prefect_url: str, cluster: DaskCluster, long_training: dict[str, Any], tmp_path: Path
) -> None:
    root = tmp_path / "runs"
    started = Started(prefect_url, write(tmp_path, long_training), root, cluster)
    cluster.of_child(TRAINS)
    cluster.add_workers(1, SAEINTERP_ROOT=str(tmp_path / "elsewhere"))
    for worker in cluster.workers[:2]:
        worker.kill()
    code, said = started.end()
    assert code != 0, said
    assert "differs from the flow" in said, said
    assert not (tmp_path / "elsewhere" / "sae").exists()


def test_a_deployed_run_fans_out_with_slots_and_its_lines_reach_the_server(
    operations: Operations, tiny_training: dict[str, Any], tmp_path: Path
) -> None:
    operations.make_limits("fan-0")
    slots = {"SAEINTERP_GPU_SLOTS": "fan:1"}
    root = tmp_path / "runs"
    cluster = DaskCluster(tmp_path / "dask", artifacts=root, **THREADS, **slots)
    try:
        cluster.add_workers(2)
        env = {**THREADS, **on(cluster), **slots}
        deployment = operations.deploy("train-saes", "flows/train_saes.py:train_saes", root=root, env=env)
        run = operations.submit(deployment, {**tiny_training, "capture": {"hookpoints": ["layers.0"]}})
        state = operations.wait(run, *TERMINAL)
        assert state["type"] == "COMPLETED", operations.story(run) + cluster.log()
    finally:
        cluster.close()
    computes = {"capture-activations subject", "train-layer layers.0 subject", "measure-health layers.0 subject"}
    operations.until(
        lambda: computes <= operations.task_lines(run, r"holds (fan-0)").keys(), 60, lambda: operations.story(run)
    )


def test_a_worker_is_admitted_only_with_what_the_flow_has() -> None:
    flow = Site(root="/data", saeinterp="1", torch="2", python="3.11", slots=False)
    flow.admit(flow._replace(slots=True), who="a worker")  # the flow's own process takes no cards
    for name, value in (("root", "/other"), ("saeinterp", "2"), ("torch", "3"), ("python", "3.12")):
        with pytest.raises(ConfigError, match="a worker differs"):
            flow.admit(flow._replace(**{name: value}), who="a worker")
    with pytest.raises(ConfigError, match="SAEINTERP_GPU_SLOTS"):
        flow._replace(slots=True).admit(flow, who="a worker")


def test_settings_that_cannot_be_used_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(field: str, **settings: str) -> None:
        with monkeypatch.context() as patch:
            for name, value in settings.items():
                patch.setenv(name, value)
            with pytest.raises(ConfigError, match=field):
                runner()

    refused("SAEINTERP_TASK_RUNNER", SAEINTERP_TASK_RUNNER="ray")
    refused("SAEINTERP_DASK_OPTIONS", SAEINTERP_TASK_RUNNER="dask", SAEINTERP_DASK_OPTIONS="n_workers=2")
    refused("SAEINTERP_DASK_CLUSTER", SAEINTERP_TASK_RUNNER="dask", SAEINTERP_DASK_CLUSTER="no.such.Cluster")
    refused("SAEINTERP_DASK_PATIENCE", SAEINTERP_TASK_RUNNER="dask", SAEINTERP_DASK_PATIENCE="an hour")
    both = {"SAEINTERP_DASK_ADDRESS": "tcp://127.0.0.1:1", "SAEINTERP_DASK_OPTIONS": '{"n_workers": 2}'}
    refused("SAEINTERP_DASK_ADDRESS", SAEINTERP_TASK_RUNNER="dask", **both)
