"""Resampling of clusters: SciPy, direct recomputation, and no interval where none can be had."""

import itertools

import numpy as np
import pytest
from scipy import stats

from saeinterp.stats import OfTotals, PooledAuroc, auroc, bootstrap_intervals, classification, swap_p_values
from saeinterp.stats.intervals import Floats


def f1(totals: Floats) -> Floats:
    return classification(totals[..., 0], totals[..., 1], totals[..., 2], totals[..., 3]).f1[..., None]


def mean(totals: Floats) -> Floats:
    return (totals[..., 0] / np.maximum(totals[..., 1], 1e-300))[..., None]


def mean_of(values: Floats) -> OfTotals:
    return OfTotals(np.stack([values, np.ones_like(values)], axis=1), mean)


def counts(n: int, *, seed: int = 0, rate: float = 0.4) -> Floats:
    rng = np.random.default_rng(seed)
    tp, fp = rng.binomial(15, rng.beta(2, 2 / rate - 2, n)), rng.binomial(15, 0.2, n)
    return np.stack([tp, fp, 15 - fp, 15 - tp], axis=1).astype(float)


def test_the_percentile_bootstrap_of_a_mean_is_scipys() -> None:
    values = np.random.default_rng(0).gamma(2, size=80)
    found = bootstrap_intervals(mean_of(values), 80, draws=20_000)[0]
    expected = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=1).confidence_interval
    width = expected.high - expected.low
    assert found.method.startswith("percentile")
    assert found.low == pytest.approx(expected.low, abs=0.03 * width)
    assert found.high == pytest.approx(expected.high, abs=0.03 * width)


def test_below_fifty_clusters_the_interval_is_bootstrap_t() -> None:
    values = np.random.default_rng(1).gamma(2, size=15)
    found = bootstrap_intervals(mean_of(values), 15, draws=4000, seed=3)[0]
    # The textbook bootstrap-t of a mean: its jackknife standard error is sd / sqrt(n).
    rng = np.random.default_rng(3)
    weights = rng.multinomial(15, np.full(15, 1 / 15), size=4000)
    samples = np.array([np.repeat(values, row) for row in weights])
    t = (samples.mean(axis=1) - values.mean()) / (samples.std(axis=1, ddof=1) / np.sqrt(15))
    high, low = np.quantile(t, [0.025, 0.975], method="inverted_cdf")
    error = values.std(ddof=1) / np.sqrt(15)
    assert found.method.startswith("bootstrap-t")
    assert found.low == pytest.approx(values.mean() - low * error, rel=1e-9)
    assert found.high == pytest.approx(values.mean() - high * error, rel=1e-9)


def test_leaving_one_out_agrees_with_recomputing() -> None:
    columns = counts(9, seed=4)
    statistic = OfTotals(columns, f1)
    without = statistic.without_each(np.ones(9))
    for index in range(9):
        assert without[index] == pytest.approx(f1(np.delete(columns, index, axis=0).sum(axis=0)))


def test_fewer_than_six_clusters_give_no_interval_but_a_reason() -> None:
    found = bootstrap_intervals(OfTotals(counts(5), f1), 5)[0]
    assert found.low is None
    assert found.reason is not None
    assert "too few" in found.reason


def test_clusters_that_do_not_vary_give_no_interval() -> None:
    columns = np.tile([5.0, 2.0, 13.0, 10.0], (12, 1))
    found = bootstrap_intervals(OfTotals(columns, f1), 12)[0]
    assert found.low is None
    assert found.reason == "the clusters do not vary"


def test_a_statistic_undefined_in_many_resamples_gets_no_interval() -> None:
    columns = np.zeros((8, 2))
    columns[0] = [0.4, 1]  # only one cluster carries any weight
    statistic = OfTotals(
        columns, lambda t: np.where(t[..., 1] > 0, t[..., 0] / np.maximum(t[..., 1], 1), np.nan)[..., None]
    )
    found = bootstrap_intervals(statistic, 8)[0]
    assert found.low is None
    assert found.reason is not None


def test_intervals_stay_inside_the_range_of_the_metric() -> None:
    columns = np.array([[15.0, 0, 15, 0]] * 9 + [[2, 9, 6, 13]])
    found = bootstrap_intervals(OfTotals(columns, f1), 10, bounds=[(0, 1)])[0]
    assert found.low is None or (found.low >= 0 and (found.high or 0) <= 1)


def test_the_swap_test_is_the_enumeration_of_swaps() -> None:
    a, b = counts(7, seed=5), counts(7, seed=6, rate=0.7)
    differences = []
    for swaps in itertools.product([False, True], repeat=7):
        swap = np.array(swaps)[:, None]
        first, second = np.where(swap, b, a).sum(axis=0), np.where(swap, a, b).sum(axis=0)
        differences.append(float((f1(second) - f1(first))[0]))
    expected = np.mean(np.abs(differences) >= abs(differences[0]) - 1e-12)
    assert swap_p_values(OfTotals(np.concatenate([a, b]), f1), 7) == [pytest.approx(expected, abs=1e-12)]


def test_swapping_sides_with_equal_counts_gives_p_one() -> None:
    a = counts(9, seed=7)
    assert swap_p_values(OfTotals(np.concatenate([a, a]), f1), 9) == [1.0]


def test_beyond_twenty_clusters_swaps_are_drawn_by_seed() -> None:
    columns = np.concatenate([counts(25, seed=8), counts(25, seed=9, rate=0.5)])
    statistic = OfTotals(columns, f1)
    first = swap_p_values(statistic, 25, draws=2000, seed=1)
    assert first == swap_p_values(statistic, 25, draws=2000, seed=1)
    assert first != swap_p_values(statistic, 25, draws=2000, seed=2)


def test_a_swap_test_of_an_undefined_value_is_none() -> None:
    columns = np.zeros((12, 4))
    assert swap_p_values(OfTotals(columns, f1), 6) == [None]


def test_pooled_auroc_counts_every_pair_across_clusters() -> None:
    rng = np.random.default_rng(10)
    truths = [rng.uniform(size=size) < 0.5 for size in (8, 5, 11, 6, 7, 9)]
    values = [np.round(rng.uniform(size=len(truth)) + 0.3 * truth, 1) for truth in truths]
    statistic = PooledAuroc(truths, values)
    expected = auroc(np.concatenate(truths), np.concatenate(values))
    assert statistic(np.ones(6))[0] == pytest.approx(expected)
    # A cluster counted twice is its examples given twice; a cluster left out is its examples dropped.
    twice = np.array([1.0, 2, 1, 0, 1, 1])
    order = [0, 1, 1, 2, 4, 5]
    repeated = auroc(np.concatenate([truths[i] for i in order]), np.concatenate([values[i] for i in order]))
    assert statistic(twice)[0] == pytest.approx(repeated)
    without = auroc(np.concatenate(truths[1:]), np.concatenate(values[1:]))
    assert statistic.without_each(np.ones(6))[0, 0] == pytest.approx(without)


def test_the_same_seed_gives_the_same_interval() -> None:
    statistic = OfTotals(counts(11), f1)
    assert bootstrap_intervals(statistic, 11, seed=1) == bootstrap_intervals(statistic, 11, seed=1)
    assert bootstrap_intervals(statistic, 11, seed=1) != bootstrap_intervals(statistic, 11, seed=2)
