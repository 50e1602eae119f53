"""A Prefect server with authentication, a process worker and deployed flows on loopback, as a lab would run them.

Every part is a process of its own and can be killed.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from processes import family, survivors

ROOT = Path(__file__).resolve().parents[1]
AUTH = "operator:planted-auth-string"
HF_TOKEN = "hf_planted-token-51d2e8"
POOL = "gpu"
TERMINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
FINAL = 300.0  # seconds in which a tiny flow ends on a loaded machine


class TaskRun(NamedTuple):
    """One task run as the API has it."""

    name: str
    state: str
    """Name of the state, such as `Cached`."""
    attempt: int
    """Of the flow run: 1, then one more with every retry."""


class Operations:
    """The processes of one lab.

    Args:
        home: For the database, the leases, logs and profiles.
        settings: More settings of the server.
    """

    def __init__(self, home: Path, **settings: str) -> None:
        self.home = home
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}/api"
        self._settings = settings
        self._http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": "Basic " + base64.b64encode(AUTH.encode()).decode()},
            timeout=60,
        )
        self.server: subprocess.Popen[bytes] | None = None
        self.worker: subprocess.Popen[bytes] | None = None

    @property
    def client_env(self) -> dict[str, str]:
        """What a laptop has."""
        return {
            **os.environ,
            "PREFECT_HOME": str(self.home / "client"),
            "PREFECT_API_URL": self.url,
            "PREFECT_API_AUTH_STRING": AUTH,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "PYTHONPATH": f"{ROOT}",
        }

    def start_server(self) -> None:
        env = {
            **os.environ,
            "PREFECT_HOME": str(self.home / "server"),
            "PREFECT_SERVER_API_AUTH_STRING": AUTH,
            "PREFECT_API_AUTH_STRING": AUTH,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "PREFECT_SERVER_UI_ENABLED": "false",
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
            **self._settings,
        }
        self.server = self._start("server", ["server", "start", "--host", "127.0.0.1", "--port", str(self.port)], env)
        self.until(lambda: self._healthy(), 180, "the server does not come up")

    def start_worker(self) -> None:
        """Start one; what it has in its environment, its runs have too."""
        if not any(pool["name"] == POOL for pool in self.call("POST", "/work_pools/filter", {})):
            self.call("POST", "/work_pools/", {"name": POOL, "type": "process"})
        env = {**self.client_env, "HF_TOKEN": HF_TOKEN, "PREFECT_WORKER_QUERY_SECONDS": "2"}
        command = ["worker", "start", "--pool", POOL, "--type", "process", "--name", f"worker-{time.monotonic_ns()}"]
        self.worker = self._start("worker", [*command, "--install-policy", "never"], env)

    def stop(self) -> None:
        """End everything that was started here, and everything that they started."""
        left = []
        for process in (self.worker, self.server):
            if process is not None:
                with contextlib.suppress(Exception):
                    left += family(process.pid)
                process.kill()
                process.wait()
        for item in left:
            with contextlib.suppress(Exception):
                item.kill()
        survivors(left, within=20)
        self._http.close()

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """One request of the API, as the UI sends it."""
        for _ in range(20):
            reply = self._http.request(method, path, json=body)
            if reply.status_code != httpx.codes.SERVICE_UNAVAILABLE:  # the database is locked; clients try again
                break
            time.sleep(0.5)
        assert reply.is_success, f"{method} {path}: {reply.status_code} {reply.text}"
        return reply.json() if reply.content else None

    def prefect(self, *args: str) -> subprocess.CompletedProcess[str]:
        """`prefect ARGS` on the laptop."""
        command = [sys.executable, "-m", "prefect", "--no-prompt", *args]
        return subprocess.run(command, env=self.client_env, capture_output=True, text=True, timeout=200, check=False)

    def deploy(self, flow: str, entrypoint: str, *, root: Path, env: Mapping[str, str]) -> str:
        """Deploy a flow to the pool; returns the deployment's id. `env` is what its runs have beside the usual."""
        flow_id = self.call("POST", "/flows/", {"name": flow})["id"]
        variables = {
            "SAEINTERP_ROOT": str(root),
            "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(root / ".prefect"),
            "PREFECT_LOGGING_EXTRA_LOGGERS": "saeinterp",
            "OMP_WAIT_POLICY": "PASSIVE",
            "PYTHONPATH": str(ROOT),
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
            **env,
        }
        body = {
            "name": root.name,
            "flow_id": flow_id,
            "entrypoint": entrypoint,
            "path": str(ROOT),
            "work_pool_name": POOL,
            "pull_steps": [{"prefect.deployments.steps.set_working_directory": {"directory": str(ROOT)}}],
            "job_variables": {"env": variables},
        }
        return str(self.call("POST", "/deployments/", body)["id"])

    def set_env(self, deployment: str, **env: str | None) -> None:
        """Change environment variables of a deployment's runs; None removes one."""
        variables = self.call("GET", f"/deployments/{deployment}")["job_variables"]
        merged = {**variables["env"], **env}
        variables["env"] = {name: value for name, value in merged.items() if value is not None}
        self.call("PATCH", f"/deployments/{deployment}", {"job_variables": variables})

    def submit(self, deployment: str, config: Mapping[str, Any]) -> str:
        """Start a run; returns its id."""
        body = {"state": {"type": "SCHEDULED"}, "parameters": {"config": config}}
        return str(self.call("POST", f"/deployments/{deployment}/create_flow_run", body)["id"])

    def cancel(self, run: str) -> None:
        """What the UI's button does."""
        state = {"type": "CANCELLING", "name": "Cancelling"}
        self.call("POST", f"/flow_runs/{run}/set_state", {"state": state})

    def retry(self, run: str) -> None:
        """`prefect flow-run retry`, once the worker has ended its own business with the last attempt."""
        attempt = self.call("GET", f"/flow_runs/{run}")["run_count"]
        time.sleep(8)
        for _ in range(3):
            done = self.prefect("flow-run", "retry", run)
            assert done.returncode == 0, done.stderr + done.stdout
            self.until(
                lambda: self.call("GET", f"/flow_runs/{run}")["run_count"] > attempt or self._late(run),
                120,
                lambda: self.story(run),
            )
            if not self._late(run):
                return

    def _late(self, run: str) -> bool:
        """Whether the worker's report on the last attempt came after the retry, and was taken for one on it."""
        state = self.state(run)
        return state["type"] == "CRASHED" and str(state["message"]).startswith("Flow run infrastructure exited")

    def state(self, run: str) -> dict[str, Any]:
        return dict(self.call("GET", f"/flow_runs/{run}")["state"])

    def wait(self, run: str, *types: str, within: float = FINAL) -> dict[str, Any]:
        """Until the run's state is of one of these types."""
        last = self.until(
            lambda: state if (state := self.state(run))["type"] in types else None, within, lambda: self.story(run)
        )
        return dict(last)

    def tasks(self, run: str) -> list[TaskRun]:
        """The task runs of all attempts; one that was cached is a run of its own."""
        rows = self.call("POST", "/task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}, "limit": 200})
        return [TaskRun(row["name"], (row["state"] or {}).get("name", ""), row["flow_run_run_count"]) for row in rows]

    def logs(self, run: str) -> list[str]:
        """The lines of the run's logs, oldest first."""
        return [row["message"] for row in self._log_rows(run)]

    def _log_rows(self, run: str) -> list[dict[str, Any]]:
        body = {"logs": {"flow_run_id": {"any_": [run]}}, "sort": "TIMESTAMP_ASC", "limit": 200}
        rows: list[dict[str, Any]] = []
        while more := self.call("POST", "/logs/filter", {**body, "offset": len(rows)}):
            rows += more
        return rows

    def task_lines(self, run: str, pattern: str) -> dict[str, str]:
        """Name of a task to what the first group matched in its log, last match first."""
        names = {
            row["id"]: row["name"]
            for row in self.call("POST", "/task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}, "limit": 200})
        }
        found = {}
        for row in self._log_rows(run):
            if row["task_run_id"] in names and (match := re.search(pattern, row["message"])):
                found[names[row["task_run_id"]]] = match[1]
        return found

    def make_limits(self, *names: str) -> None:
        """Concurrency limits of one slot each."""
        there = self.slots()
        for name in names:
            if name not in there:
                self.call("POST", "/v2/concurrency_limits/", {"name": name, "limit": 1, "active": True})

    def make_zombie_automation(self, *, within: float) -> None:
        """Runs whose heartbeats stop for so many seconds are marked as crashed."""
        name, beat = "silent runs", "prefect.flow-run.heartbeat"
        ends = [f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")]
        trigger = {
            "type": "event",
            "after": [beat],
            "expect": [beat, *ends],
            "match": {"prefect.resource.id": ["prefect.flow-run.*"]},
            "for_each": ["prefect.resource.id"],
            "posture": "Proactive",
            "threshold": 1,
            "within": within,
        }
        action = {"type": "change-flow-run-state", "state": "CRASHED", "name": "Crashed", "message": "no heartbeat"}
        self.call("POST", "/automations/", {"name": name, "trigger": trigger, "actions": [action]})

    def story(self, run: str) -> str:
        """What is known of a run, for a failing test."""
        state = self.state(run)
        worker = (self.home / "worker.log").read_text(errors="replace")[-3000:]
        return "\n".join([f"{state['name']}: {state['message']}", *self.logs(run)[-60:], worker])

    def slots(self, *names: str) -> dict[str, int]:
        """Slots taken of each limit."""
        limits = self.call("POST", "/v2/concurrency_limits/filter", {})
        return {item["name"]: item["active_slots"] for item in limits if not names or item["name"] in names}

    def until(self, ready: Callable[[], Any], within: float, otherwise: str | Callable[[], str]) -> Any:
        """Poll until something is there."""
        deadline = time.monotonic() + within
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if found := ready():
                    return found
            assert time.monotonic() < deadline, otherwise if isinstance(otherwise, str) else otherwise()
            time.sleep(0.2)

    def _healthy(self) -> bool:
        assert self.server is not None
        assert self.server.poll() is None, (self.home / "server.log").read_text(errors="replace")[-3000:]
        return self._http.get("/health").status_code == 200

    def _start(self, name: str, args: Iterable[str], env: Mapping[str, str]) -> subprocess.Popen[bytes]:
        self.home.mkdir(parents=True, exist_ok=True)
        with (self.home / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "prefect", *args], cwd=ROOT, env=dict(env), stdout=log, stderr=subprocess.STDOUT
            )


def manifests(root: Path) -> dict[str, str]:
    """Artifact to the recipe and checksums of its files, for everything published."""
    found = {}
    for path in root.glob("[!.]*/*/manifest.json"):
        manifest = json.loads(path.read_text())
        sums = {name: item["sha256"] for name, item in manifest["files"].items()}
        found[path.parent.relative_to(root).as_posix()] = json.dumps(sums, sort_keys=True)
    return found
