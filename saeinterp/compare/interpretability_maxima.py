"""The largest enrichment of two models, and the pair that has it.

The surprising choice: an extreme gets no interval from half-samples, since the largest ratio of half the problems is
about half as large; its null stands in its place. Where the token of the pair occurs in one sample without the latent
(c = 1), the ratio measures how few samples there are: one more would halve it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import polars as pl

from saeinterp.compare.interpretability_draws import MAXIMUM, NULLS, Drawn, difference_chance, draw_maximum
from saeinterp.compare.interpretability_rates import Pairing
from saeinterp.compare.interpretability_results import LargestPair, Maximum, SideMaximum
from saeinterp.compare.interpretability_sides import Associated
from saeinterp.compare.interpretability_words import at_chance, chosen_null
from saeinterp.stats import number, p_text, signed

LARGEST = 10
"""So many pairs are looked at for tokens that only one sample holds without the latent."""
INFINITE = "a kept pair has no sample with the token and without the latent (c = 0), so its enrichment is infinite"
_COLUMNS = ["id", "text", "enrichment", "a", "b", "c", "d", "kept"]


def compare_maxima(a: Sequence[Associated], b: Sequence[Associated], preset: str) -> Maximum:
    """The largest enrichment among kept pairs, over all layers and positions; none where one is infinite."""
    drawn = [draw_maximum(side, preset) for side in (a, b)]
    left, right = (_side(side, preset, item) for side, item in zip((a, b), drawn))
    difference = None if left.value is None or right.value is None else right.value - left.value
    return Maximum(
        a=left,
        b=right,
        difference=difference,
        by_chance={
            kind: difference_chance(math.nan if difference is None else difference, *(x.nulls[kind] for x in drawn))
            for kind in NULLS
            if all(len(item.nulls[kind]) for item in drawn)
        },
    )


def largest_pair(item: Associated, preset: str) -> LargestPair | None:
    """The kept pair with the largest finite enrichment; None where no pair has one."""
    pairs = pl.scan_parquet(item.artifact.file(f"pairs-{preset}.parquet")).select(_COLUMNS)
    kept = pairs.filter(pl.col("kept") & pl.col("enrichment").is_finite() & (pl.col("a") > 0)).collect()
    top = kept.sort(["enrichment", "id", "text"], descending=[True, False, False]).head(LARGEST)
    if top.is_empty():
        return None
    first = top.row(0, named=True)
    a, b, c, d = (int(first[name]) for name in "abcd")
    # Katz et al. 1978: the logarithm of a ratio of two proportions is about normal.
    reach = math.exp(1.959963984540054 * math.sqrt(1 / a - 1 / (a + b) + 1 / c - 1 / (c + d)))
    return LargestPair(
        id=first["id"],
        token=first["text"],
        enrichment=first["enrichment"],
        a=a,
        b=b,
        c=c,
        d=d,
        low=first["enrichment"] / reach,
        high=first["enrichment"] * reach,
        one_sample=int((top["c"] == 1).sum()),
        largest=top.height,
    )


def maximum_verdict(found: Maximum, alpha: float) -> str:
    """`chance` where no side is above its null; else what the null of the difference says."""
    sides = [side for side in (found.a, found.b) if side.value is not None]
    if len(sides) < 2:
        return "not tested"
    if all(at_chance(MAXIMUM, side.value, side.nulls, alpha) for side in sides):
        return "chance"
    null = chosen_null(found.by_chance)
    if null is None or null[1].p is None:
        return "not tested"
    return "different" if null[1].p <= alpha else "inconclusive"


def maximum_sentence(found: Maximum, preset: str, *, pairing: Pairing) -> str:
    """The largest enrichment of each side with its pair and null, and what follows."""
    head = f"Largest enrichment of a kept pair ({preset})"
    parts = [_side_text(side, name) for side, name in zip((found.a, found.b), pairing.names)]
    if found.difference is not None:
        text = f"difference {signed(found.difference, digits=1)}, without an interval: both are extremes"
        if null := chosen_null(found.by_chance):
            low, high, p = null[1].low, null[1].high, null[1].p
            text += f"; chance gives differences from {signed(low, digits=1)} to {signed(high, digits=1)} ({p_text(p)})"
        parts.append(text)
    verdict = maximum_verdict(found, pairing.alpha)
    words = {
        "chance": "neither is larger than chance gives, so nothing about the models follows",
        "inconclusive": "their difference is not larger than chance gives",
        "different": "their difference is larger than chance gives",
        "not tested": "not tested",
    }
    return f"{head}: {'; '.join(parts)}: {words[verdict]}."


def _side(side: Sequence[Associated], preset: str, drawn: Drawn) -> SideMaximum:
    values = tuple(None if not math.isfinite(value) else value for value in drawn.values)
    known = [value for value in values if value is not None]
    complete = len(known) == len(values)
    nulls = {kind: drawn.chance(kind) for kind in NULLS if len(drawn.nulls[kind])}
    return SideMaximum(
        value=math.fsum(known) / len(known) if complete else None,
        reason=None if complete else INFINITE if np.isinf(drawn.values).any() else "no pair is kept",
        values=values,
        nulls=nulls,
        pair=max(
            (pair for item in side if (pair := largest_pair(item, preset))),
            key=lambda pair: pair.enrichment,
            default=None,
        ),
    )


def _side_text(side: SideMaximum, name: str) -> str:
    if side.value is None:
        return f"{name} none ({side.reason})"
    mean = f" (mean of {len(side.values)} SAE trainings)" if len(side.values) > 1 else ""
    text = f"{name} {number(side.value, digits=1)}×{mean}"
    if side.pair is not None:
        pair = side.pair
        text += (
            f" ({pair.id} with {pair.token}: {pair.a} of its {pair.a + pair.b} samples hold the token, and "
            f"{pair.c} of the {pair.c + pair.d} others, 95% CI {number(pair.low, digits=1)} to "
            f"{number(pair.high, digits=1)} had it not been picked for its size; of the {pair.largest} largest, "
            f"{pair.one_sample} have one such sample)"
        )
    if null := chosen_null(side.nulls):
        low, high = null[1].low, null[1].high
        if low is None or high is None:
            text += ", no pair is kept by chance"
        else:
            text += f", chance gives {number(low, digits=1)}× to {number(high, digits=1)}× ({p_text(null[1].p)})"
    return text
