"""Where the variance of a score comes from, for explainers with several explanations per latent.

The surprising choice: a row per layer and scorer, never pooled over layers, since the latents of two SAEs are no sample
of one population.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from saeinterp.artifacts import Artifact, read_json
from saeinterp.compare.comparability import explainer_title, scorer_name
from saeinterp.compare.comparability import lineage as nodes
from saeinterp.report.explainer_results import VarianceRow
from saeinterp.report.lineage import Lineage
from saeinterp.report.values import Number

UNITS = {"latents": "latents", "documents": "documents", "sampling": "explanations a latent", "rest": "documents"}
WITHOUT_VERDICTS = "the scorer gives what this metric is made of for too few latents"


def variance_rows(roots: Sequence[Artifact], lineage: Lineage, *, metric: str) -> tuple[VarianceRow, ...]:
    """Rows for every scores artifact behind the comparisons of which latents have several explanations."""
    rows = []
    comparisons = lineage.of_kind(roots, "explainer-comparison")
    for scores in {item.id: item for one in comparisons for item in lineage.inputs(one, "scores")}.values():
        # Absent in what others made, and where a latent has one explanation.
        summary = read_json(scores.file("summary.json")) if scores.has("summary.json") else {}
        if "variance" in summary:
            rows.append(_row(scores, summary, metric))
    return tuple(rows)


def _row(scores: Artifact, summary: Mapping[str, Any], metric: str) -> VarianceRow:
    split = summary["variance"].get(metric) or {"reason": WITHOUT_VERDICTS, "left_out": 0}
    node = nodes(scores)
    return VarianceRow(
        explainer=explainer_title(node),
        scorer=scorer_name(node) or "not known",
        hookpoint=summary["hookpoint"],
        **{part: _number(split, part, scores.id) for part in UNITS},
        left_out=split["left_out"],
        source=scores.id,
    )


def _number(split: Mapping[str, Any], part: str, source: str) -> Number:
    if split["reason"]:
        return Number(value=None, style="plain", reason=split["reason"], source=source)
    item = split[part]
    known = item["low"] is not None
    return Number(
        value=item["value"],
        style="plain",
        low=item["low"],
        high=item["high"],
        interval=f"95% CI, {item['interval']}" if known else None,
        no_interval=None if known else item["interval"],
        n=item["n"],
        of=UNITS[part],
        source=source,
    )
