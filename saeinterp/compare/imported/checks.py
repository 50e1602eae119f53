"""What an outside table of scores says of itself, held against what its rows give.

The surprising choice: what the values are called is a claim like any other: F1 that comes in multiples of 1/55 is none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from saeinterp.compare.imported.ratios import Printed, denominators
from saeinterp.compare.imported.records import ImportedExplainer, ImportedScores, ScoreClaim, ScoreReview
from saeinterp.compare.results import ExplainerComparison
from saeinterp.compare.wording import TITLES
from saeinterp.health.checks import Check, printed_check
from saeinterp.health.imported.checks import TableCheck
from saeinterp.stats import always_yes, correlation, number
from saeinterp.stats.intervals import Floats

NO_COMMON_DENOMINATOR = ("f1", "precision", "mcc")
"""Metrics whose denominator depends on the answers."""
MOST = 0.8
"""Share of latents that must be such ratios before a name is doubted."""


def review_scores(table: ImportedScores, found: Mapping[tuple[str, str], ExplainerComparison]) -> ScoreReview:
    """Every check of the table.

    Args:
        found: The comparison of every pair of explainers, by their titles.
    """
    checks: list[TableCheck] = []
    notes: list[str] = []
    ratios = ratio_denominators(table)
    for metric in dict.fromkeys((table.heading, table.metric)):
        if metric in TITLES and ratios:
            checks.append(_called(metric, ratios, table, notes))
    for claim in table.claims:
        check = _check(claim, table, found)
        if check is not None:
            checks.append(_located(check, claim, table))
    checks += _differences(table)
    overall, more = _overall(table)
    return ScoreReview(checks=tuple(sorted([*checks, *overall], key=lambda check: check.line)), notes=(*notes, *more))


def ratio_denominators(table: ImportedScores) -> dict[tuple[str, int], int]:
    """The number of examples of each latent whose values are multiples of one over it."""
    latents: dict[tuple[str, int], list[Printed]] = {}
    for explainer in table.explainers:
        for row in explainer.rows:
            value = row.values.get(table.metric)
            if value is not None:
                latents.setdefault(row.key, []).append(Printed(value, row.half_steps.get(table.metric, 0.0)))
    return denominators(latents)


def _called(metric: str, ratios: Mapping[tuple[str, int], int], table: ImportedScores, notes: list[str]) -> TableCheck:
    scored = {row.key for side in table.explainers for row in side.rows if row.values.get(table.metric) is not None}
    parts = []
    for n, count in Counter(ratios.values()).most_common():
        named = sorted(latent for (_, latent), own in ratios.items() if own == n)
        which = f" ({', '.join(map(str, named))})" if count < len(ratios) / 2 else ""
        parts.append(f"of {count} of {len(scored)} latents{which} the values are multiples of 1/{n}")
    detail = f"{'; '.join(parts)}, as accuracy over so many examples is"
    doubted = metric in NO_COMMON_DENOMINATOR and len(ratios) >= MOST * len(scored)
    if doubted:
        detail += f"; {TITLES[metric]} has no such denominator"
    elif metric == table.metric:
        notes.append(detail[0].upper() + detail[1:])
    line = min(row.line for side in table.explainers for row in side.rows)
    return TableCheck(
        line=line, model=None, name=f"the values can be {TITLES[metric]}", passed=not doubted, detail=detail
    )


def _located(check: Check, claim: ScoreClaim, table: ImportedScores) -> TableCheck:
    return TableCheck(line=claim.line, model=_title(claim.name, table), **check._asdict())


def _title(name: str, table: ImportedScores) -> str | None:
    return next((item.title for item in table.explainers if item.name == name), None)


def _column(name: str, table: ImportedScores) -> Floats:
    rows = next(item.rows for item in table.explainers if item.name == name)
    return np.array([value for row in rows if (value := row.values.get(table.metric)) is not None])


def _check(
    claim: ScoreClaim, table: ImportedScores, found: Mapping[tuple[str, str], ExplainerComparison]
) -> Check | None:
    if claim.subject == "correlation":
        return _correlation(claim, table)
    if claim.subject == "higher":
        return _higher(claim, table, found)
    if claim.subject not in ("mean", "sd", "range"):
        return None
    column = _column(claim.name, table)
    if len(column) < 2:
        return None
    if claim.subject == "mean":
        name = "printed mean = mean of the rows"
        return printed_check(name, claim.values[0], float(column.mean()), half_step=claim.half_step)
    if claim.subject == "sd":
        # Either definition will do: what neither gives is wrong.
        options = [float(column.std(ddof=ddof)) for ddof in (1, 0)]
        nearest = min(options, key=lambda value: abs(value - claim.values[0]))
        check = printed_check("printed sd = sd of the rows", claim.values[0], nearest, half_step=claim.half_step)
        return check._replace(detail=f"printed {claim.text}, computed {number(options[0])} (n − 1)")
    ends = (float(column.min()), float(column.max()))
    fits = all(abs(printed - end) <= claim.half_step + 1e-9 for printed, end in zip(claim.values, ends))
    return Check("printed range = range of the rows", fits, f"printed {claim.text}, computed {_span(ends)}")


def _span(ends: Sequence[float]) -> str:
    return " to ".join(number(end) for end in ends)


def _correlation(claim: ScoreClaim, table: ImportedScores) -> Check | None:
    computed = []
    for a, b in combinations(table.explainers, 2):
        shared = _shared(a, b, table.metric)
        r = correlation(*(np.array(column) for column in zip(*shared))) if shared else None
        if r is not None:
            computed.append(r)
    if not computed:
        return None
    nearest = min(computed, key=lambda r: abs(r - claim.values[0]))
    name = "printed correlation = Pearson r of the rows"
    return printed_check(name, claim.values[0], nearest, half_step=claim.half_step)


def _shared(a: ImportedExplainer, b: ImportedExplainer, metric: str) -> list[tuple[float, float]]:
    other = {row.key: row.values.get(metric) for row in b.rows}
    pairs = ((row.values.get(metric), other.get(row.key)) for row in a.rows)
    return [(x, y) for x, y in pairs if x is not None and y is not None]


def _higher(
    claim: ScoreClaim, table: ImportedScores, found: Mapping[tuple[str, str], ExplainerComparison]
) -> Check | None:
    higher, lower = _title(claim.name, table), _title(claim.other, table)
    if higher is None or lower is None:
        return None
    comparison = found.get((higher, lower)) or found.get((lower, higher))
    if comparison is None:
        return None
    sign = 1 if comparison.title_b == higher else -1
    supported = comparison.verdict == "different" and sign * comparison.primary.difference > 0
    return Check(
        "what is said to be higher is so by the test", supported, f"“{claim.text}”: {comparison.verdict_words}"
    )


def _differences(table: ImportedScores) -> list[TableCheck]:
    """Printed differences of single latents, in whichever direction fits most of them."""
    claims = [claim for claim in table.claims if claim.subject == "difference"]
    if not claims:
        return []
    rows = {item.name: {row.line: row for row in item.rows} for item in table.explainers}
    made = []
    for claim in claims:
        ours, theirs = (rows[name].get(claim.line) for name in (claim.name, claim.other))
        values = [row.values.get(table.metric) if row is not None else None for row in (ours, theirs)]
        if ours is None or theirs is None or values[0] is None or values[1] is None:
            continue
        slack = claim.half_step + sum(row.half_steps.get(table.metric, 0.0) for row in (ours, theirs))
        made.append((claim, ours.latent, values[0] - values[1], slack))
    forward = sum(abs(claim.values[0] - gap) <= slack + 1e-9 for claim, _, gap, slack in made)
    backward = sum(abs(claim.values[0] + gap) <= slack + 1e-9 for claim, _, gap, slack in made)
    sign = 1 if forward >= backward else -1
    checks = []
    for claim, latent, gap, slack in made:
        name = f"printed difference of latent {latent} = difference of its values"
        check = printed_check(name, claim.values[0], sign * gap, half_step=slack)
        checks.append(TableCheck(line=claim.line, model=None, **check._asdict()))
    return checks


def _overall(table: ImportedScores) -> tuple[list[TableCheck], list[str]]:
    """Values of all latents together, against each other: the rows do not give them."""
    checks, notes = [], []
    for explainer in table.explainers:
        own = {
            claim.what: claim for claim in table.claims if claim.subject == "overall" and claim.name == explainer.name
        }
        known = {name: claim.values[0] for name, claim in own.items()}
        if {"f1", "precision", "recall"} <= own.keys():
            low, high = (
                _f1(*(known[name] + sign * own[name].half_step for name in ("precision", "recall"))) for sign in (-1, 1)
            )
            slack = own["f1"].half_step + 1e-9
            checks.append(
                TableCheck(
                    line=own["f1"].line,
                    model=explainer.title,
                    name="overall F1 = 2 P R / (P + R)",
                    passed=low - slack <= known["f1"] <= high + slack,
                    detail=f"printed {own['f1'].text}, from precision and recall {_span((low, high))}",
                )
            )
        if "balanced_accuracy" in own:
            claim = own["balanced_accuracy"]
            checks.append(
                TableCheck(
                    line=claim.line,
                    model=explainer.title,
                    name="overall balanced accuracy is not below chance",
                    passed=claim.values[0] >= 0.5,
                    detail=f"printed {claim.text}, chance is 0.5",
                )
            )
            notes += _implied_balance(explainer.title, known)
    return checks, notes


def _implied_balance(title: str, known: Mapping[str, float]) -> list[str]:
    """The class balance that precision, recall and balanced accuracy imply, and what always-yes scores at it."""
    if not {"precision", "recall"} <= known.keys() or known["precision"] <= 0:
        return []
    tnr = 2 * known["balanced_accuracy"] - known["recall"]
    if not 0 <= tnr < 1:
        return []
    # False positives per positive, by precision and recall; per negative, by the true negative rate.
    ratio = known["recall"] * (1 - known["precision"]) / known["precision"] / (1 - tnr)
    floor = float(always_yes(1.0, ratio).f1)
    return [
        f"The overall values of {title} imply a true negative rate of {number(tnr)} and {number(ratio, digits=2)} "
        f"negatives per positive, at which always-yes scores F1 {number(floor, digits=2)}"
    ]


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0
