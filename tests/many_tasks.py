"""A flow of many tasks that compute nothing, so that all it costs is Prefect's: `python -m many_tasks --tasks 500`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from prefect import flow, task

from flows.runner import runner


@task(name="one-of-many", persist_result=True, result_serializer="json")
def one(number: int) -> int:
    """Its number."""
    return number


@flow(name="many-tasks", task_runner=runner(), persist_result=False)
def many(tasks: int) -> tuple[int, float]:
    """The sum of what they give, and the seconds that all but the first took: that one waits for a cluster to start."""
    first = one.submit(0).result()
    started = time.perf_counter()
    pending = [one.submit(number) for number in range(1, tasks)]
    return first + sum(item.result() for item in pending), time.perf_counter() - started


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--tasks", type=int, default=500)
    count = parser.parse_args().tasks
    started = time.perf_counter()
    total, seconds = many(count)
    assert total == count * (count - 1) // 2, total
    start = time.perf_counter() - started - seconds
    sys.stdout.write(json.dumps({"tasks": count, "seconds": seconds, "start": start}) + "\n")
