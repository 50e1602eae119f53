"""A Prefect server of one's own with a password, and workers, in files that only their user can read.

Loopback is open to every user of a machine, and a server without a password gives out whatever it stores. Workers keep
files in one folder of the machine's temporary folder, where the second user's worker fails on the first one's: ours
have a temporary folder of their own.
"""

from __future__ import annotations

import os
import secrets
import signal
import sys
from pathlib import Path
from typing import NamedTuple

from flows.database import URL_VARIABLE, Database
from saeinterp.errors import ArtifactError, ConfigError

FILE = "server.env"
NAME = "saeinterp"
OPEN = 0o077
LEASES = "prefect.server.concurrency.lease_storage.filesystem"


class Access(NamedTuple):
    """How to reach a server."""

    url: str
    password: str
    file: Path


def access(home: Path, *, host: str, port: int) -> Access:
    """The server's address and password, read from `<home>/server.env` or written there.

    Raises:
        ArtifactError: Others can read the file.
    """
    file = home / FILE
    named = "127.0.0.1" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    url = f"http://{named}:{port}/api"
    known = read_access(file)
    password = known.get("PREFECT_SERVER_API_AUTH_STRING")
    if not password or password != known.get("PREFECT_API_AUTH_STRING"):  # either was deleted, to get another
        password = f"{NAME}:{secrets.token_urlsafe(24)}"
    lines = {
        "PREFECT_API_URL": url,
        "PREFECT_API_AUTH_STRING": password,
        "PREFECT_SERVER_API_AUTH_STRING": password,
    }
    if known != lines:
        _write(file, "".join(f"{name}={value}\n" for name, value in {**known, **lines}.items()))
    return Access(url, password, file)


def read_access(file: Path) -> dict[str, str]:
    """The variables of the file; none where it is not there.

    Raises:
        ArtifactError: Others can read it.
    """
    if not file.exists():
        return {}
    if file.stat().st_mode & OPEN:
        raise ArtifactError(
            "other users can read the server's password",
            field=str(file),
            next_step=f"chmod 600 {file}, and delete it first where they may have read it: a new password is made",
        )
    pairs = (line.partition("=") for line in file.read_text(encoding="utf-8").splitlines() if "=" in line)
    return {name.strip(): value.strip() for name, _, value in pairs if not name.lstrip().startswith("#")}


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as out:
        out.write(text)
    draft.replace(file)


def become_server(access: Access, database: Database, *, host: str, port: int) -> None:
    """Replace this process by the Prefect server."""
    os.umask(OPEN)
    environment = {
        # With the default, in memory, a restarted server forgets whose slot it was, and a dead holder's stays taken.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": LEASES,
        # Relative, so that the pages work under whatever name or tunnel a browser came by.
        "PREFECT_SERVER_UI_API_URL": "/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        **os.environ,
        "PREFECT_SERVER_API_AUTH_STRING": access.password,
        "PREFECT_API_AUTH_STRING": access.password,
        "PREFECT_API_URL": access.url,
        # In the environment, which only this user can read. The driver is there for `saeinterp doctor`, who can ask
        # the server for it, and not for the address.
        URL_VARIABLE: database.url,
        "PREFECT_SERVER_DATABASE_DRIVER": database.driver,
    }
    _become(["server", "start", "--host", host, "--port", str(port)], environment)


def become_worker(home: Path, *, pool: str, configured: bool, healthcheck: bool = False) -> None:
    """Replace this process by a worker.

    Args:
        configured: Whether a server's address is set; else it is that of the server here.
        healthcheck: Also answer `/health` at PREFECT_WORKER_WEBSERVER_PORT, for what restarts dead containers.

    Raises:
        ArtifactError: Others can read the server's password.
        ConfigError: There is no server to ask for work.
    """
    os.umask(OPEN)
    temporary = home / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    client = {} if configured else read_access(home / FILE)
    if not configured and "PREFECT_API_URL" not in client:
        raise ConfigError(
            "no server is configured",
            field="PREFECT_API_URL",
            next_step="start one here (saeinterp ops server), or set PREFECT_API_URL and PREFECT_API_AUTH_STRING",
        )
    environment = {"TMPDIR": str(temporary), "DO_NOT_TRACK": "1", **client, **os.environ}
    for name in [
        name for name in environment if name.startswith(("PREFECT_SERVER_API_AUTH", "PREFECT_SERVER_DATABASE"))
    ]:
        del environment[name]  # no run needs them
    _become(["worker", "start", "--pool", pool, *(["--with-healthcheck"] if healthcheck else [])], environment)


def _become(arguments: list[str], environment: dict[str, str]) -> None:
    # Shells start background jobs of scripts with this signal ignored, and Prefect ends by it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.execve(sys.executable, [sys.executable, "-m", "prefect", *arguments], environment)
