"""What may be said of two models rather than of two SAEs: differences whose interval holds SAE training seeds.

Seeds of training are the units, a few per side; documents are shared by all of them. The surprising choice: the
two sources of error are added as variances with Satterthwaite's degrees of freedom, not resampled. Three seeds
cannot reach p < 0.05 by permutation (2 of 20 splits), and a bootstrap of three covers far too little.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from saeinterp.compare.results import Result
from saeinterp.compare.sides import MIN_SEEDS, Side
from saeinterp.stats import Component, component_interval, interval_text, mean_component, number, signed

BOTH = "t interval over SAE training seeds and documents (Welch–Satterthwaite)"
SEEDS_ONLY = "t interval over SAE training seeds, these tokens (Welch)"


class SeedDifference(Result):
    """b - a of two models at one layer, each the mean over its SAEs; their training seeds are in the interval."""

    saes_a: int
    saes_b: int
    low: float | None
    high: float | None
    method: str
    verdict: Literal["different", "inconclusive"] | None
    """`different` where the interval excludes 0; null where there is no interval."""
    lower: Side | None
    """The side with the lower value, where the verdict is `different`."""
    reason: str | None
    """Why there is no interval."""
    sentence: str


def seed_difference(
    a: Sequence[float],
    b: Sequence[float],
    *,
    document_error: float | None,
    n_documents: int,
    head: str,
    unit: str,
    titles: tuple[str, str],
    alpha: float,
) -> SeedDifference | None:
    """The difference of two models' means, or None below `MIN_SEEDS` SAEs on a side.

    Args:
        a: One value per SAE of side a.
        b: One value per SAE of side b.
        document_error: Standard error over documents of the difference of means; None for a count over the whole
            dictionary, which has none; NaN where it cannot be computed.
        n_documents: Documents behind it.
        head: Place and metric, as the sentence begins.
        unit: Of the values, with a leading space.
        titles: Names of the sides.
        alpha: Two-sided level.
    """
    if min(len(a), len(b)) < MIN_SEEDS:
        return None
    means = [math.fsum(values) / len(values) for values in (a, b)]
    difference = means[1] - means[0]
    components = [mean_component(a), mean_component(b)]
    method, reason = SEEDS_ONLY, None
    if document_error is not None:
        method = BOTH
        if math.isfinite(document_error):
            components.append(Component(document_error**2, n_documents - 1))
        else:
            reason = "its standard error over documents is undefined"
    low = high = None
    if reason is None:
        interval = component_interval(difference, components, n=len(a) + len(b), method=method, alpha=alpha)
        low, high, reason = interval.low, interval.high, interval.reason
    verdict: Literal["different", "inconclusive"] | None = None
    lower: Side | None = None
    if low is not None and high is not None:
        verdict = "inconclusive" if low <= 0 <= high else "different"
        if verdict == "different":
            lower = "a" if difference > 0 else "b"
    return SeedDifference(
        saes_a=len(a),
        saes_b=len(b),
        low=low,
        high=high,
        method=method,
        verdict=verdict,
        lower=lower,
        reason=reason,
        sentence=_sentence(
            head, means, (len(a), len(b)), (low, high), lower, reason, unit=unit, titles=titles, alpha=alpha
        ),
    )


def _sentence(
    head: str,
    means: Sequence[float],
    saes: tuple[int, int],
    limits: tuple[float | None, float | None],
    lower: Side | None,
    reason: str | None,
    *,
    unit: str,
    titles: tuple[str, str],
    alpha: float,
) -> str:
    values = " and ".join(
        f"{number(mean)}{unit} ({title}, mean of {count} SAEs)" for mean, title, count in zip(means, titles, saes)
    )
    change = f"difference {signed(means[1] - means[0])}{unit}"
    if reason is not None:
        return f"{head}: {values}, {change}; the models are not tested ({reason})."
    tail = f"{change} ({interval_text(*limits, alpha=alpha)}, SAE training seeds included)"
    if lower is None:
        return f"{head}: no detectable difference between the models: {values}, {tail}."
    below, above = titles if lower == "a" else titles[::-1]
    return f"{head}: lower for the model {below} than for {above}: {values}, {tail}."
