"""Tests and critical counts of 2×2 tables against SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import chi2_contingency, fisher_exact

from saeinterp.enrichment.contingency import Margins
from saeinterp.enrichment.published import keeping_limits, worth_keeping
from saeinterp.enrichment.tables import critical_chi2, describe, log_corrected_chi2
from saeinterp.stats.hypergeometric import log_upper_tail


def random_tables(number: int) -> list[tuple[int, int, int, int]]:
    """Counts with both, latent alone, token alone and neither; many of them small, some margins empty."""
    rng = np.random.default_rng(0)
    scale = rng.choice([3, 30, 300, 3000], size=(number, 4))
    return [tuple(row) for row in rng.integers(0, scale).tolist() if sum(row)]


def test_two_thousand_random_tables_are_what_scipy_says() -> None:
    tables = random_tables(2100)
    degenerate = 0
    for a, b, c, d in tables:
        margins = (np.array([a]), np.array([a + b]), np.array([a + c]), a + b + c + d)
        fisher, chi2 = log_upper_tail(*margins)[0], log_corrected_chi2(*margins)[0]
        exact = fisher_exact([[a, b], [c, d]], alternative="greater").pvalue
        assert math.exp(fisher) == pytest.approx(exact, rel=1e-6)
        if min(a + b, c + d, a + c, b + d) == 0:
            assert (fisher, chi2) == (0, 0)  # SciPy raises
            degenerate += 1
        else:
            assert math.exp(chi2) == pytest.approx(chi2_contingency([[a, b], [c, d]]).pvalue, rel=1e-6)
    assert len(tables) - degenerate >= 2000
    assert degenerate > 5


@pytest.mark.parametrize("n", [9, 40, 101])
def test_critical_counts_of_the_corrected_chi_square_are_the_first_significant_ones(n: int) -> None:
    margins = np.arange(n + 1)
    above, below = critical_chi2(margins, margins, n, alpha=0.03)
    for row in margins:
        for column in margins:
            counts = np.arange(max(row + column - n, 0), min(row, column) + 1)
            small = (
                np.exp(log_corrected_chi2(counts, np.full(len(counts), row), np.full(len(counts), column), n)) <= 0.03
            )
            many, few = counts[small & (counts * n > row * column)], counts[small & (counts * n < row * column)]
            assert above[row, column] == (many.min() if len(many) else counts.max() + 1)
            assert below[row, column] == (few.max() if len(few) else -1)
    assert (below >= 0).any()


@pytest.mark.parametrize("n", [61, 150])
def test_no_pair_below_the_limits_is_worth_keeping(n: int) -> None:
    everything = np.arange(n + 1)
    limits = keeping_limits(Margins.of(everything, everything, n))
    row, column, both = (part.ravel() for part in np.meshgrid(everything, everything, everything, indexing="ij"))
    real = (both <= np.minimum(row, column)) & (both >= row + column - n)
    row, column, both = row[real], column[real], both[real]
    good, enrichment = worth_keeping(both, row, column, n)
    assert (both[good] >= limits.above[row[good], column[good]]).all()
    assert good.any()
    # The limits are close: beyond them little is in vain but tables with an empty cell.
    full = (both < np.minimum(row, column)) & (row + column - both < n)
    looked_at = full & (both >= limits.above[row, column])
    assert good.sum() > 0.9 * looked_at.sum()
    assert enrichment[good].min() == pytest.approx(2, abs=0.1)


def test_enrichment_of_a_token_held_nowhere_else_is_infinite() -> None:
    values = describe(np.array([3, 0]), np.array([10, 10]), np.array([3, 0]), 50)
    assert values["enrichment"][0] == math.inf
    assert math.isnan(values["enrichment"][1])
