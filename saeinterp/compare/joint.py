"""Document sums of many SAEs side by side, and linear combinations of their metrics resampled together.

One set of resampled documents serves every SAE of every side, so what makes a document hard for all of them
cancels in a difference. The surprising choice: a document that one side lacks is a row of zeros there. With
equal texts it is paired, with disjoint ones each side's own documents are drawn, and nothing else changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from saeinterp.compare.sides import LayerHealth
from saeinterp.health.documents import COLUMNS, Floats, Totals, of_documents, ratios
from saeinterp.stats import Interval, bootstrap_intervals, jackknife_errors

BITS = "delta_ce_bits_per_byte"
RATIOS = ("loss_recovered", "loss_recovered_mean_ablation", "delta_ce", "fvu", "l0_mean")
VALUES = (*RATIOS, BITS)
"""What a combination may be made of; in each [..., 6] below in this order."""


class Combination(NamedTuple):
    """A linear combination of one metric over SAEs: SAE index -> factor."""

    metric: str
    factors: Mapping[int, float]


def mean_of(metric: str, saes: Sequence[int]) -> Combination:
    """The mean over SAEs."""
    return Combination(metric, dict.fromkeys(saes, 1 / len(saes)))


def difference_of(metric: str, a: Sequence[int], b: Sequence[int]) -> Combination:
    """Mean over side b's SAEs minus mean over side a's; an SAE on both sides cancels as far as it should."""
    return average([mean_of(metric, b), Combination(metric, {sae: -1 / len(a) for sae in a})], total=1)


def average(combinations: Sequence[Combination], *, total: int | None = None) -> Combination:
    """The sum of combinations of one metric over `total` (default: how many there are)."""
    factors: dict[int, float] = {}
    for combination in combinations:
        for sae, factor in combination.factors.items():
            factors[sae] = factors.get(sae, 0.0) + factor / (total or len(combinations))
    return Combination(combinations[0].metric, factors)


class Joint:
    """The SAEs measured on one dataset.

    Args:
        saes: Their health; documents of equal number are one document.
    """

    def __init__(self, saes: Sequence[LayerHealth]) -> None:
        union = np.unique(np.concatenate([sae.documents.doc_ids for sae in saes]))
        self.n = len(union)
        """Documents of any side."""
        self._saes = len(saes)
        self._columns: Floats = np.concatenate([_block(sae, union) for sae in saes], axis=1)

    def values(self, weights: Floats) -> Floats:
        """Document weights [..., n] to values [..., saes, 6]."""
        return self._values(weights @ self._columns)

    def points(self, combinations: Sequence[Combination]) -> list[float]:
        """Over all documents, each once; NaN where undefined."""
        if not combinations:
            return []
        return [float(value) for value in self._combine(self.values(np.ones(self.n)), combinations)]

    def intervals(self, combinations: Sequence[Combination], *, draws: int, alpha: float, seed: int) -> list[Interval]:
        """Bootstrap intervals over documents, all from one set of resamples."""
        if not combinations:
            return []
        found = bootstrap_intervals(self._statistic(combinations), self.n, draws=draws, alpha=alpha, seed=seed)
        return [of_documents(interval) for interval in found]

    def errors(self, combinations: Sequence[Combination]) -> list[float]:
        """Jackknife standard errors over documents; NaN where undefined or with one document."""
        if not combinations or self.n < 2:
            return [math.nan] * len(combinations)
        return [float(error) for error in jackknife_errors(self._statistic(combinations), self.n)]

    def intervals_of(
        self, function: Callable[[Floats], Floats], *, draws: int, alpha: float, seed: int
    ) -> tuple[Floats, list[Interval]]:
        """Values [m] and bootstrap intervals of a function from values [..., saes, 6] to [..., m]."""
        statistic = Totals(self._columns, lambda totals: function(self._values(totals)))
        found = bootstrap_intervals(statistic, self.n, draws=draws, alpha=alpha, seed=seed)
        return statistic(np.ones(self.n)), [of_documents(interval) for interval in found]

    def _statistic(self, combinations: Sequence[Combination]) -> Totals:
        return Totals(self._columns, lambda totals: self._combine(self._values(totals), combinations))

    def _values(self, totals: Floats) -> Floats:
        blocks = totals.reshape(*totals.shape[:-1], self._saes, len(COLUMNS) + 2)
        added, size = blocks[..., -2], blocks[..., -1] * math.log(2)
        bits = np.divide(added, size, out=np.full(size.shape, np.nan), where=size > 0)
        return np.concatenate([ratios(blocks[..., : len(COLUMNS)], list(RATIOS)), bits[..., None]], axis=-1)

    @staticmethod
    def _combine(values: Floats, combinations: Sequence[Combination]) -> Floats:
        found = []
        for metric, factors in combinations:
            # Only the SAEs that take part: NaN of another one is none of this combination's business.
            used, weights = list(factors), np.array(list(factors.values()))
            found.append(values[..., used, VALUES.index(metric)] @ weights)
        return np.stack(found, axis=-1)


def _block(sae: LayerHealth, union: NDArray[np.int32]) -> Floats:
    """[n, 14]: the document sums, then what splicing adds to the loss (nats) and bytes, of shared documents."""
    sums = sae.documents.aligned(union)
    extra = np.zeros((len(union), 2))
    if sae.scored_bytes is not None:
        rows = np.searchsorted(union, sae.documents.doc_ids)
        added = sae.documents.sums[:, COLUMNS.index("ce_spliced")] - sae.documents.sums[:, COLUMNS.index("ce_clean")]
        extra[rows, 0] = np.where(sae.scored_bytes > 0, added, 0.0)
        extra[rows, 1] = sae.scored_bytes
    return np.concatenate([sums, extra], axis=1)
