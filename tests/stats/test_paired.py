"""Paired comparison: SciPy, brute force, the seed report's own rows, and properties that may never fail."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from saeinterp.errors import DataError
from saeinterp.stats import SignFlips, compare_paired, holm, mcnemar_exact, mean_interval

SEED_70B = [0.218, 0.364, 0.182, 0.343, 0.218, 0.543, 0.291, 0.236, 0.091, 0.255, 0.164]
SEED_7B = [0.127, 0.382, 0.255, 0.371, 0.145, 0.429, 0.327, 0.200, 0.436, 0.091, 0.400]

# Scores as they occur: ratios of small counts, so ties and zeros are common.
scores = st.integers(0, 30).map(lambda count: count / 30)
column_pairs = st.integers(1, 11).flatmap(
    lambda n: st.tuples(st.lists(scores, min_size=n, max_size=n), st.lists(scores, min_size=n, max_size=n))
)
any_pairs = st.integers(1, 9).flatmap(
    lambda n: st.tuples(*[st.lists(st.floats(-1e3, 1e3), min_size=n, max_size=n)] * 2)
)


def brute_force_p(differences: np.ndarray) -> float:
    """The definition: share of sign assignments whose |mean| reaches the observed one."""
    signs = np.array(list(itertools.product([1, -1], repeat=len(differences))))
    means = signs @ differences / len(differences)
    return float((np.abs(means) >= abs(differences.mean()) - 1e-12).mean())


def test_the_seed_reports_rows_give_the_published_arithmetic() -> None:
    result = compare_paired(SEED_70B, SEED_7B)
    assert (result.n, round(result.mean_a, 3), round(result.mean_b, 3)) == (11, 0.264, 0.288)
    assert (round(result.sd_a or 0, 3), round(result.sd_b or 0, 3)) == (0.121, 0.129)
    assert round(result.pearson_r or 0, 3) == 0.260
    assert result.difference == pytest.approx(0.0235, abs=5e-5)
    assert result.p_value == 1300 / 2048
    assert round(result.min_detectable or 0, 3) == 0.143
    assert result.verdict == "inconclusive"


def test_the_exact_p_is_scipys_permutation_test() -> None:
    rng = np.random.default_rng(1)
    for n in (3, 7, 12):
        a, b = rng.normal(size=n), rng.normal(0.4, size=n)
        expected = stats.permutation_test(
            (a, b),
            lambda x, y, axis: np.mean(y - x, axis=axis),
            permutation_type="samples",
            vectorized=True,
            n_resamples=np.inf,
        )
        assert compare_paired(a, b).p_value == pytest.approx(expected.pvalue, abs=1e-12)


def test_on_signed_ranks_the_test_is_wilcoxons() -> None:
    rng = np.random.default_rng(2)
    differences = rng.normal(0.3, 1, size=13)
    signed_ranks = np.sign(differences) * stats.rankdata(np.abs(differences))
    expected = stats.wilcoxon(differences, method="exact").pvalue
    assert SignFlips(signed_ranks).p_value() == pytest.approx(expected, abs=1e-12)


@given(column_pairs)
@settings(max_examples=60, deadline=None)
def test_the_counting_of_intervals_is_the_enumeration_of_signs(pair: tuple[list[float], list[float]]) -> None:
    a, b = np.array(pair[0]), np.array(pair[1])
    flips = SignFlips(b - a)
    assert flips.p_value() == pytest.approx(brute_force_p(b - a), abs=1e-15)
    for shift in (-0.25, 0.05, 0.5):
        assert flips.p_value(shift) == pytest.approx(brute_force_p(b - a - shift), abs=1e-15)


@given(column_pairs)
@settings(max_examples=60, deadline=None)
def test_one_sided_p_values_are_the_enumeration_of_signs(pair: tuple[list[float], list[float]]) -> None:
    differences = np.array(pair[1]) - np.array(pair[0])
    flips = SignFlips(differences)
    signs = np.array(list(itertools.product([1, -1], repeat=len(differences))))
    for at in (-0.05, 0.0, 0.05, 0.3):
        shifted = differences - at
        means = signs @ shifted / len(shifted)
        assert flips.p_greater(at) == pytest.approx((means >= shifted.mean() - 1e-12).mean(), abs=1e-15)
        assert flips.p_less(at) == pytest.approx((means <= shifted.mean() + 1e-12).mean(), abs=1e-15)


@given(any_pairs)
@settings(max_examples=150, deadline=None)
def test_interval_and_p_cannot_contradict_each_other(pair: tuple[list[float], list[float]]) -> None:
    result = compare_paired(*pair)
    if result.ci_low is None or result.ci_high is None:
        assert result.n < 6
        assert result.p_value >= 0.05
        assert result.ci_reason
        return
    assert result.ci_low - 1e-9 <= result.difference <= result.ci_high + 1e-9
    assert (result.p_value < 0.05) == (not result.ci_low <= 0 <= result.ci_high)


@given(column_pairs)
@settings(max_examples=100, deadline=None)
def test_swapping_the_sides_negates_the_difference_and_nothing_else(pair: tuple[list[float], list[float]]) -> None:
    there, back = compare_paired(pair[0], pair[1]), compare_paired(pair[1], pair[0])
    assert back.difference == -there.difference
    assert back.p_value == there.p_value
    assert back.equivalence_p == pytest.approx(there.equivalence_p, abs=1e-15)
    assert back.verdict == there.verdict
    assert (back.pearson_r, back.min_detectable) == (there.pearson_r, there.min_detectable)
    if there.ci_low is not None and there.ci_high is not None:
        assert back.ci_low == pytest.approx(-there.ci_high, abs=1e-12)
        assert back.ci_high == pytest.approx(-there.ci_low, abs=1e-12)


@given(column_pairs)
@settings(max_examples=100, deadline=None)
def test_equivalence_follows_from_an_interval_of_twice_the_level(pair: tuple[list[float], list[float]]) -> None:
    differences = np.array(pair[1]) - np.array(pair[0])
    flips = SignFlips(differences)
    interval = flips.interval(alpha=0.10)
    inside = interval.low is not None and interval.high is not None
    inside = inside and interval.low > -0.1 + 1e-9 and interval.high < 0.1 - 1e-9
    outside = interval.low is None or interval.low < -0.1 - 1e-9 or (interval.high or 0) > 0.1 + 1e-9
    if inside:
        assert flips.equivalence_p(0.1) < 0.05
    elif outside:
        assert flips.equivalence_p(0.1) >= 0.05


def test_the_ends_of_the_interval_are_where_the_test_turns() -> None:
    differences = np.random.default_rng(3).normal(0.1, 0.2, size=9)
    flips = SignFlips(differences)
    interval = flips.interval()
    assert interval.low is not None
    assert interval.high is not None
    for end, outward in ((interval.low, -1e-6), (interval.high, 1e-6)):
        assert brute_force_p(differences - end) >= 0.05
        assert brute_force_p(differences - end - outward) < 0.05


def test_beyond_twenty_pairs_drawn_signs_agree_with_all_signs() -> None:
    differences = np.random.default_rng(4).normal(0.12, 0.3, size=21)
    numbers = np.arange(1 << 20)
    sums = np.full(1 << 20, differences[20])
    for bit in range(20):
        sums += np.where((numbers >> bit) & 1, differences[bit], -differences[bit])
    exact = float((np.abs(sums) >= abs(differences.sum()) - 1e-12).mean())
    result = compare_paired(np.zeros(21), differences)
    assert "draws" in result.method
    assert abs(result.p_value - exact) < 4 * math.sqrt(exact * (1 - exact) / 100_000)


def test_a_seed_gives_the_same_draws_and_another_seed_others() -> None:
    a, b = np.random.default_rng(5).uniform(size=(2, 40))
    assert compare_paired(a, b, seed=1) == compare_paired(a, b, seed=1)
    assert compare_paired(a, b, seed=1).p_value != compare_paired(a, b, seed=2).p_value


def test_one_pair_says_nothing_and_two_pairs_little() -> None:
    one = compare_paired([0.2], [0.9])
    assert (one.p_value, one.verdict, one.ci_low, one.sd_a) == (1.0, "inconclusive", None, None)
    assert one.min_detectable is None
    assert one.pearson_r is None
    two = compare_paired([0.2, 0.4], [0.9, 0.7])
    assert two.p_value == 0.5
    assert two.pearson_r is None
    assert two.min_detectable is not None
    assert two.ci_reason is not None
    assert "too few" in two.ci_reason


def test_five_pairs_cannot_reach_significance_and_six_can() -> None:
    assert compare_paired([0.0] * 5, [0.1, 0.2, 0.3, 0.4, 0.5]).verdict == "inconclusive"
    assert compare_paired([0.0] * 6, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]).verdict == "different"


def test_equal_columns_are_equivalent_and_have_no_correlation() -> None:
    result = compare_paired([0.1] * 11, [0.1] * 11)
    assert result.verdict == "equivalent"
    assert (result.ci_low, result.ci_high, result.p_value) == (0.0, 0.0, 1.0)
    assert result.pearson_r is None
    assert result.spearman_r is None
    assert result.min_detectable is None


def test_a_constant_shift_beyond_the_margin_is_different() -> None:
    a = np.linspace(0.1, 0.6, 11)
    result = compare_paired(a, a + 0.2)
    assert result.verdict == "different"
    assert result.ci_low == pytest.approx(0.2)
    assert result.pearson_r == pytest.approx(1.0)


def test_a_tiny_but_certain_difference_is_different_and_also_within_the_margin() -> None:
    a = np.linspace(0.1, 0.6, 11)
    result = compare_paired(a, a + 0.01, margin=0.05)
    assert result.verdict == "different"
    assert result.equivalence_p < 0.05


def test_correlations_are_scipys() -> None:
    a, b = np.random.default_rng(6).integers(0, 8, size=(2, 15)) / 8
    result = compare_paired(a, b)
    assert result.pearson_r == pytest.approx(stats.pearsonr(a, b).statistic)
    assert result.spearman_r == pytest.approx(stats.spearmanr(a, b).statistic)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([], [], "is empty"),
        ([0.1], [0.1, 0.2], "differ in length"),
        ([0.1, float("nan")], [0.1, 0.2], "not finite"),
        ([0.1, 0.2], [0.1, float("inf")], "not finite"),
    ],
)
def test_columns_that_cannot_be_paired_are_refused(a: list[float], b: list[float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        compare_paired(a, b)


def test_one_columns_interval_contains_its_mean_and_needs_six_values() -> None:
    values = np.random.default_rng(7).beta(1, 3, size=9)
    interval = mean_interval(values)
    assert interval.contains(float(values.mean()))
    assert interval.low is not None
    assert interval.low >= 0
    assert mean_interval(values[:5]).low is None


@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_is_scipys_binomial_test(only_a: int, only_b: int) -> None:
    total = only_a + only_b
    expected = stats.binomtest(only_a, total, 0.5).pvalue if total else 1.0
    assert mcnemar_exact(only_a, only_b) == pytest.approx(expected, abs=1e-12)


def test_holm_by_hand() -> None:
    # Sorted 0.01 * 4, 0.02 * 3, 0.03 * 2, 0.50 * 1, then never smaller than the one before.
    assert holm([0.03, 0.01, 0.50, 0.02]) == pytest.approx([0.06, 0.04, 0.50, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
    with pytest.raises(DataError, match="no probability"):
        holm([0.1, 1.2])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_never_lowers_a_p_and_keeps_their_order(values: list[float]) -> None:
    adjusted = holm(values)
    assert all(after >= before for before, after in zip(values, adjusted))
    order = np.argsort(values, kind="stable")
    assert list(np.array(adjusted)[order]) == sorted(adjusted)
    assert adjusted[order[0]] == pytest.approx(min(1.0, len(values) * min(values)))
