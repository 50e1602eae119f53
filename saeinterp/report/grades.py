"""Layer grades as a report section: `grades.json` of every model, and of an outside table what is wrong with it.

The surprising choice: a grade is never shown without its number. Every cell holds the value, the word that the
thresholds give it, and whether its interval leaves that open.
"""

from __future__ import annotations

from collections.abc import Mapping

from saeinterp.artifacts import Artifact
from saeinterp.config import WORST_CASE
from saeinterp.errors import ConfigError
from saeinterp.health import LayerGrades, SaeGrade, read_grades
from saeinterp.health.grading.comparison import GradeComparison, MetricMeans, compare_grades
from saeinterp.health.grading.results import DatasetGrade, GradedMetric, Measured
from saeinterp.health.grading.rules import GRADED, PERCENT, TITLES, rule_text
from saeinterp.health.imported import TableReview, read_review, read_table
from saeinterp.report.format import Style
from saeinterp.report.grade_results import (
    DatasetRow,
    DirectComparison,
    DirectRow,
    GradeCell,
    GradedLayer,
    GradedModel,
    GradeSection,
    OutsideTable,
    TableProblem,
)
from saeinterp.report.values import Number, Setting

STYLES: Mapping[str, Style] = {
    "loss_recovered": "percent",
    "l0": "plain",
    "dead_fraction": "percent",
    "absorption": "score",
}
CONVENTION = (
    "Thresholds are a convention of such reports, not of SAEBench, which recommends to sweep L0 over 20 to 200 and "
    "defines none of the others."
)
BY_THE_TABLE = "the table gives none"
COUNTED = "a count or a setting: no interval"


def grade_section(grades: Mapping[str, Artifact], *, review: Artifact | None = None) -> GradeSection | None:
    """The section, None without grades.

    Args:
        grades: Model title to its `grades` artifact.
        review: The review of an outside table, where the grades are of one.
    """
    if not grades:
        return None
    read = {title: read_grades(artifact) for title, artifact in grades.items()}
    first = next(iter(read.values()))
    outside = review is not None
    return GradeSection(
        profile=first.profile,
        thresholds=_thresholds(first),
        rule=_rule(first),
        convention=CONVENTION,
        models=tuple(_model(title, item, grades[title], outside=outside) for title, item in read.items()),
        direct=_direct(review),
        table=_table(review, grades) if review is not None else None,
    )


def _thresholds(grades: LayerGrades) -> tuple[Setting, ...]:
    limits = grades.thresholds
    rows = [Setting(field=TITLES[metric], value=rule_text(metric, limits)) for metric in GRADED]
    return (*rows, Setting(field="borderline", value="passes" if limits.borderline_passes else "does not pass"))


def _rule(grades: LayerGrades) -> str:
    decides = (
        "Of several datasets the one with most failures decides"
        if grades.dataset == WORST_CASE
        else f"{grades.dataset} decides"
    )
    ties = "its interval overlaps another's" if grades.ties == "overlap" else "the values are equal"
    return f"{decides}; of layers with equal grades the best has the highest loss recovered, a tie where {ties}."


def _model(title: str, grades: LayerGrades, artifact: Artifact, *, outside: bool) -> GradedModel:
    rows = [row for sae in grades.saes for row in sae.datasets]
    return GradedModel(
        title=title,
        layers=tuple(_layer(sae, grades, artifact.id, outside=outside) for sae in grades.saes),
        findings=grades.sentences,
        recommendations=tuple(item.text for item in grades.recommendations),
        checks=sum(len(row.checks) for row in rows),
        failed=sum(not check.passed for row in rows for check in row.checks),
        source=artifact.id,
    )


def _layer(sae: SaeGrade, grades: LayerGrades, source: str, *, outside: bool) -> GradedLayer:
    cosine = sae.decoder_top_cosine
    return GradedLayer(
        title=sae.title,
        rows=tuple(_row(row, sae, len(grades.datasets), source, outside=outside) for row in sae.datasets),
        passed=sae.passed,
        applicable=sae.applicable,
        label=sae.label,
        undecided=sae.undecided,
        reasons=sae.reasons,
        control=_measured(sae.absorption_control, sae.absorption_source or source)
        if sae.absorption_control is not None
        else None,
        cosine=Number(value=cosine.value, source=sae.absorption_source) if cosine is not None else None,
        cosine_null=Number(
            value=cosine.null_value,
            low=cosine.null_low,
            high=cosine.null_high,
            interval="range of random dictionaries" if cosine.null_low is not None else None,
            source=sae.absorption_source,
            reason=None if cosine.null_value is not None else "not computed",
        )
        if cosine is not None
        else None,
    )


def _row(row: DatasetGrade, sae: SaeGrade, datasets: int, source: str, *, outside: bool) -> DatasetRow:
    cells = {item.metric: _cell(item, row, sae, source, outside=outside) for item in row.metrics}
    return DatasetRow(
        dataset=row.dataset,
        **{str(metric): cell for metric, cell in cells.items()},
        grade=f"{row.passed}/{row.applicable} {row.label}",
        decides=datasets == 1 or row.dataset == sae.decided_by,
        failed_checks=tuple(f"{check.name}: {check.detail}" for check in row.checks if not check.passed),
    )


def _cell(item: GradedMetric, row: DatasetGrade, sae: SaeGrade, source: str, *, outside: bool) -> GradeCell:
    origin = source if outside else row.source or source
    if item.metric == "absorption" and sae.absorption_source is not None:
        origin = sae.absorption_source
    bounded = item.low is not None and item.high is not None
    return GradeCell(
        metric=item.metric,
        number=Number(
            value=item.value,
            style=STYLES[item.metric],
            low=item.low,
            high=item.high,
            interval="95% CI" if bounded else None,
            no_interval=None
            if bounded or item.value is None
            else item.reason or (BY_THE_TABLE if outside else COUNTED),
            source=origin,
            reason=None if item.value is not None else item.reason or "not measured",
        ),
        outcome=item.outcome,
        undecided=item.undecided,
        note=item.note,
    )


def _measured(item: Measured, source: str) -> Number:
    return Number(
        value=item.value,
        low=item.low,
        high=item.high,
        interval="95% CI" if item.low is not None and item.high is not None else None,
        source=source,
        reason=None if item.value is not None else item.reason or "not measured",
    )


def _direct(review: Artifact | None) -> tuple[DirectComparison, ...]:
    """Models of an outside table side by side; our own are compared by their documents, in a section of its own."""
    if review is None:
        return ()
    return tuple(_pair(pair.a, pair.b, pair.comparison, review.id) for pair in read_review(review).pairs)


def _pair(a: str, b: str, found: GradeComparison, source: str) -> DirectComparison:
    rows = []
    for item in found.healthy:
        rows.append(
            DirectRow(
                title="Fully healthy layers",
                dataset=item.dataset,
                a=Number(value=item.healthy_a, style="count", n=item.of_a, of="layers", source=source),
                b=Number(value=item.healthy_b, style="count", n=item.of_b, of="layers", source=source),
                difference=_share_gap(item.healthy_a, item.of_a, item.healthy_b, item.of_b, source),
            )
        )
    rows += [_mean_row(row, source) for row in found.means if row.layers]
    return DirectComparison(a=a, b=b, rows=tuple(rows), findings=found.sentences)


def ranges(names: tuple[str, str], grades: Mapping[str, Artifact]) -> tuple[DirectRow, ...]:
    """Means and ranges of two models' other graded metrics, on the layers and datasets of both; () unless both are
    graded alike.

    Loss recovered is compared by its documents, with an interval, and is left out.
    """
    artifacts = [grades.get(name) for name in names]
    if artifacts[0] is None or artifacts[1] is None:
        return ()
    a, b = (read_grades(item) for item in artifacts if item is not None)
    try:
        found = compare_grades(a, b, names=names)
    except ConfigError:
        return ()
    sources = [item.id for item in artifacts if item is not None]
    rows = [_mean_row(row, sources[1]) for row in found.means if row.layers and row.metric != "loss_recovered"]
    return tuple(row.model_copy(update={"a": row.a.model_copy(update={"source": sources[0]})}) for row in rows)


def _share_gap(a: int, of_a: int, b: int, of_b: int, source: str) -> Number:
    if not of_a or not of_b:
        return Number(value=None, style="fine-points", source=source, reason="no shared layer")
    return Number(value=b / of_b - a / of_a, style="fine-points", n=min(of_a, of_b), of="layers", source=source)


def _mean_row(row: MetricMeans, source: str) -> DirectRow:
    def mean(value: float | None, ends: tuple[float, float] | None) -> Number:
        low, high = ends or (None, None)
        return Number(
            value=value,
            style=STYLES[row.metric],
            low=low,
            high=high,
            interval="smallest to largest layer",
            n=row.layers,
            of="layers",
            source=source,
            reason=row.reason,
        )

    return DirectRow(
        title=f"Mean {TITLES[row.metric]} [smallest, largest]",
        dataset="" if row.metric == "absorption" else row.dataset,
        a=mean(row.mean_a, row.range_a),
        b=mean(row.mean_b, row.range_b),
        difference=Number(
            value=row.difference,
            style="fine-points" if row.metric in PERCENT else "difference",
            n=row.layers,
            of="layers",
            source=source,
            reason=row.reason,
        ),
    )


def _table(review: Artifact, grades: Mapping[str, Artifact]) -> OutsideTable:
    source = next(item for item in review.manifest()["inputs"] if item["kind"] == "health-table")
    artifact = review.beside(source)
    table, found = read_table(artifact), read_review(review)
    return OutsideTable(
        file=table.file,
        unit=table.unit,
        sha256=table.sha256,
        rows=len(table.rows),
        checks=len(found.checks),
        problems=_problems(found),
        notes=table.notes,
        source=artifact.id,
    )


def _problems(review: TableReview) -> tuple[TableProblem, ...]:
    return tuple(
        TableProblem(
            line=check.line,
            model=check.model or "",
            hookpoint=check.hookpoint or "",
            name=check.name,
            detail=check.detail,
        )
        for check in review.problems
    )


def absorption_of(grades: Mapping[str, Artifact]) -> dict[tuple[str, str], Number]:
    """(Model title, health artifact id) -> its absorption, where that was measured by a step of its own."""
    found = {}
    for title, artifact in grades.items():
        for sae in read_grades(artifact).saes:
            if sae.absorption_source is None:
                continue
            for row in sae.datasets:
                if row.source is not None:
                    cell = _cell(row.metric("absorption"), row, sae, artifact.id, outside=False)
                    found[title, row.source] = cell.number
    return found
