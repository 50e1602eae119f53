"""Replies that were received, kept on disk the moment they arrive.

`<root>/llm-cache/<host>-<pid>-<random>.jsonl`: every process appends to a file of its own and reads all
others, so that no lock is needed, network file systems included. The surprising choice: a line is only
believed when it is whole (kill -9 may tear the last one), and keys are hashes, so prompts and credentials
are nowhere in it. A line is written at once and synced in groups: a killed process loses nothing, a machine that
loses power only what its last sync had not reached.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import uuid
from collections.abc import Sequence
from dataclasses import fields
from io import FileIO
from pathlib import Path
from typing import Any

from saeinterp.errors import ArtifactError
from saeinterp.explain.in_flight import InFlight
from saeinterp.explain.llm import Reply, Usage

log = logging.getLogger(__name__)

_OPEN: dict[Path, ResponseCache] = {}
_OPEN_LOCK = threading.Lock()


class ResponseCache:
    """The replies below one folder; safe to share between threads.

    Attributes:
        in_flight: What this process is asking now, of which the replies will be here.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.in_flight = InFlight()
        self._lock = threading.Lock()
        self._known: dict[str, list[Reply]] = {}
        self._read: dict[Path, int] = {}
        self._shard: FileIO | None = None
        self._pid = 0

    @classmethod
    def at(cls, folder: Path) -> ResponseCache:
        """The one cache of this process for a folder, brought up to date with what others wrote."""
        with _OPEN_LOCK:
            cache = _OPEN.setdefault(folder, cls(folder))
        cache.refresh()
        return cache

    def refresh(self) -> None:
        """Read the whole lines that were added since the last look."""
        with self._lock:
            for path in sorted(self.folder.glob("*.jsonl")):
                with contextlib.suppress(FileNotFoundError):  # cleaned up this moment
                    self._follow(path)

    def get(self, key: str) -> list[Reply] | None:
        """The replies stored under a key."""
        with self._lock:
            return self._known.get(key)

    def append(self, key: str, replies: Sequence[Reply]) -> None:
        """Hand the replies of one request or batch to the operating system: the end of this process cannot lose them.

        The end of the machine can, until `sync`.

        Raises:
            ArtifactError: The folder cannot be written.
        """
        entry = {"key": key, "replies": [_packed(reply) for reply in replies]}
        line = json.dumps(entry, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        with self._lock:
            try:
                shard = self._own_shard()
                rest = memoryview(line)
                while rest:
                    rest = rest[shard.write(rest) :]
            except OSError as error:
                self._shard = None  # it may end in half a line, which must not run into the next
                raise self._unwritable(error) from error
            self._known[key] = list(replies)

    def sync(self) -> None:
        """Wait until everything appended so far is on disk; other threads may append meanwhile.

        Raises:
            ArtifactError: The disk refuses.
        """
        with self._lock:
            shard = self._shard if self._pid == os.getpid() else None
        try:
            if shard is not None:
                os.fsync(shard.fileno())
        except OSError as error:
            raise self._unwritable(error) from error

    def put(self, key: str, replies: Sequence[Reply]) -> None:
        """Store the replies of one request or batch; they are on disk when this returns.

        Raises:
            ArtifactError: The folder cannot be written.
        """
        self.append(key, replies)
        self.sync()

    def _unwritable(self, error: OSError) -> ArtifactError:
        return ArtifactError(
            f"cannot keep a reply: {error.strerror}",
            got=str(self.folder),
            next_step="free space or fix the permissions of SAEINTERP_ROOT, then run again",
        )

    def _own_shard(self) -> FileIO:
        if self._shard is None or self._pid != os.getpid():  # a forked child must not share its parent's file
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._pid = os.getpid()
            path = self.folder / f"{socket.gethostname()}-{self._pid}-{uuid.uuid4().hex[:8]}.jsonl"
            self._shard = FileIO(path, "xb", opener=_private)
        return self._shard

    def _follow(self, path: Path) -> None:
        start = self._read.get(path, 0)
        if path.stat().st_size <= start:
            return
        with path.open("rb") as handle:
            handle.seek(start)
            data = handle.read()
        whole = data.rfind(b"\n") + 1
        self._read[path] = start + whole
        for line in data[:whole].splitlines():
            try:
                entry = json.loads(line)
                self._known[entry["key"]] = [_unpacked(reply) for reply in entry["replies"]]
            except (ValueError, KeyError, TypeError):
                log.warning("%s holds a line that is no reply; it is asked for again", path)


def _private(path: str, flags: int) -> int:
    """Open for this user alone: replies are as private as the text they are about."""
    return os.open(path, flags, 0o600)


_DEFAULTS = {field.name: field.default for field in fields(Reply)}


def _packed(reply: Reply) -> dict[str, Any]:
    """What a reply says beyond the defaults, as JSON values."""
    return {name: value for name, value in vars(reply).items() if value != _DEFAULTS[name]}


def _unpacked(values: dict[str, Any]) -> Reply:
    found = dict(values)
    if "choice_logprobs" in found:
        yes, no = found["choice_logprobs"]
        found["choice_logprobs"] = (yes, no)
    if "verdict_logprobs" in found:
        found["verdict_logprobs"] = tuple(pair and (pair[0], pair[1]) for pair in found["verdict_logprobs"])
    if "slot_logprobs" in found:
        found["slot_logprobs"] = tuple(map(tuple, found["slot_logprobs"]))
    if "usage" in found:
        found["usage"] = Usage(*found["usage"])
    return Reply(**found)
