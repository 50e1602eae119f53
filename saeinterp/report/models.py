"""The comparison of two models' layers as a report section.

Adapts `comparison.json` (see `saeinterp.compare.models`). The surprising choice: where one side is the
random-weights control, the layer's own sentence stands before the table, since a small ΔCE on a model that
does nothing is not a good SAE.
"""

from __future__ import annotations

from collections.abc import Mapping

from saeinterp.artifacts import Artifact
from saeinterp.compare.direct import DatasetGap
from saeinterp.compare.frontiers import Frontier, FrontierPoint
from saeinterp.compare.layer_rows import LayerSummary, MetricDifference, SideValue
from saeinterp.compare.model_results import ModelComparison
from saeinterp.compare.seeds import SeedDifference
from saeinterp.report import grade_results, model_results
from saeinterp.report.format import Style, number, short
from saeinterp.report.grades import ranges
from saeinterp.report.model_results import FrontierRow, LayerDifference, ModelSection
from saeinterp.report.values import Check, Difference, Number, Side

STYLES: dict[str, tuple[Style, Style]] = {
    "delta_ce": ("nat-difference", "nat-difference"),
    "dead_fraction": ("share", "points"),
}
"""Metric to the style of its values and of their difference; scores otherwise."""
MISSING = "missing on one side"
TOLD = ("summary.", "trend.loss_recovered.", "trend.fvu.")
"""Sentences of a comparison that are findings; those on single numbers stand in the table."""


def model_section(artifact: Artifact, *, grades: Mapping[str, Artifact] = {}) -> ModelSection:
    """Per-layer differences, their summary and the generated sentences of one comparison.

    Args:
        grades: Model title to its grades, for the ranges of the direct comparison.
    """
    data = ModelComparison.model_validate_json(artifact.file("comparison.json").read_bytes())
    source = artifact.id
    layers = [layer for layer in data.layers if layer.missing is None]
    missing = [layer for layer in data.layers if layer.missing is not None]
    titles = {"a": data.title_a, "b": data.title_b}
    several = len(data.datasets)
    return ModelSection(
        sides=(Side(key="a", title=data.title_a), Side(key="b", title=data.title_b)),
        sentence=data.sentence,
        notes=(data.adjustment,),
        findings=(
            *(layer.control_sentence for layer in layers if layer.control_sentence is not None),
            *(f"{layer.place.shown(datasets=several)}: missing for {titles[str(layer.missing)]}." for layer in missing),
            *(
                row.models.sentence
                for layer in layers
                for row in layer.metrics
                if row.models is not None and row.metric in ("loss_recovered", "fvu")
            ),
            *(sentence.text for sentence in data.sentences if sentence.id.startswith(TOLD)),
        ),
        layers=tuple(
            _row(row, layer.place.shown(datasets=several), data, source) for layer in layers for row in layer.metrics
        ),
        summary=tuple(_summary(row, data, source) for row in data.summary),
        direct=_direct(data, source, grades),
        controls=tuple(
            sentence
            for control in data.controls
            for sentence in (
                control.sentence,
                *(layer.control_sentence for layer in control.layers if layer.control_sentence is not None),
            )
        ),
        frontiers=tuple(_frontier(item, data, source) for item in data.frontiers),
        checks=tuple(Check(**row.model_dump()) for row in data.comparability),
        matched=data.matched,
        differences=tuple(
            Difference(field=f"{row.step} {row.field}", a=short(row.a), b=short(row.b)) for row in data.configuration
        ),
        source=source,
    )


def _row(row: MetricDifference, where: str, data: ModelComparison, source: str) -> LayerDifference:
    style, change = STYLES.get(row.metric, ("score", "difference"))
    n = row.n_documents
    return LayerDifference(
        hookpoint=row.hookpoint,
        where=where,
        metric=row.metric,
        title=_title(row.title),
        a=_value(row.a, style, n, source),
        b=_value(row.b, style, n, source),
        difference=Number(
            value=row.difference,
            style=change,
            low=row.low,
            high=row.high,
            interval=_interval(data, row.method) if row.low is not None else None,
            no_interval=row.reason if row.low is None and row.difference is not None else None,
            n=n,
            of="documents",
            source=source,
            reason=row.reason or MISSING if row.difference is None else None,
        ),
        verdict=row.verdict,
        models=_models(row, row.models, change, data, source) if row.models is not None else None,
        spread=_spread(row, style, data),
        flag=row.flag,
        sentence=row.sentence,
    )


def _models(row: MetricDifference, found: SeedDifference, style: Style, data: ModelComparison, source: str) -> Number:
    """The difference of the models: the same value, with the training seeds in its interval."""
    return Number(
        value=row.difference,
        style=style,
        low=found.low,
        high=found.high,
        interval=f"{1 - data.alpha:.0%} CI, {found.method}" if found.low is not None else None,
        no_interval=found.reason if found.low is None else None,
        n=found.saes_a + found.saes_b,
        of="SAEs",
        source=source,
        reason=row.reason or MISSING if row.difference is None else None,
    )


def _spread(row: MetricDifference, style: Style, data: ModelComparison) -> str | None:
    """Standard deviation over the SAEs of each side that has several."""
    parts = [
        f"{title}: sd {number(side.sd, 'score' if style != 'share' else 'percent')} over {len(side.values)} SAEs"
        for title, side in ((data.title_a, row.a), (data.title_b, row.b))
        if side.sd is not None
    ]
    return "; ".join(parts) or None


def _summary(row: LayerSummary, data: ModelComparison, source: str) -> LayerDifference:
    _, change = STYLES.get(row.metric, ("score", "difference"))
    named = [row.dataset if len(data.datasets) > 1 else "", row.recipe]
    return LayerDifference(
        hookpoint=None,
        where=", ".join(["mean over layers", *(part for part in named if part)]),
        metric=row.metric,
        title=_title(row.title),
        a=None,
        b=None,
        difference=Number(
            value=row.mean_difference,
            style=change,
            low=row.low,
            high=row.high,
            interval=_interval(data, None) if row.low is not None else None,
            no_interval=row.reason if row.mean_difference is not None else None,
            n=row.layers,
            of="layers",
            source=source,
            reason=row.reason or MISSING if row.mean_difference is None else None,
        ),
    )


def _direct(data: ModelComparison, source: str, grades: Mapping[str, Artifact]) -> grade_results.DirectComparison:
    found = data.direct
    rows = [_gap(gap, data, source) for gap in found.gaps]
    rows += ranges((data.title_a, data.title_b), grades)
    if found.a is not None and found.b is not None:
        counts = [
            Number(value=side.healthy, style="count", n=side.saes, of="SAEs", source=source)
            for side in (found.a, found.b)
        ]
        rows.insert(
            0,
            grade_results.DirectRow(
                title="Fully healthy",
                dataset=", ".join(data.datasets),
                a=counts[0],
                b=counts[1],
                difference=Number(
                    value=found.b.healthy / found.b.saes - found.a.healthy / found.a.saes
                    if found.a.saes and found.b.saes
                    else None,
                    style="fine-points",
                    n=min(found.a.saes, found.b.saes),
                    of="SAEs",
                    source=source,
                    reason=None if found.a.saes and found.b.saes else "no SAE on what both sides have",
                ),
            ),
        )
    return grade_results.DirectComparison(a=data.title_a, b=data.title_b, rows=tuple(rows), findings=found.sentences)


def _gap(gap: DatasetGap, data: ModelComparison, source: str) -> grade_results.DirectRow:
    layers = len(gap.hookpoints)

    def mean(value: float | None) -> Number:
        return Number(value=value, style="percent", n=layers, of="layers", source=source, reason=gap.reason or MISSING)

    low, high = (None if end is None else end / 100 for end in (gap.low_points, gap.high_points))
    return grade_results.DirectRow(
        title="Mean loss recovered",
        dataset=", ".join(part for part in (gap.dataset, gap.recipe) if part),
        a=mean(gap.mean_a),
        b=mean(gap.mean_b),
        difference=Number(
            value=None if gap.gap_points is None else gap.gap_points / 100,
            style="fine-points",
            low=low,
            high=high,
            interval=_interval(data, None) if low is not None else None,
            no_interval=gap.reason if low is None and gap.gap_points is not None else None,
            n=layers,
            of="layers",
            source=source,
            reason=gap.reason or MISSING if gap.gap_points is None else None,
        ),
    )


def _frontier(item: Frontier, data: ModelComparison, source: str) -> FrontierRow:
    named = [item.hookpoint, item.dataset if len(data.datasets) > 1 else ""]
    return FrontierRow(
        where=", ".join(part for part in named if part),
        points=(
            *(_point(point, "a", item, source) for point in item.a),
            *(_point(point, "b", item, source) for point in item.b),
        ),
        difference=Number(
            value=item.difference,
            style="difference",
            low=item.low,
            high=item.high,
            interval=_interval(data, item.method) if item.low is not None else None,
            no_interval=item.reason if item.low is None and item.difference is not None else None,
            n=item.n_documents,
            of="documents",
            source=source,
            reason=item.reason or MISSING if item.difference is None else None,
        ),
        sentence=item.sentence,
    )


def _point(point: FrontierPoint, side: str, item: Frontier, source: str) -> model_results.FrontierPoint:
    def value(found: float | None, style: Style) -> Number:
        reason = None if found is not None else "not measured"
        return Number(value=found, style=style, n=point.saes, of="SAEs", source=source, reason=reason)

    return model_results.FrontierPoint(
        side="a" if side == "a" else "b",
        recipe=point.recipe,
        l0=value(point.l0, "plain"),
        fvu=value(point.fvu, "score"),
        on_frontier=point.on_frontier,
    )


def _value(side: SideValue, style: Style, n: int, source: str) -> Number:
    return Number(
        value=side.value,
        style=style,
        low=side.low,
        high=side.high,
        interval="95% CI over documents" if side.low is not None else None,
        no_interval=side.reason if side.low is None and side.value is not None else None,
        n=n,
        of="documents",
        source=source,
        reason=side.reason or MISSING if side.value is None else None,
    )


def _interval(data: ModelComparison, method: str | None) -> str:
    return f"{1 - data.alpha:.0%} CI, {method or data.interval_method or 'bootstrap over documents'}"


def _title(text: str) -> str:
    return text[:1].upper() + text[1:]
