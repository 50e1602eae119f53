"""Which request goes to which server next.

Requests keep the order of the list, group by group, so that neighbours meet a server's prefix cache. The surprising
choice: a group belongs to the server that takes its first request, and servers take what they have room for; one that
runs out helps the one with most left to do, since a prefix computed twice costs less than a server that waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

from saeinterp.explain.llm import Request

Item = tuple[str, Request]
"""A request and its key."""


class RequestQueue:
    """The requests that wait, for servers numbered from 0."""

    def __init__(self, requests: Mapping[str, Request], *, num_servers: int) -> None:
        self._groups = deque(_grouped(list(requests.items())))
        self._own: list[deque[Item]] = [deque() for _ in range(num_servers)]

    def __len__(self) -> int:
        return sum(map(len, self._groups)) + sum(map(len, self._own))

    def take(self, server: int) -> Item | None:
        """The next request for a server; None where nothing waits."""
        own = self._own[server]
        if not own and self._groups:
            own.extend(self._groups.popleft())
        if own:
            return own.popleft()
        longest = max(self._own, key=len)
        return longest.pop() if longest else None

    def give_back(self, items: Sequence[Item]) -> None:
        """Put requests that were taken in front again, for any server."""
        self._groups.extendleft(reversed(_grouped(items)))

    def abandon(self, server: int) -> None:
        """Let the others have what a server has taken for itself."""
        self.give_back(self._own[server])
        self._own[server] = deque()


def _grouped(items: Sequence[Item]) -> list[list[Item]]:
    """Requests by group, in the order in which groups begin; one without a group stands alone."""
    groups: dict[object, list[Item]] = {}
    for key, request in items:
        groups.setdefault(request.group or (key,), []).append((key, request))
    return list(groups.values())
