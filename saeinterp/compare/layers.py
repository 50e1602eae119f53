"""Layer health of two models, place by place: differences with joint intervals, and sentences that follow from them.

Difference always means side b minus side a; a side with several SAEs counts as their mean. The surprising choice:
the dead fraction gets no interval over documents. It is a count over the whole dictionary, and a resample holds
only 63% of the documents, so it would see more dead latents.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from saeinterp.compare.joint import BITS, Combination, Joint, average, difference_of, mean_of
from saeinterp.compare.layer_rows import (
    CENSUS,
    DEAD,
    DELTA_CE,
    METRICS,
    MISSING,
    OTHER_TOKENS,
    PER_TOKEN,
    RESAMPLED,
    LayerSummary,
    MetricDifference,
    SideValue,
)
from saeinterp.compare.seeds import seed_difference
from saeinterp.compare.sides import MIN_SEEDS, LayerHealth, Place
from saeinterp.stats import Interval, interval_text, number, signed

__all__ = ["METRICS", "LayerDifferences", "LayerSummary", "MetricDifference", "Pair", "SideValue", "compare_layers"]

OWN_ALPHA = 0.05
"""Level of a side's own interval, as in its health artifact."""
Seeds = Sequence[LayerHealth]
Pair = tuple[Seeds, Seeds]
"""The SAEs of side a and of side b at one place; empty for a side that lacks it."""


class LayerDifferences(NamedTuple):
    """What `compare_layers` returns; `interval_method` is None without any interval."""

    metrics: dict[Place, tuple[MetricDifference, ...]]
    summary: tuple[LayerSummary, ...]
    interval_method: str | None


def compare_layers(
    pairs: Mapping[Place, Pair],
    *,
    titles: tuple[str, str],
    draws: int = 2000,
    alpha: float = 0.05,
    seed: int = 0,
) -> LayerDifferences:
    """Compare places; the documents of one dataset are resampled together for all of its SAEs.

    Args:
        pairs: Place -> side a, side b.
        titles: Names of the sides in sentences.
        draws: Bootstrap draws; `seed` is theirs, `alpha` the two-sided level of the intervals.
    """
    datasets = list(dict.fromkeys(place.dataset for place in pairs))
    metrics: dict[Place, tuple[MetricDifference, ...]] = {}
    summary: list[LayerSummary] = []
    for dataset in datasets:
        here = {place: pair for place, pair in pairs.items() if place.dataset == dataset}
        some = _Dataset(here, titles=titles, several=len(datasets) > 1, draws=draws, alpha=alpha, seed=seed)
        metrics |= {place: some.rows(place) for place in here}
        summary += some.summary(metrics)
    methods = dict.fromkeys(row.method for rows in metrics.values() for row in rows if row.method)
    return LayerDifferences({place: metrics[place] for place in pairs}, tuple(summary), "; ".join(methods) or None)


class _Dataset:
    """All places of one dataset."""

    def __init__(
        self,
        pairs: Mapping[Place, Pair],
        *,
        titles: tuple[str, str],
        several: bool,
        draws: int,
        alpha: float,
        seed: int,
    ) -> None:
        self._pairs, self._titles, self._alpha = pairs, titles, alpha
        self._datasets = 2 if several else 1
        saes = [sae for pair in pairs.values() for side in pair for sae in side]
        numbers = iter(range(len(saes)))
        self._numbers = {place: tuple([next(numbers) for _ in side] for side in pair) for place, pair in pairs.items()}
        self._other_tokens = any(sae.scored_bytes is not None for sae in saes)
        self._joint = Joint(saes)
        self._metrics = [*RESAMPLED, DEAD, *([BITS] if self._other_tokens else [])]
        self._differences = {
            (place, metric): difference_of(metric, *self._numbers[place])
            for place in pairs
            for metric in self._metrics
            if self._tested(place, metric)
        }
        self._groups: dict[tuple[str, str], Combination] = {}
        for recipe in dict.fromkeys(place.recipe for place in pairs):
            for metric in self._metrics:
                members = [
                    found
                    for (place, name), found in self._differences.items()
                    if place.recipe == recipe and name == metric
                ]
                if members:
                    self._groups[recipe, metric] = average(members)
        sides = {
            (place, metric, side): mean_of(metric, self._numbers[place][side])
            for place, pair in pairs.items()
            for metric in self._metrics
            for side in (0, 1)
            if (len(pair[side]) > 1 or metric == BITS) and self._defined(pair[side], metric) and metric != DEAD
        }
        wanted = [*self._differences.values(), *self._groups.values()]
        means = list(sides.values())
        if alpha == OWN_ALPHA:  # one set of resamples is drawn once
            found = iter(self._joint.intervals([*wanted, *means], draws=draws, alpha=alpha, seed=seed))
        else:
            parts = [(wanted, alpha), (means, OWN_ALPHA)]
            found = (
                interval
                for part, level in parts
                for interval in self._joint.intervals(part, draws=draws, alpha=level, seed=seed)
            )
        self._intervals = {key: next(found) for key in self._differences}
        self._group_intervals = {key: next(found) for key in self._groups}
        self._own = {key: (point, next(found)) for key, point in zip(sides, self._joint.points(means))}
        enough = [key for key in self._differences if min(map(len, pairs[key[0]])) >= MIN_SEEDS]
        self._errors = dict(zip(enough, self._joint.errors([self._differences[key] for key in enough])))

    def rows(self, place: Place) -> tuple[MetricDifference, ...]:
        """Every metric at one place."""
        return tuple(self._row(place, metric) for metric in self._metrics)

    def summary(self, metrics: Mapping[Place, Sequence[MetricDifference]]) -> list[LayerSummary]:
        """Every metric over the layers, for each recipe."""
        found = []
        for recipe in dict.fromkeys(place.recipe for place in self._pairs):
            places = [place for place in self._pairs if place.recipe == recipe]
            for index, metric in enumerate(self._metrics):
                rows = [metrics[place][index] for place in places]
                found.append(_summary(metric, rows, self._group_intervals.get((recipe, metric))))
        return found

    def _tested(self, place: Place, metric: str) -> bool:
        if metric == DEAD or (metric == DELTA_CE and self._other_tokens):
            return False
        return all(side and self._defined(side, metric) for side in self._pairs[place])

    def _defined(self, saes: Seeds, metric: str) -> bool:
        if metric == BITS:
            return bool(saes) and all(sae.scored_bytes is not None and sae.scored_bytes.sum() > 0 for sae in saes)
        return all(_number(sae.values[metric]) is not None for sae in saes)

    def _row(self, place: Place, metric: str) -> MetricDifference:
        title, unit = METRICS[metric]
        a, b = (self._side(place, metric, index) for index in (0, 1))
        incomparable = metric == DELTA_CE and self._other_tokens
        known = a.value is not None and b.value is not None and not incomparable
        row = MetricDifference(
            hookpoint=place.hookpoint,
            dataset=place.dataset,
            recipe=place.recipe,
            metric=metric,
            title=title,
            a=a,
            b=b,
            difference=b.value - a.value if known and a.value is not None and b.value is not None else None,
            n_documents=self._joint.n,
            flag=OTHER_TOKENS if self._other_tokens and known and metric not in (DEAD, BITS) else None,
            sentence="",
        )
        update: dict[str, Any] = {}
        interval = self._intervals.get((place, metric))
        if incomparable:
            update["reason"] = PER_TOKEN
        elif row.difference is None:
            update["reason"] = "; ".join(
                f"{name}: {side.reason}" for name, side in zip(self._titles, (a, b)) if side.value is None
            )
        elif interval is None:
            update["reason"] = CENSUS
        elif interval.low is None or interval.high is None:
            update["reason"] = f"no interval, so no test: {interval.reason}"
        else:
            different = not interval.contains(0.0)
            update |= {"low": interval.low, "high": interval.high, "method": interval.method}
            update["verdict"] = "different" if different else "inconclusive"
            if different:
                update["lower"] = "a" if row.difference > 0 else "b"
        head = f"{place.shown(datasets=self._datasets)}, {title}"
        if row.difference is not None:
            update["models"] = seed_difference(
                a.values,
                b.values,
                document_error=None if metric == DEAD else self._errors.get((place, metric), math.nan),
                n_documents=self._joint.n,
                head=head,
                unit=unit,
                titles=self._titles,
                alpha=self._alpha,
            )
        row = row.model_copy(update=update)
        return row.model_copy(update={"sentence": _sentence(row, head, self._titles, self._alpha)})

    def _side(self, place: Place, metric: str, index: int) -> SideValue:
        saes = self._pairs[place][index]
        if not saes:
            return SideValue(value=None, reason=MISSING)
        if metric == BITS:
            value, interval = self._own.get((place, metric, index), (math.nan, None))
            if interval is None:
                return SideValue(value=None, reason="no shared document with its bytes")
            values = [self._joint.points([mean_of(metric, [sae])])[0] for sae in self._numbers[place][index]]
            return _mean_value(value, values, interval)
        entries = [sae.values[metric] for sae in saes]
        if len(saes) == 1:
            entry = entries[0]
            if isinstance(entry, Mapping):
                return SideValue(value=entry["value"], low=entry["low"], high=entry["high"], reason=entry["reason"])
            return SideValue(value=entry, reason=CENSUS)
        numbers = [_number(entry) for entry in entries]
        missing = [entry["reason"] for entry, value in zip(entries, numbers) if value is None]
        if missing:
            return SideValue(value=None, reason=f"{len(missing)} of {len(saes)} SAEs: {missing[0]}")
        values = [value for value in numbers if value is not None]
        _, interval = self._own.get((place, metric, index), (math.nan, None))
        return _mean_value(float(np.mean(values)), values, interval)


def _mean_value(value: float, values: Sequence[float], interval: Interval | None) -> SideValue:
    several = len(values) > 1
    return SideValue(
        value=value,
        low=interval.low if interval else None,
        high=interval.high if interval else None,
        reason=interval.reason if interval else CENSUS,
        values=tuple(values) if several else (),
        sd=(0.0 if np.ptp(values) == 0 else float(np.std(values, ddof=1))) if several else None,
    )


def _number(entry: Any) -> float | None:
    value: float | None = entry["value"] if isinstance(entry, Mapping) else entry
    return value


def _sentence(row: MetricDifference, head: str, titles: tuple[str, str], alpha: float) -> str:
    unit = METRICS[row.metric].unit
    if row.difference is None:
        return f"{head}: not compared ({row.reason})."
    shown = [
        f"{number(side.value)}{unit} ({title}{f', mean of {len(side.values)} SAEs' if side.values else ''})"
        for side, title in zip((row.a, row.b), titles)
    ]
    values, change = " and ".join(shown), f"difference {signed(row.difference)}{unit}"
    flag = f" ({row.flag})" if row.flag else ""
    if row.verdict is None:
        return f"{head}: {values}, {change}; {row.reason}{flag}."
    tail = f"{change} ({interval_text(row.low, row.high, alpha=alpha)}), n = {row.n_documents} documents{flag}"
    if row.verdict == "inconclusive":
        return f"{head}: no detectable difference: {values}, {tail}."
    lower, higher = titles if row.lower == "a" else titles[::-1]
    return f"{head}: lower for {lower} than for {higher}: {values}, {tail}."


def _summary(metric: str, rows: Sequence[MetricDifference], interval: Interval | None) -> LayerSummary:
    differences = [row.difference for row in rows if row.difference is not None]
    summary = LayerSummary(
        dataset=rows[0].dataset,
        recipe=rows[0].recipe,
        metric=metric,
        title=METRICS[metric].title,
        layers=len(differences),
        missing=len(rows) - len(differences),
        mean_difference=None,
        reason="no layer has it on both sides",
    )
    if not differences:
        return summary
    update = {
        "mean_difference": float(np.mean(differences)),
        "smallest": min(differences),
        "largest": max(differences),
        "low": interval.low if interval else None,
        "high": interval.high if interval else None,
        "reason": interval.reason if interval else CENSUS,
    }
    return summary.model_copy(update=update)
