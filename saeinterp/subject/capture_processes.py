"""Several processes collect the activations of one cache, each with a subject of its own on its own GPUs.

The missing shards are dealt out in turn; `saeinterp.subject.capturing` is what runs in each process. The surprising
choice: the first process to fail stops the others. What they finished stays, and the next run does only the rest.
"""

from __future__ import annotations

import logging
import math
import os
import queue
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict

from saeinterp.artifacts import Artifact, read_json, write_json
from saeinterp.child import Event, Exit, error_of, run_child
from saeinterp.config import CaptureConfig, Placement, Split
from saeinterp.errors import CaptureError, ConfigError, SaeinterpError
from saeinterp.subject.placement import main_device
from saeinterp.subject.shards import Layout, Shard

log = logging.getLogger(__name__)

_MODULE = "saeinterp.subject.capturing"
_LAYOUT = "layout.json"
_POLL_SECONDS = 0.2  # how late a cancellation may land


class CaptureJob(BaseModel):
    """What one process is told."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    subject: Artifact
    corpus: Artifact
    config: CaptureConfig
    splits: tuple[Split, ...]
    placement: Placement
    shards: tuple[Shard, ...]
    work: Path
    threads: int
    """CPU threads. As many as one process alone would use, since the last bits of a product depend on it."""


class Seat(NamedTuple):
    """Where one process runs."""

    placement: Placement
    visible: str | None
    """Its `CUDA_VISIBLE_DEVICES`; None leaves the inherited."""


def seats(placement: Placement, processes: int, *, environment: Mapping[str, str]) -> list[Seat]:
    """Share the visible GPUs out: one each, or equal parts for a spread subject; a GPU that is named is shared by all.

    Raises:
        ConfigError: More processes than GPUs, or GPUs that cannot be shared out evenly.
    """
    device = main_device(placement)
    spread = placement.device_map != "single"
    if device != "cuda":
        return [Seat(placement, None)] * processes
    named = environment.get("CUDA_VISIBLE_DEVICES")
    cards = [name.strip() for name in named.split(",")] if named else list(map(str, range(torch.cuda.device_count())))
    count = min(len(cards), torch.cuda.device_count())
    if count < processes or (spread and count % processes):
        raise ConfigError(
            f"{count} GPUs cannot be shared out to {processes} processes",
            field="capture.processes",
            got=processes,
            expected=f"a divisor of {count}" if spread else f"at most {count}",
            next_step="lower capture.processes, or show more GPUs (CUDA_VISIBLE_DEVICES)"
            + ("" if spread else "; with subject.device: cuda:0 all processes share that GPU"),
        )
    each = count // processes if spread else 1
    return [Seat(placement, ",".join(cards[start : start + each])) for start in range(0, each * processes, each)]


def capture_in_processes(
    job: CaptureJob, *, processes: int, visible: str | None = None, report: Callable[[int], None]
) -> Layout:
    """Write the shards of `job`, dealt out over processes; returns what they found the layout to be.

    Args:
        visible: The GPUs that are shared out; None takes those that this process sees.
        report: Called with the rows done by this call.

    Raises:
        ConfigError: See `seats`.
        CaptureError: A process ended before its time.
        SaeinterpError: What a process raised, in its own type.
    """
    environment = os.environ if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    places = seats(job.placement, processes, environment=environment)
    if job.shards or not (job.work / _LAYOUT).exists():
        _Crew(job, places[: max(1, len(job.shards))]).run(report)
    found = read_json(job.work / _LAYOUT)
    return Layout(found["dtype"], found["widths"])


class _News(NamedTuple):
    """Something that a process's thread tells the calling thread."""

    rank: int
    kind: Event | Literal["line", "end", "error"]
    value: Any


class _Crew:
    """The processes of one run, each watched by a thread."""

    def __init__(self, job: CaptureJob, places: list[Seat]) -> None:
        self._job = job
        self._places = places
        self._news: queue.SimpleQueue[_News] = queue.SimpleQueue()
        self._stop = threading.Event()

    def run(self, report: Callable[[int], None]) -> None:
        """Run all to their ends; whatever is raised here stops them first."""
        count = len(self._places)
        with ThreadPoolExecutor(count, thread_name_prefix="capture") as pool:
            try:
                for rank in range(count):
                    pool.submit(self._watch, rank)
                self._follow(count, report)
            finally:
                self._stop.set()

    def _follow(self, count: int, report: Callable[[int], None]) -> None:
        done = [0] * count
        told: dict[int, SaeinterpError] = {}
        running = count
        while running:
            try:
                rank, kind, value = self._news.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                continue
            if kind == "PROGRESS":
                done[rank] = value["rows"]
                report(sum(done))
            elif kind == "line":
                log.info("capture process %d: %s", rank, value)
            elif kind == "FAILED":
                told[rank] = error_of(value)
            elif kind == "error":
                raise value
            elif kind == "end":
                running -= 1
                if value.code != 0:
                    raise told.get(rank) or self._ended(rank, value)

    def _watch(self, rank: int) -> None:
        """Run one process; in a thread of its own, which must outlive it (its death would be a parent's)."""

        def tell(kind: Event | Literal["line", "end", "error"], value: Any) -> None:
            self._news.put(_News(rank, kind, value))

        try:
            place = self._places[rank]
            own = {"placement": place.placement, "shards": self._job.shards[rank :: len(self._places)]}
            path = self._job.work / f"job-{rank}.json"
            write_json(path, self._job.model_copy(update=own).model_dump(mode="json"))
            visible = {} if place.visible is None else {"CUDA_VISIBLE_DEVICES": place.visible}
            ended = run_child(
                [sys.executable, "-m", _MODULE, "--job", str(path)],
                # Threads that wait sleep soon instead of spinning: several processes share the cores.
                env={"GOMP_SPINCOUNT": "1000", **os.environ, "PYTHONUNBUFFERED": "1", **visible},
                timeout=math.inf,
                on_event=tell,
                on_line=lambda line: tell("line", line),
                stop=self._stop,
            )
        except BaseException as error:  # noqa: BLE001 - raised again in the calling thread
            tell("error", error)
        else:
            tell("end", ended)

    def _ended(self, rank: int, ended: Exit) -> CaptureError:
        assert ended.code is not None
        how = f"by signal {-ended.code}" if ended.code < 0 else f"with exit status {ended.code}"
        last = "".join(f"\n    {line}" for line in ended.tail)
        return CaptureError(
            f"capture process {rank} of {len(self._places)} ended {how}" + (f"; its last lines:{last}" if last else ""),
            field="capture.processes",
            next_step="run again: only missing shards are done again; if it was killed, check free memory (every "
            "process loads the subject) and lower capture.processes",
        )


def write_layout(work: Path, layout: Layout) -> None:
    """Leave the layout for the parent; every process writes the same."""
    path = work / f"{_LAYOUT}.{os.getpid()}"
    write_json(path, layout._asdict())
    os.replace(path, work / _LAYOUT)
