"""The short answer on two models: healthy layers, mean loss recovered and its gap, best layers; like with like.

Only layers, recipes and datasets of both sides enter. The surprising choice: there is no winner. A side is never
ahead for a dataset the other was not measured on, and counts and gaps are printed without a word for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from saeinterp.compare.comparability import ComparabilityRow, comparability_row, differing
from saeinterp.compare.layer_rows import LayerSummary
from saeinterp.compare.model_sentences import LayerResult
from saeinterp.compare.results import Result
from saeinterp.compare.sides import MeasuredSae, Place, Side, input_of
from saeinterp.config import WORST_CASE
from saeinterp.health.grading.results import LayerGrades, SaeGrade
from saeinterp.health.grading.step import decide
from saeinterp.stats import interval_text, number, signed

METRIC = "loss_recovered"


class DatasetGap(Result):
    """Mean loss recovered of both sides over the layers where both have it, on one dataset and recipe."""

    dataset: str
    recipe: str
    hookpoints: tuple[str, ...]
    mean_a: float | None
    mean_b: float | None
    gap_points: float | None
    """b - a in percentage points, from unrounded values."""
    low_points: float | None
    """Joint bootstrap interval over documents, for these SAEs."""
    high_points: float | None
    reason: str | None
    sentence: str


class SideHealth(Result):
    """One side's grades on the layers, recipes and datasets of both sides."""

    saes: int
    healthy: int
    incomplete: int
    partial: int
    unhealthy: int
    undecided: int
    """SAEs with a metric whose interval crosses a threshold."""
    best: tuple[str, ...]
    """The best layer of this side over all of its layers and datasets; several where they tie."""
    best_reason: str | None


class DirectComparison(Result):
    """Both sides in a few numbers."""

    gaps: tuple[DatasetGap, ...]
    one_sided: tuple[str, ...]
    """What only one side has, in words; not compared."""
    a: SideHealth | None
    """Null where a side was not graded."""
    b: SideHealth | None
    reason: str | None
    """Why grades are not compared."""
    sentences: tuple[str, ...]


class Graded(NamedTuple):
    """A side's grades and its SAEs by place."""

    grades: LayerGrades
    saes: Mapping[Place, Sequence[MeasuredSae]]


def compare_directly(
    layers: Sequence[LayerResult],
    summary: Sequence[LayerSummary],
    *,
    graded: Mapping[Side, Graded],
    names: tuple[str, str],
    alpha: float,
) -> DirectComparison:
    """Means and gaps from the compared layers, counts from the grades of both sides.

    Args:
        layers: Every place, one-sided ones included.
        summary: Their summary over layers; gives the gap's interval.
        graded: Grades of each side; counts need both.
        names: Names of the sides.
        alpha: Level of the intervals.
    """
    gaps = tuple(
        _gap(layers, row, names=names, alpha=alpha)
        for row in summary
        if row.metric == METRIC and row.layers + row.missing
    )
    one_sided = tuple(
        f"{layer.place.shown(datasets=2)}: only {names[1] if layer.missing == 'a' else names[0]}"
        for layer in layers
        if layer.missing is not None
    )
    healths, reason = _healths(layers, graded, names)
    said = [gap.sentence for gap in gaps]
    if one_sided:
        said.append(f"On one side only, so not compared: {'; '.join(one_sided)}.")
    said += _grade_sentences(healths, layers, names) if healths else []
    return DirectComparison(
        gaps=gaps,
        one_sided=one_sided,
        a=healths[0] if healths else None,
        b=healths[1] if healths else None,
        reason=reason,
        sentences=tuple(said),
    )


def grading_rows(a: LayerGrades, b: LayerGrades) -> list[ComparabilityRow]:
    """How both sides were graded: profile, thresholds, deciding dataset, ties."""

    def settings(grades: LayerGrades) -> dict[str, Any]:
        return grades.model_dump(include={"profile", "thresholds", "dataset", "ties"})

    rows = [
        comparability_row(f"grading {key}", x, y, severity="hard", note="other rules, other grades")
        for key, x, y in differing(settings(a), settings(b))
    ]
    return rows or [comparability_row("grading", a.profile, b.profile, severity="hard")]


def _gap(layers: Sequence[LayerResult], summary: LayerSummary, *, names: tuple[str, str], alpha: float) -> DatasetGap:
    rows = [
        row
        for layer in layers
        if (layer.dataset, layer.recipe) == (summary.dataset, summary.recipe)
        for row in layer.metrics
        if row.metric == METRIC and row.difference is not None
    ]
    where = ", ".join(part for part in (summary.dataset, summary.recipe) if part)
    head = f"Mean loss recovered ({where})"
    if not rows:
        text = f"{head}: not compared (no layer has it on both sides)."
        return DatasetGap(
            dataset=summary.dataset, recipe=summary.recipe, hookpoints=(), mean_a=None, mean_b=None, gap_points=None,
            low_points=None, high_points=None, reason="no layer has it on both sides", sentence=text,
        )  # fmt: skip
    means = [sum(value for row in rows if (value := side(row).value) is not None) / len(rows) for side in _SIDES]
    gap = 100 * (means[1] - means[0])
    low, high = (None if end is None else 100 * end for end in (summary.low, summary.high))
    shown = (
        f" ({interval_text(low, high, alpha=alpha, digits=2)} over documents, these SAEs)" if low is not None else ""
    )
    many = f"{len(rows)} layer" + ("s" if len(rows) > 1 else "")
    sentence = (
        f"{head}, over {many} of both sides: {number(100 * means[0], digits=2)}% ({names[0]}) and"
        f" {number(100 * means[1], digits=2)}% ({names[1]}), gap {signed(gap, digits=2)} percentage points{shown}."
    )
    return DatasetGap(
        dataset=summary.dataset,
        recipe=summary.recipe,
        hookpoints=tuple(row.hookpoint for row in rows),
        mean_a=means[0],
        mean_b=means[1],
        gap_points=gap,
        low_points=low,
        high_points=high,
        reason=None if low is not None else summary.reason,
        sentence=sentence,
    )


_SIDES = (lambda row: row.a, lambda row: row.b)


def _healths(
    layers: Sequence[LayerResult], graded: Mapping[Side, Graded], names: tuple[str, str]
) -> tuple[tuple[SideHealth, SideHealth] | None, str | None]:
    missing = [name for name, side in zip(names, ("a", "b")) if side not in graded]
    if missing:
        return None, f"not graded: {', '.join(missing)}"
    shared = [layer.place for layer in layers if layer.missing is None]
    datasets = tuple(dict.fromkeys(place.dataset for place in shared))
    deciding = {graded[side].grades.dataset for side in ("a", "b")} - {WORST_CASE}
    if lacking := sorted(deciding - set(datasets)):
        return None, f"the dataset that decides is not on both sides: {', '.join(lacking)}"
    return (_health(graded["a"], shared, datasets), _health(graded["b"], shared, datasets)), None


def _health(side: Graded, shared: Sequence[Place], datasets: Sequence[str]) -> SideHealth:
    wanted = {
        f"sae/{node.id}"
        for place in shared
        for sae in side.saes.get(place, ())
        if (node := input_of(sae.node, "sae")) is not None
    }
    found = [_label(sae, datasets, side.grades.dataset) for sae in side.grades.saes if sae.sae in wanted]
    labels = [label for label, _ in found]
    best = side.grades.best
    return SideHealth(
        saes=len(found),
        healthy=labels.count("healthy"),
        incomplete=labels.count("incomplete"),
        partial=labels.count("partial"),
        unhealthy=labels.count("unhealthy"),
        undecided=sum(undecided for _, undecided in found),
        best=best.titles if best else (),
        best_reason=best.reason if best else None,
    )


def _label(sae: SaeGrade, datasets: Sequence[str], deciding: str) -> tuple[str, bool]:
    """The grade on the shared datasets, and whether it is undecided; a shared dataset it lacks is NA."""
    here = [grade for grade in sae.datasets if grade.dataset in datasets]
    decided = decide(here, dataset=deciding)
    lacks = any(grade.source is None for grade in here) and deciding == WORST_CASE
    return ("incomplete" if lacks and decided.label == "healthy" else decided.label), decided.undecided


def _grade_sentences(
    healths: tuple[SideHealth, SideHealth], layers: Sequence[LayerResult], names: tuple[str, str]
) -> list[str]:
    datasets = dict.fromkeys(layer.dataset for layer in layers if layer.missing is None)
    parts = [f"{side.healthy} of {side.saes} for {name}" for side, name in zip(healths, names)]
    open_ends = [f"{side.undecided} of {name}" for side, name in zip(healths, names) if side.undecided]
    undecided = f"; undecided, an interval crosses a threshold: {' and '.join(open_ends)}" if open_ends else ""
    said = [
        f"Healthy SAEs on layers and datasets of both sides ({', '.join(datasets)}): {' and '.join(parts)}{undecided}."
    ]
    for side, name in zip(healths, names):
        if side.best:
            tie = "Best layers, tied," if len(side.best) > 1 else "Best layer"
            said.append(f"{tie} of {name}: {', '.join(side.best)} ({side.best_reason}).")
    return said
