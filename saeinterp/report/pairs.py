"""Three or more explainers as a report section: the ranking, every pair, the controls.

Adapts `pairs.json` and the pairs' own comparisons. The surprising choice: the pair whose latents the report shows gets
its verdict replaced by the adjusted one, so that no page carries a word that the adjustment took back.
"""

from __future__ import annotations

from saeinterp.artifacts import Artifact
from saeinterp.compare import ExplainerPairs, read_explainer_comparison, read_explainer_pairs
from saeinterp.compare.pair_results import PairResult, RankedExplainer
from saeinterp.report.explainer_results import (
    ControlRow,
    ExplainerSection,
    Family,
    PairRow,
    PairsSection,
    RankedRow,
)
from saeinterp.report.explainers import (
    capital,
    coverage_number,
    measured_metrics,
    metric_rows,
    p_number,
    paired_difference,
    stored_number,
)
from saeinterp.report.lineage import Lineage
from saeinterp.report.values import Check

FEW = "needs two or more differing pairs"


def pairs_section(artifact: Artifact, lineage: Lineage) -> PairsSection:
    """The section of an `explainer-pairs` artifact."""
    data = read_explainer_pairs(artifact)
    source = artifact.id
    comparisons = {item.id: item for item in lineage.inputs(artifact, "explainer-comparison")}
    return PairsSection(
        metric=data.metric,
        metric_title=_metric_title(data, comparisons[data.pairs[0].comparison]),
        alpha=data.alpha,
        margin=data.margin,
        n_latents=data.n_latents,
        sentence=next(item.text for item in data.sentences if item.id == "ranking"),
        ranking=tuple(_ranked(item, source) for item in data.ranking),
        pairs=tuple(_pair(item, comparisons[item.comparison], source) for item in data.pairs),
        controls=tuple(
            ControlRow(
                title=test.title,
                control=test.control,
                value=stored_number(test.mean, source, n=test.paired.n),
                difference=paired_difference(test.paired, source),
                p=p_number(test.paired.p_value, source, test.paired),
                p_holm=p_number(test.paired.p_holm, source, test.paired),
            )
            for test in data.controls
        ),
        families=tuple(Family(**family.model_dump()) for family in data.families),
        matched=data.matched,
        self_scored=data.self_scored,
        source=source,
    )


def adjusted(section: ExplainerSection, pairs: PairsSection) -> ExplainerSection:
    """A pair's section with the verdict that holds after adjustment over all pairs."""
    pair = next(item for item in pairs.pairs if item.source == section.source)
    rows = tuple(row.model_copy(update={"p_holm": pair.p_holm}) if row.primary else row for row in section.rows)
    within = [family for family in section.families if family.name in ("secondary", "hookpoints")]
    return section.model_copy(
        update={
            "verdict": pair.verdict,
            "verdict_words": pair.verdict_words,
            "sentence": pair.sentence,
            "rows": rows,
            "families": (*pairs.families, *within),
            # Against controls the ranking has every test, adjusted over all explainers.
            "against": None,
            "controls": tuple(
                control.model_copy(update={"p_holm_a": None, "p_holm_b": None}) for control in section.controls
            ),
        }
    )


def _metric_title(data: ExplainerPairs, comparison: Artifact) -> str:
    """The metric's short title, as the pair's own tables have it."""
    stored = read_explainer_comparison(comparison)
    return capital(next(item.title for item in stored.metrics if item.name == data.metric))


def _ranked(item: RankedExplainer, source: str) -> RankedRow:
    return RankedRow(
        key=item.key,
        title=item.title,
        rank=stored_number(item.rank, source, style="count", n=item.n),
        value=stored_number(item.mean, source, over=item.interval, n=item.n),
        higher_than=item.higher_than,
        floor=item.floor,
        coverage=coverage_number(item.coverage, source),
        failed=stored_number(item.failed, source, style="count", n=item.n),
    )


def _pair(item: PairResult, comparison: Artifact, source: str) -> PairRow:
    stored, paired = read_explainer_comparison(comparison), item.paired
    alone = item.mcnemar
    return PairRow(
        key_a=item.key_a,
        key_b=item.key_b,
        title_a=item.title_a,
        title_b=item.title_b,
        difference=paired_difference(paired, source),
        p=p_number(paired.p_value, source, paired),
        p_holm=p_number(paired.p_holm, source, paired),
        equivalence=p_number(item.equivalence_p_holm, source, paired),
        detectable=stored_number(paired.min_detectable, source, n=paired.n, reason=FEW),
        verdict=item.verdict,
        verdict_words=item.verdict_words,
        sentence=item.sentence,
        better=tuple(stored_number(count, source, style="count", n=paired.n) for count in item.better),
        alone=None if alone is None else stored_number(alone.significant, source, style="count", n=alone.tested),
        rows=metric_rows(measured_metrics(stored), comparison.id),
        matched=item.matched,
        checks=tuple(Check(**row.model_dump()) for row in stored.comparability if not row.ok),
        source=comparison.id,
    )
