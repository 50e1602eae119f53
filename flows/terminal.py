"""What all commands share: the two consoles, exit codes, the --root option, and how an error is told."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Annotated, NoReturn, TypeVar

import typer
from rich.console import Console

from saeinterp.errors import ConfigError, SaeinterpError

COMPLETED, FAILED, BAD_USAGE, UNREACHABLE, INTERRUPTED = 0, 1, 2, 3, 130

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

Root = Annotated[
    str | None,
    typer.Option(
        "--root", help="Artifact folder, or s3://bucket/prefix; default is SAEINTERP_ROOT, else ./runs.", metavar="DIR"
    ),
]
T = TypeVar("T")


class ServerError(SaeinterpError):
    """The Prefect server cannot be used."""


def guard(work: Callable[[], T]) -> T:
    """Run a command's work; an error of ours is printed and ends the process with its exit code."""
    try:
        return work()
    except ServerError as error:
        complain(error, UNREACHABLE)
    except SaeinterpError as error:
        complain(error, BAD_USAGE if isinstance(error, ConfigError) else FAILED)
    except KeyboardInterrupt:
        err.print("Interrupted. Run the same command again: finished steps are kept, unfinished ones resume.")
        raise typer.Exit(INTERRUPTED) from None


def complain(error: SaeinterpError, code: int) -> NoReturn:
    """Print an error without its traceback (with it after --verbose) and leave."""
    if os.environ.get("SAEINTERP_VERBOSE"):
        err.print_exception()
    err.print(f"Error: {error}", style="red", markup=False)
    raise typer.Exit(code) from None


def size_text(count: int) -> str:
    """A number of bytes, as people read it."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"
