"""A Dask scheduler and workers as processes of their own, as somebody starts them on a lab's machines."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
from lab import free_port
from processes import family, survivors

ROOT = Path(__file__).resolve().parents[1]


class DaskCluster:
    """`dask scheduler` and `dask worker` processes; every part can be killed.

    Args:
        folder: For logs and what workers write.
        artifacts: `SAEINTERP_ROOT` of the workers.
        settings: More environment variables of all.
    """

    def __init__(self, folder: Path, *, artifacts: Path | str, **settings: str) -> None:
        self.folder = folder
        self.address = f"tcp://127.0.0.1:{free_port()}"
        self.workers: list[subprocess.Popen[bytes]] = []
        folder.mkdir(parents=True, exist_ok=True)
        self._env = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("SAEINTERP", "PREFECT"))},
            "PYTHONPATH": str(ROOT),
            "PREFECT_HOME": str(folder / "prefect"),
            "SAEINTERP_ROOT": str(artifacts),
            "OMP_NUM_THREADS": "1",
            **settings,
        }
        port = self.address.rpartition(":")[2]
        self.scheduler = self._start("scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard")

    def add_workers(self, number: int, **settings: str) -> None:
        """Start workers without a nanny, so that a killed one stays dead, and wait until they are there."""
        for _ in range(number):
            args = ["worker", self.address, "--nthreads", "1", "--no-nanny", "--no-dashboard", "--memory-limit", "0"]
            self.workers.append(self._start(*args, "--local-directory", str(self.folder), **settings))
        wanted = len([worker for worker in self.workers if worker.poll() is None])
        self._until_there(wanted)

    def of_child(self, fragment: str, *, within: float = 120) -> tuple[psutil.Process, psutil.Process]:
        """Wait until a worker runs a child process with this in its command line; the worker and the child."""
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            for worker in self.workers:
                if worker.poll() is None and (child := child_of(worker.pid, fragment)) is not None:
                    return psutil.Process(worker.pid), child
            time.sleep(0.05)
        raise AssertionError(f"no worker runs {fragment}:\n{self.log()}")

    def children(self, fragment: str) -> list[psutil.Process]:
        """All such child processes of workers."""
        found = [child_of(worker.pid, fragment) for worker in self.workers if worker.poll() is None]
        return [child for child in found if child is not None]

    def log(self) -> str:
        """What all of them printed."""
        return "\n".join(path.read_text(errors="replace")[-4000:] for path in sorted(self.folder.glob("*.log")))

    def close(self) -> None:
        """Kill everything."""
        left = []
        for process in (*self.workers, self.scheduler):
            with contextlib.suppress(psutil.NoSuchProcess):
                left += family(process.pid)
        for item in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                item.kill()
        for process in (*self.workers, self.scheduler):
            process.wait(timeout=30)
        survivors(left, within=20)

    def _start(self, command: str, *args: str, **settings: str) -> subprocess.Popen[bytes]:
        name = command if command == "scheduler" else f"{command}-{len(self.workers)}"
        with (self.folder / f"{name}.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "dask", command, *args],
                cwd=self.folder,
                env={**self._env, **settings},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _until_there(self, number: int) -> None:
        from distributed import Client

        with Client(self.address, timeout=60, set_as_default=False) as client:
            client.wait_for_workers(number, timeout=120)


def child_of(pid: int, fragment: str) -> psutil.Process | None:
    """A process below another, by a piece of its command line."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if fragment in " ".join(child.cmdline()):
                    return child
    return None
