"""Rates of flagged latents from counts of draws: each beside what chance gives, with the interval of half-samples.

The surprising choice: counts of sites are added up before they are divided. Each latent keeps how often it is active in
every permutation, so the null of a sum is that of its strata of activity, combined by their numbers of latents.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from saeinterp.stats.intervals import Floats
from saeinterp.stats.resampling import MAX_UNDEFINED

MIN_DENOMINATOR = 20
"""Interpretable latents below which no share of them is given."""
MIN_HALVES = 20
"""Half-samples below which no interval is given."""
NULLS = ("free", "strata")
_ROUNDING = 1e-12
_Z = 1.959963984540054
_FEW = f"fewer than {MIN_DENOMINATOR} interpretable latents"


class Scope(NamedTuple):
    """Whose latents a rate is of.

    Attributes:
        name: `model`, `layer`, `position` or `site`.
        hookpoint: None where several are pooled.
        position: None where several are pooled, or where SAEs are of all positions.
        sites: Their numbers.
    """

    name: str
    hookpoint: str | None
    position: int | None
    sites: tuple[int, ...]


class _Rate(NamedTuple):
    """A share of latents: two columns of counts.

    Attributes:
        name: As in the result.
        part: Column of the numerator.
        whole: Column of the denominator.
        conditional: Over interpretable latents, whose number is itself a result.
    """

    name: str
    part: str
    whole: str
    conditional: bool


def summarise_rates(
    draws: pl.DataFrame,
    *,
    preset: str,
    sites: Sequence[tuple[str, int | None]],
    vocabulary: Mapping[str, float],
) -> list[dict[str, Any]]:
    """The rates of a preset: of the model, of each layer, of each position, of each site.

    `interpretable` and `monosemantic` are over alive latents (`interpretable` of the published preset over all, as
    published); `monosemantic_of_interpretable` and `category_<name>_of_interpretable` are conditional. Below 20
    interpretable latents a conditional rate has no value.

    Args:
        draws: `Draws.counts` of `saeinterp.enrichment.draws.draw_rates`.
        sites: Hookpoint and position of each site.
        vocabulary: `Draws.vocabulary`.

    Returns:
        Per scope and rate: `preset`, `scope`, `hookpoint`, `position`, `rate`; `count`, `of`, `value`; `low` and
        `high` (value ± 1.96 standard deviations over half-samples, cut to [0, 1]; else null with a `reason`) and
        `halves`, the half-samples behind them; `nulls`, per null `mean`, `sd`, `p` = (1 + draws at or above) / (1 +
        draws), `excess` = (value - mean) / (1 - mean) of rates over alive latents, and `permutations`, those that
        define the rate; for categories `vocabulary_share` and `over_vocabulary`. `rate: max_enrichment` has no `of`.
        Null where undefined.
    """
    counted = [name for name in draws.columns if name not in ("draw", "number", "site", "max_enrichment")]
    names = [name.removeprefix("category_") for name in counted if name.startswith("category_")]
    rates = [
        _Rate("interpretable", "interpretable", "alive" if preset == "robust" else "latents", conditional=False),
        _Rate("monosemantic", "monosemantic", "alive", conditional=False),
        _Rate("monosemantic_of_interpretable", "monosemantic", "interpretable", conditional=True),
        *(_Rate(f"category_{name}_of_interpretable", f"category_{name}", "interpretable", True) for name in names),
    ]
    result = []
    for scope in scopes(sites):
        here = draws.filter(pl.col("site").is_in(scope.sites))
        # A draw in which some labels were not made has no sum.
        sums = [pl.when(pl.col(name).is_null().any()).then(None).otherwise(pl.col(name).sum()) for name in counted]
        per_draw = here.group_by("draw", "number", maintain_order=True).agg(
            *(part.cast(pl.Float64).alias(name) for part, name in zip(sums, counted, strict=True)),
            pl.col("max_enrichment").max(),
        )
        head = {"preset": preset, "scope": scope.name, "hookpoint": scope.hookpoint, "position": scope.position}
        for rate in rates:
            result.append({**head, **_summary(per_draw, rate, vocabulary)})
        result.append({**head, **_largest(per_draw)})
    return result


def scopes(sites: Sequence[tuple[str, int | None]]) -> Iterator[Scope]:
    """The model, its layers, its positions and its sites; positions only where SAEs have one."""
    numbers = tuple(range(len(sites)))
    yield Scope("model", None, None, numbers)
    for hookpoint in dict.fromkeys(name for name, _ in sites):
        yield Scope("layer", hookpoint, None, tuple(index for index in numbers if sites[index][0] == hookpoint))
    for position in sorted({place for _, place in sites if place is not None}):
        yield Scope("position", None, position, tuple(index for index in numbers if sites[index][1] == position))
    for index in numbers:
        yield Scope("site", *sites[index], (index,))


def _summary(per_draw: pl.DataFrame, rate: _Rate, vocabulary: Mapping[str, float]) -> dict[str, Any]:
    values = {kind: _values(per_draw.filter(pl.col("draw") == kind), rate) for kind in ("observed", "half", *NULLS)}
    observed = per_draw.filter(pl.col("draw") == "observed")
    value = _number(values["observed"][0])
    low, high, halves, reason = _interval(value, values["half"])
    if value is None:
        reason = _FEW if rate.conditional else "no latent is ever active"
    summary: dict[str, Any] = {
        "rate": rate.name,
        "count": int(observed[rate.part][0]),
        "of": int(observed[rate.whole][0]),
        "value": value,
        "low": low,
        "high": high,
        "halves": halves,
        "nulls": {kind: _null(value, values[kind], excess=not rate.conditional) for kind in NULLS},
    }
    if reason is not None:
        summary["reason"] = reason
    if rate.part.startswith("category_"):
        share = vocabulary.get(rate.part.removeprefix("category_"))
        summary["vocabulary_share"] = share
        summary["over_vocabulary"] = None if value is None or not share else value / share
    return summary


def _largest(per_draw: pl.DataFrame) -> dict[str, Any]:
    """The largest enrichment of a kept pair; draws without any are left out."""
    values = {
        kind: per_draw.filter(pl.col("draw") == kind)["max_enrichment"].cast(pl.Float64).fill_null(math.nan).to_numpy()
        for kind in ("observed", *NULLS)
    }
    value = float(values["observed"][0])
    summary: dict[str, Any] = {
        "rate": "max_enrichment",
        "count": None,
        "of": None,
        "value": value if math.isfinite(value) else None,
        "low": None,
        "high": None,
        "halves": 0,
        "nulls": {kind: _null(value, values[kind], excess=False) for kind in NULLS},
        "reason": "half-samples say nothing of a largest value",
    }
    if not math.isfinite(value):
        summary["reason"] = (
            "no pair is kept"
            if math.isnan(value)
            else "infinite: a latent is active in every sample that holds a token"
        )
    return summary


def _values(per_draw: pl.DataFrame, rate: _Rate) -> Floats:
    """The rate in each draw that has the counts; NaN where it is undefined."""
    counted = per_draw.filter(pl.col(rate.part).is_not_null())
    count, of = (counted[name].to_numpy() for name in (rate.part, rate.whole))
    defined = of >= (MIN_DENOMINATOR if rate.conditional else 1)
    return np.divide(count, of, out=np.full(len(of), np.nan), where=defined)


def _interval(value: float | None, halves: Floats) -> tuple[float | None, float | None, int, str | None]:
    """Limits, the half-samples behind them, or why there are none."""
    defined = halves[np.isfinite(halves)]
    undefined = len(halves) - len(defined)
    if value is None:
        return None, None, len(defined), None
    if len(halves) < MIN_HALVES:
        return None, None, len(defined), f"fewer than {MIN_HALVES} half-samples"
    if undefined > MAX_UNDEFINED * len(halves):
        return None, None, len(defined), f"{_FEW} in {undefined} of {len(halves)} half-samples"
    spread = float(defined.std(ddof=1))
    if spread == 0:
        return None, None, len(defined), "the rate is the same in every half-sample"
    return max(value - _Z * spread, 0.0), min(value + _Z * spread, 1.0), len(defined), None


def _null(value: float | None, draws: Floats, *, excess: bool) -> dict[str, Any]:
    """What chance gives. An infinite draw counts for p, and leaves no mean."""
    defined = draws[~np.isnan(draws)]
    null: dict[str, Any] = {"mean": None, "sd": None, "p": None, "excess": None, "permutations": len(defined)}
    if len(draws) < 2:
        return {**null, "reason": "no permutations were drawn"}
    if 2 * len(defined) < len(draws):
        return {**null, "reason": f"undefined in {len(draws) - len(defined)} of {len(draws)} permutations"}
    if np.isfinite(defined).all():
        null["mean"], null["sd"] = float(defined.mean()), float(defined.std(ddof=1)) if len(defined) > 1 else None
    if value is not None and not math.isnan(value):
        null["p"] = (1 + int((defined >= value - _ROUNDING).sum())) / (1 + len(defined))
        if excess and null["mean"] is not None and null["mean"] < 1:
            null["excess"] = (value - null["mean"]) / (1 - null["mean"])
    return null


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
