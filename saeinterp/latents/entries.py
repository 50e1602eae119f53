"""The latent cache sorted by latent: every entry of one latent without reading those of the others.

One pass collects entries until a budget is full, sorts them by latent and appends them to a scratch file; a latent's
entries are then its slices of all these runs, one after another. The surprising choice: runs are never merged. There
are few of them (39 for 10 million tokens at k = 32), so reading a latent takes that many small reads.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple, Self

import numpy as np
from scipy import sparse

from saeinterp.latents.cache import Firings, LatentCache
from saeinterp.progress import Progress

BUDGET = 256 * 2**20
"""Bytes of entries in memory while they are sorted."""
_ENTRY_BYTES = 32  # row, latent and value, collected and joined; then joined and sorted, with an edge per row
_ITEM = 4  # both files hold 4-byte numbers


class Entries(NamedTuple):
    """Where one latent fires; parallel arrays in row order.

    Attributes:
        rows: int32 `[n]`, rows of the caches.
        values: float32 `[n]`, never 0.
    """

    rows: np.ndarray
    values: np.ndarray


@dataclass(frozen=True, eq=False)
class SortedEntries:
    """Sorted runs in two scratch files; see `sort_entries`. A context manager that closes them.

    Attributes:
        first_rows: `[M]` int64: the first kept row each latent fires on; the number of rows where it never does.
        firings: `[M]` int64: entries of each latent on all rows, kept or not.
    """

    first_rows: np.ndarray
    firings: np.ndarray
    _files: tuple[IO[bytes], IO[bytes]]
    _starts: np.ndarray  # [runs]: entries in the runs before
    _offsets: np.ndarray  # [runs, M + 1]: where each latent begins in its run

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()

    def of(self, latent: int) -> Entries:
        """All entries of one latent."""
        return Entries(self.rows(latent), self._read(1, latent, np.float32))

    def rows(self, latent: int) -> np.ndarray:
        """The rows alone."""
        return self._read(0, latent, np.int32)

    def _read(self, file: int, latent: int, kind: type) -> np.ndarray:
        starts = self._starts + self._offsets[:, latent]
        counts = self._offsets[:, latent + 1] - self._offsets[:, latent]
        found, done = np.empty(_ITEM * counts.sum(), np.uint8), 0
        for start, count in zip((_ITEM * starts).tolist(), (_ITEM * counts).tolist(), strict=True):
            if count:
                os.preadv(self._files[file].fileno(), [found.data[done : done + count]], start)
                done += count
        return found.view(kind)


def sort_entries(
    cache: LatentCache, inside: np.ndarray, *, scratch: Path, report: Progress, budget: int = BUDGET
) -> SortedEntries:
    """Read the whole cache once and sort it by latent; 8 bytes an entry on disk.

    Args:
        inside: `[rows]` bool: rows whose entries are kept.
        scratch: A folder for the two files; what an earlier, killed run left there is overwritten.
        budget: Bytes of entries in memory at a time. Changes nothing but memory and time.
    """
    capacity = max(1, budget // _ENTRY_BYTES)
    files = ((scratch / "rows.bin").open("w+b"), (scratch / "values.bin").open("w+b"))
    first_rows = np.full(cache.num_latents, cache.rows, np.int64)
    firings = np.zeros(cache.num_latents, np.int64)
    offsets: list[np.ndarray] = []
    held: list[Firings] = []
    count = 0
    for chunk in cache.firings():
        firings += np.bincount(chunk.latents, minlength=cache.num_latents)
        keep = inside[chunk.rows]
        kept = Firings(*(column[keep] for column in chunk))
        if held and count + len(kept.rows) > capacity:
            offsets.append(_write_run(held, first_rows, files))
            held, count = [], 0
        held.append(kept)
        count += len(kept.rows)
        if len(chunk.rows):
            report(int(chunk.rows[-1]) + 1, cache.rows, "tokens")
    offsets.append(_write_run(held, first_rows, files))
    for file in files:
        file.flush()
    table = np.stack(offsets)
    starts = np.concatenate([[0], np.cumsum(table[:, -1])[:-1]])
    return SortedEntries(first_rows, firings, files, starts, table)


def _write_run(held: list[Firings], first_rows: np.ndarray, files: tuple[IO[bytes], IO[bytes]]) -> np.ndarray:
    """Append entries in the order (latent, row) and empty `held`; returns `[M + 1]` int64, where latents begin."""
    rows, latents, values = (np.concatenate(column) for column in zip(*held, strict=True))
    held.clear()
    if not len(rows):
        return np.zeros(len(first_rows) + 1, np.int64)
    base, stop = int(rows[0]), int(rows[-1]) + 1
    edges = np.searchsorted(rows, np.arange(base, stop + 1, dtype=np.int32))
    # Rows to columns of a sparse matrix is a counting sort in C: stable, and faster than argsort.
    run = sparse.csr_array((values, latents, edges), shape=(stop - base, len(first_rows))).tocsc()
    rows = (run.indices + base).astype(np.int32, copy=False)
    files[0].write(rows.data)
    files[1].write(run.data.data)
    begins = np.asarray(run.indptr, np.int64)
    present = np.flatnonzero(np.diff(begins))
    first_rows[present] = np.minimum(first_rows[present], rows[begins[present]])
    return begins
