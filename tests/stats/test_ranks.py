"""Rank correlation: rho and exact p against SciPy and by hand, no p below six pairs, nothing found in nothing."""

import numpy as np
import pytest
from scipy import stats

from saeinterp.errors import DataError
from saeinterp.stats import spearman


def test_rho_is_scipys_ties_included() -> None:
    x, y = [1, 2, 2, 4, 5, 5, 7, 9], [3.0, 1, 4, 1, 5, 9, 2, 6]
    assert spearman(x, y).rho == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)


@pytest.mark.parametrize("y", [[3, 1, 4, 1.5, 5, 9], [1, 2, 2, 3, 1, 4, 9]])
def test_the_exact_p_is_scipys(y: list[float]) -> None:
    ranks = stats.rankdata(y)
    test = stats.permutation_test(
        (np.arange(len(y)),),
        lambda order: abs(np.corrcoef(order, ranks)[0, 1]),
        permutation_type="pairings",
        n_resamples=np.inf,
        alternative="greater",
    )
    found = spearman(range(len(y)), y)
    assert found.p_value == pytest.approx(test.pvalue)
    assert found.method == f"exact over {len(y)}! orders"


def test_six_layers_in_order_by_hand() -> None:
    # Two of 6! orders are as extreme: rising and falling.
    found = spearman(range(6), [9, 7, 6, 4, 3, 1])
    assert found.rho == pytest.approx(-1.0)
    assert found.p_value == pytest.approx(2 / 720)


def test_below_six_pairs_there_is_no_p() -> None:
    # Loss recovered of seed report 2's base model over its five layers, in order; and one that is not.
    falling = spearman([4, 10, 16, 22, 28], [78.1, 74.9, 71.2, 67.4, 64.8])
    assert (falling.rho, falling.p_value) == (pytest.approx(-1.0), None)
    assert "no test below 6" in str(falling.reason)
    assert spearman([4, 10, 16, 22, 28], [3, 5, 1, 4, 2]).rho == pytest.approx(-0.3)


def test_a_constant_column_and_two_pairs_have_no_rho() -> None:
    assert spearman(range(7), [1.0] * 7).reason == "a column is constant"
    assert spearman([1, 2], [1, 2]).rho is None


def test_drawn_orders_agree_with_the_t_approximation_and_with_themselves() -> None:
    rng = np.random.default_rng(0)
    x = np.arange(30)
    y = 0.05 * x + rng.standard_normal(30)
    found = spearman(x, y, draws=20_000)
    assert found.p_value == pytest.approx(stats.spearmanr(x, y).pvalue, abs=0.01)
    assert found == spearman(x, y, draws=20_000)
    assert "20000 drawn orders" in str(found.method)


def test_planted_nothing_is_found_no_more_often_than_the_level() -> None:
    rng = np.random.default_rng(1)
    found = [spearman(range(7), rng.standard_normal(7)).p_value for _ in range(400)]
    share = np.mean([p is not None and p < 0.05 for p in found])
    assert share <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)
    assert share > 0.01


def test_columns_of_other_lengths_are_refused() -> None:
    with pytest.raises(DataError, match="differ in length"):
        spearman([1, 2, 3], [1, 2])
