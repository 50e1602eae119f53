"""Rates of two models, and their differences: with an interval over problems, and with what chance gives for them.

The surprising choice: a difference is first held against its null. Where neither side is above chance, or chance gives
differences as large, the verdict is `chance`, however narrow the interval: rates that follow from how often latents
fire differ between any two models.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from saeinterp.compare.interpretability_draws import (
    MAXIMUM,
    MIN_DRAWS,
    NULLS,
    Drawn,
    Places,
    difference_chance,
    draw_rate,
)
from saeinterp.compare.interpretability_results import (
    DifferenceVerdict,
    ModelDifference,
    RateDifference,
    Scope,
    SideRate,
)
from saeinterp.compare.interpretability_sides import Associated, layer_pairs, position_slots
from saeinterp.compare.interpretability_words import both_at_chance, chosen_null, rate_sentence, rate_title
from saeinterp.compare.sides import MIN_SEEDS
from saeinterp.stats import Component, component_interval, mean_component

OVER_ALL = ("interpretable", "monosemantic")
"""Rates over all latents: only these have an excess over chance."""


class Place(NamedTuple):
    """Where a rate is compared: the SAEs of each side that are pooled."""

    scope: Scope
    where: str
    hookpoints: tuple[str | None, str | None] = (None, None)
    position: int | None = None

    def of(self, side: int) -> Places:
        """What side 0 or 1 pools."""
        return Places(self.hookpoints[side], self.position, self.scope == "position")


class Pairing(NamedTuple):
    """How the two sides are held against each other.

    Attributes:
        names: Titles of the sides.
        alpha: Two-sided level.
        paired: Half-sample i is the same half of the same problems on both sides.
    """

    names: tuple[str, str]
    alpha: float
    paired: bool


def places(a: Associated, b: Associated) -> list[Place]:
    """The model as a whole, layers at the same relative depth, position slots of both sides."""
    found = [Place("model", "all layers and positions")]
    found += [Place("layer", pair.shown, (pair.a, pair.b)) for pair in layer_pairs(a, b)]
    slots = position_slots(a, b)
    if len(slots) > 1:
        found += [Place("position", title, position=slot) for slot, title in slots]
    return found


def rates_of(side: Associated, preset: str) -> list[str]:
    """The rates of a preset, in the order they are read."""
    return list(dict.fromkeys(row["rate"] for row in side.rates if row["preset"] == preset and row["rate"] != MAXIMUM))


def compare_rates(
    a: Sequence[Associated],
    b: Sequence[Associated],
    preset: str,
    *,
    pairing: Pairing,
    scopes: Sequence[Scope] = ("model", "layer", "position"),
) -> tuple[RateDifference, ...]:
    """Every rate that both sides have, at every place of both."""
    common = [rate for rate in rates_of(a[0], preset) if rate in rates_of(b[0], preset)]
    wanted = [place for place in places(a[0], b[0]) if place.scope in scopes]
    return tuple(_difference(a, b, preset, rate, place, pairing) for place in wanted for rate in common)


def _difference(
    a: Sequence[Associated], b: Sequence[Associated], preset: str, rate: str, place: Place, pairing: Pairing
) -> RateDifference:
    drawn = [draw_rate(side, preset, rate, place.of(index)) for index, side in enumerate((a, b))]
    left, right = (_side(side, preset, rate, place, index, drawn[index]) for index, side in enumerate((a, b)))
    difference = low = high = None
    reason = left.reason if left.value is None else right.reason if right.value is None else None
    spread, method = _spread(*drawn, paired=pairing.paired)
    if left.value is not None and right.value is not None:
        difference = right.value - left.value
        low, high, reason = _interval(difference, spread, pairing.alpha, bound=1.0)
    excess = _excess_difference(left, right, drawn, pairing)
    by_chance = {
        kind: difference_chance(math.nan if difference is None else difference, *(item.nulls[kind] for item in drawn))
        for kind in NULLS
        if all(len(item.nulls[kind]) for item in drawn)
    }
    models = None
    if difference is not None and min(len(left.values), len(right.values)) >= MIN_SEEDS:
        models = _models(difference, left, right, spread, _halves(drawn), pairing.alpha)
    ends = (low, high) if models is None else (models.low, models.high)
    row = RateDifference(
        preset=preset,
        rate=rate,
        title=rate_title(rate),
        scope=place.scope,
        where=place.where,
        hookpoints=place.hookpoints,
        position=place.position,
        a=left,
        b=right,
        difference=difference,
        low=low,
        high=high,
        method=method,
        reason=reason,
        excess_difference=excess[0],
        excess_low=excess[1],
        excess_high=excess[2],
        by_chance=by_chance,
        models=models,
        verdict=None,
        higher=None,
        sentence="",
    )
    verdict = _verdict(row, ends, pairing.alpha)
    higher = None if verdict != "different" or difference is None else "b" if difference > 0 else "a"
    row = row.model_copy(update={"verdict": verdict, "higher": higher})
    return row.model_copy(update={"sentence": rate_sentence(row, names=pairing.names, alpha=pairing.alpha)})


def _side(side: Sequence[Associated], preset: str, rate: str, place: Place, index: int, drawn: Drawn) -> SideRate:
    rows = [_row(item, preset, rate, place, index) for item in side]
    values = tuple(row["value"] for row in rows)
    known = [value for value in values if value is not None]
    missing = next((row.get("reason") for row in rows if row["value"] is None), None)
    one = rows[0] if len(rows) == 1 else None
    value = None if missing or len(known) < len(values) else math.fsum(known) / len(known)
    low, high, reason = (None, None, missing)
    if one is not None:
        low, high, reason = one["low"], one["high"], one.get("reason")
    elif value is not None:
        low, high, reason = _interval(value, _sd(drawn.halves), 0.05, bound=None)
    nulls = {kind: drawn.chance(kind) for kind in NULLS if len(drawn.nulls[kind])}
    chance = nulls.get("strata")
    excess = None
    if rate in OVER_ALL and value is not None and chance and chance.mean is not None and chance.mean < 1:
        excess = (value - chance.mean) / (1 - chance.mean)
    shares = [share for row in rows if (share := row.get("vocabulary_share")) is not None]
    share = math.fsum(shares) / len(shares) if len(shares) == len(rows) else None
    return SideRate(
        value=value,
        reason=reason,
        low=low,
        high=high,
        count=one["count"] if one else None,
        of=one["of"] if one else None,
        values=values,
        sd=float(np.std(known, ddof=1)) if value is not None and len(known) > 1 else None,
        nulls=nulls,
        excess=excess,
        vocabulary_share=share,
        over_vocabulary=value / share if value is not None and share else None,
    )


def _row(item: Associated, preset: str, rate: str, place: Place, index: int) -> Mapping[str, Any]:
    wanted = (preset, place.scope, place.hookpoints[index], place.position, rate)
    names = ("preset", "scope", "hookpoint", "position", "rate")
    for row in item.rates:
        if tuple(row[name] for name in names) == wanted:
            return row
    return {"value": None, "low": None, "high": None, "count": None, "of": None, "reason": "not measured"}


def _spread(a: Drawn, b: Drawn, *, paired: bool) -> tuple[float, str]:
    """Standard error of b - a over problems, and how it was made."""
    count = min(len(a.halves), len(b.halves))
    if paired:
        differences = b.halves[:count] - a.halves[:count]
        known = int(np.isfinite(differences).sum())
        return _sd(differences), f"1.96 × SD over {known} random half-samples of the problems, the same on both sides"
    return (
        math.hypot(_sd(a.halves), _sd(b.halves)),
        f"1.96 × SD over {_halves([a, b])} random half-samples of each side's problems, which are not the same",
    )


def _halves(drawn: Sequence[Drawn]) -> int:
    return min(int(np.isfinite(item.halves).sum()) for item in drawn)


def _sd(values: Any) -> float:
    known = values[np.isfinite(values)]
    return float(known.std(ddof=1)) if len(known) >= MIN_DRAWS else math.nan


def _interval(
    value: float, spread: float, alpha: float, *, bound: float | None
) -> tuple[float | None, float | None, str | None]:
    """value ± z · spread within its range; without half-samples, or where nothing varies, the reason."""
    if not math.isfinite(spread):
        return None, None, f"fewer than {MIN_DRAWS} half-samples in which it is defined"
    if spread < 1e-12:
        return None, None, "it is the same in every half-sample"
    half = float(special.ndtri(1 - alpha / 2)) * spread
    lowest = 0.0 if bound is None else -bound
    return max(value - half, lowest), min(value + half, 1.0), None


def _excess_difference(
    a: SideRate, b: SideRate, drawn: Sequence[Drawn], pairing: Pairing
) -> tuple[float | None, float | None, float | None]:
    """Difference of the excesses with its interval; the means of the nulls count as known."""
    if a.excess is None or b.excess is None:
        return None, None, None
    scaled = []
    for side, item in zip((a, b), drawn):
        mean = side.nulls["strata"].mean
        assert mean is not None, "an excess has a null"
        scaled.append(item._replace(halves=(item.halves - mean) / (1 - mean)))
    difference = b.excess - a.excess
    spread, _ = _spread(*scaled, paired=pairing.paired)
    if not math.isfinite(spread) or spread < 1e-12:
        return difference, None, None
    half = float(special.ndtri(1 - pairing.alpha / 2)) * spread
    return difference, difference - half, difference + half


def _models(difference: float, a: SideRate, b: SideRate, spread: float, halves: int, alpha: float) -> ModelDifference:
    components = [mean_component([value for value in side.values if value is not None]) for side in (a, b)]
    method = "t interval over SAE training seeds and problems (Welch–Satterthwaite)"
    if math.isfinite(spread):
        components.append(Component(spread**2, halves - 1))
    saes = len(a.values) + len(b.values)
    interval = component_interval(difference, components, n=saes, method=method, alpha=alpha)
    reason = interval.reason if math.isfinite(spread) else "there are too few half-samples of the problems"
    low, high = (interval.low, interval.high) if reason is None else (None, None)
    if low is not None and high is not None:
        low, high = max(low, -1.0), min(high, 1.0)  # of shares
    return ModelDifference(low=low, high=high, method=method, saes=saes, reason=reason)


def _verdict(row: RateDifference, ends: tuple[float | None, float | None], alpha: float) -> DifferenceVerdict | None:
    """`chance` where neither rate is above its null, or the null gives differences as large."""
    low, high = ends
    if row.difference is None:
        return None
    if both_at_chance(row, alpha):
        return "chance"
    if low is None or high is None:
        return None
    if low <= 0 <= high:
        return "inconclusive"
    expected = chosen_null(row.by_chance)
    return "chance" if expected and expected[1].p is not None and expected[1].p > alpha else "different"
