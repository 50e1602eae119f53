"""A whole flow with its artifacts in a bucket: the bytes of a local store; another machine computes nothing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import httpx
import pytest
from explain.oracle import Oracle
from s3 import KEYS, TestBucket, s3_server

pytest.importorskip("moto", reason="moto is not installed: make install")
pytestmark = pytest.mark.slow
Cli = Callable[..., "CompletedProcess[str]"]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory):
    """One bucket for the story told by the tests below, in order."""
    patch = pytest.MonkeyPatch()
    with s3_server(tmp_path_factory.mktemp("s3") / "server.log") as url, patch.context() as env:
        for name, value in {**KEYS, "AWS_ENDPOINT_URL": url}.items():
            env.setenv(name, value)
        for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL_S3", "SAEINTERP_CACHE_LIMIT", "SAEINTERP_ROOT"):
            env.delenv(name, raising=False)
        yield TestBucket(url, "planted-flow")


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("machines")


def sums_below(root: Path) -> dict[str, dict[str, str]]:
    return {
        path.parent.relative_to(root).as_posix(): _sums(path.read_bytes())
        for path in root.glob("[!.]*/*/manifest.json")
    }


def _sums(manifest: bytes) -> dict[str, str]:
    return {name: item["sha256"] for name, item in json.loads(manifest)["files"].items()}


def manifests(bucket: TestBucket) -> dict[str, bytes]:
    keys = [key for key in bucket.listed() if key.endswith("/manifest.json")]
    return {key.removesuffix("/manifest.json"): bucket.read(key) for key in keys}


def report_of(found: dict[str, bytes]) -> str:
    (name,) = [name for name in found if name.startswith("report/")]
    return name


def test_a_flow_leaves_in_the_bucket_what_it_leaves_in_a_folder(
    cli: Cli, planted_config: Path, bucket: TestBucket, caches: Path, tmp_path: Path, prefect_url: str
) -> None:
    local = cli("run", "compare-explainers", "-c", str(planted_config), "--root", str(tmp_path / "runs"))
    assert local.returncode == 0, local.stderr
    done = cli(
        "run", "compare-explainers", "-c", str(planted_config), "--root", bucket.url, SAEINTERP_CACHE=str(caches / "a")
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    there = manifests(bucket)
    assert {name: _sums(data) for name, data in there.items()} == sums_below(tmp_path / "runs")
    assert f"saeinterp view {report_of(there)} --root {bucket.url}" in " ".join(done.stderr.split())
    query = {"artifacts": {"key": {"any_": ["compare-explainers-report"]}}, "sort": "CREATED_DESC", "limit": 1}
    (shown,) = httpx.post(f"{prefect_url}/artifacts/filter", json=query).json()
    link = re.search(r"\((http\S+)\)", shown["data"])
    assert link is not None, shown["data"]
    key = link[1].partition(f"/{bucket.name}/")[2]
    bucket.client.put_object_acl(Bucket=bucket.name, Key=key, ACL="public-read")
    page = httpx.get(link[1])
    assert (page.status_code, page.headers["content-type"].split(";")[0]) == (200, "text/html")
    secrets = [path for path in caches.rglob("*") if path.is_file() and b"planted-secret" in path.read_bytes()]
    assert secrets == []


def test_a_plan_on_another_machine_sees_it_and_fetches_no_file(
    cli: Cli, planted_config: Path, bucket: TestBucket, caches: Path
) -> None:
    env = {"SAEINTERP_ROOT": bucket.url, "SAEINTERP_CACHE": str(caches / "planning")}
    done = cli("plan", "compare-explainers", "-c", str(planted_config), **env)
    assert done.returncode == 0, done.stderr
    assert re.search(rf"^0 of \d+ steps to do, .* below {bucket.url}$", done.stdout, re.MULTILINE), done.stdout
    files = {path.name for path in (caches / "planning").glob("*/[!.]*/*/*")}
    assert files == {"manifest.json"}


def test_another_machine_runs_the_flow_and_computes_nothing(
    cli: Cli, planted_config: Path, bucket: TestBucket, caches: Path, oracle: Oracle
) -> None:
    before, asked = manifests(bucket), oracle.requests
    done = cli(
        "run", "compare-explainers", "-c", str(planted_config), "--root", bucket.url, SAEINTERP_CACHE=str(caches / "b")
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert manifests(bucket) == before
    assert oracle.requests == asked
    mirror = next((caches / "b").iterdir())
    assert not list((mirror / ".work").glob("*/*")), "no step began"
    fetched = {path.relative_to(mirror).as_posix() for path in mirror.glob("[!.]*/**/*") if path.is_file()}
    kinds = {name.split("/")[0] for name in fetched if not name.endswith("manifest.json")}
    assert "report" in kinds
    assert kinds.isdisjoint({"activations", "sae", "latents"}), "nothing large is fetched"
    page = re.search(r"open in a browser\s+(\S+report\.html)", done.stdout)
    assert page is not None, done.stdout
    assert (ROOT / page[1]).stat().st_size > 10_000


def test_a_third_machine_opens_the_report_and_exports_it(
    cli: Cli, bucket: TestBucket, caches: Path, tmp_path: Path
) -> None:
    report = report_of(manifests(bucket))
    env = {"SAEINTERP_ROOT": bucket.url, "SAEINTERP_CACHE": str(caches / "c")}
    command = [sys.executable, "-m", "flows.cli", "view", report, "--no-open"]
    viewer = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **env}, stdout=subprocess.PIPE, text=True)
    try:
        assert viewer.stdout is not None
        address = next(found[0] for line in viewer.stdout if (found := re.search(r"http://\S+", line)))
        page = httpx.get(address)
        assert page.status_code == 200
        assert "<html" in page.text
    finally:
        viewer.terminate()
        viewer.wait(timeout=30)
    done = cli("export", report, "--format", "csv", "--out", str(tmp_path / "tables"), **env)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "tables").rglob("*.csv"))
    again = cli("report", report, "--out", str(tmp_path / "again"), **env)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "again" / "report.html").exists()
    sae = next(name for name in manifests(bucket) if name.startswith("sae/"))
    shown = cli("sae", "show", sae, **env)
    assert shown.returncode == 0, shown.stderr
    assert sae in shown.stdout


def test_a_machine_that_has_the_upstream_alone_makes_the_rest_from_the_bucket(
    cli: Cli, planted_config: Path, bucket: TestBucket, caches: Path
) -> None:
    """SAEs, scores and reports are removed; a machine with an empty mirror fetches what they are made from."""
    before = manifests(bucket)
    kinds = ("sae", "scores", "explainer-comparison", "report")
    gone = [name for name in before if name.split("/")[0] in kinds]
    env = {"SAEINTERP_ROOT": bucket.url, "SAEINTERP_CACHE": str(caches / "d")}
    removed = cli("artifacts", "rm", *gone, "--force", "--yes", **env)
    assert removed.returncode == 0, removed.stderr
    assert len(manifests(bucket)) == len(before) - len(gone)
    done = cli("run", "compare-explainers", "-c", str(planted_config), **env)
    assert done.returncode == 0, done.stderr
    after = manifests(bucket)
    assert {name: _sums(data) for name, data in after.items()} == {name: _sums(data) for name, data in before.items()}
    assert all(after[name] == before[name] for name in before if name not in gone)
