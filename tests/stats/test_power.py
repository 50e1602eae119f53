"""Power of the paired t test: against SciPy's noncentral t, simulation, and the seed report's own columns."""

import math

import numpy as np
import pytest
from scipy import stats

from saeinterp.errors import DataError
from saeinterp.stats import min_detectable, paired_power, pairs_needed


@pytest.mark.parametrize("n", [2, 3, 5, 11, 40, 400])
@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_the_smallest_detectable_difference_has_the_power_it_claims(n: int, alpha: float) -> None:
    found = min_detectable(sd=0.2, n=n, alpha=alpha)
    assert found is not None
    assert paired_power(found, sd=0.2, n=n, alpha=alpha) == pytest.approx(0.8, abs=1e-9)
    critical = stats.t.isf(alpha / 2, n - 1)
    one_sided = stats.nct.sf(critical, n - 1, found * math.sqrt(n) / 0.2)
    assert one_sided == pytest.approx(0.8, abs=1e-3)


def test_power_without_a_difference_is_the_level() -> None:
    assert paired_power(0.0, sd=1.0, n=11) == pytest.approx(0.05, abs=1e-12)
    assert paired_power(-0.3, sd=1.0, n=11) == pytest.approx(paired_power(0.3, sd=1.0, n=11))


def test_power_is_what_simulated_t_tests_reach() -> None:
    rng = np.random.default_rng(0)
    samples = rng.normal(0.9, 1.0, size=(20_000, 11))
    rejected = (stats.ttest_1samp(samples, 0.0, axis=1).pvalue < 0.05).sum()
    expected = paired_power(0.9, sd=1.0, n=11)
    assert stats.binomtest(int(rejected), len(samples), expected).pvalue > 1e-3


def test_pairs_needed_is_the_first_number_that_suffices() -> None:
    n = pairs_needed(0.05, sd=0.15)
    assert paired_power(0.05, sd=0.15, n=n) >= 0.8 > paired_power(0.05, sd=0.15, n=n - 1)


def test_what_cannot_be_detected_is_none_and_what_makes_no_sense_is_refused() -> None:
    assert min_detectable(sd=0.1, n=1) is None
    assert min_detectable(sd=0.0, n=11) is None
    with pytest.raises(DataError, match="zero"):
        pairs_needed(0.0, sd=0.1)
    with pytest.raises(DataError, match="power"):
        min_detectable(sd=0.1, n=11, power=0.01)
    with pytest.raises(DataError, match="alpha"):
        min_detectable(sd=0.1, n=11, alpha=0.0)
