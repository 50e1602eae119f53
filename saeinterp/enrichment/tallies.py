"""Few distinct tables among very many pairs: what is computed once for each, and how many pairs have it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from saeinterp.enrichment.contingency import Counts, Margins, Pairs

_MERGE = 2_000_000


class Tables(NamedTuple):
    """The distinct tables of some pairs.

    Attributes:
        keys: Ascending, as of `Margins.keys`.
        both: Samples with latent and token, per table.
        firing: Samples in which the latent is active.
        holding: Samples that hold the token.
        pairs: How many pairs have the table.
        of_pair: `[pairs]`: which table each pair has; empty where only numbers of pairs are known.
    """

    keys: Counts
    both: Counts
    firing: Counts
    holding: Counts
    pairs: Counts
    of_pair: Counts

    @classmethod
    def of(cls, pairs: Pairs, margins: Margins) -> Tables:
        """Of listed pairs."""
        keys, of_pair, count = np.unique(
            margins.keys(pairs.latent, pairs.token, pairs.both), return_inverse=True, return_counts=True
        )
        return cls(keys, *margins.tables(keys), count, of_pair)


class Tally:
    """Distinct tables of blocks of pairs, added up."""

    def __init__(self, margins: Margins) -> None:
        self._margins = margins
        self._parts: list[tuple[Counts, Counts]] = []
        self._pending = 0

    def add(self, keys: Counts, pairs: Counts | None = None) -> None:
        """Count the pairs of a block: their keys, or distinct keys and how many pairs have each."""
        keys, count = np.unique(keys, return_counts=True) if pairs is None else (keys, pairs)
        self._parts.append((keys, count))
        self._pending += len(keys)
        if self._pending > _MERGE and len(self._parts) > 1:
            self._merge()

    def tables(self) -> Tables:
        """All so far."""
        keys, count = self._merge()
        return Tables(keys, *self._margins.tables(keys), count, np.zeros(0, np.int64))

    def _merge(self) -> tuple[Counts, Counts]:
        nothing = np.zeros(0, np.int64)
        keys, place = np.unique(np.concatenate([nothing, *(part[0] for part in self._parts)]), return_inverse=True)
        count = np.concatenate([nothing, *(part[1] for part in self._parts)])
        merged = (keys, np.bincount(place, weights=count, minlength=len(keys)).astype(np.int64))
        self._parts, self._pending = [merged], 0
        return merged
