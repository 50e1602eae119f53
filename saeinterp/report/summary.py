"""A report in a few lines: the headline, what failed, and one small table; for places that keep little.

The surprising choice: a summary is cut by whole lines that are counted, never by characters, so it cannot end within a
number or hide that something was left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from saeinterp.report.format import markdown_text, number, plural, visible, with_interval
from saeinterp.report.results import HEALTH_COLUMNS, LayerHealth, Results
from saeinterp.report.values import Number

LISTED = (12, 6, 3, 1)
"""Failures, findings and the like that are written out: as many as fit."""
LINE_CHARACTERS = 500
"""Of one of them; an error may quote a whole reply."""
SENTENCE_CHARACTERS = 2_000
"""Of a headline."""
SUMMARY_BYTES = 80_000
TABLE_BYTES = 80_000
"""Of a table as JSON."""

Row = dict[str, Any]


def summary_markdown(results: Results, *, limit: int = SUMMARY_BYTES) -> str:
    """Headline, banners, failures and the first findings as Markdown, every text from outside escaped.

    Args:
        limit: Bytes that it stays below.
    """
    return next(text for count in LISTED if len((text := _summary(results, count)).encode()) <= limit or count == 1)


def _summary(results: Results, count: int) -> str:
    lines = [f"# {line_of(results.title)}", ""]
    for text in headlines(results):
        lines += [f"**{line_of(text, SENTENCE_CHARACTERS)}**", ""]
    for text in results.explainers.unexplained if results.explainers is not None else ():
        lines += [f"**{line_of(text)}**", ""]
    sections = [item for item in (results.explainers, results.models, results.interpretability) if item is not None]
    if any(not item.matched for item in sections):
        lines += ["**Unmatched comparison**: the sides differ in more than what is compared.", ""]
    if any(item is not None and item.self_scored for item in (results.explainers, results.pairs)):
        lines += ["**Each explainer was judged by its own model**: two things changed at once.", ""]
    lines += _listed(
        [f"{where}: {what}" for where, what in results.contradictions],
        "integrity check does not hold",
        "integrity checks do not hold",
        count,
    )
    lines += _listed(
        [
            f"{' '.join(part for part in (item.stage, item.hookpoint, item.side) if part)}: {item.error}"
            for item in results.failures
        ],
        "step failed; no number includes it",
        "steps failed; no number includes them",
        count,
    )
    lines += _listed(list(results.findings), "finding", "findings", count)
    return "\n".join(lines).rstrip() + "\n"


def headlines(results: Results) -> list[str]:
    """The sentences that a report begins with."""
    found = [
        results.pairs.sentence if results.pairs is not None else None,
        results.explainers.sentence if results.explainers is not None and results.pairs is None else None,
        results.models.sentence if results.models is not None else None,
        results.interpretability.sentence if results.interpretability is not None else None,
        results.enrichment.headline if results.enrichment is not None and results.interpretability is None else None,
    ]
    said = [text for text in found if text]
    if said or results.layers or results.grades is not None:
        return said
    return ["Nothing was compared: no layer finished."]


def summary_tables(results: Results) -> dict[str, list[Row]]:
    """Small tables by name, cells JSON: what was compared, and the layers; a missing number is its reason."""
    tables: dict[str, list[Row]] = {}
    if results.interpretability is not None:
        tables["answers"] = [
            {
                "question": item.question,
                "rules": item.preset,
                "a": _shown(item.a),
                "b": _shown(item.b),
                "difference": _shown(item.difference),
                "verdict": item.verdict,
            }
            for item in results.interpretability.answers
        ]
    elif results.enrichment is not None:
        tables["rates"] = [
            {"model": row.side, "rules": preset.title, "rate": row.title, "observed": _shown(row.value),
             "chance": _shown(row.strata.mean), "p": _shown(row.strata.p)}
            for preset in results.enrichment.presets
            for row in preset.rates
            if row.scope == "model"
        ]  # fmt: skip
    if results.pairs is not None:
        tables["ranking"] = [
            {"rank": row.rank.value, "explainer": row.title, results.pairs.metric_title: _shown(row.value),
             "coverage": _shown(row.coverage)}
            for row in results.pairs.ranking
        ]  # fmt: skip
    elif results.explainers is not None:
        a, b = results.explainers.sides
        tables["metrics"] = [
            {"metric": row.title, "level": row.level, "primary": row.primary, f"A: {a.title}": _shown(row.a),
             f"B: {b.title}": _shown(row.b), "B − A": _shown(row.difference), "p": _shown(row.p)}
            for row in results.explainers.rows
        ]  # fmt: skip
    if results.layers:
        titles = {name: str(LayerHealth.model_fields[name].title) for name in HEALTH_COLUMNS}
        several = len(results.datasets) > 1
        tables["layers"] = [
            {"model": layer.side, "layer": layer.title, **({"dataset": layer.dataset} if several else {}),
             **{title: _shown(getattr(layer, name)) for name, title in titles.items()}}
            for layer in results.layers
        ]  # fmt: skip
    elif results.grades is not None:
        tables["grades"] = [
            {"model": model.title, "layer": layer.title, "grade": layer.grade, "why": "; ".join(layer.reasons)}
            for model in results.grades.models
            for layer in model.layers
        ]
    return tables


def fitting(rows: Sequence[Mapping[str, Any]], limit: int = TABLE_BYTES) -> list[Mapping[str, Any]]:
    """The first rows that fit into a number of bytes as JSON."""
    used = 2
    for count, row in enumerate(rows):
        used += len(json.dumps(row).encode()) + 2
        if used > limit:
            return list(rows[:count])
    return list(rows)


def _shown(item: Number | None) -> str | None:
    """A number with its interval as the report writes it; a missing one is its reason."""
    if item is None:
        return None
    if item.value is None:
        return f"NA: {item.reason}"
    text, bounds = with_interval(item.value, item.low, item.high, item.style)
    return f"{text} {bounds}" if bounds else text


def _listed(items: Sequence[str], one: str, many: str, count: int) -> list[str]:
    """A heading with the number of items and the first of them, the rest counted."""
    if not items:
        return []
    lines = [f"## {number(len(items), 'count')} {one if len(items) == 1 else many}", ""]
    lines += [f"- {line_of(item)}" for item in items[:count]]
    if len(items) > count:
        lines.append(f"- and {plural(len(items) - count, 'other')}, in the report")
    return [*lines, ""]


def line_of(text: str, limit: int = LINE_CHARACTERS) -> str:
    """One line of untrusted text; what is cut is counted."""
    shown = visible(text)
    if len(shown) <= limit:
        return markdown_text(shown)
    return f"{markdown_text(shown[:limit])} … ({number(len(shown), 'count')} characters, all in the report)"
