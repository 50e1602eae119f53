"""A long task's progress on its page in the UI."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from lab import ROOT

pytestmark = pytest.mark.slow

LONG = """
import time
from prefect import flow, task
from tasks.progress import listener

@task
def train(seconds):
    report = listener("train layers.5 subject")
    for step in range(1, 10 * seconds + 1):
        time.sleep(0.1)
        report(step, 10 * seconds, "rows")
    time.sleep(2)

@flow
def one():
    train(SECONDS)

one()
"""


def _artifacts(url: str) -> list[dict[str, Any]]:
    return list(httpx.post(f"{url}/artifacts/filter", json={"limit": 200}, timeout=30).json())


@pytest.mark.parametrize(("seconds", "made"), [(12, 1), (1, 0)])
def test_a_long_task_ends_at_100_percent_and_a_short_one_has_no_artifact(
    prefect_url: str, tmp_path: Path, seconds: int, made: int
) -> None:
    before = {artifact["id"] for artifact in _artifacts(prefect_url)}
    script = tmp_path / "long.py"
    script.write_text(LONG.replace("SECONDS", str(seconds)))
    env = {**os.environ, "PREFECT_API_URL": prefect_url, "PYTHONPATH": str(ROOT), "PREFECT_HOME": str(tmp_path)}
    subprocess.run([sys.executable, str(script)], env=env, cwd=tmp_path, check=True, timeout=200, capture_output=True)
    fresh = [artifact for artifact in _artifacts(prefect_url) if artifact["id"] not in before]
    assert len(fresh) == made
    for artifact in fresh:
        assert (artifact["type"], artifact["key"], artifact["data"]) == ("progress", "train-layers-5-subject", 100.0)
        assert artifact["description"].endswith("120 of 120 rows")
        assert artifact["task_run_id"] is not None
