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

import httpx
import pytest
import yaml
from dask_cluster import DaskCluster
from operations import manifests
from planted_problems import write_planted_problems
from processes import survivors

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
def long_training(tiny_training: dict[str, Any]) -> dict[str, Any]:
    """Two layers that each train for some seconds, with checkpoints."""
    settings = {**tiny_training["training"], "epochs": 24, "checkpoint_seconds": 0.2}
    return {**tiny_training, "capture": {"hookpoints": ["layers.0", "layers.1"]}, "training": settings}


def write(folder: Path, config: dict[str, Any]) -> str:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return str(path)


def run(cli: Cli, flow: str, config: str, root: Path, **env: str) -> CompletedProcess[str]:
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


def test_a_flow_on_processes_of_its_own_makes_the_same_bytes_as_on_threads(
    cli: Cli, prefect_url: str, tiny_training: dict[str, Any], tmp_path: Path
) -> None:
    config = write(tmp_path, tiny_training)
    done = run(cli, "train-saes", config, tmp_path / "threads")
    assert done.returncode == 0, done.stdout + done.stderr
    done = run(cli, "train-saes", config, tmp_path / "dask", **DASK)
    assert done.returncode == 0, done.stdout + done.stderr
    assert manifests(tmp_path / "dask") == manifests(tmp_path / "threads")


def test_examples_and_associations_on_started_workers_make_the_same_bytes(
    cli: Cli,
    cluster: DaskCluster,
    prefect_url: str,
    planted_config: Path,
    tokens: dict[str, Any],
    tmp_path: Path,
) -> None:
    flows = {"compare-explainers": str(planted_config), "correlate-tokens": write(tmp_path, tokens)}
    for flow, config in flows.items():
        done = run(cli, flow, config, tmp_path / "threads")
        assert done.returncode == 0, done.stdout + done.stderr
        done = run(cli, flow, config, tmp_path / "runs", **on(cluster))
        assert done.returncode == 0, done.stdout + done.stderr
    made, wanted = manifests(tmp_path / "runs"), manifests(tmp_path / "threads")
    assert {name for name in {*made, *wanted} if made.get(name) != wanted.get(name)} == set()
