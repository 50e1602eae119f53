"""The text cut into example windows, and which windows hold which token.

A window is `size` consecutive tokens of one document in one context; the rest of a run is kept as a
shorter window when it has at least half as many, so that short documents take part.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from saeinterp.latents.cache import EXAMPLE_SPLITS
from saeinterp.subject import Contexts

EXPLAIN, SCORE = 0, 1


class Windows(NamedTuple):
    """All windows, in row order, those of `explain` before those of `score`; every array is int32 `[W]`.

    Attributes:
        context: Position of the context in the list of contexts.
        doc_id: Document.
        start: First token within the context; `end` is one past the last.
        row: Row of the first token in the caches.
        explain: How many windows belong to `explain`.
    """

    context: np.ndarray
    doc_id: np.ndarray
    start: np.ndarray
    end: np.ndarray
    row: np.ndarray
    explain: int

    @property
    def totals(self) -> np.ndarray:
        """`[2]` int64: windows of `explain` and of `score`."""
        return np.array([self.explain, len(self.row) - self.explain])

    def of_split(self, split: int) -> slice:
        """The windows of `EXPLAIN` or `SCORE`."""
        return slice(0, self.explain) if split == EXPLAIN else slice(self.explain, len(self.row))

    def of_rows(self, rows: int) -> np.ndarray:
        """`[rows]` int32: the window each row lies in, or -1."""
        stop = self.row + self.end - self.start
        # A gap, a window, a gap, a window ..., and the gap after the last one.
        edges = np.concatenate([[0], np.stack([self.row, stop], axis=1).ravel(), [rows]])
        owner = np.full(2 * len(self.row) + 1, -1, np.int32)
        owner[1::2] = np.arange(len(self.row))
        return np.repeat(owner, np.diff(edges))


def cut_windows(contexts: Contexts, *, size: int) -> Windows:
    """Tile every run of one document within one context; the contexts are those of `EXAMPLE_SPLITS`."""
    if not contexts.tokens:
        none = np.zeros(0, np.int32)
        return Windows(none, none, none, none, none, explain=0)
    first_rows = np.concatenate([[0], np.cumsum(contexts.lengths)])
    borders = np.flatnonzero(np.diff(contexts.doc_ids)) + 1
    edges = np.union1d(first_rows, borders)
    low, length = edges[:-1], np.diff(edges)
    count = length // size + (2 * (length % size) >= size) * (length % size > 0)
    number = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    row = np.repeat(low, count) + number * size
    stop = np.minimum(row + size, np.repeat(low + length, count))
    context = np.searchsorted(first_rows, row, side="right") - 1
    start = row - first_rows[context]
    return Windows(
        context=context.astype(np.int32),
        doc_id=contexts.doc_ids[row],
        start=start.astype(np.int32),
        end=(start + stop - row).astype(np.int32),
        row=row.astype(np.int32),
        explain=int(np.searchsorted(row, contexts.tokens_of(EXAMPLE_SPLITS[EXPLAIN]))),
    )


class TokenIndex:
    """Which windows hold a token; 4 bytes a token, while it is made 16.

    Args:
        tokens: `[rows]` token ids.
        owner: `[rows]` int32: the window of each row, or -1.
    """

    def __init__(self, tokens: np.ndarray, owner: np.ndarray) -> None:
        order = np.argsort(tokens, kind="stable")
        self._windows = owner[order]
        self._offsets = np.concatenate([[0], np.cumsum(np.bincount(tokens))])

    def windows(self, token: int) -> np.ndarray:
        """Ascending, each as often as it holds the token."""
        found = self._windows[self._offsets[token] : self._offsets[token + 1]]
        return found[found >= 0]
