"""The database of a Prefect server: SQLite in Prefect's folder, or PostgreSQL, whose password no command line holds."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, Any, NamedTuple

from flows.terminal import ServerError
from saeinterp.errors import ConfigError

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

URL_VARIABLE = "PREFECT_SERVER_DATABASE_CONNECTION_URL"
PASSWORD_VARIABLE = "PREFECT_SERVER_DATABASE_PASSWORD"
POSTGRES, SQLITE = "postgresql+asyncpg", "sqlite+aiosqlite"
OLDEST = 14
"""Of the versions of PostgreSQL that Prefect works with."""
_EXAMPLE = f"such as {POSTGRES}://prefect@127.0.0.1:5432/prefect"


class Database(NamedTuple):
    """Where a server keeps its runs."""

    url: str
    """With the password: for the server's environment alone."""
    driver: str
    shown: str
    """Without the password."""


def database(address: str | None) -> Database:
    """The database that is asked for, else the configured one, else SQLite in Prefect's folder.

    Args:
        address: Without a password, which comes from `PREFECT_SERVER_DATABASE_PASSWORD`.

    Raises:
        ConfigError: It cannot be read, is of another kind, or holds a password.
    """
    from prefect.settings import get_current_settings

    settings = get_current_settings().server.database
    if address is None:
        assert settings.connection_url is not None  # Prefect fills it in
        return _read(settings.connection_url.get_secret_value(), field=URL_VARIABLE)
    url = _parsed(address, field="--database")
    if url.password is not None or "password" in url.query:
        raise ConfigError(
            "every user of this machine can read the password of a command line",
            field="--database",
            got=_shown(url),
            next_step=f"leave it out, and set {PASSWORD_VARIABLE} in the environment",
        )
    if settings.password is not None:
        url = url.set(password=settings.password.get_secret_value())
    return _read(url.render_as_string(hide_password=False), field="--database")


def _parsed(text: str, *, field: str) -> URL:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(text)
    except (ArgumentError, ValueError):
        # Without the text: it may hold a password.
        raise ConfigError("cannot be read", field=field, expected=f"an address {_EXAMPLE}") from None


def _read(text: str, *, field: str) -> Database:
    url = _parsed(text, field=field)
    if url.drivername in ("postgresql", "postgres"):
        url = url.set(drivername=POSTGRES)
    if url.drivername not in (POSTGRES, SQLITE):
        raise ConfigError(
            "Prefect has no such database", field=field, got=url.drivername, expected=f"{POSTGRES} or {SQLITE}"
        )
    return Database(url.render_as_string(hide_password=False), url.drivername, _shown(url))


def _shown(url: URL) -> str:
    from sqlalchemy.engine import URL

    kept = url.difference_update_query(["password"])
    # `set(password=None)` leaves it as it is.
    return URL.create(
        kept.drivername, kept.username, None, kept.host, kept.port, kept.database, kept.query
    ).render_as_string()


def reach(found: Database) -> str:
    """Look whether the database is there and lets us in; gives its version, nothing for SQLite.

    Raises:
        ServerError: It does not answer, refuses us, or lacks what Prefect needs.
    """
    return asyncio.run(_reach(found)) if found.driver == POSTGRES else ""


async def _reach(found: Database) -> str:
    import asyncpg

    problem, step, cause = "", "", None
    try:
        connection = await asyncpg.connect(**_arguments(found))
        try:
            number = int(await connection.fetchval("show server_version_num")) // 10_000
            trigrams = await connection.fetchval("select 1 from pg_available_extensions where name = 'pg_trgm'")
        finally:
            await connection.close()
    except (asyncpg.InvalidPasswordError, asyncpg.InvalidAuthorizationSpecificationError) as error:
        problem, step = "the database refuses the user or the password", f"set {PASSWORD_VARIABLE} in the environment"
        cause = error
    except asyncpg.InvalidCatalogNameError as error:
        problem, step, cause = "there is no such database", "createdb --owner USER NAME, as the user postgres", error
    except (OSError, TimeoutError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        problem = f"the database does not answer ({type(error).__name__})"
        step, cause = "start it, or correct the address", error
    else:
        if number < OLDEST:
            problem, step = f"PostgreSQL {number} is too old", f"upgrade it to {OLDEST} or newer"
        elif not trigrams:
            problem, step = "it lacks the extension pg_trgm", "install PostgreSQL's contrib package"
    if problem:
        raise ServerError(problem, field="database", got=found.shown, next_step=step) from cause
    return f"PostgreSQL {number}"


def _arguments(found: Database) -> dict[str, Any]:
    """What the server will connect with, as SQLAlchemy reads an address: asyncpg knows no `ssl=require` there."""
    from prefect.settings import get_current_settings
    from sqlalchemy.dialects.postgresql.asyncpg import dialect
    from sqlalchemy.engine import make_url

    _, arguments = dialect().create_connect_args(make_url(found.url))
    for name in ("prepared_statement_cache_size", "prepared_statement_name_func", "async_creator_fn"):
        arguments.pop(name, None)  # SQLAlchemy's own
    tls = get_current_settings().server.database.sqlalchemy.connect_args.tls
    if tls.enabled:
        context = ssl.create_default_context(cafile=tls.ca_file or None)
        if tls.cert_file and tls.key_file:
            context.load_cert_chain(tls.cert_file, tls.key_file)
        context.check_hostname = tls.check_hostname
        arguments["ssl"] = context
    return {"timeout": 10, **arguments}
