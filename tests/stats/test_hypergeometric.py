"""Hypergeometric tails against exact fractions and SciPy."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import hypergeom

from saeinterp.stats.hypergeometric import (
    critical_counts,
    log_point,
    log_smallest,
    log_upper_tail,
    log_upper_tail_at,
)


def exact_tail(a: int, row: int, column: int, n: int, odds: int) -> Fraction:
    """P(X >= a), summed as whole numbers."""
    low, high = max(0, row + column - n), min(row, column)
    weight = {x: math.comb(row, x) * math.comb(n - row, column - x) * odds**x for x in range(low, high + 1)}
    return Fraction(sum(w for x, w in weight.items() if x >= a), sum(weight.values()))


def tables(n: int, *, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random margins, the empty and the full ones among them, and counts that they allow."""
    rng = np.random.default_rng(seed)
    row, column = rng.integers(0, n + 1, (2, count))
    low, high = np.maximum(row + column - n, 0), np.minimum(row, column)
    return low + (rng.random(count) * (high - low + 1)).astype(int), row, column


@pytest.mark.parametrize("odds", [1, 2])
@pytest.mark.parametrize("n", [1, 7, 60, 400])
def test_tails_are_the_exact_sums(n: int, odds: int) -> None:
    a, row, column = tables(n, count=150)
    found = log_upper_tail_at(a, row, column, n, odds=float(odds))
    for value, *table in zip(found, a.tolist(), row.tolist(), column.tolist(), strict=True):
        exact = exact_tail(*table, n, odds)
        # Logarithms of fractions far below the smallest float.
        logarithm = math.log(exact.numerator) - math.log(exact.denominator)
        assert value == pytest.approx(logarithm, rel=1e-9, abs=1e-9), table


def test_tails_agree_with_scipy_on_large_tables() -> None:
    n = 60_000
    a, row, column = tables(n, count=2000, seed=1)
    expected = hypergeom.sf(a - 1, n, row, column)
    representable = expected > 1e-290
    assert representable.sum() > 500
    found = np.exp(log_upper_tail(a, row, column, n))[representable]
    assert np.abs(found / expected[representable] - 1).max() < 1e-6


def test_a_count_that_margins_forbid_or_force() -> None:
    found = log_upper_tail(np.array([0, 3, 4, 6]), np.array([5, 5, 3, 5]), np.array([4, 8, 5, 9]), 10)
    assert found.tolist() == [0.0, 0.0, -np.inf, -np.inf]


def test_points_and_the_smallest_p() -> None:
    a, row, column = tables(50, count=200, seed=2)
    assert np.exp(log_point(a, row, column, 50)) == pytest.approx(hypergeom.pmf(a, 50, row, column), rel=1e-9)
    top = np.minimum(row, column)
    assert log_smallest(row, column, 50) == pytest.approx(log_upper_tail(top, row, column, 50), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("n", [12, 40, 301])
def test_critical_counts_are_the_first_significant_ones(n: int) -> None:
    rows, columns = np.arange(n + 1), np.arange(0, n + 1, 3)
    found = critical_counts(rows, columns, n, alpha=0.04321)
    row, column = np.broadcast_arrays(rows[:, None], columns[None])
    reachable = found <= np.minimum(row, column)
    at = hypergeom.sf(found - 1, n, row, column)
    before = hypergeom.sf(found - 2, n, row, column)
    assert (at[reachable] <= 0.04321).all()
    assert (before > 0.04321).all()
    assert (found[~reachable] == np.minimum(row, column)[~reachable] + 1).all()
    assert reachable.any()
    assert not reachable.all()
