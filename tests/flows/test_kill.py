"""Kill -9 anywhere, run again: the same tables and weights as an uninterrupted run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


def start(config: Path, root: Path, url: str) -> subprocess.Popen[bytes]:
    env = {**os.environ, "PREFECT_API_URL": url, "OPENAI_API_KEY": "sk-planted-secret"}
    command = [sys.executable, "-m", "flows.cli", "run", "compare-explainers", "-c", str(config), "--root", str(root)]
    with log_of(root).open("ab") as log:
        return subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT)


def log_of(root: Path) -> Path:
    """What the runs below a root have printed."""
    return root.with_name(f"{root.name}.log")


def checksums(root: Path) -> dict[str, dict[str, str]]:
    """Artifact folder -> file -> SHA-256, for everything published."""
    return {
        path.parent.relative_to(root).as_posix(): {
            name: item["sha256"] for name, item in json.loads(path.read_text())["files"].items()
        }
        for path in root.glob("*/*/manifest.json")
        if not path.relative_to(root).parts[0].startswith(".")
    }


def children_of(root: Path) -> list[int]:
    """Processes whose command line mentions the artifact folder."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if str(root).encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, planted_config: Path, prefect_url: str) -> tuple[dict, float]:
    """Checksums and duration of an uninterrupted run."""
    root = tmp_path_factory.mktemp("reference")
    started = time.monotonic()
    assert start(planted_config, root, prefect_url).wait(timeout=280) == 0
    return checksums(root), time.monotonic() - started


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.skipif(not Path("/proc").exists(), reason="finds orphans through /proc")
def test_killed_at_random_points_it_ends_with_the_same_bytes(
    reference: tuple[dict, float], planted_config: Path, prefect_url: str, tmp_path: Path, seed: int
) -> None:
    expected, duration = reference
    source = random.Random(seed)
    for _ in range(3):
        process = start(planted_config, tmp_path, prefect_url)
        try:
            process.wait(timeout=source.uniform(0.15, 0.8) * duration)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        deadline = time.monotonic() + 15
        while children_of(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert children_of(tmp_path) == []
    assert start(planted_config, tmp_path, prefect_url).wait(timeout=280) == 0
    assert checksums(tmp_path) == expected


def test_two_people_running_one_recipe_at_once_both_end_well(
    reference: tuple[dict, float], planted_config: Path, prefect_url: str, tmp_path: Path
) -> None:
    both = [start(planted_config, tmp_path, prefect_url) for _ in range(2)]
    assert [process.wait(timeout=280) for process in both] == [0, 0], log_of(tmp_path).read_text()[-20_000:]
    assert checksums(tmp_path) == reference[0]
