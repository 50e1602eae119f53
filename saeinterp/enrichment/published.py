"""The rules of `seed-gsm8k-chi2`, a published analysis: which pairs it keeps, and what it calls a latent after them.

The surprising choice: all rules but the order of a latent's pairs follow from a table's margins and grow with its
count, so one critical count per pair of margins finds the kept pairs of a permutation without testing the others.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import numpy as np
import numpy.typing as npt

from saeinterp.enrichment.contingency import Counts, Incidence, Limits, Margins, Pairs
from saeinterp.enrichment.robust import LISTED, replicated
from saeinterp.enrichment.tables import critical_chi2, describe, log_corrected_chi2
from saeinterp.enrichment.tallies import Tables, Tally
from saeinterp.stats.discoveries import benjamini_hochberg
from saeinterp.stats.intervals import Floats

MIN_FIRING, LARGEST_P, MIN_ENRICHMENT, MOST_KEPT = 20, 0.01, 2.0, 20
"""Fewest samples that activate a latent, largest p, smallest enrichment, most pairs of a latent. (The rule that a table
holds at least 10 samples follows from the first.)"""


class PublishedRules:
    """The verdict on every listed pair of an incidence.

    Args:
        limits: Of `published_limits`.
        blocks: All pairs that reach them; read once.

    Attributes:
        family: How many pairs q is adjusted over.
    """

    def __init__(self, incidence: Incidence, limits: list[Limits], blocks: Iterable[Pairs]) -> None:
        self._margins = limits[0].margins
        strict = partial(critical_chi2, alpha=LARGEST_P)
        listed = partial(critical_chi2, alpha=LISTED)
        self._halves = [Limits.of(incidence.margins(half), listed) for half in (1, 2)]
        self._strict = [Limits.of(incidence.margins(half), strict) for half in (1, 2)]
        n = incidence.samples[0]
        firing, holding = incidence.firing[0], incidence.holding[0]
        tested = (firing >= MIN_FIRING) & (firing < n)
        self.family = int(tested.sum() * ((holding > 0) & (holding < n)).sum())
        everything = Tally(self._margins)
        for block in blocks:
            everything.add(self._margins.keys(block.latent, block.token, block.both))
        self._tables = everything.tables()
        self._log_p = log_corrected_chi2(self._tables.both, self._tables.firing, self._tables.holding, n)
        self._q = np.full(len(self._log_p), np.nan)
        inside = self._tables.firing >= MIN_FIRING
        self._q[inside] = benjamini_hochberg(
            np.exp(self._log_p[inside]), self._tables.pairs[inside], family=self.family
        )

    def listed(self, block: Pairs) -> Pairs:
        """All pairs of a block: it holds those with p <= 0.05 alone."""
        return block

    def columns(
        self, pairs: Pairs, tables: Tables
    ) -> tuple[Floats, dict[str, Floats], dict[str, npt.NDArray[np.generic]]]:
        """ln p and other columns per distinct table of listed pairs, and columns per pair."""
        place = np.searchsorted(self._tables.keys, tables.keys)
        good, enrichment = worth_keeping(tables.both, tables.firing, tables.holding, self._margins.samples)
        of_pair: dict[str, npt.NDArray[np.generic]] = {
            "kept": _largest(pairs.latent, enrichment[tables.of_pair], good[tables.of_pair]),
            "replicated": replicated(pairs, self._strict, self._halves),
        }
        return self._log_p[place], {"q_value": self._q[place]}, of_pair


def published_limits(incidence: Incidence) -> list[Limits]:
    """The counts from which on, or down to which, a pair has p <= 0.05."""
    return [Limits.of(incidence.margins(), partial(critical_chi2, alpha=LISTED))]


def keeping_limits(margins: Margins) -> Limits:
    """Counts below which no pair is kept; `worth_keeping` decides on the others."""

    def critical(rows: Counts, columns: Counts, n: int) -> tuple[Counts, None]:
        row, column = np.broadcast_arrays(rows[:, None], columns[None])
        above = critical_chi2(rows, columns, n, alpha=LARGEST_P)[0]
        # Enrichment 2 is at both = 2 · holding · firing / (n + firing); one less, so that rounding decides nothing.
        above = np.maximum(above, 2 * column * row // (n + row))
        possible = (row >= MIN_FIRING) & (row < n) & (column > 1) & (column < n)
        return np.where(possible, above, n + 1), None

    return Limits.of(margins, critical)


def worth_keeping(both: Counts, firing: Counts, holding: Counts, n: int) -> tuple[npt.NDArray[np.bool_], Floats]:
    """Which tables the rules keep, and the enrichment of all."""
    b, c = firing - both, holding - both
    full = np.minimum(np.minimum(both, b), np.minimum(c, n - firing - c)) > 0
    enrichment = describe(both, firing, holding, n)["enrichment"]
    p = np.exp(log_corrected_chi2(both, firing, holding, n))
    good = full & (firing >= MIN_FIRING) & (p < LARGEST_P) & (enrichment >= MIN_ENRICHMENT)
    return good, enrichment


def ranked(latent: Counts, enrichment: Floats, index: Counts) -> tuple[Counts, Counts]:
    """Pairs by latent and falling enrichment, and each one's rank; of equal ones the first token leads."""
    index = index[np.lexsort((-enrichment[index], latent[index]))]
    start = np.flatnonzero(np.diff(latent[index], prepend=-1))
    return index, np.arange(len(index)) - np.repeat(start, np.diff([*start, len(index)]))


def _largest(latent: Counts, enrichment: Floats, good: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    kept = np.zeros(len(latent), np.bool_)
    index, rank = ranked(latent, enrichment, np.flatnonzero(good))
    kept[index[rank < MOST_KEPT]] = True
    return kept
