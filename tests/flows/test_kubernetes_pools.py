"""Kubernetes pools on a real Prefect server: made by `ops setup --kubernetes` or by Prefect's own command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from lab import DEPLOY, Lab, free_port

from flows.operating import job_template_file

pytestmark = [pytest.mark.slow, pytest.mark.timeout(480)]
IMAGE = "planted/saeinterp-worker:1"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A server with a password and nothing on it."""
    lab = Lab(tmp_path_factory.mktemp("cluster"), free_port())
    try:
        lab.start_server()
        yield lab
    finally:
        lab.close()


def _pools(lab: Lab) -> dict[str, Any]:
    return {pool["name"]: pool for pool in lab.ask("work_pools/filter", {})}


def _defaults(pool: dict[str, Any]) -> dict[str, Any]:
    properties = pool["base_job_template"]["variables"]["properties"]
    return {name: properties[name].get("default") for name in ("image", "gpus", "env")}


def test_setup_makes_kubernetes_pools_once_and_changes_what_is_named(lab: Lab) -> None:
    done = lab.saeinterp("ops", "setup", "--kubernetes", IMAGE)
    assert done.returncode == 0, done.stderr
    assert f"artifacts in /data, each run a Job of {IMAGE} with 1 GPUs" in done.stdout
    pools = _pools(lab)
    assert {name: pool["type"] for name, pool in pools.items()} == {"gpu": "kubernetes", "small": "kubernetes"}
    environment = {"SAEINTERP_ROOT": "/data"}
    assert _defaults(pools["gpu"]) == {"image": IMAGE, "gpus": 1, "env": environment}
    assert _defaults(pools["small"]) == {"image": IMAGE, "gpus": 0, "env": environment}
    assert lab.ask("v2/concurrency_limits/filter", {}) == []  # the cluster gives cards to Jobs

    again = lab.saeinterp("ops", "setup", "--kubernetes", IMAGE)
    assert "made " not in again.stdout
    assert "changed" not in again.stdout
    changed = lab.saeinterp("ops", "setup", "--kubernetes", IMAGE, "--gpus", "2", "--root", "/data/second")
    assert changed.stdout.count("changed") == 2
    assert _defaults(_pools(lab)["gpu"]) == {"image": IMAGE, "gpus": 2, "env": {"SAEINTERP_ROOT": "/data/second"}}


def test_every_deployment_fits_the_kubernetes_pools(lab: Lab) -> None:
    done = lab.prefect(*DEPLOY)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {item["work_pool_name"] for item in lab.ask("deployments/filter", {"limit": 200})} == {"gpu", "small"}


def test_a_pool_of_the_other_kind_is_refused_with_what_to_do(lab: Lab) -> None:
    done = lab.saeinterp("ops", "setup", "--root", "/data")
    assert done.returncode == 2
    assert "give --kubernetes IMAGE" in " ".join(done.stderr.split())
    done = lab.saeinterp("ops", "setup", "--kubernetes", IMAGE, "--directory", "/data")
    assert done.returncode == 2
    assert "--directory" in done.stderr


def test_prefect_takes_the_template_by_its_own_command(lab: Lab) -> None:
    arguments = ("--type", "kubernetes", "--base-job-template", str(job_template_file()))
    done = lab.prefect("--no-prompt", "work-pool", "create", "by-hand", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert _pools(lab)["by-hand"]["base_job_template"] == json.loads(job_template_file().read_text())
