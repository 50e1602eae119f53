"""Long lists of requests, made and asked part by part, so that memory holds the prompts of one part alone.

The surprising choice: parts end only where a batch of a model in this process would end anyway, and are of about equal
size, so that neither the batches nor what counts as "the server refuses everything" depend on them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from saeinterp.explain.llm import LLM, Completions, Reply, Request
from saeinterp.explain.spending import Spent
from saeinterp.progress import Progress

PART = 8192
"""Requests of a part, about: of 64 in flight at once, a server idles less than one percent of the time at its end."""


def parts(groups: Sequence[object]) -> list[slice]:
    """Cut requests into parts of about `PART`, between groups alone.

    Args:
        groups: Of every request, what it must stay together with; equal ones are neighbours.
    """
    count = max(1, math.ceil(len(groups) / PART))
    target = len(groups) / count
    ends: list[int] = []
    for place in range(1, len(groups)):
        if groups[place] != groups[place - 1] and place >= target * (len(ends) + 1) and len(ends) < count - 1:
            ends.append(place)
    return [slice(start, end) for start, end in zip([0, *ends], [*ends, len(groups)], strict=True)]


class Asking:
    """Asks a model part after part, and adds up what came back.

    Args:
        llm: The model.
        total: Requests of all parts.
        progress: Told of replies.
    """

    def __init__(self, llm: LLM, *, total: int, progress: Progress) -> None:
        self._llm, self._total, self._progress = llm, total, progress
        self._replies: list[Reply] = []
        self._sent = self._cached = 0
        self._spent = Spent()

    def ask(self, requests: Sequence[Request]) -> list[Reply]:
        """The replies to one part.

        Raises:
            LLMError: No further reply can be had; those received are kept and not asked for again.
        """
        before, whole = len(self._replies), len(requests) == self._total

        def report(done: int, total: int, what: str) -> None:
            self._progress(before + done, total if whole else self._total, what)

        found = self._llm.complete(requests, progress=report)
        self._replies += found.replies
        self._sent, self._cached = self._sent + found.sent, self._cached + found.cached
        self._spent = self._spent.plus(found.spent)
        return found.replies

    @property
    def completions(self) -> Completions:
        """All replies so far, and what they took."""
        return Completions(self._replies, sent=self._sent, cached=self._cached, spent=self._spent)
