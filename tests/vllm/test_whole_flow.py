"""`compare-explainers` with a vLLM of its own: killed in the middle, run again to its report, then idle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from processes import family, survivors

from saeinterp.config import ServingConfig

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def start(root: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "flows.cli", "run", "compare-explainers", "--root", str(root)]
    command += ["--config", "preset:compare-explainers-vllm-small"]
    for role in ("explainer_a", "explainer_b", "scorer"):
        command += ["--set", f"{role}.llm.serving.cpu_cache_gib=1"]
    env = {**os.environ, "PREFECT_HOME": str(root / "prefect"), "OPENAI_API_KEY": "sk-planted-secret"}
    env.pop("PREFECT_API_URL", None)
    with (root / "run.out").open("ab") as output:
        return subprocess.Popen(command, cwd=ROOT, env=env, stdout=output, stderr=output)


def kept(root: Path) -> list[dict[str, Any]]:
    """The replies on disk, in the order of files and lines."""
    files = sorted((root / "llm-cache").glob("*.jsonl"), key=lambda path: path.stat().st_mtime)
    return [
        json.loads(line) for path in files for line in path.read_text().splitlines(keepends=True) if line[-1] == "\n"
    ]


def servers_started(root: Path) -> int:
    return len(list((root / "serving").glob("*.log")))


def test_a_flow_killed_in_the_middle_goes_on_from_every_reply_it_had(serving: ServingConfig, vllm_root: Path) -> None:
    root = vllm_root
    before = servers_started(root)
    process = start(root)
    try:
        deadline = time.monotonic() + 500
        while len(kept(root)) < 10:
            assert process.poll() is None, (root / "run.out").read_text()[-3000:]
            assert time.monotonic() < deadline
            time.sleep(0.1)
        below = family(process.pid)
        (supervisor,) = (item for item in below if "saeinterp.supervisor" in " ".join(item.cmdline()))
        serving_processes = family(supervisor.pid)
        assert any("EngineCore" in " ".join(item.cmdline()) for item in serving_processes)
    finally:
        process.kill()
        process.wait()
    assert survivors(serving_processes, within=60) == []
    for item in survivors(below, within=0):
        item.terminate()  # Prefect's temporary server
    had = {item["key"]: item for item in kept(root)}
    assert len(had) >= 10
    assert servers_started(root) == before + 1

    assert start(root).wait(timeout=600) == 0, (root / "run.out").read_text()[-3000:]
    now = kept(root)
    assert len({item["key"] for item in now}) == len(now)  # nothing was asked twice
    assert [item for item in now if item["key"] in had] == list(had.values())
    assert servers_started(root) == before + 2  # one for both explainers and the scorer
    (report,) = (root / "report").glob("*/report.md")
    assert "SmolLM2-135M, contrastive" in report.read_text()
    (comparison,) = (root / "explainer-comparison").glob("*/manifest.json")
    assert json.loads(comparison.read_text())["counts"]


def test_a_finished_run_starts_no_server(vllm_root: Path) -> None:
    before, replies = servers_started(vllm_root), len(kept(vllm_root))
    assert start(vllm_root).wait(timeout=400) == 0, (vllm_root / "run.out").read_text()[-3000:]
    assert servers_started(vllm_root) == before
    assert len(kept(vllm_root)) == replies


def test_the_key_is_written_nowhere(vllm_root: Path) -> None:
    files = [path for path in vllm_root.rglob("*") if path.is_file() and path.suffix != ".safetensors"]
    assert any(path.suffix == ".log" for path in files)
    assert [path for path in files if b"sk-planted-secret" in path.read_bytes()] == []
