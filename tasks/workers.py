"""What a flow asks the workers of a Dask cluster before it gives them anything to do."""

from __future__ import annotations

import atexit
import contextlib
import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import distributed
from prefect.client.orchestration import get_client
from prefect.context import SettingsContext
from prefect.logging import get_run_logger
from prefect.settings import get_current_settings

from saeinterp.artifacts import ArtifactStore
from saeinterp.errors import ConfigError
from tasks.cluster import ADDRESS, FanOutError
from tasks.site import Site, mark, sees


def examine(client: distributed.Client) -> None:
    """Refuse workers that differ from this process, or see neither its artifacts nor its server; warn of settings.

    Raises:
        FanOutError: A worker lacks saeinterp.
        ConfigError: A worker has another root, version or setting, or does not see the flow's files or server.
    """
    here = Site.here()
    for address, site in ask(client, Site.here).items():
        here.admit(site, who=f"the Dask worker {address}")
    _show_files(client, here)
    show_server(client)
    for line in advice(client.scheduler_info(n_workers=-1)):
        get_run_logger().warning("%s", line)


def ask(client: distributed.Client, what: Any, *args: Any) -> dict[str, Any]:
    """The answer of every worker."""
    answers: dict[str, Any] = client.run(what, *args, on_error="return")
    for address, answer in answers.items():
        if isinstance(answer, BaseException):
            raise FanOutError(
                f"the Dask worker {address} cannot run steps: {type(answer).__name__}: {answer}",
                field=ADDRESS,
                next_step="install the same version of saeinterp there (pip install 'saeinterp[dask]')",
            ) from answer
    return answers


def _show_files(client: distributed.Client, here: Site) -> None:
    if "://" in here.root:  # object storage is the same for all
        return
    place = Path(mark())
    ArtifactStore().root.mkdir(mode=0o700, parents=True, exist_ok=True)
    place.mkdir(parents=True, exist_ok=True)  # until the end of this process: workers that join later look for it
    atexit.register(_remove, place)
    blind = [address for address, there in ask(client, sees, str(place)).items() if not there]
    if blind:
        raise ConfigError(
            "a Dask worker does not see the flow's files there",
            field="SAEINTERP_ROOT",
            got=f"{here.root} on {', '.join(sorted(blind))}",
            expected="one folder on shared storage",
            next_step="mount it at the same path on every machine",
        )


def _remove(place: Path) -> None:
    with contextlib.suppress(OSError):
        place.rmdir()


def show_server(client: distributed.Client) -> None:
    """Refuse workers that do not reach the flow's Prefect server.

    Raises:
        ConfigError: Names a worker, and the address that it was given.
    """
    url = get_current_settings().api.url or ""
    context = SettingsContext.get()
    assert context is not None
    answers = ask(client, reaches_server, context.serialize())
    deaf = {address: problem for address, problem in answers.items() if problem}
    if not deaf:
        return
    address, problem = min(deaf.items())
    local = _is_loopback(urlsplit(url).hostname or "")
    raise ConfigError(
        f"the Dask worker {address} does not reach the flow's Prefect server there ({problem})",
        field="PREFECT_API_URL",
        got=url,
        expected="an address of the server that all workers reach"
        + (", which one of this machine's own loopback is not" if local else ""),
        next_step="start the server with --host and the name or address of its machine, and set PREFECT_API_URL to that"
        if local
        else "look whether a firewall or a name that only some machines know is between them",
    )


def reaches_server(settings: dict[str, Any]) -> str:
    """Why this process does not reach the server of a flow's settings, empty if it does; asked on a worker."""
    with SettingsContext(**settings), get_client(sync_client=True) as client:
        problem = client.api_healthcheck()
    return type(problem).__name__ if problem is not None else ""


def advice(info: Mapping[str, Any]) -> list[str]:
    """What a flow warns of: a cluster that others could use, and workers whose steps are in each other's way.

    Args:
        info: Of the scheduler, with all workers.
    """
    workers: Mapping[str, Any] = info["workers"]
    said = []
    clear = [item for item in (str(info["address"]), *workers) if _is_open(item)]
    if clear:
        said.append(
            f"the connection to {clear[0]} is not encrypted: whoever reaches it runs code as the workers' user, and "
            "whoever listens reads the password of the Prefect server; use tls:// (docs/how-to/fan-out.md)"
        )
    for option, why, found in (
        ("--nthreads 1", "steps of one process share its cores or take turns", lambda item: item["nthreads"] > 1),
        ("--memory-limit 0", "Dask counts mapped files, and restarts workers that are well", _limited),
    ):
        others = [address for address, item in workers.items() if found(item)]
        if others:
            said.append(f"start Dask workers with {option} ({len(others)} are not, as {min(others)}): {why}")
    return said


def _limited(worker: Mapping[str, Any]) -> bool:
    return bool(worker["memory_limit"])


def _is_open(address: str) -> bool:
    return address.startswith("tcp://") and not _is_loopback(urlsplit(address).hostname or "")


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"
