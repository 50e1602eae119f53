"""What a task costs with the Prefect server on SQLite and on PostgreSQL: one flow of 500 tasks, then several at once.

`make bench-postgres` prints markdown. The tasks compute nothing, so all the time is Prefect's and the database's. A
flow does not wait for the record of its tasks, which arrives as events, so both are timed; what went wrong is counted
in what the server and the flows printed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

from lab import Lab, free_port  # noqa: E402
from postgres import WHY_NOT, binaries, postgres  # noqa: E402

LOCKED = "database is locked"
PATIENCE = 120.0


class Measured(NamedTuple):
    """Several flows of many tasks at once."""

    flows: int
    tasks: int
    seconds: float
    """The slowest flow took, without its imports."""
    start: float
    """Of them until its first task had ended, at the most."""
    recorded: float
    """From the same start until all tasks are on record as completed, with the imports."""
    failed: int
    locked: int
    """Times that the server or a flow said so."""
    missing: int
    """Tasks that are not on record `PATIENCE` seconds after the last flow."""


def measure(lab: Lab, *, flows: int, tasks: int, workers: int) -> Measured:
    """Run so many flows at once."""
    before = lab.log("server").count(LOCKED)
    known = {run["id"] for run in lab.flow_runs()}
    env = lab.environment(
        **lab.client, SAEINTERP_WORKERS=str(workers), PREFECT_RESULTS_LOCAL_STORAGE_PATH=str(lab.folder / "results")
    )
    start = time.monotonic()
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "many_tasks", "--tasks", str(tasks)],
            cwd=TESTS,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(flows)
    ]
    said = [process.communicate(timeout=600)[0] for process in started]
    # Lines of the log may come after it, where the server was slow to take them.
    results = [[line for line in text.splitlines() if line.startswith('{"tasks"')] for text in said]
    ended = [json.loads(lines[-1]) for lines, process in zip(results, started) if lines and process.returncode == 0]
    runs = [run["id"] for run in lab.flow_runs() if run["id"] not in known]
    wanted = {"flow_runs": {"id": {"any_": runs}}, "task_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}
    deadline = time.monotonic() + PATIENCE
    while (missing := flows * tasks - lab.ask("task_runs/count", wanted)) > 0 and time.monotonic() < deadline:
        time.sleep(0.5)
    recorded = time.monotonic() - start
    locked = lab.log("server").count(LOCKED) - before + sum(text.count(LOCKED) for text in said)
    return Measured(
        flows,
        tasks,
        max((item["start"] + item["seconds"] for item in ended), default=float("nan")),
        max((item["start"] for item in ended), default=float("nan")),
        recorded,
        flows - len(ended),
        locked,
        missing,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=500)
    parser.add_argument("--flows", type=int, default=4, help="that run at once, with as many tasks together")
    parser.add_argument("--workers", type=int, default=8, help="threads of each flow")
    options = parser.parse_args()
    head = ["database", "flows at once", "tasks each", "seconds", "of them to start", "ms a task", "on record after, s"]
    head += ["flows failed", "database is locked", "not on record"]
    print("| " + " | ".join(head) + " |\n|---" + "|---:" * (len(head) - 1) + "|")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        addresses: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {"SQLite": ((), {})}
        if (programs := binaries()) is None:
            print(WHY_NOT, file=sys.stderr)
        else:
            server = stack.enter_context(postgres(programs))
            server.tool("createdb", "prefect")
            password = {"PREFECT_SERVER_DATABASE_PASSWORD": server.password}
            name = "PostgreSQL " + server.tool("psql", "-d", "prefect", "-Atc", "show server_version").split()[0]
            addresses[name] = (("--database", server.address("prefect")), password)
        for name, (arguments, more) in addresses.items():
            place = folder / name.replace(" ", "-")
            place.mkdir()
            lab = Lab(place, free_port())
            try:
                lab.start_server(*arguments, **more)
                measure(lab, flows=1, tasks=10, workers=options.workers)  # the first compiles queries
                for flows, tasks in ((1, options.tasks), (options.flows, options.tasks // options.flows)):
                    found = measure(lab, flows=flows, tasks=tasks, workers=options.workers)
                    each = 1000 * found.seconds / (flows * tasks)
                    print(
                        f"| {name} | {flows} | {tasks} | {found.seconds:.1f} | {found.start:.1f} | "
                        f"{each:.0f} | {found.recorded:.1f} | {found.failed} | {found.locked} | {found.missing} |",
                        flush=True,
                    )
            finally:
                lab.close()
    load = ", ".join(f"{item:.1f}" for item in os.getloadavg())
    print(
        f"\n{options.workers} threads a flow, {os.cpu_count()} cores, {platform.machine()}, "
        f"Prefect {version('prefect')}; load at the end {load}: `tests/benchmarks/database.py`."
    )


if __name__ == "__main__":
    main()
