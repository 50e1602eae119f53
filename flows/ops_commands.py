"""`saeinterp ops`: the server's side of running on Prefect."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from flows.terminal import err, guard, out
from saeinterp.artifacts import ArtifactStore
from saeinterp.errors import ConfigError

app = typer.Typer(
    name="ops",
    help="Start a Prefect server with a password and its workers, and set up what deployments need.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

DEPLOY = "prefect --no-prompt deploy --prefect-file deployments/prefect.yaml --all"


@app.command("setup")
def setup(
    gpus: Annotated[
        int | None,
        typer.Option(
            "--gpus", min=0, help="Cards of the worker's machine; default is those found here.", show_default=False
        ),
    ] = None,
    root: Annotated[
        str | None,
        typer.Option(
            "--root",
            help="Artifact folder on the worker's machine, or s3://bucket/prefix; "
            "default is SAEINTERP_ROOT, else ./runs.",
            metavar="DIR",
            show_default=False,
        ),
    ] = None,
    directory: Annotated[
        Path | None,
        typer.Option(
            "--directory",
            help="Folder on the worker's machine where runs start, for relative paths; default is this one.",
            metavar="DIR",
            show_default=False,
        ),
    ] = None,
    kubernetes: Annotated[
        str | None,
        typer.Option(
            "--kubernetes",
            help="Runs are Jobs of this image on a Kubernetes cluster; --gpus is then what one run of the pool gpu "
            "asks for (1), --root a path in its containers (/data).",
            metavar="IMAGE",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what is missing; make nothing.")] = False,
) -> None:
    """Make work pools, a concurrency limit per card and for vLLM, and automations, where they are missing.

    Run it again whenever you like: what is there stays, apart from folders that you name.
    """
    from flows.operating import Wanted, cards, set_up
    from flows.server import connected

    def work() -> None:
        if kubernetes is not None and directory is not None:
            raise ConfigError(
                "runs on Kubernetes start in the image's folder",
                field="--directory",
                got=str(directory),
                next_step="leave it out; --root names the artifact folder",
            )
        wanted = Wanted(
            gpus=gpus,
            image=kubernetes,
            root=None if root is None else ArtifactStore(root).shown,
            directory=None if directory is None else directory.expanduser().absolute(),
        )
        with connected() as client:
            out.print(f"server {client.api_url}", markup=False)
            for item in set_up(client, wanted, dry_run=dry_run):
                detail = f": {item.detail}" if item.detail else ""
                out.print(f"{item.status:<12} {item.what} {item.name}{detail}", markup=False)
        if gpus is None and kubernetes is None and not cards():
            out.print("no GPU is here, so no card has a limit; --gpus N makes those of the worker's machine")
        if dry_run:
            out.print("nothing was made (--dry-run)")
        else:
            then = (
                "the worker in your cluster"
                if kubernetes
                else "on the worker's machine: saeinterp ops worker --pool gpu"
            )
            out.print(f"next: {DEPLOY}\nthen, {then}", markup=False)

    guard(work)


@app.command("server")
def server(
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port to listen on.")] = 4200,
    address: Annotated[
        str | None,
        typer.Option(
            "--database",
            help="Address of its database, such as postgresql+asyncpg://prefect@127.0.0.1:5432/prefect, without the "
            "password, which PREFECT_SERVER_DATABASE_PASSWORD has. Default is PREFECT_SERVER_DATABASE_CONNECTION_URL, "
            "else SQLite in Prefect's folder.",
            metavar="URL",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Start a Prefect server that wants a password, in this process; the first start makes one.

    The password lies in `server.env` in Prefect's folder, which only you can read, and is never printed.
    """
    from prefect.settings import get_current_settings

    from flows.database import database, reach
    from flows.prefect_server import access, become_server

    def work() -> None:
        kept = database(address)
        version = reach(kept)
        found = access(get_current_settings().home, host=host, port=port)
        out.print(f"server {found.url}\npassword in {found.file}", markup=False)
        out.print(f"database {kept.shown}" + (f" ({version})" if version else ""), markup=False)
        out.print(f"elsewhere on this machine: set -a; . {quote(str(found.file))}; set +a", markup=False)
        if host not in ("127.0.0.1", "localhost", "::1"):
            err.print(
                "note: the password travels unencrypted; put TLS in front, or stay on 127.0.0.1 with an SSH tunnel",
                style="yellow",
            )
        become_server(found, kept, host=host, port=port)

    guard(work)


@app.command("worker")
def worker(
    pool: Annotated[str, typer.Option("--pool", help="Work pool whose runs it takes: gpu or small.")] = "gpu",
    healthcheck: Annotated[
        bool, typer.Option("--with-healthcheck", help="Answer /health at port 8080, for containers.")
    ] = False,
) -> None:
    """Start a worker of a pool, in this process, with a temporary folder of its own and files that only you can read.

    Its server is the one that is configured (PREFECT_API_URL, PREFECT_API_AUTH_STRING), else that of `ops server` here.
    """
    from prefect.settings import get_current_settings

    from flows.prefect_server import become_worker

    settings = get_current_settings()
    guard(lambda: become_worker(settings.home, pool=pool, configured=bool(settings.api.url), healthcheck=healthcheck))
