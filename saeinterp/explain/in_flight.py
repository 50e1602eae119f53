"""Requests that a thread of this process is asking now, so that no other thread asks the same.

The surprising choice: a claim carries no reply. Whoever waited looks into the response cache when the claim ends, and
where nothing is there (the other gave up, or was cancelled) the request is free to be claimed and asked again.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future


class InFlight:
    """Claims on request keys; safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._claims: dict[str, Future[None]] = {}

    def claim(self, key: str) -> Future[None] | None:
        """Claim a request; where another has it, what is done once that one ends."""
        with self._lock:
            other = self._claims.get(key)
            if other is None:
                ours: Future[None] = Future()
                ours.set_running_or_notify_cancel()  # from here on one who waits cannot cancel it for all others
                self._claims[key] = ours
            return other

    def release(self, key: str) -> None:
        """End a claim of one's own: whoever waits goes on."""
        with self._lock:
            claim = self._claims.pop(key)
        claim.set_result(None)
