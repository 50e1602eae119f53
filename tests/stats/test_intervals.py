"""Proportions and columns: Wilson against SciPy and hand-worked values, bad input refused by name."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from saeinterp.errors import DataError
from saeinterp.stats import as_column, clustered_share, wilson_interval


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


def test_clusters_of_one_trial_give_about_the_wilson_interval() -> None:
    hits = np.repeat([1.0, 0.0], [30, 70])
    found, plain = clustered_share(hits, np.ones(100)), wilson_interval(30, 100)
    assert found.low == pytest.approx(plain.low, abs=0.002)
    assert found.high == pytest.approx(plain.high, abs=0.002)


def test_clusters_that_all_agree_count_once_each() -> None:
    found, plain = clustered_share(np.full(8, 25.0), np.full(8, 25.0)), wilson_interval(8, 8)
    assert (found.low, found.high) == (pytest.approx(plain.low), 1.0)


def test_a_share_of_few_clusters_has_no_interval_but_a_reason() -> None:
    found = clustered_share(np.array([1.0, 2, 0, 4, 3, 0]), np.array([4.0, 4, 0, 4, 4, 5]), unit="documents")
    assert found.low is None
    assert found.reason == "fewer than 6 documents"


def test_more_successes_than_trials_of_a_cluster_are_refused() -> None:
    with pytest.raises(DataError, match="successes exceed trials"):
        clustered_share(np.array([3.0]), np.array([2.0]))


@pytest.mark.parametrize("clusters", [8, 15, 30, 100])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_interval_of_a_clustered_share_covers_nearly_as_often_as_it_says(share: float, clusters: int) -> None:
    """Trials of a document resemble each other (intraclass correlation 1/3): Wilson alone covers about 73%."""
    rng = np.random.default_rng(0)
    covered = plain = 0
    for _ in range(1000):
        trials = rng.integers(1, 12, clusters)
        hits = rng.binomial(trials, rng.beta(2 * share, 2 * (1 - share), clusters))
        covered += clustered_share(hits.astype(float), trials.astype(float)).contains(share)
        plain += wilson_interval(int(hits.sum()), int(trials.sum())).contains(share)
    assert 0.885 <= covered / 1000 <= 0.98
    assert plain / 1000 < 0.78
