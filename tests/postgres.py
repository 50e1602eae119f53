"""A PostgreSQL of a test's own: its files below a new folder, its port free, its password known to nobody else."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab import free_port

WHY_NOT = "PostgreSQL is not installed: apt-get install postgresql postgresql-contrib"
USER = "prefect"


def binaries() -> Path | None:
    """The folder of the newest server's programs, where a server can be started: Debian keeps them off the path."""
    on_path = shutil.which("initdb")
    newest = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    found = [Path(on_path)] if on_path else newest[::-1]
    return found[0].resolve().parent if found and _user() is not None else None


def _user() -> str | None:
    """Who the server runs as: it refuses root."""
    if os.getuid() != 0:
        return pwd.getpwuid(os.getuid()).pw_name
    try:
        return pwd.getpwnam("postgres").pw_name
    except KeyError:
        return None


class Postgres:
    """A running server.

    Attributes:
        folder: Of its files, which its own user may write to.
        password: Of the role `prefect`, with characters that an address must escape.
    """

    def __init__(self, folder: Path, programs: Path) -> None:
        self.folder, self._programs = folder, programs
        self.port = free_port()
        self.password = f"pg@{secrets.token_hex(8)}/%:x"

    def address(self, name: str) -> str:
        """What `--database` takes."""
        return f"postgresql+asyncpg://{USER}@127.0.0.1:{self.port}/{name}"

    def start(self) -> None:
        """Make the cluster and the role, and start the server."""
        file = self.folder / "password"
        file.write_text(self.password)
        file.chmod(0o600)
        if os.getuid() == 0:
            shutil.chown(self.folder, _user())
            shutil.chown(file, _user())
        data = str(self.folder / "data")
        auth = ["--auth=scram-sha-256", f"--pwfile={file}", f"--username={USER}"]
        self._do("initdb", "--pgdata", data, *auth, "--encoding=UTF8", "--no-sync")
        listen = f"-c listen_addresses=127.0.0.1 -p {self.port} -k {self.folder}"
        self._do("pg_ctl", "-D", data, "-l", str(self.folder / "log"), "-o", listen, "-w", "-t", "60", "start")

    def encrypt(self) -> None:
        """Take connections with TLS from now on, with a certificate that nobody has signed."""
        data = self.folder / "data"
        made = ["-keyout", str(data / "server.key"), "-out", str(data / "server.crt"), "-subj", "/CN=localhost"]
        subprocess.run(
            ["openssl", "req", "-new", "-x509", "-days", "2", "-nodes", *made],
            check=True,
            capture_output=True,
            timeout=60,
        )
        for name in ("server.key", "server.crt"):
            (data / name).chmod(0o600)
            if os.getuid() == 0:
                shutil.chown(data / name, _user())
        self.tool("psql", "postgres", "-c", "alter system set ssl = on")
        self.tool("psql", "postgres", "-c", "select pg_reload_conf()")

    def stop(self) -> None:
        """End it; what is connected is cut off."""
        self._do("pg_ctl", "-D", str(self.folder / "data"), "-m", "immediate", "-w", "stop")

    def tool(self, program: str, *args: str) -> str:
        """One of PostgreSQL's client programs, as somebody with the password."""
        where = ["--host", "127.0.0.1", "--port", str(self.port), "--username", USER]
        return self._do(program, *where, *args)

    def _do(self, program: str, *args: str) -> str:
        # A server that is started keeps its output open, so a pipe would never end.
        with tempfile.TemporaryFile("w+") as out:
            done = subprocess.run(
                [str(self._programs / program), *args],
                user=_user() if os.getuid() == 0 else None,
                cwd=self.folder,
                env={"PATH": os.environ["PATH"], "PGPASSWORD": self.password, "LC_ALL": "C.UTF-8"},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                timeout=120,
                check=False,
            )
            out.seek(0)
            said = out.read()
        assert done.returncode == 0, f"{program}: {said}"
        return said


@contextmanager
def postgres(programs: Path) -> Iterator[Postgres]:
    """Start one, and end and remove it."""
    # Not below the tests' own folder, into which another user cannot look.
    with tempfile.TemporaryDirectory(prefix="saeinterp-postgres-") as folder:
        server = Postgres(Path(folder), programs)
        server.start()
        try:
            yield server
        finally:
            server.stop()
