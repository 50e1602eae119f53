"""Intervals with several sources of error: Welch by SciPy, and coverage with few seeds and shared documents."""

import numpy as np
import pytest
from scipy import stats

from saeinterp.errors import DataError
from saeinterp.stats import Component, component_interval, mean_component


def test_two_seed_components_are_welchs_interval() -> None:
    a, b = [0.21, 0.24, 0.22], [0.30, 0.27, 0.35, 0.31]
    expected = stats.ttest_ind(b, a, equal_var=False).confidence_interval(0.95)
    found = component_interval(
        float(np.mean(b) - np.mean(a)), [mean_component(a), mean_component(b)], n=7, method="Welch"
    )
    assert found.low == pytest.approx(expected.low, abs=1e-12)
    assert found.high == pytest.approx(expected.high, abs=1e-12)


def test_one_component_is_students_interval() -> None:
    values = [1.0, 2.0, 4.0, 4.5]
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    found = component_interval(float(np.mean(values)), [mean_component(values)], n=4, method="t", alpha=0.1)
    assert (found.low, found.high) == (pytest.approx(expected.low), pytest.approx(expected.high))


def test_nothing_that_varies_gives_no_interval() -> None:
    found = component_interval(0.5, [mean_component([1.0, 1.0]), Component(0.0, 9)], n=2, method="t")
    assert found.low is None
    assert found.reason == "nothing varies"
    with pytest.raises(DataError, match="one value has no spread"):
        mean_component([1.0])


@pytest.mark.parametrize(("seeds", "documents"), [(0.0, 1.0), (0.3, 1.0), (1.0, 0.1)])
def test_coverage_with_three_seeds_a_side_and_shared_documents(seeds: float, documents: float) -> None:
    """Seed effects of each side, a document effect of the difference, and noise of each seed on each document."""
    rng = np.random.default_rng(2)
    covered, runs = 0, 2000
    for _ in range(runs):
        shared = documents * rng.standard_normal(40)
        sides = [
            seeds * rng.standard_normal((3, 1)) + 0.2 * rng.standard_normal((3, 40)) + sign * shared / 2
            for sign in (-1, 1)
        ]
        a, b = (side.mean(axis=1) for side in sides)
        per_document = sides[1].mean(axis=0) - sides[0].mean(axis=0)
        parts = [mean_component(a), mean_component(b), mean_component(per_document)]
        interval = component_interval(float(b.mean() - a.mean()), parts, n=6, method="t")
        covered += interval.contains(0.0)
    # Not below the level; above it where the noise is counted twice and the degrees of freedom are few.
    assert covered / runs >= 0.95 - 3 * np.sqrt(0.05 * 0.95 / runs)
    assert covered / runs <= 0.995
