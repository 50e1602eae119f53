"""An estimate whose error has several independent sources: a t interval with Satterthwaite's degrees of freedom.

The surprising choice: a few training seeds are never resampled. A bootstrap of three values understates their
variance by a third and gives it the tails of a normal; here they get n - 1 degrees of freedom.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from saeinterp.errors import DataError
from saeinterp.stats.intervals import Floats, Interval, as_column, check_alpha
from saeinterp.stats.paired import TOLERANCE


class Component(NamedTuple):
    """One source of error: its variance in the estimate, and the degrees of freedom of that variance."""

    variance: float
    freedom: int


def mean_component(values: Iterable[float] | Floats) -> Component:
    """The error of a mean of independent values [n], n >= 2: s² / n with n - 1 degrees of freedom.

    Raises:
        DataError: Fewer than two values, NaN or infinities.
    """
    column = as_column(values, name="values")
    if len(column) < 2:
        raise DataError("one value has no spread", field="values", got=1, expected="at least two values")
    variance = 0.0 if np.ptp(column) == 0 else float(column.var(ddof=1))
    return Component(variance / len(column), len(column) - 1)


def component_interval(
    estimate: float, components: Sequence[Component], *, n: int, method: str, alpha: float = 0.05
) -> Interval:
    """estimate ± t · sqrt(sum of variances), degrees of freedom after Welch 1947 and Satterthwaite 1946.

    Args:
        components: Independent sources of error, at least one.
        n: Printed as the units behind it.
        method: Printed as how it was made.
    """
    check_alpha(alpha)
    variance = math.fsum(component.variance for component in components)
    if not variance > TOLERANCE**2:
        return Interval(None, None, 1 - alpha, method, n, "nothing varies")
    freedom = variance**2 / math.fsum(component.variance**2 / component.freedom for component in components)
    half = float(special.stdtrit(freedom, 1 - alpha / 2)) * math.sqrt(variance)
    return Interval(estimate - half, estimate + half, 1 - alpha, method, n)
