"""The services of docker/compose.yaml as processes of this machine: their commands, environments and health checks."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from lab import free_port
from shipped_files import ROOT, commands, compose, instructions

from saeinterp.config import read_yaml

pytestmark = [pytest.mark.slow, pytest.mark.timeout(480)]
BIN = Path(sys.executable).parent
PASSWORD = "planted:a-password"


class Services:
    """What compose would start, at addresses of this machine.

    Attributes:
        places: Texts of compose.yaml and what stands for them here.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, self.health, self.database = free_port(), free_port(), free_port()
        self.spec = compose(ROOT, PREFECT_AUTH_STRING=PASSWORD)["services"]
        self.places = {
            "http://server:4200": f"http://127.0.0.1:{self.port}",
            "127.0.0.1:4200": f"127.0.0.1:{self.port}",
            "127.0.0.1:8080": f"127.0.0.1:{self.health}",
            "/opt/saeinterp": str(folder / "image"),
            "/data": str(folder / "data"),
            "/home/saeinterp/.prefect": str(folder / "server-home"),
        }
        (folder / "image").mkdir()
        (folder / "data").mkdir()
        shutil.copy(ROOT / "deployments/prefect.yaml", folder / "image/prefect.yaml")  # as worker.Dockerfile does
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def here(self, text: str) -> str:
        """A text of compose.yaml with this machine's addresses and folders."""
        for there, here in self.places.items():
            text = text.replace(there, here)
        return text

    def environment(self, name: str, **more: str) -> dict[str, str]:
        """The environment of a service, and what an image would bring."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT", "SAEINTERP"))}
        own = {key: self.here(value) for key, value in self.spec[name].get("environment", {}).items()}
        home = self.folder / f"{name}-home"
        image = {}
        if name == "server":
            text = next(text for kind, text in instructions(ROOT / "docker/server.Dockerfile") if kind == "ENV")
            image = {key: self.here(value) for key, _, value in (word.partition("=") for word in text.split())}
        return {**kept, "PYTHONPATH": str(ROOT), "PREFECT_HOME": str(home), **image, **own, **more}

    def words(self, command: list[str]) -> list[str]:
        """A command of compose.yaml for this machine's Python."""
        first, *rest = [self.here(word) for word in command]
        ours = {"saeinterp": ["-m", "flows.cli"], "prefect": ["-m", "prefect"], "python": []}
        return [sys.executable, *ours[first], *rest]

    def start(self, name: str, words: list[str], **more: str) -> None:
        """Start a service."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                words, cwd=self.folder / "data", env=self.environment(name, **more), stdout=log, stderr=log
            )

    def until_healthy(self, name: str) -> None:
        """Run the service's own health check until it succeeds."""
        check = self.words(self.spec[name]["healthcheck"]["test"][1:])
        for _ in range(180):
            if subprocess.run(check, capture_output=True, check=False).returncode == 0:
                return
            assert self.processes[name].poll() is None, (self.folder / f"{name}.log").read_text()
            time.sleep(1)
        raise AssertionError((self.folder / f"{name}.log").read_text())

    def ask(self, path: str, body: Any) -> Any:
        """A query to the API, with the password."""
        user, _, password = PASSWORD.partition(":")
        reply = httpx.post(f"http://127.0.0.1:{self.port}/api/{path}", json=body, auth=(user, password), timeout=60)
        assert reply.is_success, reply.text
        return reply.json()


def _postgresql(folder: Path, port: int, *, user: str, password: str, name: str) -> subprocess.Popen[bytes] | None:
    """A PostgreSQL of this test's own, where this machine has one."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        return None
    owner: str | None = "nobody" if os.getuid() == 0 else None  # it refuses to be root's
    data = folder / "postgresql"
    data.mkdir(mode=0o700)
    secret = folder / "postgresql-password"
    secret.write_text(password)
    if owner is not None:
        for path in (data, secret):
            shutil.chown(path, owner)
        for path in (folder, *folder.parents[:2]):
            path.chmod(path.stat().st_mode | 0o011)
    binaries = found[-1].parent
    initialise = [f"--pgdata={data}", f"--username={user}", f"--pwfile={secret}", "--auth=scram-sha-256"]
    subprocess.run([str(binaries / "initdb"), *initialise], user=owner, cwd="/", check=True, capture_output=True)
    serve = [f"-p{port}", "-h127.0.0.1", f"-k{data}", "-D", str(data)]
    process = subprocess.Popen([str(binaries / "postgres"), *serve], user=owner, cwd="/", stderr=subprocess.DEVNULL)
    environment = {**os.environ, "PGPASSWORD": password}
    create = [str(binaries / "createdb"), "-h127.0.0.1", f"-p{port}", f"--username={user}", name]
    for _ in range(60):
        if subprocess.run(create, env=environment, capture_output=True, check=False).returncode == 0:
            return process
        time.sleep(1)
    process.kill()
    raise AssertionError("PostgreSQL does not come up")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """Database, server, the finished set-up, and the worker of the pool `small`."""
    lab = Services(tmp_path_factory.mktemp("compose"))
    database = lab.spec["database"]["environment"]
    try:
        process = _postgresql(
            lab.folder,
            lab.database,
            user=database["POSTGRES_USER"],
            password=database["POSTGRES_PASSWORD"],
            name=database["POSTGRES_DB"],
        )
        more = {"PREFECT_SERVER_DATABASE_HOST": "127.0.0.1", "PREFECT_SERVER_DATABASE_PORT": str(lab.database)}
        if process is not None:
            lab.processes["database"] = process
        else:  # everything else is the same on SQLite
            for name in [name for name in lab.spec["server"]["environment"] if "_DATABASE_" in name]:
                del lab.spec["server"]["environment"][name]
            more = {}
        serve = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(lab.port)]
        lab.start("server", lab.words(serve), **more)
        lab.until_healthy("server")
        for command in commands(lab.spec["setup"]["command"]):
            words = command[3:] if command[:1] == ["cd"] else command
            done = subprocess.run(
                lab.words(words),
                cwd=lab.here(lab.spec["setup"]["working_dir"]),
                env=lab.environment("setup"),
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
            assert done.returncode == 0, done.stdout + done.stderr
        worker = lab.words(lab.spec["worker-small"]["command"])
        lab.start("worker-small", worker, PREFECT_WORKER_WEBSERVER_PORT=str(lab.health))
        lab.until_healthy("worker-small")
        yield lab
    finally:
        for name, process in reversed(lab.processes.items()):
            process.send_signal(signal.SIGINT if name != "worker-small" else signal.SIGKILL)
        for process in lab.processes.values():
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()


def test_the_set_up_service_makes_pools_limits_and_every_deployment(lab: Services) -> None:
    pools = {pool["name"]: pool for pool in lab.ask("work_pools/filter", {})}
    properties = pools["gpu"]["base_job_template"]["variables"]["properties"]
    environment = properties["env"]["default"]
    assert environment["SAEINTERP_ROOT"] == properties["working_dir"]["default"] == str(lab.folder / "data")
    assert environment["SAEINTERP_GPU_SLOTS"] == "1"
    limits = {item["name"] for item in lab.ask("v2/concurrency_limits/filter", {})}
    assert limits >= {"gpu-0", "vllm"}
    wanted = read_yaml(ROOT / "deployments/prefect.yaml")["deployments"]
    assert len(lab.ask("deployments/filter", {})) == len(wanted)


def test_the_worker_joins_its_pool_and_answers_its_health_check(lab: Services) -> None:
    for _ in range(120):
        if workers := lab.ask("work_pools/small/workers/filter", {}):
            break
        time.sleep(1)  # it answers from its first moment, and joins when it has looked around
    assert [worker["status"] for worker in workers] == ["ONLINE"]
    check = lab.words(lab.spec["worker-small"]["healthcheck"]["test"][1:])
    assert subprocess.run(check, capture_output=True, check=False).returncode == 0
    lab.processes["worker-small"].kill()
    lab.processes["worker-small"].wait()
    assert subprocess.run(check, capture_output=True, check=False).returncode != 0


def test_the_server_shows_its_ui_from_a_folder_of_its_own(lab: Services) -> None:
    page = httpx.get(f"http://127.0.0.1:{lab.port}/", follow_redirects=True, timeout=60)
    assert "text/html" in page.headers["content-type"]
    assert (lab.folder / "server-home/ui/v1/index.html").exists()


def test_the_server_wants_the_password_of_the_environment_file(lab: Services) -> None:
    address = f"http://127.0.0.1:{lab.port}/api/flows/filter"
    assert httpx.post(address, json={}, timeout=60).status_code == 401


def test_the_server_keeps_its_runs_in_postgresql_and_its_leases_on_disk(lab: Services) -> None:
    environment = lab.environment("server")
    assert environment["PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"].endswith("filesystem")
    if "database" not in lab.processes:
        pytest.skip("no PostgreSQL on this machine: apt-get install postgresql")
    assert list((lab.folder / "postgresql/base").iterdir())
    assert not list((lab.folder / "server-home").glob("prefect.db*"))
