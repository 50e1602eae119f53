"""What a Dask cluster gains and costs on one machine: one flow, and tasks that compute nothing, on threads and on it.

`make bench-fan-out` prints markdown. Each case is a process of its own in a new artifact folder; memory is the largest
sum of `Pss` over the process and all below it, looked at twice a second.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import psutil

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

from lab import ROOT, Lab, free_port  # noqa: E402

RUNNERS = {"threads": "threads", "Dask": "dask"}


class Cost(NamedTuple):
    """Of one process and all below it."""

    seconds: float
    cpu: float
    """Seconds of all its processes that still ran when it was last looked at, or that these had waited for."""
    memory: float
    """MB, at the most."""
    said: str


def run(command: Sequence[str], *, cwd: Path, env: dict[str, str]) -> Cost:
    """Run a command to its end."""
    with tempfile.TemporaryFile("w+") as out:
        started = time.perf_counter()
        process = psutil.Popen(command, cwd=cwd, env=env, stdout=out, stderr=subprocess.STDOUT, text=True)
        peak = cpu = 0.0
        while process.poll() is None:
            family = [process]
            with contextlib.suppress(psutil.Error):
                family += process.children(recursive=True)
            memory = spent = 0.0
            for item in family:
                with contextlib.suppress(psutil.Error):
                    memory += item.memory_full_info().pss / 1e6
                    spent += sum(item.cpu_times()[:4])
            peak, cpu = max(peak, memory), max(cpu, spent)
            time.sleep(0.5)
        seconds = time.perf_counter() - started
        out.seek(0)
        said = out.read()
    if process.returncode:
        raise RuntimeError(said)
    return Cost(seconds, cpu, peak, said)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--flow", default="train-saes")
    parser.add_argument("--preset", default="train-saes-small")
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        lab = Lab(folder, free_port())
        try:
            lab.start_server()
            _print(lab, options)
        finally:
            lab.close()
    load = ", ".join(f"{item:.1f}" for item in os.getloadavg())
    print(
        f"\n{options.workers} threads or worker processes, {os.cpu_count()} cores, {platform.machine()}, Prefect "
        f"{version('prefect')}, distributed {version('distributed')}; load at the end {load}: "
        "`tests/benchmarks/fan_out.py`."
    )


def _print(lab: Lab, options: argparse.Namespace) -> None:
    def environment(runner: str, root: Path) -> dict[str, str]:
        return lab.environment(
            **lab.client,
            SAEINTERP_TASK_RUNNER=runner,
            SAEINTERP_WORKERS=str(options.workers),
            SAEINTERP_ROOT=str(root),
            PREFECT_RESULTS_LOCAL_STORAGE_PATH=str(root / ".prefect"),
        )

    print(f"| {options.flow}, {options.preset} | seconds | CPU seconds | memory, MB |")
    print("|---|---:|---:|---:|")
    for number in range(options.rounds):
        for name, runner in list(RUNNERS.items())[:: -1 if number % 2 else 1]:
            root = lab.folder / f"flow-{runner}-{number}"
            command = [sys.executable, "-m", "flows.cli", "run", options.flow, "-c", f"preset:{options.preset}"]
            cost = run(command, cwd=ROOT, env=environment(runner, root))
            print(f"| {name} | {cost.seconds:.1f} | {cost.cpu:.1f} | {cost.memory:,.0f} |", flush=True)
    print(f"\n| {options.tasks} tasks that compute nothing | start, s | all others, s | ms a task | memory, MB |")
    print("|---|---:|---:|---:|---:|")
    for name, runner in RUNNERS.items():
        root = lab.folder / f"tasks-{runner}"
        command = [sys.executable, "-m", "many_tasks", "--tasks", str(options.tasks)]
        cost = run(command, cwd=TESTS, env=environment(runner, root))
        found = json.loads([line for line in cost.said.splitlines() if line.startswith('{"tasks"')][-1])
        seconds, each = found["seconds"], 1000 * found["seconds"] / (options.tasks - 1)
        print(f"| {name} | {found['start']:.1f} | {seconds:.1f} | {each:.0f} | {cost.memory:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
