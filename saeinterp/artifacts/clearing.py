"""Deleting from a bucket what no manifest names: of removed artifacts, and of uploads that came to nothing.

The surprising choice: it asks for the manifest again and again. A run may make an artifact anew while its old files
are being deleted, and equal files have equal names.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple

from saeinterp.artifacts.bucket import PER_DELETE, Bucket
from saeinterp.artifacts.manifests import MANIFEST, as_far_as_read, is_folder, payload_prefix
from saeinterp.artifacts.mirror import Mirror
from saeinterp.artifacts.room import OUTBOX
from saeinterp.artifacts.workspace import waiting_lock

_PAYLOAD = re.compile(r"(([^/]+/[^/]+-[0-9a-f]{8})/[0-9a-f]{16})/.")


class Remains(NamedTuple):
    """Objects that no manifest names."""

    prefix: str
    bytes: int
    newest: datetime


def clear(mirror: Mirror, prefix: str) -> None:
    """Delete the files of an artifact (`kind/name-recipe8`), or one set of them (`.../<digest>`), but what a manifest
    names by then; uploads of it from this machine wait.
    """
    folder = "/".join(prefix.split("/")[:2])
    lock = mirror.root / OUTBOX / f"{folder}.lock"
    with mirror.telling(), waiting_lock(lock, what=f"an upload of {folder}"):
        delete_unnamed(mirror.bucket, folder, f"{prefix}/")


def delete_unnamed(bucket: Bucket, folder: str, prefix: str) -> None:
    """The same for who holds the lock of the upload; `prefix` is one of keys."""
    keys = [entry.key for entry in bucket.entries(prefix) if entry.key != f"{folder}/{MANIFEST}"]
    for start in range(0, len(keys), PER_DELETE):
        named = _named(bucket, folder)
        bucket.delete(key for key in keys[start : start + PER_DELETE] if not key.startswith(named))
    for key, upload, _ in list(bucket.uploads(prefix)):
        if not key.startswith(_named(bucket, folder)):
            with contextlib.suppress(FileNotFoundError):
                bucket.call("abort_multipart_upload", key, UploadId=upload)


def remains(mirror: Mirror) -> Iterator[Remains]:
    """What uploads that came to nothing left in the bucket."""
    named: dict[str, str] = {}
    found: dict[str, tuple[int, datetime]] = {}
    sent = [(entry.key, entry.bytes, entry.modified) for entry in mirror.bucket.entries()]
    sent += [(key, 0, begun) for key, _, begun in mirror.bucket.uploads()]
    for key, size, modified in sent:
        match = _PAYLOAD.match(key)
        if match is None or not is_folder(match[2]):  # a manifest, or not ours
            continue
        folder, prefix = match[2], match[1]
        if folder not in named:
            path = mirror.root / folder / MANIFEST
            named[folder] = payload_prefix(folder, as_far_as_read(path.read_bytes())) if path.exists() else ""
        if f"{prefix}/" != named[folder]:
            known = found.get(prefix)
            found[prefix] = (size, modified) if known is None else (known[0] + size, max(known[1], modified))
    for prefix, (size, newest) in sorted(found.items()):
        yield Remains(prefix, size, newest)


def _named(bucket: Bucket, folder: str) -> tuple[str, ...]:
    """Where the files lie that the manifest in the bucket names; anywhere, where it cannot be read."""
    data = bucket.get(f"{folder}/{MANIFEST}")
    if data is None:
        return ()
    manifest = as_far_as_read(data)
    return (payload_prefix(folder, manifest) if manifest else f"{folder}/",)
