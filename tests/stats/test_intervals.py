"""Proportions and columns: Wilson against SciPy and hand-worked values, bad input refused by name."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from saeinterp.errors import DataError
from saeinterp.stats import as_column, wilson_interval


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_wilson_interval_is_scipys(counts: tuple[int, int]) -> None:
    successes, n = counts
    expected = stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
    interval = wilson_interval(successes, n)
    assert interval.low == pytest.approx(expected.low, abs=1e-9)
    assert interval.high == pytest.approx(expected.high, abs=1e-9)
    assert interval.contains(successes / n)


def test_wilson_at_the_ends_touches_zero_and_one() -> None:
    # Worked by hand: 0 of 10 has the upper limit z^2 / (n + z^2) = 3.8415 / 13.8415.
    assert wilson_interval(0, 10).low == 0.0
    assert wilson_interval(0, 10).high == pytest.approx(3.841459 / 13.841459, abs=1e-6)
    assert wilson_interval(10, 10).high == 1.0


def test_no_trials_give_no_interval_but_a_reason() -> None:
    interval = wilson_interval(0, 0)
    assert interval.low is None
    assert interval.reason == "no trials"


def test_more_successes_than_trials_are_refused() -> None:
    with pytest.raises(DataError, match="successes exceed trials"):
        wilson_interval(11, 10)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "is empty"),
        ([0.1, float("nan"), 0.2], "first in row 1"),
        ([0.1, float("inf")], "not finite"),
        (["a", "b"], "not numbers"),
        ([0.1, None], "not numbers"),
        (np.zeros((2, 2)), "not one-dimensional"),
    ],
)
def test_a_column_that_cannot_be_averaged_is_refused_by_name(values: object, message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        as_column(values, name="f1 of side a")  # type: ignore[arg-type]
    assert "f1 of side a" in str(error.value)
