"""Intervals that say how they were made, and say nothing when there is nothing to say.

The surprising choice: an interval that the data cannot bound has limits `None` and a reason, never an
infinity or a made-up number, so that it survives JSON and nobody can print it by accident.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from saeinterp.errors import DataError

Floats = NDArray[np.float64]


class Interval(NamedTuple):
    """A two-sided interval, or the reason why there is none.

    Attributes:
        low: Lower limit; None when there is no (bounded) interval.
        high: Upper limit; None with `low`.
        level: Confidence level, such as 0.95.
        method: How it was made, as printed in reports.
        n: Independent units (latents, documents) behind it.
        reason: Why the limits are None; None when they are not.
    """

    low: float | None
    high: float | None
    level: float
    method: str
    n: int
    reason: str | None = None

    def contains(self, value: float) -> bool:
        """Whether `value` lies in the interval; an interval without limits contains everything."""
        return self.low is None or self.high is None or self.low <= value <= self.high


def as_column(values: Iterable[float] | Floats, *, name: str) -> Floats:
    """Values as a finite float64 column [n].

    Raises:
        DataError: The column is empty, not one-dimensional, or holds NaN or infinities.
    """
    column = np.asarray(values if isinstance(values, np.ndarray) else list(values))
    if column.dtype == object or column.dtype.kind not in "biuf":
        raise DataError("holds values that are not numbers", field=name, expected="a column of finite numbers")
    column = column.astype(np.float64)
    if column.ndim != 1:
        raise DataError("is not one-dimensional", field=name, got=column.shape, expected="a column of numbers")
    if not len(column):
        raise DataError("is empty", field=name, expected="at least one value")
    bad = np.flatnonzero(~np.isfinite(column))
    if len(bad):
        raise DataError(
            f"holds {len(bad)} value(s) that are not finite, the first in row {bad[0]}",
            field=name,
            expected="finite numbers",
            next_step="drop or score these rows first, and say how many",
        )
    return column


def check_alpha(alpha: float) -> None:
    """Raises `DataError` unless 0 < alpha < 1."""
    if not 0 < alpha < 1:
        raise DataError("is not a level", field="alpha", got=alpha, expected="a number between 0 and 1")


def wilson_interval(successes: int, n: int, *, alpha: float = 0.05) -> Interval:
    """Wilson score interval of a proportion (Wilson 1927), for independent trials.

    Raises:
        DataError: `successes` is not between 0 and `n`.
    """
    check_alpha(alpha)
    level, method = 1 - alpha, "Wilson"
    if n == 0 and successes == 0:
        return Interval(None, None, level, method, 0, "no trials")
    if not 0 <= successes <= n:
        raise DataError(
            "successes exceed trials", field="proportion", got=(successes, n), expected="0 <= successes <= n"
        )
    z = float(special.ndtri(1 - alpha / 2))
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At the ends the formula gives 0 or 1 up to rounding.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Interval(low, high, level, method, n)
