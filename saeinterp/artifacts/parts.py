"""Sending files to a bucket so that a killed sender goes on where it was: at the file, in a large one at the part."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from saeinterp.artifacts.bucket import Bucket, described
from saeinterp.artifacts.files import read_json, write_atomic
from saeinterp.errors import ArtifactError

log = logging.getLogger(__name__)

PART_BYTES = 64 * 2**20
"""Of one part, and the most that goes in one piece; S3 wants at least 5 MiB."""
_MOST_PARTS = 9_000  # S3 allows 10,000
_SMALL_AT_ONCE = 4
_PARTS_AT_ONCE = 4


def send_files(
    bucket: Bucket, folder: Path, prefix: str, *, files: Mapping[str, Mapping[str, Any]], journal: Path
) -> None:
    """Send files, each under its name below `prefix`; those that are there whole are not sent again.

    Args:
        files: Name -> `bytes` and `sha256`, as in a manifest.
        journal: A file of this machine that keeps what a later process needs to go on with a large file.
    """
    large = [name for name, facts in sorted(files.items()) if facts["bytes"] > PART_BYTES]
    small = [name for name in sorted(files) if name not in large]

    def send(name: str) -> None:
        sha256 = files[name]["sha256"]
        if bucket.sha256(prefix + name, size=files[name]["bytes"]) != sha256:
            bucket.put(prefix + name, (folder / name).read_bytes(), sha256=sha256)

    with ThreadPoolExecutor(_SMALL_AT_ONCE, thread_name_prefix="upload") as pool:
        for _ in pool.map(send, small):
            pass
    for name in large:
        facts = files[name]
        if bucket.sha256(prefix + name, size=facts["bytes"]) != facts["sha256"]:
            _send_large(bucket, folder / name, prefix + name, facts["sha256"], journal)


def _send_large(bucket: Bucket, path: Path, key: str, sha256: str, journal: Path) -> None:
    size = path.stat().st_size
    known = _journal(journal).get(key)
    done: dict[int, dict[str, Any]] = {}
    if known is not None:
        try:
            done = {item["PartNumber"]: item for item in _sent(bucket, key, known["upload"])}
        except FileNotFoundError:  # given up by somebody, or completed
            known = None
        except ArtifactError as error:
            if not isinstance(error.__cause__, PermissionError):
                raise
            known = None  # who may upload need not be allowed to list parts
    if known is None:
        part = max(PART_BYTES, -(-size // _MOST_PARTS))
        upload = bucket.call("create_multipart_upload", key, **described(key, sha256))["UploadId"]
        known = {"upload": upload, "part": part}
        _note(journal, key, known)
    upload, part = known["upload"], known["part"]
    spans = {number: min(part, size - start) for number, start in enumerate(range(0, size, part), 1)}
    missing = [number for number, length in spans.items() if done.get(number, {}).get("Size") != length]
    if len(missing) < len(spans):
        log.info("%s: going on after %d of %d parts", bucket.address(key), len(spans) - len(missing), len(spans))

    def send(number: int) -> tuple[int, str]:
        with path.open("rb") as handle:
            handle.seek((number - 1) * part)
            data = handle.read(spans[number])
        reply = bucket.call("upload_part", key, UploadId=upload, PartNumber=number, Body=data)
        return number, reply["ETag"]

    etags = {number: done[number]["ETag"] for number in spans if number not in missing}
    with ThreadPoolExecutor(_PARTS_AT_ONCE, thread_name_prefix="upload") as pool:
        etags |= dict(pool.map(send, missing))
    parts = [{"PartNumber": number, "ETag": etags[number]} for number in sorted(etags)]
    bucket.call("complete_multipart_upload", key, UploadId=upload, MultipartUpload={"Parts": parts})


def _sent(bucket: Bucket, key: str, upload: str) -> Iterator[dict[str, Any]]:
    marker: dict[str, int] = {}
    while True:
        reply = bucket.call("list_parts", key, UploadId=upload, **marker)
        yield from reply.get("Parts", ())
        if not reply.get("IsTruncated"):
            return
        marker = {"PartNumberMarker": reply["NextPartNumberMarker"]}


def _journal(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = read_json(path)
    except (OSError, ValueError):
        return {}
    return found


def _note(path: Path, key: str, value: Mapping[str, Any]) -> None:
    write_atomic(path, json.dumps({**_journal(path), key: value}).encode())
