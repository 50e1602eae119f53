"""Classification metrics: hand-worked counts, SciPy's Mann-Whitney, and what is undefined stays undefined."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from saeinterp.errors import DataError
from saeinterp.stats import always_yes, auroc, classification


def test_metrics_of_counts_worked_by_hand() -> None:
    found = classification(3, 1, 4, 2)
    assert found.precision == pytest.approx(3 / 4)
    assert found.recall == pytest.approx(3 / 5)
    assert found.f1 == pytest.approx(6 / 9)
    assert found.accuracy == pytest.approx(7 / 10)
    assert found.balanced_accuracy == pytest.approx((3 / 5 + 4 / 5) / 2)
    assert found.mcc == pytest.approx((3 * 4 - 1 * 2) / np.sqrt(4 * 5 * 5 * 6))


@given(st.tuples(*[st.integers(0, 20)] * 4))
def test_f1_is_the_harmonic_mean_and_mcc_the_correlation(counts: tuple[int, int, int, int]) -> None:
    tp, fp, tn, fn = counts
    found = classification(tp, fp, tn, fn)
    if tp:
        assert found.f1 == pytest.approx(2 / (1 / found.precision + 1 / found.recall))
    truth = [1] * tp + [0] * fp + [0] * tn + [1] * fn
    said = [1] * tp + [1] * fp + [0] * tn + [0] * fn
    if len(set(truth)) == 2 and len(set(said)) == 2:
        assert found.mcc == pytest.approx(np.corrcoef(truth, said)[0, 1], abs=1e-12)


def test_never_saying_yes_scores_zero_and_does_not_vanish() -> None:
    found = classification(0, 0, 15, 15)
    assert (found.precision, found.recall, found.f1, found.mcc) == (0, 0, 0, 0)
    assert found.balanced_accuracy == 0.5


def test_what_the_truth_leaves_undefined_is_nan() -> None:
    nothing = classification(0, 0, 0, 0)
    assert all(np.isnan(value) for value in nothing)
    only_true = classification(3, 0, 0, 2)
    assert np.isnan(only_true.balanced_accuracy)
    assert only_true.f1 == pytest.approx(6 / 8)


def test_always_yes_depends_on_balance_as_the_method_page_says() -> None:
    assert always_yes(50, 50).f1 == pytest.approx(2 / 3)
    assert always_yes(50, 5).f1 == pytest.approx(0.952, abs=5e-4)
    assert always_yes(50, 5).accuracy == pytest.approx(50 / 55)
    assert always_yes(50, 5).balanced_accuracy == 0.5


def test_negative_counts_are_refused() -> None:
    with pytest.raises(DataError, match="negative"):
        classification(1, -1, 2, 3)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=1, max_size=40))
def test_auroc_is_mann_whitney_with_ties(rows: list[tuple[bool, int]]) -> None:
    truth = np.array([row[0] for row in rows])
    score = np.array([row[1] / 6 for row in rows])
    found = auroc(truth, score)
    if truth.all() or not truth.any():
        assert found is None
        return
    u = stats.mannwhitneyu(score[truth], score[~truth]).statistic
    assert found == pytest.approx(u / (truth.sum() * (~truth).sum()))
