"""Paired comparison of two score columns by sign flips, and multiple-testing adjustment.

The surprising choice: nothing is bisected. With `F` the flipped pairs, |sum| under the flip reaches the
observed |sum| about `delta` exactly when `delta` lies between mean(d over F) and mean(d over the rest).
So p(delta) only counts intervals around the mean, the test inverts in closed form by order statistics,
and p value, confidence interval and equivalence test are three readings of one sorted table: they cannot
contradict each other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy import stats

from saeinterp.errors import DataError
from saeinterp.stats.intervals import Floats, Interval, as_column, check_alpha
from saeinterp.stats.power import min_detectable

Verdict = Literal["different", "equivalent", "inconclusive"]

EXACT_PAIRS = 20
"""Up to so many pairs every sign assignment is enumerated."""
DRAWS = 100_000
"""Random sign assignments beyond that."""
TOLERANCE = 1e-12
"""Sums closer than this are equal (times the largest magnitude, where that exceeds 1)."""
MIN_PAIRS = 6
"""Fewer pairs cannot reach p < 0.05 by sign flips: the smallest p is 2 / 2**n."""


class SignFlips:
    """The sign-flip distribution of the mean of `values`, about every hypothetical mean at once.

    Valid when the values are symmetric about their mean under the null, as differences of exchangeable
    sides are.

    Args:
        values: Differences (or one side's values) [n].
        seed: Seed of the draws; without effect up to `EXACT_PAIRS` values.
        draws: Random sign assignments where they are not enumerated.
    """

    def __init__(self, values: Iterable[float] | Floats, *, seed: int = 0, draws: int = DRAWS) -> None:
        column = as_column(values, name="values")
        self.n = len(column)
        self.mean = float(column.mean())
        self.exact = self.n <= EXACT_PAIRS
        self.tolerance = TOLERANCE * max(1.0, float(np.abs(column).max()))
        sums, sizes = _all_subsets(column) if self.exact else _drawn_subsets(column, seed=seed, draws=draws)
        proper = (sizes > 0) & (sizes < self.n)
        flipped = sums[proper] / sizes[proper]
        kept = (column.sum() - sums[proper]) / (self.n - sizes[proper])
        self._low = np.sort(np.minimum(flipped, kept))
        self._high = np.sort(np.maximum(flipped, kept))
        # An assignment and its opposite count once. Flipping none or all is as extreme as observed about any mean;
        # enumeration holds it, a drawn set is joined by it.
        self._total = len(sizes) + (not self.exact)
        self._always = self._total - len(self._low)

    @property
    def method(self) -> str:
        """As printed in reports."""
        return f"sign-flip, exact over 2^{self.n}" if self.exact else f"sign-flip, {self._total - 1} draws"

    def p_value(self, mean: float = 0.0) -> float:
        """Two-sided p of the hypothesis that the true mean is `mean`."""
        if mean <= self.mean:
            count = np.searchsorted(self._low, mean + self.tolerance, side="right")
        else:
            count = len(self._high) - np.searchsorted(self._high, mean - self.tolerance, side="left")
        return float((self._always + count) / self._total)

    def p_greater(self, mean: float) -> float:
        """One-sided p of `true mean <= mean` against a greater one."""
        at = mean + self.tolerance
        count = np.searchsorted(self._low, at, side="right") + np.searchsorted(self._high, at, side="right")
        return float((self._always * (1 + (self.mean <= at)) + count) / (2 * self._total))

    def p_less(self, mean: float) -> float:
        """One-sided p of `true mean >= mean` against a smaller one."""
        at = mean - self.tolerance
        below = np.searchsorted(self._low, at, side="left") + np.searchsorted(self._high, at, side="left")
        count = 2 * len(self._low) - below
        return float((self._always * (1 + (self.mean >= at)) + count) / (2 * self._total))

    def interval(self, *, alpha: float = 0.05) -> Interval:
        """Every mean that the two-sided test does not reject (p >= alpha); closed."""
        check_alpha(alpha)
        needed = max(0, math.ceil(alpha * self._total) - self._always - 1)
        while (needed + self._always) / self._total < alpha:
            needed += 1
        level = 1 - alpha
        if needed == 0:
            reason = f"n = {self.n} is too few: no sign-flip p can fall below {alpha:g}"
            return Interval(None, None, level, self.method, self.n, reason)
        return Interval(float(self._low[needed - 1]), float(self._high[-needed]), level, self.method, self.n)

    def equivalence_p(self, margin: float) -> float:
        """p of TOST: the larger of the one-sided tests against -margin and +margin (Schuirmann 1987)."""
        if not margin > 0:
            raise DataError("is not positive", field="margin", got=margin)
        return max(self.p_greater(-margin), self.p_less(margin))


class PairedComparison(NamedTuple):
    """Two columns compared pair by pair; `difference` is mean_b - mean_a.

    Attributes:
        n: Pairs.
        mean_a: Mean of column a; `mean_b` likewise.
        sd_a: Standard deviation (n - 1) of column a; None for n = 1. `sd_b`, `sd_difference` likewise.
        difference: Mean of b - a.
        ci_low: Lower limit of the difference, the sign-flip test inverted; None when unbounded.
        ci_high: Upper limit.
        ci_reason: Why the limits are None.
        p_value: Two-sided sign-flip p of "no difference".
        pearson_r: Correlation of the columns; None when one is constant or n < 3. `spearman_r` likewise.
        min_detectable: Smallest true difference a paired t test would detect with power 0.8, two-sided `alpha`,
            at the observed sd of differences; None for n < 2 or sd 0.
        equivalence_p: p of TOST within +-margin by sign flips.
        verdict: `different` (p < alpha), else `equivalent` (equivalence_p < alpha), else `inconclusive`.
        alpha: Two-sided level of test and interval.
        margin: Equivalence margin.
        method: How p and interval were made.
    """

    n: int
    mean_a: float
    mean_b: float
    sd_a: float | None
    sd_b: float | None
    difference: float
    sd_difference: float | None
    ci_low: float | None
    ci_high: float | None
    ci_reason: str | None
    p_value: float
    pearson_r: float | None
    spearman_r: float | None
    min_detectable: float | None
    equivalence_p: float
    verdict: Verdict
    alpha: float
    margin: float
    method: str


def compare_paired(
    a: Iterable[float] | Floats,
    b: Iterable[float] | Floats,
    *,
    seed: int = 0,
    alpha: float = 0.05,
    margin: float = 0.05,
    draws: int = DRAWS,
) -> PairedComparison:
    """Compare two score columns [n] of the same n units; the difference is mean_b - mean_a.

    Raises:
        DataError: The columns are empty, differ in length, or hold NaN or infinities.
    """
    first, second = as_column(a, name="a"), as_column(b, name="b")
    if len(first) != len(second):
        raise DataError(
            "the columns differ in length",
            field="paired comparison",
            got=(len(first), len(second)),
            expected="one value per unit on each side",
        )
    differences = second - first
    flips = SignFlips(differences, seed=seed, draws=draws)
    p = flips.p_value(0.0)
    interval = flips.interval(alpha=alpha)
    low, high = interval.low, interval.high
    if low is not None and high is not None and p >= alpha:
        # An end that equals 0 up to rounding counts as containing it, as it did for p.
        low, high = min(low, 0.0), max(high, 0.0)
    equivalence = flips.equivalence_p(margin)
    n = len(differences)
    sd = _sd(differences)
    return PairedComparison(
        n=n,
        mean_a=float(first.mean()),
        mean_b=float(second.mean()),
        sd_a=_sd(first),
        sd_b=_sd(second),
        difference=flips.mean,
        sd_difference=sd,
        ci_low=low,
        ci_high=high,
        ci_reason=interval.reason,
        p_value=p,
        pearson_r=correlation(first, second),
        spearman_r=correlation(stats.rankdata(first), stats.rankdata(second)),
        min_detectable=None if sd is None else min_detectable(sd=sd, n=n, alpha=alpha),
        equivalence_p=equivalence,
        verdict="different" if p < alpha else "equivalent" if equivalence < alpha else "inconclusive",
        alpha=alpha,
        margin=margin,
        method=flips.method,
    )


def mean_interval(
    values: Iterable[float] | Floats, *, alpha: float = 0.05, seed: int = 0, draws: int = DRAWS
) -> Interval:
    """Interval of one column's mean: the sign-flip test about the mean inverted; None limits below six values."""
    return SignFlips(values, seed=seed, draws=draws).interval(alpha=alpha)


def correlation(a: Floats, b: Floats) -> float | None:
    """Pearson r; None below three pairs (two always lie on a line) or when a column is constant."""
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    x, y = a - a.mean(), b - b.mean()
    scale = math.sqrt(float(x @ x)) * math.sqrt(float(y @ y))
    # Columns whose spread is lost in rounding are constant.
    return min(1.0, max(-1.0, float(x @ y) / scale)) if scale > 0 else None


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Two-sided exact McNemar p from the discordant counts: binomial with probability 1/2.

    Valid for independent examples: within one latent, at most one example per document.
    """
    if only_a < 0 or only_b < 0:
        raise DataError("counts are negative", field="McNemar", got=(only_a, only_b))
    total = only_a + only_b
    return min(1.0, 2 * float(stats.binom.cdf(min(only_a, only_b), total, 0.5))) if total else 1.0


def holm(p_values: Sequence[float] | Floats) -> list[float]:
    """Holm's step-down adjusted p values, in the given order (Holm 1979)."""
    p = np.asarray(p_values, dtype=np.float64)
    if not len(p):
        return []
    if not np.all((p >= 0) & (p <= 1)):
        raise DataError("hold something that is no probability", field="p values", got=p_values)
    order = np.argsort(p, kind="stable")
    stepped = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    adjusted = np.empty_like(p)
    adjusted[order] = stepped
    return [float(value) for value in adjusted]


def _sd(column: Floats) -> float | None:
    if len(column) < 2:
        return None
    # Equal values have no spread, whatever rounding their mean went through.
    return 0.0 if np.ptp(column) == 0 else float(column.std(ddof=1))


def _all_subsets(column: Floats) -> tuple[Floats, Floats]:
    """Sums and sizes of every subset without the first element: one of each complementary pair [2^(n-1)]."""
    sums, sizes = np.zeros(1), np.zeros(1)
    for value in column[1:]:
        sums = np.concatenate([sums, sums + value])
        sizes = np.concatenate([sizes, sizes + 1])
    return sums, sizes


def _drawn_subsets(column: Floats, *, seed: int, draws: int) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(seed)
    n, chunk = len(column), max(1, 4_000_000 // len(column))
    both = np.stack([column, np.ones(n)], axis=1)
    parts = []
    for start in range(0, draws, chunk):
        rows = min(chunk, draws - start)
        packed = rng.integers(0, 256, size=(rows, (n + 7) // 8), dtype=np.uint8)
        parts.append(np.unpackbits(packed, axis=1, count=n).astype(np.float64) @ both)
    sums, sizes = np.concatenate(parts).T
    return sums, sizes
