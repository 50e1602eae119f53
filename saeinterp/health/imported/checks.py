"""What an outside file says about its own table, held against what its numbers give.

Each rule gives a check with the line it is about. The surprising choice: a claim that leaves its dataset open is right
if it holds for any dataset of the table, so only what cannot be true is reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from saeinterp.health.checks import Check, printed_check
from saeinterp.health.grading.comparison import points
from saeinterp.health.grading.results import LayerGrades, Record, SaeGrade
from saeinterp.health.grading.summary import by_layer
from saeinterp.health.imported.rows import Claim, ImportedTable
from saeinterp.stats import number, signed

POINTS = "differences of percentages are percentage points"


class TableCheck(Record):
    """One check of an outside table."""

    line: int
    model: str | None
    hookpoint: str | None = None
    name: str
    passed: bool
    detail: str


def table_checks(table: ImportedTable, grades: Mapping[str, LayerGrades]) -> tuple[TableCheck, ...]:
    """Every check of rows, printed grades and claims, in the order of the file.

    Args:
        grades: Model title -> its grades, made from the same table.
    """
    found: list[TableCheck] = []
    for row in table.rows:
        for check in row.graded(file=table.file, unit=table.unit).checks:
            found.append(_located(check, row.line, row.model, f"{row.hookpoint}, {row.dataset}"))
    for model in table.models:
        saes = {item.hookpoint: item for item in grades[model.title].saes}
        printed = {row.hookpoint: row for row in table.of(model.title) if row.printed is not None}
        for hookpoint, row in printed.items():
            assert row.printed is not None
            check = _grade_check(row.printed, saes[hookpoint])
            found.append(_located(check, row.line, model.title, hookpoint))
    for claim in table.claims:
        for check in _claim_checks(claim, grades):
            found.append(_located(check, claim.line, claim.model, None))
    return tuple(sorted(found, key=lambda check: check.line))


def _located(check: Check, line: int, model: str | None, hookpoint: str | None) -> TableCheck:
    return TableCheck(line=line, model=model, hookpoint=hookpoint, **check._asdict())


def _grade_check(printed: tuple[int, int], sae: SaeGrade) -> Check:
    detail = f"printed {printed[0]}/{printed[1]}, computed {sae.passed}/{sae.applicable} {sae.label}"
    if sae.decided_by:
        every = [f"{item.dataset} {item.passed}/{item.applicable}" for item in sae.datasets if item.source]
        detail += f" ({', '.join(every)})" if len(every) > 1 else ""
    return Check("printed grade = computed grade", printed == (sae.passed, sae.applicable), detail)


def _claim_checks(claim: Claim, grades: Mapping[str, LayerGrades]) -> list[Check]:
    side = grades.get(claim.model or "")
    if side is None:
        return []
    if claim.subject in ("healthy", "incomplete", "partial", "unhealthy"):
        return [_count_check(claim, side)]
    if claim.subject == "share":
        total = side.counts.total
        computed = 100 * side.counts.healthy / total
        name = "printed share of healthy layers = computed"
        return [printed_check(name, 100 * claim.values[0], computed, half_step=100 * claim.half_step, unit="%")]
    if claim.subject == "mean":
        return [_closest(claim, _means(side, claim.metric or ""), "printed mean of loss recovered = computed")]
    if claim.subject == "range":
        return [_range_check(claim, side)]
    other = grades.get(claim.other or "")
    return _gap_checks(claim, side, other) if other is not None else []


def _count_check(claim: Claim, side: LayerGrades) -> Check:
    computed, total = getattr(side.counts, claim.subject), side.counts.total
    printed = f"{claim.values[0]:g}/{claim.of}"
    word = "fully healthy" if claim.subject == "healthy" else claim.subject
    return Check(
        f"printed count of {word} layers = computed",
        (claim.values[0], claim.of) == (computed, total),
        f"printed {printed}, computed {computed}/{total}",
    )


def _gap_checks(claim: Claim, first: LayerGrades, second: LayerGrades) -> list[Check]:
    unit = Check(POINTS, not claim.percent, f"printed {claim.text}")
    if claim.metric is None:
        gap = first.counts.healthy / first.counts.total - second.counts.healthy / second.counts.total
        gaps = {"": gap}
        name = "printed gap of healthy layers = computed"
    else:
        ours, theirs = _means(first, claim.metric), _means(second, claim.metric)
        gaps = {dataset: ours[dataset] - theirs[dataset] for dataset in ours if dataset in theirs}
        name = "printed gap of mean loss recovered = computed"
    if not gaps:
        return [unit]
    passed = any(abs(claim.values[0] - gap) <= claim.half_step * (1 + 1e-6) + 1e-12 for gap in gaps.values())
    computed = ", ".join(points(gap) + (f" ({dataset})" if dataset else "") for dataset, gap in gaps.items())
    return [unit, Check(name, passed, f"printed {signed(100 * claim.values[0], digits=2)}%, computed {computed}")]


def _closest(claim: Claim, computed: Mapping[str, float], name: str) -> Check:
    if not computed:
        return Check(name, False, f"printed {claim.text}, computed from nothing: no layer has it")
    checks = {
        dataset: printed_check(name, 100 * claim.values[0], 100 * value, half_step=100 * claim.half_step, unit="%")
        for dataset, value in computed.items()
    }
    values = ", ".join(f"{number(100 * value, digits=2)}% ({dataset})" for dataset, value in computed.items())
    passed = any(check.passed for check in checks.values())
    return Check(name, passed, f"printed {claim.text}, computed {values}")


def _range_check(claim: Claim, side: LayerGrades) -> Check:
    metric = claim.metric or ""
    values = [value for dataset in side.datasets for value in by_layer(side.saes, metric, dataset).values()]
    name = f"printed range of {'dead fractions' if metric == 'dead_fraction' else 'L0'} = computed"
    scale, unit = (100, "%") if claim.percent else (1, "")
    if not values:
        return Check(name, False, f"printed {claim.text}, computed from nothing: no layer has it")
    ends: Sequence[float] = (min(values), max(values))
    passed = all(
        abs(printed - end) <= claim.half_step * (1 + 1e-6) + 1e-12 for printed, end in zip(sorted(claim.values), ends)
    )
    computed = " to ".join(f"{number(scale * end, digits=2)}{unit}" for end in ends)
    return Check(name, passed, f"printed {claim.text}, computed {computed}")


def _means(side: LayerGrades, metric: str) -> dict[str, float]:
    return {mean.dataset: mean.value for mean in side.means if mean.metric == metric and mean.value is not None}
