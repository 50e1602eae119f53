"""Power of a paired comparison: what a test with so many pairs could have seen.

The surprising choice: power is that of the paired t test (noncentral t), while p values come from sign
flips; the two agree closely and the t version has a formula that others can check.
"""

from __future__ import annotations

import math

from scipy import optimize, stats

from saeinterp.errors import DataError
from saeinterp.stats.intervals import check_alpha


def paired_power(difference: float, *, sd: float, n: int, alpha: float = 0.05) -> float:
    """Probability that a two-sided paired t test on `n` pairs rejects when the true mean difference is `difference`.

    Args:
        difference: True mean of the differences.
        sd: Standard deviation of the differences, > 0.
        n: Pairs, >= 2.
    """
    _check(sd=sd, n=n, alpha=alpha)
    return _power(difference * math.sqrt(n) / sd, n=n, alpha=alpha)


def min_detectable(*, sd: float, n: int, alpha: float = 0.05, power: float = 0.8) -> float | None:
    """Smallest true mean difference that a two-sided paired t test detects with probability `power`.

    Returns:
        The difference in the units of `sd`; None with fewer than two pairs or when `sd` is 0.
    """
    check_alpha(alpha)
    if not alpha < power < 1:
        raise DataError("is not a power", field="power", got=power, expected=f"a number between alpha ({alpha}) and 1")
    if n < 2 or sd == 0:
        return None
    _check(sd=sd, n=n, alpha=alpha)
    high = 1.0
    while _power(high, n=n, alpha=alpha) < power:
        high *= 2
    root = optimize.brentq(lambda ncp: _power(ncp, n=n, alpha=alpha) - power, 0.0, high, xtol=1e-12)
    return float(root) * sd / math.sqrt(n)


def pairs_needed(difference: float, *, sd: float, alpha: float = 0.05, power: float = 0.8) -> int:
    """Smallest number of pairs with which a true mean difference is detected with probability `power`."""
    _check(sd=sd, n=2, alpha=alpha)
    if difference == 0:
        raise DataError("no number of pairs detects a difference of zero", field="difference", got=difference)
    high = 2
    while paired_power(difference, sd=sd, n=high, alpha=alpha) < power:
        high *= 2
    low = max(2, high // 2)
    while low < high:
        middle = (low + high) // 2
        if paired_power(difference, sd=sd, n=middle, alpha=alpha) < power:
            low = middle + 1
        else:
            high = middle
    return low


def _power(ncp: float, *, n: int, alpha: float) -> float:
    df, ncp = n - 1, abs(ncp)
    critical = stats.t.isf(alpha / 2, df)
    # Rejecting on the wrong side: below 1e-8 from ncp = 5 on, where SciPy's tail becomes NaN.
    wrong_side = stats.nct.cdf(-critical, df, ncp) if ncp < 5 else 0.0
    return float(stats.nct.sf(critical, df, ncp) + wrong_side)


def _check(*, sd: float, n: int, alpha: float) -> None:
    check_alpha(alpha)
    if n < 2:
        raise DataError("power needs at least two pairs", field="n", got=n)
    if not (sd > 0 and math.isfinite(sd)):
        raise DataError("is not a positive number", field="sd", got=sd)
