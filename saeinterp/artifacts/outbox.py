"""From a finished folder to the bucket: payload first, the manifest last and only if there is none.

The surprising choice: what is finished moves to `<mirror>/.outbox` before anything is sent. A killed upload goes on
from there, in whichever process opens the recipe next, and nothing is computed twice.
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

from saeinterp.artifacts.bucket import Bucket
from saeinterp.artifacts.clearing import delete_unnamed
from saeinterp.artifacts.files import file_sha256, write_atomic
from saeinterp.artifacts.manifests import MANIFEST, TIMING, first_problem, parse_manifest, payload_prefix, read_manifest
from saeinterp.artifacts.mirror import Mirror
from saeinterp.artifacts.parts import send_files
from saeinterp.artifacts.room import OUTBOX, make_room
from saeinterp.artifacts.workspace import waiting_lock
from saeinterp.errors import ArtifactError, DamagedArtifactError

log = logging.getLogger(__name__)

_TRIES = 5


def publish(mirror: Mirror, folder: str, out: Path) -> None:
    """Send a finished folder (`kind/name-recipe8`) and make it part of the mirror; `out` is gone after that.

    Where another run has published the recipe, that one is adopted.

    Raises:
        ArtifactError: The bucket takes it not, or not now; the folder stays in the outbox.
    """
    box = mirror.root / OUTBOX / folder
    with waiting_lock(box.with_name(f"{box.name}.lock"), what=f"an upload of {folder}"):
        shutil.rmtree(box, ignore_errors=True)  # of a killed run: ours is as good, and what it sent is not sent again
        os.rename(out, box)
        _send(mirror, folder, box)


def resume(mirror: Mirror, folder: str) -> bool:
    """Send what a killed or failed upload left; False where there is nothing of the kind."""
    box = mirror.root / OUTBOX / folder
    if not (box / MANIFEST).exists():
        return False
    with waiting_lock(box.with_name(f"{box.name}.lock"), what=f"an upload of {folder}"):
        if not (box / MANIFEST).exists():  # its process has finished meanwhile
            return mirror.learn(folder)
        if not _whole(box):
            shutil.rmtree(box)
            return False
        log.info("%s was finished before and is sent now", folder)
        _send(mirror, folder, box)
    return True


def _whole(box: Path) -> bool:
    """Whether a loss of power or a user has left the folder as its manifest says."""
    try:
        return first_problem(box, read_manifest(box)) is None
    except DamagedArtifactError:
        return False


def _send(mirror: Mirror, folder: str, box: Path) -> None:
    bucket, journal = mirror.bucket, box.with_name(f"{box.name}.uploads.json")
    key, ours = f"{folder}/{MANIFEST}", (box / MANIFEST).read_bytes()
    manifest = parse_manifest(ours, box)
    prefix = payload_prefix(folder, manifest)
    published = bucket.get(key)
    files = dict(manifest["files"])
    if (box / TIMING).exists():
        files[TIMING] = {"bytes": (box / TIMING).stat().st_size, "sha256": file_sha256(box / TIMING)}
    try:
        if published is None:
            size = sum(facts["bytes"] for facts in manifest["files"].values())
            if size > 10**8:
                log.info("sending %s: %d files, %.1f GB", bucket.address(folder), len(manifest["files"]), size / 1e9)
            send_files(bucket, box, prefix, files=files, journal=journal)
            published = _first(bucket, key, ours)
        if published != ours:
            log.info("%s was published by another run; using that one", folder)
            if payload_prefix(folder, parse_manifest(published, box)) != prefix:
                delete_unnamed(bucket, folder, prefix)
                shutil.rmtree(box)
                journal.unlink(missing_ok=True)
                mirror.adopt(folder, published)
                return
            write_atomic(box / MANIFEST, published)
        # A clean-up elsewhere may have deleted equal files until it saw the manifest.
        there = {entry.key: entry.bytes for entry in bucket.entries(prefix)}
        lost = {name: facts for name, facts in files.items() if there.get(prefix + name) != facts["bytes"]}
        if lost.keys() & manifest["files"].keys():
            send_files(bucket, box, prefix, files=lost, journal=journal)
    except FileNotFoundError as error:
        raise ArtifactError(
            "an upload was given up by somebody while it was going on",
            field=folder,
            got=mirror.url,
            next_step="run again: what was made is kept and goes up",
        ) from error
    mirror.settle(folder, box)
    journal.unlink(missing_ok=True)
    make_room(mirror.root, 0, keep=folder)


def _first(bucket: Bucket, key: str, ours: bytes) -> bytes:
    """The manifest that is published in the end: ours, or that of who was first."""
    for _ in range(_TRIES):
        if bucket.create(key, ours):
            return ours
        published = bucket.get(key)
        if published is not None:  # else it was removed in between
            return published
    raise ArtifactError(
        "its manifest comes and goes in the bucket",
        field=key,
        got=bucket.url,
        next_step="find out who removes it, then run again: what was made is kept and goes up",
    )
