"""The Prefect server that commands talk to: an explicit one, that answers and lets us in."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import httpx

from flows.terminal import ServerError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

CONFIGURE = "prefect config set PREFECT_API_URL=http://HOST:4200/api"


@contextlib.contextmanager
def connected() -> Iterator[SyncPrefectClient]:
    """A client of the configured server, which answered a real query.

    Raises:
        ServerError: None is configured, it does not answer, or it does not let us in. Also when it goes away later.
    """
    from prefect.client.orchestration import get_client
    from prefect.exceptions import PrefectHTTPStatusError
    from prefect.settings import get_current_settings

    url = get_current_settings().api.url
    if not url:
        raise ServerError(
            "no server is configured",
            field="PREFECT_API_URL",
            next_step=f"start one (saeinterp ops server), or name yours: {CONFIGURE}",
        )
    try:
        with get_client(sync_client=True) as client:
            client.read_flows(limit=1)
            yield client
    except PrefectHTTPStatusError as error:
        code = error.response.status_code
        if code in (401, 403):
            raise ServerError(
                "the server refuses the password",
                field="PREFECT_API_AUTH_STRING",
                got=url,
                next_step="set PREFECT_API_AUTH_STRING to what the server was started with",
            ) from error
        raise ServerError(
            f"the server answers {code}", field="PREFECT_API_URL", got=url, next_step="look into the server's log"
        ) from error
    except httpx.HTTPError as error:
        raise ServerError(
            f"the server does not answer ({type(error).__name__})",
            field="PREFECT_API_URL",
            got=url,
            next_step="start it (saeinterp ops server), or correct the address: saeinterp doctor",
        ) from error
