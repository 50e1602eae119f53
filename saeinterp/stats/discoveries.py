"""False discovery rates of discrete tests: which tests could reject at all, and Benjamini–Hochberg over those.

The surprising choice: p values come with multiplicities. Tests of 2×2 tables take few distinct values, so a family of
millions is handled as a short table.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import digamma

from saeinterp.stats.intervals import Floats


class Family(NamedTuple):
    """Which tests of a family could be rejected, whatever the data (Tarone 1990; Gilbert 2005).

    Attributes:
        tests: How many: the number to adjust for.
        limit: ln of the largest smallest attainable p among them; -inf where there is none.
    """

    tests: int
    limit: float


def attainable_family(log_smallest: npt.ArrayLike, weight: npt.ArrayLike, *, alpha: float) -> Family:
    """The tests whose smallest attainable p is at most alpha / K, for the smallest K that no more than K tests pass.

    Args:
        log_smallest: ln of the smallest p that the margins allow.
        weight: How many tests have it.
    """
    smallest, count = np.asarray(log_smallest, np.float64).ravel(), np.asarray(weight, np.int64).ravel()
    order = np.argsort(smallest, kind="stable")
    smallest, total = smallest[order], np.cumsum(count[order])
    if not len(total) or not total[-1]:
        return Family(0, -np.inf)

    def passing(k: int) -> int:
        index = int(np.searchsorted(smallest, np.log(alpha) - np.log(k), side="right"))
        return int(total[index - 1]) if index else 0

    low, high = 1, int(total[-1])  # passing(high) <= high always
    while low < high:
        middle = (low + high) // 2
        if passing(middle) <= middle:
            high = middle
        else:
            low = middle + 1
    family = passing(low)
    return Family(family, float(np.log(alpha) - np.log(low)) if family else -np.inf)


def dependence_penalty(tests: npt.ArrayLike) -> Floats:
    """1 + 1/2 + … + 1/tests: times this, Benjamini–Hochberg holds whatever depends on what; 1 for no test.

    Benjamini and Yekutieli (2001).
    """
    count = np.asarray(tests, np.float64)
    return np.where(count > 0, digamma(count + 1) + np.euler_gamma, 1.0)


def benjamini_hochberg(p: npt.ArrayLike, weight: npt.ArrayLike | None = None, *, family: float) -> Floats:
    """Adjusted p values (Benjamini and Hochberg 1995), in the given order.

    Args:
        p: Distinct values, or not.
        weight: How many tests have each; 1 by default.
        family: Tests in the family (for Benjamini and Yekutieli's, times `dependence_penalty`). Those not given count
            as larger than all given ones, so values up to the largest p given are exact, and larger ones are upper
            bounds.
    """
    values = np.asarray(p, np.float64)
    count = np.ones(len(values), np.int64) if weight is None else np.asarray(weight, np.int64)
    order = np.argsort(values, kind="stable")
    rank = np.cumsum(count[order])
    adjusted = np.minimum(values[order] * family / np.maximum(rank, 1), 1.0)
    result = np.empty(len(values))
    result[order] = np.minimum.accumulate(adjusted[::-1])[::-1]
    return result


def largest_rejected(p: npt.ArrayLike, weight: npt.ArrayLike, *, family: float, alpha: float) -> float:
    """The largest p that Benjamini–Hochberg rejects at `alpha`; -1 where it rejects none."""
    values = np.asarray(p, np.float64)
    rejected = values[benjamini_hochberg(values, weight, family=family) <= alpha]
    return float(rejected.max()) if len(rejected) else -1.0


def simes(p: npt.ArrayLike, group: npt.ArrayLike, tests: npt.ArrayLike) -> tuple[npt.NDArray[np.int64], Floats]:
    """Per group the p that none of its tests is an effect (Simes 1986): min over ranks i of tests · p_(i) / i.

    Args:
        p: Of the tests given; the others of a group count as larger.
        group: Index of each test's group.
        tests: `[groups]`: how many tests each group has (times `dependence_penalty`, where wanted).

    Returns:
        The groups that have a test here, ascending, and their p, at most 1.
    """
    values, owner, size = np.asarray(p, np.float64), np.asarray(group, np.int64), np.asarray(tests, np.float64)
    order = np.lexsort((values, owner))
    values, owner = values[order], owner[order]
    groups, start = np.unique(owner, return_index=True)
    if not len(groups):
        return groups, np.zeros(0)
    rank = np.arange(len(values)) - np.repeat(start, np.diff([*start, len(values)])) + 1
    return groups, np.minimum(np.minimum.reduceat(values * size[owner] / rank, start), 1.0)
