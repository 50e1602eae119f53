"""Variance components against a table worked by hand, and against planted ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from saeinterp.errors import DataError
from saeinterp.stats import split_variance


def test_a_balanced_table_gives_the_analysis_of_variance_worked_by_hand() -> None:
    # Two groups, two rows, two columns. Means 3 and 7; rows 2, 4 and 6, 8; columns 2.5, 3.5 and 7, 7; rest ±0.5, ±1.
    values = [np.array([[1.0, 3.0], [4.0, 4.0]]), np.array([[5.0, 7.0], [9.0, 7.0]])]
    found = split_variance(values)
    # MS: groups 4 * (2² + 2²) / 1 = 32; rows 2 * (1 + 1 + 1 + 1) / 2 = 4; columns 2 * (0.25 + 0.25) / 2 = 0.5;
    # rest (4 * 0.5² + 4 * 1²) / 2 = 2.5.
    assert found.between == pytest.approx((32 - 4 - 0.5 + 2.5) / 4)
    assert found.of_rows == pytest.approx((4 - 2.5) / 2 / 2)
    assert found.of_columns == pytest.approx((0.5 - 2.5) / 2)
    assert found.rest == pytest.approx(2.5 / 2)
    assert (found.groups, found.rows, found.columns) == (2, 4, 2)
    assert all(item.low is None and "too few" in (item.reason or "") for item in found.intervals)


def drawn(rng: np.random.Generator, groups: int, *, between: float, rows: float, columns: float, rest: float) -> list:
    """Tables with planted variances, 8 to 15 rows and three columns each."""
    tables = []
    for size in rng.integers(8, 16, groups):
        table = rng.normal(0, rows**0.5, (size, 1)) + rng.normal(0, columns**0.5, (1, 3))
        tables.append(rng.normal(0, between**0.5) + table + rng.normal(0, rest**0.5, (size, 3)))
    return tables


def test_planted_components_are_found_and_lie_in_their_intervals() -> None:
    rng = np.random.default_rng(0)
    runs, inside, estimates = 120, np.zeros(4), []
    for seed in range(runs):
        tables = drawn(rng, 25, between=0.04, rows=0.24, columns=0.03, rest=0.12)
        found = split_variance(tables, draws=400, seed=seed)
        share = np.mean([1 / len(table) for table in tables])
        truth = (0.04, 0.24 * share, 0.03, 0.12 * share)
        estimates.append(np.array(found[3:7]) - truth)
        limits = [(item.low, item.high) for item in found.intervals]
        inside += [low <= value <= high for (low, high), value in zip(limits, truth, strict=True)]
    mean, error = np.mean(estimates, axis=0), np.std(estimates, axis=0) / runs**0.5
    assert (np.abs(mean) < 4 * error).all()
    assert (inside / runs > 0.88).all()


def test_a_component_that_is_not_there_is_around_zero() -> None:
    rng = np.random.default_rng(1)
    found = [split_variance(drawn(rng, 20, between=0.0, rows=0.1, columns=0.0, rest=0.1), draws=50) for _ in range(60)]
    for name in ("between", "of_columns"):
        values = [getattr(item, name) for item in found]
        assert min(values) < 0 < max(values)
        assert abs(np.mean(values)) < 4 * np.std(values) / len(values) ** 0.5


@given(arrays.arrays(np.float64, (6, 4, 3), elements=st.floats(-5, 5)), st.floats(-3, 3))
def test_a_shift_changes_nothing_and_columns_that_agree_have_no_part(values: np.ndarray, shift: float) -> None:
    found, shifted = split_variance(list(values), draws=20), split_variance(list(values + shift), draws=20)
    assert found[3:7] == pytest.approx(shifted[3:7], abs=1e-9)
    same = split_variance(list(np.repeat(values[:, :, :1], 3, axis=2)), draws=20)
    assert same.of_columns == pytest.approx(0, abs=1e-9)
    assert same.rest == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("shapes", [[], [(3, 2)], [(3, 2), (3, 3)], [(3, 1), (3, 1)], [(1, 2), (1, 2)]])
def test_too_little_is_refused(shapes: list[tuple[int, int]]) -> None:
    with pytest.raises(DataError, match="cannot be split"):
        split_variance([np.zeros(shape) for shape in shapes])
