"""Rates of one side in every draw: as observed, in half-samples of the problems, and under each null.

The surprising choice: several SAE trainings are averaged draw by draw, since a draw is the same permutation or half for
all of them; their own spread is no part of a null.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl

from saeinterp.compare.interpretability_results import Chance, Null
from saeinterp.compare.interpretability_sides import Associated, Site
from saeinterp.enrichment.rates import MIN_DENOMINATOR
from saeinterp.stats.intervals import Floats

NULLS: tuple[Null, ...] = ("free", "strata")
CATEGORY = "category_"
OF_INTERPRETABLE = "_of_interpretable"
MIN_DRAWS = 20
"""Fewer draws give neither a null of a difference nor an interval."""
MAXIMUM = "max_enrichment"


class Drawn(NamedTuple):
    """One number of one side at one place, NaN where it is undefined.

    Attributes:
        values: One per SAE training, as observed.
        halves: `[half-samples]`, mean over trainings.
        nulls: Null to `[permutations]`, mean over trainings.
    """

    values: tuple[float, ...]
    halves: Floats
    nulls: Mapping[Null, Floats]

    @property
    def value(self) -> float:
        """The mean over trainings."""
        return float(np.mean(self.values))

    def chance(self, kind: Null) -> Chance:
        """What a null gives for the value."""
        return upper_chance(self.value, self.nulls[kind])


class Places(NamedTuple):
    """Which SAEs are pooled: those of a hookpoint or of a position slot; None pools over all."""

    hookpoint: str | None = None
    position: int | None = None
    by_position: bool = False

    def holds(self, site: Site) -> bool:
        """Whether a SAE is among them."""
        if self.by_position:
            return site.position == self.position
        return self.hookpoint is None or site.hookpoint == self.hookpoint


def rate_columns(rate: str, preset: str) -> tuple[str, str]:
    """The columns of the draws that a rate is made of, as `saeinterp.enrichment.rates` has them."""
    if rate.endswith(OF_INTERPRETABLE):
        return rate.removesuffix(OF_INTERPRETABLE), "interpretable"
    return rate, "latents" if (rate, preset) == ("interpretable", "seed-gsm8k-chi2") else "alive"


def draw_rate(side: Sequence[Associated], preset: str, rate: str, places: Places) -> Drawn:
    """A rate of the pooled SAEs in every draw."""
    numerator, denominator = rate_columns(rate, preset)

    def ratio(totals: pl.DataFrame) -> Floats:
        top, bottom = (totals[name].cast(pl.Float64).fill_null(np.nan).to_numpy() for name in (numerator, denominator))
        least = MIN_DENOMINATOR if denominator == "interpretable" else 1
        return np.divide(top, bottom, out=np.full(len(top), np.nan), where=bottom >= least)

    return _drawn(side, preset, places, [numerator, denominator], ratio)


def draw_maximum(side: Sequence[Associated], preset: str) -> Drawn:
    """The largest enrichment of all SAEs in every draw: infinite with c = 0, NaN without a kept pair."""
    return _drawn(side, preset, Places(), [], lambda totals: totals[MAXIMUM].fill_null(np.nan).to_numpy())


def upper_chance(value: float, null: Floats) -> Chance:
    """Mean, sd and 95% range of a null, and the one-sided p of a value at or above it."""
    known = null[~np.isnan(null)]
    p = (1 + int((known >= value - 1e-12).sum())) / (len(known) + 1) if len(known) and np.isfinite(value) else None
    return _chance(known, p, of=len(null))


def difference_chance(value: float, a: Floats, b: Floats) -> Chance:
    """What a null gives for b - a, draw by draw; p is two-sided about the mean difference by chance."""
    count = min(len(a), len(b))
    known = (b[:count] - a[:count])[np.isfinite(a[:count]) & np.isfinite(b[:count])]
    p = None
    if len(known) and np.isfinite(value):
        centre = known.mean()
        beyond = np.abs(known - centre) >= abs(value - centre) - 1e-12
        p = (1 + int(beyond.sum())) / (len(known) + 1)
    return _chance(known, p, of=count)


def _chance(known: Floats, p: float | None, *, of: int) -> Chance:
    """Moments where all draws are finite; the range where its ends are; nothing where half of the draws have none."""
    if len(known) < MIN_DRAWS or 2 * len(known) < of:
        return Chance(mean=None, sd=None, p=None, low=None, high=None, permutations=of)
    low, high = np.quantile(known, [0.025, 0.975], method="inverted_cdf")
    finite = bool(np.isfinite(known).all())
    return Chance(
        mean=float(known.mean()) if finite else None,
        sd=float(known.std(ddof=1)) if finite else None,
        p=p,
        low=float(low) if np.isfinite(low) else None,
        high=float(high) if np.isfinite(high) else None,
        permutations=of,
    )


def _drawn(
    side: Sequence[Associated],
    preset: str,
    places: Places,
    columns: Sequence[str],
    value: Callable[[pl.DataFrame], Floats],
) -> Drawn:
    tables = [_totals(item, preset, places, columns) for item in side]
    halves, *nulls = (
        np.mean([value(table.filter(pl.col("draw") == kind)) for table in tables], axis=0) for kind in ("half", *NULLS)
    )
    observed = [float(value(table.filter(pl.col("draw") == "observed"))[0]) for table in tables]
    return Drawn(tuple(observed), halves, dict(zip(NULLS, nulls)))


def _totals(item: Associated, preset: str, places: Places, columns: Sequence[str]) -> pl.DataFrame:
    """One row per draw: sums over the pooled SAEs, null where one was not counted, and their largest enrichment."""
    pooled = [index for index, site in enumerate(item.sites) if places.holds(site)]
    found = item.draws[preset].filter(pl.col("site").is_in(pooled)).group_by("draw", "number")
    sums = [pl.when(pl.col(name).is_null().any()).then(None).otherwise(pl.col(name).sum()) for name in columns]
    named = [total.alias(name) for total, name in zip(sums, columns)]
    return found.agg(*named, pl.col(MAXIMUM).max()).sort("draw", "number")
