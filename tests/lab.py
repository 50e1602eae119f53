"""A lab as the operating guide sets it up: a server with a password, workers, and a client in another folder."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ("--no-prompt", "deploy", "--prefect-file", "deployments/prefect.yaml", "--all")
Done = subprocess.CompletedProcess[str]


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Lab:
    """Processes of one lab below one folder; `close` ends those that still run.

    Attributes:
        url: The server's API.
        runs: The artifact folder that the pools name.
        laptop: A working directory in which nothing lies; its Prefect home is its own.
    """

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.port = port
        self.url = f"http://127.0.0.1:{port}/api"
        self.runs = folder / "runs"
        self.laptop = folder / "laptop"
        self.home = folder / "server-home"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.laptop.mkdir()

    def environment(self, **more: str) -> dict[str, str]:
        """The variables of this process without those of another server, and `more`."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "SAEINTERP"))}
        return {**kept, "PYTHONPATH": str(ROOT), "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", **more}

    def start_server(self, *args: str, **more: str) -> None:
        """`saeinterp ops server`, until it answers."""
        command = [sys.executable, "-m", "flows.cli", "ops", "server", "--port", str(self.port), *args]
        self._start("server", command, self.environment(PREFECT_HOME=str(self.home), **more))
        self._until_it_answers()

    def _until_it_answers(self) -> None:
        for _ in range(240):
            try:
                if httpx.get(f"{self.url}/health", timeout=2).status_code == 200:
                    return
            except httpx.HTTPError:
                time.sleep(0.5)
            assert self.processes["server"].poll() is None, self.log("server")
        raise AssertionError(self.log("server"))

    @property
    def password(self) -> str:
        """`NAME:PASSWORD`, as the server's file has it."""
        lines = dict(line.split("=", 1) for line in (self.home / "server.env").read_text().splitlines())
        return lines["PREFECT_API_AUTH_STRING"]

    @property
    def client(self) -> dict[str, str]:
        """All that a client has: the address and the password."""
        return {
            "PREFECT_API_URL": self.url,
            "PREFECT_API_AUTH_STRING": self.password,
            "PREFECT_HOME": str(self.folder / "laptop-home"),
        }

    def start_worker(self, pool: str, **more: str) -> None:
        """`saeinterp ops worker`, until the server knows it is there."""
        home = str(self.folder / "worker-home")
        command = [sys.executable, "-m", "flows.cli", "ops", "worker", "--pool", pool]
        self._start(f"worker-{pool}", command, self.environment(**{**self.client, "PREFECT_HOME": home, **more}))
        for _ in range(240):
            found = self.ask(f"work_pools/{pool}/workers/filter", {})
            if any(worker["status"] == "ONLINE" for worker in found):
                return
            time.sleep(0.5)
        raise AssertionError(self.log(f"worker-{pool}"))

    def _start(self, name: str, command: list[str], environment: dict[str, str]) -> None:
        place = self.folder / name
        place.mkdir(exist_ok=True)
        with self._log(name).open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command, cwd=place, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def log(self, name: str) -> str:
        """What a process printed."""
        return self._log(name).read_text(errors="replace")

    def saeinterp(self, *args: str, timeout: float = 280, **more: str) -> Done:
        """The command, as from a laptop."""
        return self._run([sys.executable, "-m", "flows.cli", *args], cwd=self.laptop, timeout=timeout, **more)

    def prefect(self, *args: str, timeout: float = 280, cwd: Path = ROOT) -> Done:
        """Prefect's own command; from the repository unless told otherwise."""
        return self._run([sys.executable, "-m", "prefect", *args], cwd=cwd, timeout=timeout)

    def _run(self, command: list[str], *, cwd: Path, timeout: float, **more: str) -> Done:
        return subprocess.run(
            command,
            cwd=cwd,
            env=self.environment(**{**self.client, **more}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def popen(self, *args: str) -> subprocess.Popen[str]:
        """The command as from a laptop, to be interrupted."""
        return subprocess.Popen(
            [sys.executable, "-m", "flows.cli", *args],
            cwd=self.laptop,
            env=self.environment(**self.client),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Background jobs of scripts, as suites in lanes are, begin with this signal ignored, and hand that on.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """A query to the API, with the password."""
        name, _, password = self.password.partition(":")
        method = "GET" if body is None else "POST"
        reply = httpx.request(method, f"{self.url}/{path}", json=body, auth=(name, password), timeout=30)
        assert reply.is_success, reply.text
        return reply.json()

    def flow_runs(self) -> list[dict[str, Any]]:
        """All flow runs that exist."""
        return list(self.ask("flow_runs/filter", {"limit": 200}))

    def until(self, flow_run: str, *types: str, seconds: float = 240) -> dict[str, Any]:
        """Wait for a flow run's state to be one of these types."""
        for _ in range(int(seconds)):
            run = self.ask(f"flow_runs/{flow_run}")
            if run["state_type"] in types:
                return dict(run)
            time.sleep(1)
        logs = self.ask("logs/filter", {"logs": {"flow_run_id": {"any_": [flow_run]}}})
        raise AssertionError(f"{run['state_type']}: {json.dumps(logs)[-4000:]}")

    def end(self, name: str, how: int = signal.SIGTERM) -> None:
        """End one process."""
        process = self.processes.pop(name)
        process.send_signal(how)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=30)

    def close(self) -> None:
        """End all, workers first."""
        for name in reversed(list(self.processes)):
            self.end(name, signal.SIGINT if name == "server" else signal.SIGTERM)
