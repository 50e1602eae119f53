"""Sweeps as FVU–L0 frontiers: two sides compared at matched L0, never at a point each.

More latents per token reconstruct better, so a lower FVU at a higher L0 says nothing. The surprising choice: FVU
is interpolated linearly in log L0, where steps of a sweep (16, 32, 64) are evenly spaced and its fall is nearly
straight, and never extrapolated: without a common range of L0 there is no comparison.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from saeinterp.compare.joint import VALUES, Joint
from saeinterp.compare.layer_rows import OTHER_TOKENS
from saeinterp.compare.layers import Pair
from saeinterp.compare.results import Result
from saeinterp.compare.sides import Place, Side
from saeinterp.health.documents import Floats
from saeinterp.stats import interval_text, number, signed

SAME_L0 = 1.01
"""Two ranges of L0 that miss each other by no more than this factor meet: TopK at one k, a few rows below it."""


class FrontierPoint(Result):
    """One SAE recipe of one side, the mean over its SAEs."""

    recipe: str
    saes: int
    l0: float | None
    fvu: float | None
    on_frontier: bool
    """No other recipe of this side has both a lower or equal L0 and a lower or equal FVU."""


class MatchedPoint(Result):
    """FVU of both frontiers at one L0."""

    l0: float
    a: float
    b: float
    difference: float
    low: float | None
    high: float | None


class Frontier(Result):
    """Both sides' recipes at one hookpoint on one dataset, and the comparison over the L0 they share."""

    hookpoint: str
    layer: int | None
    dataset: str
    a: tuple[FrontierPoint, ...]
    b: tuple[FrontierPoint, ...]
    l0_low: float | None
    """Ends of the range of L0 that both frontiers cover."""
    l0_high: float | None
    matched: tuple[MatchedPoint, ...]
    """At every L0 in that range at which a side has a point, and at its ends; interpolated for the other side."""
    mean_a: float | None
    """Mean FVU of the frontier over log L0 in that range."""
    mean_b: float | None
    difference: float | None
    """b - a."""
    low: float | None
    """Joint bootstrap interval over documents, for these SAEs."""
    high: float | None
    method: str | None
    n_documents: int
    verdict: Literal["different", "inconclusive"] | None
    lower: Side | None
    reason: str | None
    """Why there is no comparison or no verdict."""
    flag: str | None
    sentence: str


def compare_frontiers(
    pairs: Mapping[Place, Pair],
    *,
    layers: Mapping[str, int | None],
    titles: tuple[str, str],
    draws: int = 2000,
    alpha: float = 0.05,
    seed: int = 0,
) -> tuple[Frontier, ...]:
    """One frontier comparison per dataset and hookpoint at which a side has several recipes.

    Args:
        pairs: Place -> the SAEs of both sides; places of one hookpoint and dataset are its recipes.
        layers: Hookpoint -> layer.
        titles: Names of the sides.
        draws: Bootstrap draws; `seed` is theirs, `alpha` the two-sided level.
    """
    groups: dict[tuple[str, str], dict[str, Pair]] = {}
    for place, pair in pairs.items():
        groups.setdefault((place.dataset, place.hookpoint), {})[place.recipe] = pair
    several = len({dataset for dataset, _ in groups}) > 1
    found = []
    for (dataset, hookpoint), recipes in groups.items():
        if len(recipes) < 2:
            continue
        place = Place(hookpoint, dataset)
        one = _Frontiers(recipes, draws=draws, alpha=alpha, seed=seed)
        head = place.shown(datasets=2 if several else 1)
        found.append(one.result(place, layers[hookpoint], head=head, titles=titles))
    return tuple(found)


class _Recipe(NamedTuple):
    name: str
    saes: tuple[int, ...]  # numbers in the joint resampling
    l0: float
    fvu: float

    @property
    def usable(self) -> bool:
        return math.isfinite(self.fvu) and self.l0 > 0


class _Frontiers:
    def __init__(self, recipes: Mapping[str, Pair], *, draws: int, alpha: float, seed: int) -> None:
        saes = [sae for pair in recipes.values() for side in pair for sae in side]
        self._joint = Joint(saes)
        self._other_tokens = any(sae.scored_bytes is not None for sae in saes)
        self._options = {"draws": draws, "seed": seed}
        self._alpha = alpha
        values = self._joint.values(np.ones(self._joint.n))
        numbers = iter(range(len(saes)))
        self.sides: tuple[list[_Recipe], list[_Recipe]] = ([], [])
        for name, pair in recipes.items():
            for side, members in zip(self.sides, pair):
                mine = tuple(next(numbers) for _ in members)
                if mine:
                    side.append(_Recipe(name, mine, *(float(value) for value in _mean(values, mine))))
        self.frontiers = tuple(_lower_left(side) for side in self.sides)

    def result(self, place: Place, layer: int | None, *, head: str, titles: tuple[str, str]) -> Frontier:
        points = [
            tuple(
                FrontierPoint(
                    recipe=item.name,
                    saes=len(item.saes),
                    l0=item.l0 if math.isfinite(item.l0) else None,
                    fvu=item.fvu if math.isfinite(item.fvu) else None,
                    on_frontier=item in frontier,
                )
                for item in side
            )
            for side, frontier in zip(self.sides, self.frontiers)
        ]
        base = Frontier(
            hookpoint=place.hookpoint,
            layer=layer,
            dataset=place.dataset,
            a=points[0],
            b=points[1],
            l0_low=None,
            l0_high=None,
            matched=(),
            mean_a=None,
            mean_b=None,
            difference=None,
            low=None,
            high=None,
            method=None,
            n_documents=self._joint.n,
            verdict=None,
            lower=None,
            reason=None,
            flag=OTHER_TOKENS if self._other_tokens else None,
            sentence="",
        )
        reason = self._apart(titles)
        if reason is not None:
            text = f"{head}, FVU–L0 frontiers: not compared ({reason})."
            return base.model_copy(update={"reason": reason, "sentence": text})
        return self._compared(base, head=head, titles=titles)

    def _apart(self, titles: tuple[str, str]) -> str | None:
        """Why the frontiers cannot be compared."""
        for frontier, title in zip(self.frontiers, titles):
            if not frontier:
                return f"{title} has no SAE with an FVU and an L0 above 0 here"
        a, b = ((side[0].l0, side[-1].l0) for side in self.frontiers)
        if max(a[0], b[0]) <= min(a[1], b[1]) * SAME_L0:
            return None
        shown = [f"{number(low, digits=1)} to {number(high, digits=1)}" for low, high in (a, b)]
        return f"no common L0: {shown[0]} for {titles[0]}, {shown[1]} for {titles[1]}"

    def _compared(self, base: Frontier, *, head: str, titles: tuple[str, str]) -> Frontier:
        low = max(side[0].l0 for side in self.frontiers)
        high = min(side[-1].l0 for side in self.frontiers)
        if low > high:  # by less than SAME_L0
            low = high = math.sqrt(low * high)
        inside = {item.l0 for side in self.frontiers for item in side if low < item.l0 < high}
        grid = np.array(sorted({low, high, *inside}))

        def curves(values: Floats) -> Floats:
            a, b = (_interpolate(np.log(grid), side, values) for side in self.frontiers)
            means = [_mean_over(np.log(grid), curve)[..., None] for curve in (a, b)]
            return np.concatenate([b - a, means[1] - means[0], a, b, *means], axis=-1)

        values, intervals = self._joint.intervals_of(curves, alpha=self._alpha, **self._options)
        count = len(grid)
        differences, difference = values[:count], float(values[count])
        a, b, means = values[count + 1 :][:count], values[2 * count + 1 :][:count], values[-2:]
        matched = tuple(
            MatchedPoint(l0=x, a=left, b=right, difference=d, low=interval.low, high=interval.high)
            for x, left, right, d, interval in zip(
                grid.tolist(), a.tolist(), b.tolist(), differences.tolist(), intervals
            )
        )
        interval = intervals[count]
        tested = interval.low is not None
        different = tested and not interval.contains(0.0)
        lower: Side | None = None
        if different:
            lower = "a" if difference > 0 else "b"
        result = base.model_copy(
            update={
                "l0_low": low,
                "l0_high": high,
                "matched": matched,
                "mean_a": float(means[0]),
                "mean_b": float(means[1]),
                "difference": difference,
                "low": interval.low,
                "high": interval.high,
                "method": interval.method if tested else None,
                "verdict": ("different" if different else "inconclusive") if tested else None,
                "lower": lower,
                "reason": None if tested else f"no interval, so no test: {interval.reason}",
            }
        )
        return result.model_copy(update={"sentence": _sentence(result, head, titles, self._alpha)})


def _lower_left(recipes: Sequence[_Recipe]) -> list[_Recipe]:
    """The recipes that no other beats on both axes, by rising L0."""
    usable = [item for item in recipes if item.usable]
    kept: list[_Recipe] = []
    for item in sorted(usable, key=lambda item: (item.l0, item.fvu)):
        if not kept or item.fvu < kept[-1].fvu:
            kept.append(item)
    return kept


def _mean(values: Floats, saes: Sequence[int]) -> Floats:
    """L0 and FVU [..., 2] as the mean over SAEs."""
    columns = [VALUES.index("l0_mean"), VALUES.index("fvu")]
    mean: Floats = values[..., list(saes), :][..., columns].mean(axis=-2)
    return mean


def _interpolate(grid: Floats, frontier: Sequence[_Recipe], values: Floats) -> Floats:
    """FVU [..., g] of a frontier at log L0 = grid [g]; its members are held, their L0 and FVU follow the resample."""
    points = np.stack([_mean(values, item.saes) for item in frontier], axis=-2)
    with np.errstate(divide="ignore"):
        x, y = np.log(points[..., 0]), points[..., 1]
    if len(frontier) == 1:
        return np.broadcast_to(y, (*y.shape[:-1], len(grid)))
    right = (x[..., None, :] <= grid[:, None]).sum(axis=-1).clip(1, len(frontier) - 1)
    x0, x1, y0, y1 = (np.take_along_axis(v, right - step, -1) for v in (x, y) for step in (1, 0))
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(x1 > x0, (grid - x0) / (x1 - x0), 0.0).clip(0, 1)
    found: Floats = y0 + share * (y1 - y0)
    return found


def _mean_over(grid: Floats, curve: Floats) -> Floats:
    """Mean of a piecewise linear curve [..., g] over its grid."""
    if len(grid) == 1:
        return curve[..., 0]
    mean: Floats = np.trapezoid(curve, grid, axis=-1) / (grid[-1] - grid[0])
    return mean


def _sentence(result: Frontier, head: str, titles: tuple[str, str], alpha: float) -> str:
    assert result.l0_low is not None
    assert result.l0_high is not None
    span = f"at L0 {number(result.l0_low, digits=1)}"
    if result.l0_high > result.l0_low:
        span += f" to {number(result.l0_high, digits=1)}"
    values = f"mean FVU {number(result.mean_a)} ({titles[0]}) and {number(result.mean_b)} ({titles[1]})"
    change = f"difference {signed(result.difference)}"
    flag = f" ({result.flag})" if result.flag else ""
    head = f"{head}, FVU–L0 frontiers {span}"
    if result.verdict is None:
        return f"{head}: {values}, {change}; {result.reason}{flag}."
    interval = interval_text(result.low, result.high, alpha=alpha)
    tail = f"{change} ({interval}), n = {result.n_documents} documents, these SAEs{flag}"
    if result.lower is None:
        return f"{head}: no detectable difference: {values}, {tail}."
    lower, higher = titles if result.lower == "a" else titles[::-1]
    return f"{head}: lower for {lower} than for {higher}: {values}, {tail}."
