"""The comparison of two models' layers as a report section.

Adapts `comparison.json` (see `saeinterp.compare.models`). The surprising choice: where one side is the
random-weights control, the layer's own sentence stands before the table, since a small ΔCE on a model that
does nothing is not a good SAE.
"""

from __future__ import annotations

from saeinterp.artifacts import Artifact
from saeinterp.compare.layers import LayerSummary, MetricDifference, SideValue
from saeinterp.compare.models import ModelComparison
from saeinterp.report.format import Style, short
from saeinterp.report.results import Check, Difference, LayerDifference, ModelSection, Number, Side

STYLES: dict[str, tuple[Style, Style]] = {
    "delta_ce": ("nat-difference", "nat-difference"),
    "dead_fraction": ("share", "points"),
}
"""Metric to the style of its values and of their difference; scores otherwise."""
MISSING = "missing on one side"


def model_section(artifact: Artifact) -> ModelSection:
    """Per-layer differences, their summary and the generated sentences of one comparison."""
    data = ModelComparison.model_validate_json(artifact.file("comparison.json").read_bytes())
    source = artifact.id
    layers = [layer for layer in data.layers if layer.missing is None]
    missing = [layer for layer in data.layers if layer.missing is not None]
    titles = {"a": data.title_a, "b": data.title_b}
    return ModelSection(
        sides=(Side(key="a", title=data.title_a), Side(key="b", title=data.title_b)),
        sentence=data.sentence,
        notes=(data.adjustment,),
        findings=(
            *(layer.control_sentence for layer in layers if layer.control_sentence is not None),
            *(f"{layer.hookpoint}: missing for {titles[str(layer.missing)]}." for layer in missing),
            *(sentence.text for sentence in data.sentences if sentence.id.startswith("summary.")),
        ),
        layers=tuple(_row(row, data, source) for layer in layers for row in layer.metrics),
        summary=tuple(_summary(row, data, source) for row in data.summary),
        checks=tuple(Check(**row.model_dump()) for row in data.comparability),
        matched=data.matched,
        differences=tuple(
            Difference(field=f"{row.step} {row.field}", a=short(row.a), b=short(row.b)) for row in data.configuration
        ),
        source=source,
    )


def _row(row: MetricDifference, data: ModelComparison, source: str) -> LayerDifference:
    style, change = STYLES.get(row.metric, ("score", "difference"))
    n = row.n_documents
    return LayerDifference(
        hookpoint=row.hookpoint,
        metric=row.metric,
        title=_title(row.title),
        a=_value(row.a, style, n, source),
        b=_value(row.b, style, n, source),
        difference=Number(
            value=row.difference,
            style=change,
            low=row.low,
            high=row.high,
            interval=_interval(data) if row.low is not None else None,
            no_interval=row.reason if row.low is None and row.difference is not None else None,
            n=n,
            of="documents",
            source=source,
            reason=row.reason or MISSING if row.difference is None else None,
        ),
        verdict=row.verdict,
        sentence=row.sentence,
    )


def _summary(row: LayerSummary, data: ModelComparison, source: str) -> LayerDifference:
    _, change = STYLES.get(row.metric, ("score", "difference"))
    return LayerDifference(
        hookpoint=None,
        metric=row.metric,
        title=_title(row.title),
        a=None,
        b=None,
        difference=Number(
            value=row.mean_difference,
            style=change,
            low=row.low,
            high=row.high,
            interval=_interval(data) if row.low is not None else None,
            no_interval=row.reason if row.mean_difference is not None else None,
            n=row.layers,
            of="layers",
            source=source,
            reason=row.reason or MISSING if row.mean_difference is None else None,
        ),
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


def _interval(data: ModelComparison) -> str:
    return f"{1 - data.alpha:.0%} CI, {data.interval_method or 'bootstrap over documents'}"


def _title(text: str) -> str:
    return text[:1].upper() + text[1:]
