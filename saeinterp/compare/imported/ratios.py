"""Whether scores are counts over a number of examples: values that are all multiples of 1/n.

Accuracy over n examples is k/n; F1 is 2 TP / (2 TP + FP + FN), whose denominator changes from latent to latent. The
surprising choice: n is found, not asked for: the one under which so many values meeting multiples of 1/n is least
likely to be chance, then again on the latents that are left, since latents may have unequal numbers of examples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from scipy import stats

LARGEST = 200
"""Denominators tried."""
COVERED = 0.25
"""A denominator whose rounded multiples cover more of the line than this says nothing."""
LEVEL = 1e-3
"""Chance of so many matches, over all denominators tried, below which a denominator is believed."""


class Printed(NamedTuple):
    """A printed value, and half a unit of its last digit."""

    value: float
    half_step: float


def denominators(latents: Mapping[tuple[str, int], Sequence[Printed]]) -> dict[tuple[str, int], int]:
    """The number of examples behind each latent's values, of those where there is one.

    Args:
        latents: Per latent the values of all explainers, which share its examples. 0 and 1 say nothing.
    """
    left = {key: [item for item in values if 0 < item.value < 1] for key, values in latents.items()}
    left = {key: values for key, values in left.items() if values and all(item.half_step > 0 for item in values)}
    found: dict[tuple[str, int], int] = {}
    while left:
        best = min((_chance(left, n), n) for n in range(2, LARGEST + 1))
        chance, n = best
        if chance * LARGEST >= LEVEL:
            break
        fitting = [key for key, values in left.items() if all(_meets(item, n) for item in values)]
        found |= dict.fromkeys(fitting, n)
        left = {key: values for key, values in left.items() if key not in found}
    return found


def _chance(latents: Mapping[tuple[str, int], Sequence[Printed]], n: int) -> float:
    """Probability that as many latents would meet multiples of 1/n if their digits were arbitrary."""
    shares = [math.prod(min(1.0, 2 * item.half_step * n) for item in values) for values in latents.values()]
    if max(2 * item.half_step * n for values in latents.values() for item in values) > COVERED:
        return 1.0
    hits = sum(all(_meets(item, n) for item in values) for values in latents.values())
    return float(stats.binom.sf(hits - 1, len(shares), max(shares)))


def _meets(item: Printed, n: int) -> bool:
    return abs(item.value - round(item.value * n) / n) <= item.half_step * (1 + 1e-6)
