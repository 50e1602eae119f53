"""The comparison of two models' interpretability as a report section: answers first, then every rate.

Adapts `comparison.json` (see `saeinterp.compare.interpretability`). The surprising choice: beside a difference stands
the difference that chance gives, in the same row, for it is rarely zero.
"""

from __future__ import annotations

from collections.abc import Mapping

from saeinterp.artifacts import Artifact
from saeinterp.compare.interpretability import read_interpretability
from saeinterp.compare.interpretability_rates import OVER_ALL
from saeinterp.compare.interpretability_results import (
    Answer,
    Chance,
    InterpretabilityComparison,
    Maximum,
    Null,
    RateDifference,
    SideMaximum,
    SideRate,
)
from saeinterp.compare.interpretability_words import chosen_null
from saeinterp.report.associations.results import (
    AnswerRow,
    ChanceCell,
    ComparedRate,
    ControlSection,
    InterpretabilitySection,
)
from saeinterp.report.format import Style, short
from saeinterp.report.values import Check, Difference, Number, Side

NOT_COUNTED = "its checkpoint's folder has gone, so its parameters could not be counted"
VERDICTS = {
    "different": "different",
    "inconclusive": "no detectable difference",
    "chance": "not distinguishable from chance",
}


def interpretability_section(artifact: Artifact) -> InterpretabilitySection:
    """Answers, rates, controls and the comparability check of one comparison."""
    data = read_interpretability(artifact)
    source = artifact.id
    return InterpretabilitySection(
        sides=(Side(key="a", title=data.title_a), Side(key="b", title=data.title_b)),
        sentence=data.sentence,
        condition=data.condition,
        answers=tuple(_answer(item, data, source) for item in data.answers),
        rates=tuple(_rate(row, data, source) for row in data.rates),
        controls=tuple(
            ControlSection(
                title=item.title,
                findings=tuple(row.sentence for row in item.rates if row.rate in OVER_ALL),
            )
            for item in data.controls
        ),
        sizes=(_size(data.sizes.a, source), _size(data.sizes.b, source)),
        checks=tuple(Check(**row.model_dump()) for row in data.comparability),
        matched=data.matched,
        differences=tuple(
            Difference(field=f"{row.step} {row.field}", a=short(row.a), b=short(row.b)) for row in data.configuration
        ),
        source=source,
    )


def _answer(item: Answer, data: InterpretabilityComparison, source: str) -> AnswerRow:
    a = b = difference = chance = None
    if item.rate is not None:
        row = _rate(item.rate, data, source)
        a, b, difference, chance = row.a, row.b, row.models or row.difference, row.chance
    elif item.maximum is not None:
        a, b = (_largest(side, source) for side in (item.maximum.a, item.maximum.b))
        difference, chance = _largest_difference(item.maximum, source)
    return AnswerRow(
        question=item.question,
        preset=item.preset,
        verdict=item.verdict,
        sentence=item.sentence,
        a=a,
        b=b,
        difference=difference,
        chance=chance,
    )


def _rate(row: RateDifference, data: InterpretabilityComparison, source: str) -> ComparedRate:
    known = row.difference is not None
    level = f"{1 - data.alpha:.0%} CI"
    n = len(row.a.values) + len(row.b.values)
    return ComparedRate(
        preset=row.preset,
        scope=row.scope,
        where=row.where,
        title=row.title[:1].upper() + row.title[1:],
        a=_side(row.a, source),
        b=_side(row.b, source),
        difference=Number(
            value=row.difference,
            style="points",
            low=row.low,
            high=row.high,
            interval=f"{level}, {row.method}" if row.low is not None else None,
            no_interval=row.reason if known and row.low is None else None,
            n=n,
            of="SAE trainings",
            source=source,
            reason=None if known else row.reason or "no rate on one side",
        ),
        chance=_chance(row.by_chance, "points", source),
        excess=Number(
            value=row.excess_difference,
            style="points",
            low=row.excess_low,
            high=row.excess_high,
            interval=f"{level}, {row.method}; nulls as known" if row.excess_low is not None else None,
            n=n,
            of="SAE trainings",
            source=source,
            reason=None if row.excess_difference is not None else "only rates over all latents have one",
        ),
        models=None
        if row.models is None
        else Number(
            value=row.difference,
            style="points",
            low=row.models.low,
            high=row.models.high,
            interval=f"{level}, {row.models.method}" if row.models.low is not None else None,
            no_interval=row.models.reason,
            n=row.models.saes,
            of="SAE trainings",
            source=source,
        ),
        verdict=VERDICTS[row.verdict] if row.verdict else "not tested",
    )


def _side(side: SideRate, source: str) -> Number:
    several = len(side.values) > 1
    return Number(
        value=side.value,
        style="share",
        low=side.low,
        high=side.high,
        interval="95% CI, 1.96 × SD over half-samples" if side.low is not None else None,
        no_interval=side.reason if side.value is not None and side.low is None else None,
        n=len(side.values) if several else side.of,
        of="SAE trainings" if several else "latents",
        source=source,
        reason=None if side.value is not None else side.reason or "undefined",
    )


def _chance(by_chance: Mapping[Null, Chance], style: Style, source: str) -> ChanceCell:
    found = chosen_null(by_chance)
    null = found[1] if found else None

    def cell(value: float | None, shown: Style) -> Number:
        reason = None if value is not None else "no null was computed" if null is None else "undefined under the null"
        count = null.permutations if null else None
        return Number(value=value, style=shown, n=count, of="permutations", source=source, reason=reason)

    spread: Style = "points-spread" if style == "points" else style
    return ChanceCell(
        mean=cell(null.mean if null else None, style),
        sd=cell(null.sd if null else None, spread),
        p=cell(null.p if null else None, "p"),
    )


def _largest(side: SideMaximum, source: str) -> Number:
    return Number(
        value=side.value,
        style="plain",
        no_interval="a largest value has no interval from half-samples" if side.value is not None else None,
        n=len(side.values),
        of="SAE trainings",
        source=source,
        reason=side.reason,
    )


def _largest_difference(found: Maximum, source: str) -> tuple[Number, ChanceCell]:
    reason = None if found.difference is not None else "one side has none"
    number = Number(
        value=found.difference,
        style="plain",
        no_interval="both are largest values" if found.difference is not None else None,
        n=len(found.a.values) + len(found.b.values),
        of="SAE trainings",
        source=source,
        reason=reason,
    )
    return number, _chance(found.by_chance, "plain", source)


def _size(count: int | None, source: str) -> Number:
    return Number(value=count, style="count", source=source, reason=NOT_COUNTED if count is None else None)
