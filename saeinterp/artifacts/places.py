"""Where a store lies: a folder, or `s3://bucket/prefix` with a local folder that mirrors it.

The surprising choice: a mirror says itself what it mirrors, in `.remote.json`. A path below it that another process
was given, on the command line or in a job's file, leads to the bucket without further settings.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from saeinterp.artifacts.files import read_json, write_atomic
from saeinterp.errors import ConfigError

FIELD = "SAEINTERP_ROOT"
MARK = ".remote.json"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)  # `Path` makes one slash of two
_HALF_SCHEME = re.compile(r"s3a?n?:", re.IGNORECASE)
_SIZES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_EXPECTED = "a folder, or s3://bucket/prefix"


class Place(NamedTuple):
    """Where a store lies."""

    root: Path
    """A folder of this machine: the store itself, or the mirror of what `url` names."""
    url: str | None
    """`s3://bucket/prefix`."""


def place_of(root: str | Path | None) -> Place:
    """Where a store lies by what a user said; default is `SAEINTERP_ROOT`, else `./runs`.

    Raises:
        ConfigError: An address that is not supported, or one with credentials in it.
    """
    text = str(root or os.environ.get(FIELD) or "runs")
    match = _SCHEME.fullmatch(text)
    if match is None:
        if _HALF_SCHEME.match(text):  # nothing of it is repeated: it may have a secret in it
            raise ConfigError("an address without //", field=FIELD, expected=_EXPECTED, next_step="write s3://...")
        folder = Path(text).expanduser().absolute()
        return Place(folder, remote_of(folder))
    scheme, rest = match[1].lower(), match[2]
    if scheme == "file":
        folder = Path("/" + unquote(rest))
        return Place(folder, remote_of(folder))
    if scheme != "s3":
        raise ConfigError("unsupported address", field=FIELD, got=f"{scheme}://...", expected=_EXPECTED)
    bucket, _, prefix = rest.partition("/")
    if re.search(r"[@:?#]", rest):
        raise ConfigError(
            "an address with credentials or options in it, which would end up in logs",
            field=FIELD,
            expected=_EXPECTED,
            next_step="leave them out, and set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; "
            "AWS_ENDPOINT_URL for a server of your own",
        )
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]+", bucket):
        raise ConfigError("no name of a bucket", field=FIELD, expected=_EXPECTED)
    parts = [part for part in prefix.split("/") if part]
    if {".", ".."} & set(parts):
        raise ConfigError("`.` and `..` mean nothing in a bucket", field=FIELD, expected=_EXPECTED)
    url = "/".join([f"s3://{bucket}", *parts])
    return Place(mirror_root(url), url)


def mirror_root(url: str) -> Path:
    """The folder of this machine that mirrors a store: below `SAEINTERP_CACHE`, else `~/.cache/saeinterp`."""
    base = os.environ.get("SAEINTERP_CACHE")
    if not base:
        base = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "saeinterp")
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", url.removeprefix("s3://"))[:60]
    server = endpoint()  # the same name on another server is another bucket
    digest = hashlib.sha256((url if server is None else f"{url} {server}").encode()).hexdigest()[:8]
    return Path(base).expanduser().absolute() / f"{readable}-{digest}"


def mark(place: Place) -> None:
    """Write down in a mirror what it mirrors."""
    if place.url is not None and remote_of(place.root) != place.url:
        place.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomic(place.root / MARK, (json.dumps({"url": place.url}) + "\n").encode())


def remote_of(root: Path) -> str | None:
    """The address that a folder mirrors, if it does."""
    try:
        return str(read_json(root / MARK)["url"])
    except (OSError, ValueError, KeyError):
        return None


def cache_limit() -> int | None:
    """The most bytes that mirrored payloads should take, by `SAEINTERP_CACHE_LIMIT`; None: what the disk has.

    Raises:
        ConfigError: It is no size.
    """
    text = os.environ.get("SAEINTERP_CACHE_LIMIT", "").strip()
    return int(size_of(text, field="SAEINTERP_CACHE_LIMIT")) if text else None


def size_of(text: str, *, field: str) -> float:
    """Bytes, as people write them: 500MB, 10GB, 1.5TB.

    Raises:
        ConfigError: Naming the field.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)b?\s*", text.lower())
    if not match:
        raise ConfigError("not a size", field=field, got=text, expected="500MB, 10GB or 1.5TB")
    return float(match[1]) * _SIZES[match[2]]


def endpoint() -> str | None:
    """The server that stands in for AWS, if one does.

    Raises:
        ConfigError: Its address has credentials in it; it is not repeated.
    """
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if address := os.environ.get(name):
            if "@" in address:
                raise ConfigError(
                    "an address with credentials in it, which would end up in logs",
                    field=name,
                    expected="an address such as https://minio.example.org:9000",
                    next_step=f"take them out of {name}, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
                )
            return address
    return None
