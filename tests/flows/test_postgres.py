"""A Prefect server on a real PostgreSQL: many tasks, several flows at once, a back-up restored, a password kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from lab import ROOT, Lab, free_port
from postgres import WHY_NOT, Postgres, binaries, postgres
from prefect.settings import PREFECT_SERVER_DATABASE_PASSWORD, temporary_settings

from flows.database import Database, reach
from flows.database import database as named
from flows.terminal import ServerError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
TASKS = 500


@pytest.fixture(scope="module")
def database() -> Iterator[Postgres]:
    programs = binaries()
    if programs is None:
        pytest.skip(WHY_NOT)
    with postgres(programs) as server:
        server.tool("createdb", "prefect")
        yield server


@pytest.fixture(scope="module")
def lab(database: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab whose server keeps its runs in PostgreSQL."""
    made = Lab(tmp_path_factory.mktemp("lab"), free_port())
    try:
        made.start_server("--database", database.address("prefect"), PREFECT_SERVER_DATABASE_PASSWORD=database.password)
        yield made
    finally:
        made.close()


def flow(lab: Lab, tasks: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "many_tasks", "--tasks", str(tasks)],
        cwd=ROOT / "tests",
        env=lab.environment(**lab.client, SAEINTERP_WORKERS="8", PREFECT_RESULTS_LOCAL_STORAGE_PATH=str(lab.folder)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def end(process: subprocess.Popen[str]) -> None:
    said, _ = process.communicate(timeout=280)
    assert process.returncode == 0, said


def test_a_flow_of_five_hundred_tasks_completes_and_every_task_is_on_record(lab: Lab, database: Postgres) -> None:
    end(flow(lab, TASKS))
    (run,) = lab.flow_runs()
    assert run["state_type"] == "COMPLETED"
    wanted = {"flow_runs": {"id": {"any_": [run["id"]]}}, "task_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}
    for _ in range(60):  # they arrive as events
        if (count := lab.ask("task_runs/count", wanted)) == TASKS:
            break
        time.sleep(1)
    assert count == TASKS
    assert int(database.tool("psql", "--dbname", "prefect", "-Atc", "select count(*) from task_run")) >= TASKS
    assert not (lab.home / "prefect.db").exists(), "something went to SQLite"


def test_several_flows_at_once_complete(lab: Lab) -> None:
    for process in [flow(lab, 60) for _ in range(4)]:
        end(process)
    assert {run["state_type"] for run in lab.flow_runs()} == {"COMPLETED"}


def test_the_password_is_in_no_log_no_file_and_no_command_line(lab: Lab, database: Postgres) -> None:
    secret = database.password
    assert secret not in lab.log("server")
    assert f"database {database.address('prefect')}" in lab.log("server")
    for file in (path for path in lab.folder.rglob("*") if path.is_file()):
        assert secret.encode() not in file.read_bytes(), file
    for process in psutil.process_iter(["cmdline"]):
        assert not any(secret in part for part in process.info["cmdline"] or []), process
    assert secret not in json.dumps(lab.ask("admin/settings"))


def test_doctor_names_the_database_of_the_server(lab: Lab) -> None:
    assert "Prefect database: PostgreSQL" in lab.saeinterp("doctor").stdout


def test_a_back_up_is_restored_into_another_database(lab: Lab, database: Postgres, tmp_path: Path) -> None:
    runs = {run["id"] for run in lab.flow_runs()}
    assert runs
    file = str(database.folder / "prefect.dump")
    database.tool("pg_dump", "--format=custom", "--file", file, "prefect")
    database.tool("createdb", "restored")
    database.tool("pg_restore", "--no-owner", "--exit-on-error", "--dbname", "restored", file)
    other = Lab(tmp_path, free_port())
    try:
        other.start_server(
            "--database", database.address("restored"), PREFECT_SERVER_DATABASE_PASSWORD=database.password
        )
        assert {run["id"] for run in other.flow_runs()} == runs
        end(flow(other, 5))
    finally:
        other.close()


def test_a_database_that_cannot_be_used_is_told_of_before_the_server_starts(database: Postgres, tmp_path: Path) -> None:
    def start(address: str, **more: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli", "ops", "server", "--database", address],
            cwd=tmp_path,
            env={**os.environ, "PREFECT_HOME": str(tmp_path), "PYTHONPATH": str(ROOT), **more},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode in (2, 3), done.stdout + done.stderr
        assert database.password not in done.stdout + done.stderr
        return done.stderr

    password = {"PREFECT_SERVER_DATABASE_PASSWORD": database.password}
    assert "PREFECT_SERVER_DATABASE_PASSWORD" in start(database.address("prefect"))
    assert "refuses" in start(database.address("prefect"), PREFECT_SERVER_DATABASE_PASSWORD="wrong")
    assert "createdb" in start(database.address("absent"), **password)
    nobody = f"postgresql+asyncpg://prefect@127.0.0.1:{free_port()}/prefect"
    assert "does not answer" in start(nobody, **password)
    assert "command line" in start("postgresql+asyncpg://prefect:planted@127.0.0.1/prefect")


def test_a_database_that_asks_for_encryption_is_reached(
    database: Postgres,
) -> None:
    database.encrypt()
    for query in ("ssl=require", "ssl=require&prepared_statement_cache_size=0"):
        with temporary_settings({PREFECT_SERVER_DATABASE_PASSWORD: database.password}):
            found = named(f"{database.address('prefect')}?{query}")
        assert reach(found).startswith("PostgreSQL")
    refused = Database(found.url.replace("ssl=require", "ssl=verify-full"), found.driver, found.shown)
    with pytest.raises(ServerError, match="does not answer"):
        reach(refused)
