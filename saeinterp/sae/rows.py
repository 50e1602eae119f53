"""The rows an SAE is trained and tested on: usable rows of one hookpoint's activation cache, shuffled.

Rows that the cache's mask leaves out (position 0, special tokens, huge norms) are never seen here. The
surprising choice: the order is a pure function of seed and epoch, so the cursor is one number, the rows drawn so
far. It is a full permutation of all rows: those that fit into `memory_bytes` are copied into memory once, others
are gathered from the mapped files a row group at a time.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from saeinterp.config import Split
from saeinterp.sae.sources import Cursor
from saeinterp.subject.cache import DTYPES, ActivationCache


class Rows:
    """Usable rows of one split.

    Args:
        cache: The activations of one hookpoint.
        split: Whose rows.
        memory_bytes: Copy the rows into memory if they take no more than this.
    """

    def __init__(self, cache: ActivationCache, split: Split, *, memory_bytes: float) -> None:
        span = cache.split_rows(split)
        self.cache = cache
        self.split = split
        self.masked = _masked(cache, span)
        self._where = np.flatnonzero(cache.mask()[span.start : span.stop]) + span.start
        self._groups = cache.groups()
        self._starts = np.array([group.start for group in self._groups])
        self._memory: Tensor | None = None
        if 2 * cache.d_in * len(self) <= memory_bytes:
            self._memory = self._read(self._where)

    def __len__(self) -> int:
        return len(self._where)

    def take(self, indices: np.ndarray) -> Tensor:
        """Rows `[n, d_in]` in the cache's type, `indices` counting usable rows of this split."""
        if self._memory is not None:
            return self._memory.index_select(0, torch.from_numpy(indices))
        return self._read(self._where[indices])

    def spread(self, count: int) -> Tensor:
        """At most `count` rows, evenly spaced, always the same."""
        count = min(count, len(self))
        return self.take(np.arange(count) * len(self) // max(count, 1))

    def _read(self, where: np.ndarray) -> Tensor:
        """Rows of the cache by number, a row group at a time so that pages are touched in order."""
        result = torch.empty(len(where), self.cache.d_in, dtype=DTYPES[self.cache.dtype])
        group_of = np.searchsorted(self._starts, where, side="right") - 1
        order = np.argsort(group_of, kind="stable")
        bounds = np.flatnonzero(np.diff(group_of[order], prepend=-1, append=-1))
        for low, high in itertools.pairwise(bounds):
            slots = order[low:high]
            group = self._groups[group_of[slots[0]]]
            view = self.cache.read(group.start, group.stop)
            result[torch.from_numpy(slots)] = view[torch.from_numpy(where[slots] - group.start)]
        return result


class CacheSource:
    """The rows of one split as an endless stream: one seeded permutation an epoch, one after another.

    Args:
        rows: Of a cache.
        seed: Of the permutations.
    """

    def __init__(self, rows: Rows, *, seed: int) -> None:
        self.hookpoint = rows.cache.hookpoint
        self.d_in = rows.cache.d_in
        self.masked = rows.masked
        self.collective = False
        self._rows = rows
        self._seed = seed
        self._drawn = 0
        self._epoch = -1
        self._order = np.empty(0, np.int64)

    @property
    def rows(self) -> int:
        """Rows of one epoch."""
        return len(self._rows)

    @property
    def cursor(self) -> Cursor:
        """The rows drawn so far."""
        return {"drawn": self._drawn}

    def seek(self, cursor: Cursor) -> None:
        """Go to where `cursor` was read."""
        self._drawn = cursor["drawn"]

    def first(self, count: int) -> Tensor:
        """At most `count` rows from the start of the stream."""
        return self._rows.take(self.draw(0, min(count, self.rows)))

    def next(self, count: int, *, rank: int = 0, size: int = 1) -> Tensor:
        """This rank's part of the next `count` rows, in the cache's type."""
        low, high = (self._drawn + part * count // size for part in (rank, rank + 1))
        self._drawn += count
        return self._rows.take(np.ascontiguousarray(self.draw(low, high)))

    def where(self, count: int) -> str:
        """The next rows in words."""
        epoch, low = divmod(self._drawn, self.rows)
        return f"rows {low}-{low + count - 1} of the shuffle of epoch {epoch}"

    def draw(self, start: int, stop: int) -> np.ndarray:
        """Row numbers at positions `[start, stop)` of the stream; a pure function of its arguments and the seed."""
        count = self.rows
        parts: Sequence[np.ndarray] = [
            self._permutation(epoch)[max(start - epoch * count, 0) : stop - epoch * count]
            for epoch in range(start // count, -(-stop // count))
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _permutation(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            self._order = np.random.Generator(np.random.PCG64([self._seed, epoch])).permutation(self.rows)
            self._epoch = epoch
        return self._order


def _masked(cache: ActivationCache, span: range) -> dict[str, int]:
    """Rows of the span that the mask leaves out, each counted under its first reason."""
    part = slice(span.start, span.stop)
    first = cache.positions[part] == 0
    special = np.isin(cache.token_ids[part], cache.special_ids) & ~first
    norm = (cache.norms[part] > cache.norm_limit) & ~first & ~special
    return {"position0": int(first.sum()), "special": int(special.sum()), "norm": int(norm.sum())}
