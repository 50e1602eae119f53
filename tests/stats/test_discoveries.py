"""Families of discrete tests, against hand-worked tables, SciPy and planted nothing."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import false_discovery_control, hypergeom

from saeinterp.stats.discoveries import (
    attainable_family,
    benjamini_hochberg,
    dependence_penalty,
    largest_rejected,
    simes,
)
from saeinterp.stats.hypergeometric import log_smallest, log_upper_tail


def test_adjusted_p_values_are_scipys() -> None:
    p = np.random.default_rng(0).random(500) ** 3
    assert benjamini_hochberg(p, family=500) == pytest.approx(false_discovery_control(p))


def test_values_that_hold_under_any_dependence_are_scipys() -> None:
    p = np.random.default_rng(1).random(500) ** 6
    penalty = dependence_penalty(500)
    assert penalty == pytest.approx(sum(1 / rank for rank in range(1, 501)))
    found = benjamini_hochberg(p, family=float(500 * penalty))
    assert found == pytest.approx(false_discovery_control(p, method="by"))
    assert dependence_penalty([0, 1, 2]) == pytest.approx([1.0, 1.0, 1.5])


def test_multiplicities_and_tests_that_are_not_listed() -> None:
    p = np.array([0.001, 0.01, 0.02, 0.2])
    weight = np.array([2, 1, 3, 4])
    spelled = np.repeat(p, weight)
    expected = false_discovery_control(np.concatenate([spelled, np.ones(90)]))
    found = benjamini_hochberg(p, weight, family=100)
    assert np.repeat(found, weight) == pytest.approx(expected[: len(spelled)])
    # 0.001 * 100 / 2 = 0.05 is rejected at 0.05, 0.01 * 100 / 3 is not.
    assert largest_rejected(p, weight, family=100, alpha=0.05) == 0.001
    assert largest_rejected(p, weight, family=100, alpha=0.04) == -1.0


def test_attainable_family_by_hand() -> None:
    # Smallest p: two tests 0.001, one 0.012, one 0.03, ninety-six 0.5. At K = 3: 0.05 / 3 = 0.0167 passes three.
    smallest = np.log([0.001, 0.012, 0.03, 0.5])
    found = attainable_family(smallest, np.array([2, 1, 1, 96]), alpha=0.05)
    assert found.tests == 3
    assert np.exp(found.limit) == pytest.approx(0.05 / 3)


def test_nothing_is_testable() -> None:
    assert attainable_family(np.log([0.5]), np.array([10]), alpha=0.05).tests == 0
    assert attainable_family(np.zeros(0), np.zeros(0), alpha=0.05).tests == 0


def test_simes_by_hand() -> None:
    groups, p = simes([0.04, 0.01, 0.03, 0.5], [7, 2, 7, 2], np.full(8, 4))
    assert groups.tolist() == [2, 7]
    # Group 2: min(0.01 * 4 / 1, 0.5 * 4 / 2); group 7: min(0.03 * 4 / 1, 0.04 * 4 / 2).
    assert p == pytest.approx([0.04, 0.08])
    assert len(simes([], [], np.full(3, 1))[0]) == 0


def test_discrete_families_keep_their_rate_where_there_is_nothing() -> None:
    rng = np.random.default_rng(3)
    n, runs, false = 80, 400, 0
    for _ in range(runs):
        row, column = rng.integers(1, 30, 60), rng.integers(1, 30, 60)
        a = hypergeom.rvs(n, row, column, random_state=rng)
        smallest = log_smallest(row, column, n)
        family = attainable_family(smallest, np.ones(60), alpha=0.05)
        tested = smallest <= family.limit
        q = benjamini_hochberg(np.exp(log_upper_tail(a, row, column, n))[tested], family=family.tests)
        false += bool((q <= 0.05).any())
    # Under the complete null any rejection is false: its share is the rate. Binomial standard error 0.011.
    assert false / runs <= 0.05 + 3 * 0.011
    assert false > 0
