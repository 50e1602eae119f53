"""The text cut into example windows, and which latents fire in which.

A window is `window` consecutive tokens of one document in one context; the rest of a run is kept as a
shorter window when it has at least half as many, so that short documents take part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from saeinterp.latents.cache import EXAMPLE_SPLITS, LatentCache
from saeinterp.subject import Contexts


class Windows(NamedTuple):
    """All windows, in row order; every array is `[W]`.

    Attributes:
        split: 0 = explain, 1 = score.
        context: Position of the context in the list of contexts.
        doc_id: Document.
        start: First token within the context; `end` is one past the last.
        row: Row of the first token in the caches.
    """

    split: np.ndarray
    context: np.ndarray
    doc_id: np.ndarray
    start: np.ndarray
    end: np.ndarray
    row: np.ndarray

    def of_rows(self, rows: int) -> np.ndarray:
        """`[rows]` int64: the window each row lies in, or -1."""
        owner = np.full(rows, -1, np.int64)
        for index, (row, start, end) in enumerate(zip(self.row, self.start, self.end, strict=True)):
            owner[row : row + end - start] = index
        return owner


def cut_windows(contexts: Contexts, *, size: int) -> Windows:
    """Tile every run of one document within one context."""
    found: list[tuple[int, int, int, int, int, int]] = []
    row = 0
    for position in range(len(contexts)):
        context = contexts[position]
        split = EXAMPLE_SPLITS.index(context.split)
        edges = np.flatnonzero(np.diff(context.doc_ids)) + 1
        for low, high in zip([0, *edges], [*edges, len(context.token_ids)], strict=True):
            for start in range(int(low), int(high), size):
                end = min(start + size, int(high))
                if end - start == size or 2 * (end - start) >= size:
                    found.append((split, position, int(context.doc_ids[start]), start, end, row + start))
        row += len(context.token_ids)
    columns = np.array(found, np.int64).reshape(-1, 6).T
    return Windows(*columns)


@dataclass(frozen=True, eq=False)
class WindowActivity:
    """Per latent and split, how often it fires; for chosen latents, where.

    Attributes:
        firings: `[2, M]` int64: active tokens in the explain and score windows.
        active_windows: `[2, M]` int64: windows with an active token.
        entries: For each chosen latent: rows int64 `[n]` and values float32 `[n]`, in row order.
    """

    firings: np.ndarray
    active_windows: np.ndarray
    entries: dict[int, tuple[np.ndarray, np.ndarray]]


def count_activity(cache: LatentCache, windows: Windows) -> WindowActivity:
    """One pass over the cache: counts for every latent. Entries are left empty."""
    owner = windows.of_rows(cache.rows)
    firings = np.zeros((2, cache.num_latents), np.int64)
    active = np.zeros((2, cache.num_latents), np.int64)
    last = np.full(cache.num_latents, -1, np.int64)  # the last window each latent was counted in
    for chunk in cache.firings():
        window = owner[chunk.rows]
        inside = window >= 0
        latents, window = chunk.latents[inside], window[inside]
        np.add.at(firings, (windows.split[window], latents), 1)
        # Rows ascend, so of one latent's entries in a window only the first can differ from `last`.
        pairs = np.unique(window * cache.num_latents + latents)
        pair_window, pair_latent = np.divmod(pairs, cache.num_latents)
        new = last[pair_latent] != pair_window
        np.add.at(active, (windows.split[pair_window[new]], pair_latent[new]), 1)
        last[pair_latent] = pair_window
    return WindowActivity(firings, active, {})


def collect_entries(
    cache: LatentCache, windows: Windows, latents: Sequence[int]
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """A second pass: rows and values of the given latents within windows."""
    owner = windows.of_rows(cache.rows)
    wanted = np.zeros(cache.num_latents, bool)
    wanted[list(latents)] = True
    pieces: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for chunk in cache.firings():
        keep = wanted[chunk.latents] & (owner[chunk.rows] >= 0)
        pieces.append((chunk.latents[keep], chunk.rows[keep], chunk.values[keep]))
    if not pieces:
        return {latent: (np.zeros(0, np.int64), np.zeros(0, np.float32)) for latent in latents}
    which, rows, values = (np.concatenate(column) for column in zip(*pieces, strict=True))
    order = np.argsort(which, kind="stable")
    which, rows, values = which[order], rows[order], values[order]
    low = np.searchsorted(which, list(latents), side="left")
    high = np.searchsorted(which, list(latents), side="right")
    return {latent: (rows[a:b], values[a:b]) for latent, a, b in zip(latents, low, high, strict=True)}
