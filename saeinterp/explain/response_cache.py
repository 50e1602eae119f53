"""Replies that were received, kept on disk the moment they arrive.

`<root>/llm-cache/<host>-<pid>-<random>.jsonl`: every process appends to a file of its own and reads all
others, so that no lock is needed, network file systems included. The surprising choice: a line is only
believed when it is whole (kill -9 may tear the last one), and keys are hashes, so prompts and credentials
are nowhere in it.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from saeinterp.errors import ArtifactError
from saeinterp.explain.llm import Reply

log = logging.getLogger(__name__)

_OPEN: dict[Path, ResponseCache] = {}
_OPEN_LOCK = threading.Lock()


class ResponseCache:
    """The replies below one folder; safe to share between threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._known: dict[str, list[Reply]] = {}
        self._read: dict[Path, int] = {}
        self._shard: BinaryIO | None = None
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
                self._follow(path)

    def get(self, key: str) -> list[Reply] | None:
        """The replies stored under a key."""
        with self._lock:
            return self._known.get(key)

    def put(self, key: str, replies: Sequence[Reply]) -> None:
        """Store the replies of one request or batch; they are on disk when this returns.

        Raises:
            ArtifactError: The folder cannot be written.
        """
        entry = {"key": key, "replies": [[r.text, r.choice_logprobs, r.status, r.error] for r in replies]}
        line = json.dumps(entry, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        with self._lock:
            try:
                shard = self._own_shard()
                shard.write(line)
                shard.flush()
                os.fsync(shard.fileno())
            except OSError as error:
                raise ArtifactError(
                    f"cannot keep a reply: {error.strerror}",
                    got=str(self.folder),
                    next_step="free space or fix the permissions of SAEINTERP_ROOT, then run again",
                ) from error
            self._known[key] = list(replies)

    def _own_shard(self) -> BinaryIO:
        if self._shard is None or self._pid != os.getpid():  # a forked child must not share its parent's file
            self.folder.mkdir(parents=True, exist_ok=True)
            self._pid = os.getpid()
            path = self.folder / f"{socket.gethostname()}-{self._pid}-{uuid.uuid4().hex[:8]}.jsonl"
            self._shard = path.open("xb")
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
                replies = [
                    Reply(text, None if pair is None else (pair[0], pair[1]), status, error)
                    for text, pair, status, error in entry["replies"]
                ]
                self._known[entry["key"]] = replies
            except (ValueError, KeyError, TypeError, IndexError):
                log.warning("%s holds a line that is no reply; it is asked for again", path)
