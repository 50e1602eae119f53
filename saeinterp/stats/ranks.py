"""Rank correlation with a permutation p: whether one column rises or falls with another.

The surprising choice: below six pairs there is a coefficient and no p. Five layers of one model can give
p = 0.017 when they happen to be in order, and a trend word would then rest on five numbers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from saeinterp.errors import DataError
from saeinterp.stats.intervals import Floats, as_column
from saeinterp.stats.paired import DRAWS, MIN_PAIRS, TOLERANCE, correlation

EXACT_RANKS = 9
"""Up to so many pairs every order is enumerated (9! = 362,880)."""


class RankCorrelation(NamedTuple):
    """Spearman's rho of two columns.

    Attributes:
        n: Pairs.
        rho: Pearson's r of the mid-ranks; None when a column is constant or n < 3.
        p_value: Two-sided permutation p of "no association"; None below six pairs or without `rho`.
        method: How p was made; None without p.
        reason: Why rho or p are None.
    """

    n: int
    rho: float | None
    p_value: float | None
    method: str | None
    reason: str | None


def spearman(
    x: Iterable[float] | Floats, y: Iterable[float] | Floats, *, seed: int = 0, draws: int = DRAWS
) -> RankCorrelation:
    """Spearman's rho of two columns [n], and the share of orders of `y` whose |rho| is at least as large.

    Every order is enumerated up to `EXACT_RANKS` pairs, else `draws` seeded ones are drawn and joined by the
    observed one. Ties get mid-ranks, in the permutations too.

    Raises:
        DataError: The columns are empty, differ in length, or hold NaN or infinities.
    """
    first, second = as_column(x, name="x"), as_column(y, name="y")
    n = len(first)
    if n != len(second):
        raise DataError("the columns differ in length", field="rank correlation", got=(n, len(second)))
    a, b = stats.rankdata(first), stats.rankdata(second)
    rho = correlation(a, b)
    if rho is None:
        return RankCorrelation(n, None, None, None, f"n = {n} is too few" if n < 3 else "a column is constant")
    if n < MIN_PAIRS:
        return RankCorrelation(n, rho, None, None, f"n = {n} is too few: no test below {MIN_PAIRS}")
    a, b = a - a.mean(), b - b.mean()
    limit = abs(float(a @ b)) - TOLERANCE * max(1.0, float(a @ a))
    if n <= EXACT_RANKS:
        extreme = int((np.abs(b[_orders(n)] @ a) >= limit).sum())
        return RankCorrelation(n, rho, extreme / math.factorial(n), f"exact over {n}! orders", None)
    rng = np.random.default_rng(seed)
    extreme, chunk = 1, max(1, 2_000_000 // n)
    for start in range(0, draws, chunk):
        drawn = rng.permuted(np.tile(b, (min(chunk, draws - start), 1)), axis=1)
        extreme += int((np.abs(drawn @ a) >= limit).sum())
    return RankCorrelation(n, rho, extreme / (draws + 1), f"{draws} drawn orders", None)


@lru_cache(maxsize=1)
def _orders(n: int) -> NDArray[np.int8]:
    """All orders of n things, int8 [n!, n]."""
    return np.array(list(itertools.permutations(range(n))), dtype=np.int8)
