"""Whether a metric rises or falls with depth in one model: Spearman's rho over its layers, with an exact p.

Layers of one model are no sample of anything, so this describes these layers. The surprising choice: without
six layers there is a coefficient and no trend word, however orderly five values look.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from saeinterp.compare.layer_rows import METRICS, MetricDifference
from saeinterp.compare.results import Result
from saeinterp.compare.sides import Place
from saeinterp.stats import number, p_text, spearman

Of = Literal["a", "b", "difference"]


class Trend(Result):
    """One metric of one side, or the difference b - a, against depth."""

    dataset: str
    recipe: str
    metric: str
    title: str
    of: Of
    layers: int
    rho: float | None
    p: float | None
    """Permutation p of "no order"; null below six layers."""
    method: str | None
    direction: Literal["rises", "falls", "no detectable trend"] | None
    """Only from p; null without it."""
    reason: str | None
    """Why rho or p are null."""
    sentence: str

    @property
    def end(self) -> str:
        """The end of its sentence's id."""
        return Place("", self.dataset, self.recipe).id


class LayerRow(NamedTuple):
    """A metric's row with its layer; None where the hookpoint has none."""

    layer: int | None
    row: MetricDifference


def depth_trends(
    rows: Sequence[LayerRow], *, titles: tuple[str, str], alpha: float = 0.05, seed: int = 0
) -> tuple[Trend, ...]:
    """Trends of every dataset, recipe, metric and side with at least three layers.

    Args:
        rows: All compared rows; hookpoints without a layer number have no depth and are left out.
        titles: Names of the sides.
        alpha: Level below which p gives a trend word.
        seed: Of drawn orders, beyond nine layers.
    """
    groups: dict[tuple[str, str, str], list[LayerRow]] = {}
    for item in rows:
        if item.layer is not None:
            groups.setdefault((item.row.dataset, item.row.recipe, item.row.metric), []).append(item)
    several = len({dataset for dataset, _, _ in groups}) > 1
    found = []
    for (dataset, recipe, metric), members in groups.items():
        place = ", ".join(part for part in (dataset if several else "", recipe) if part)
        for of in ("a", "b", "difference"):
            points = [(item.layer, value) for item in members if (value := _value(item.row, of)) is not None]
            if len({layer for layer, _ in points}) < 3 or len(points) != len({layer for layer, _ in points}):
                continue
            ranks = spearman([float(layer or 0) for layer, _ in points], [value for _, value in points], seed=seed)
            direction = None
            if ranks.p_value is not None and ranks.rho is not None:
                direction = "no detectable trend"
                if ranks.p_value < alpha:
                    direction = "rises" if ranks.rho > 0 else "falls"
            trend = Trend(
                dataset=dataset,
                recipe=recipe,
                metric=metric,
                title=METRICS[metric].title,
                of=of,
                layers=len(points),
                rho=ranks.rho,
                p=ranks.p_value,
                method=ranks.method,
                direction=direction,
                reason=ranks.reason,
                sentence="",
            )
            found.append(trend.model_copy(update={"sentence": _sentence(trend, place, titles)}))
    return tuple(found)


def _value(row: MetricDifference, of: str) -> float | None:
    if of == "difference":
        return row.difference
    return (row.a if of == "a" else row.b).value


def _sentence(trend: Trend, place: str, titles: tuple[str, str]) -> str:
    subject = {
        "a": f"{trend.title} of {titles[0]}",
        "b": f"{trend.title} of {titles[1]}",
        "difference": f"the difference of {trend.title} ({titles[1]} − {titles[0]})",
    }[trend.of]
    head = f"{place}: {subject}" if place else subject[:1].upper() + subject[1:]
    if trend.rho is None:
        return f"{head} has no order over {trend.layers} layers ({trend.reason})."
    numbers = f"Spearman's ρ = {number(trend.rho, digits=2)} over {trend.layers} layers"
    if trend.p is None:
        return f"{head} against depth: {numbers}; not tested ({trend.reason})."
    words = {"rises": "rises with depth", "falls": "falls with depth"}.get(
        str(trend.direction), "shows no detectable trend with depth"
    )
    return f"{head} {words}: {numbers}, {p_text(trend.p)} ({trend.method}); these layers only."
