"""Two scorers side by side as a report section.

Adapts `scorers.json` (see `saeinterp.compare.scorer_results`). The surprising choice: no number is made of both scorers
but the correlation of the two; each has a row of its own.
"""

from __future__ import annotations

from saeinterp.artifacts import Artifact
from saeinterp.compare import read_scorer_agreement
from saeinterp.compare.scorer_results import JudgedPair, TwiceJudgedPair
from saeinterp.report.explainer_results import JudgedRow, ScorersSection, TwiceJudgedRow
from saeinterp.report.explainers import capital, p_number, paired_difference, stored_number
from saeinterp.report.values import Check


def scorers_section(artifact: Artifact) -> ScorersSection:
    """The section of a `scorer-agreement` artifact."""
    data = read_scorer_agreement(artifact)
    return ScorersSection(
        scorer=data.scorer,
        second_scorer=data.second_scorer,
        metric_title=capital(data.metric_title),
        alpha=data.alpha,
        pairs=tuple(_pair(pair, data.scorer, data.second_scorer, artifact.id) for pair in data.pairs),
        sentences=tuple(sentence.text for sentence in data.sentences),
        checks=tuple(Check(**row.model_dump()) for row in data.comparability),
        matched=data.matched,
        source=artifact.id,
    )


def _pair(pair: TwiceJudgedPair, scorer: str, second: str, source: str) -> TwiceJudgedRow:
    return TwiceJudgedRow(
        title=f"{pair.key_a.upper()}: {pair.title_a} and {pair.key_b.upper()}: {pair.title_b}",
        judged=(_judged(scorer, pair.first), _judged(second, pair.second)),
        same_sign=pair.same_sign,
        same_verdict=pair.same_verdict,
        pearson=stored_number(pair.pearson_r, source, n=pair.n, reason=pair.reason),
        spearman=stored_number(pair.spearman_r, source, n=pair.n, reason=pair.reason),
    )


def _judged(scorer: str, item: JudgedPair) -> JudgedRow:
    paired = item.paired
    return JudgedRow(
        scorer=scorer,
        a=stored_number(paired.mean_a, item.comparison, n=paired.n),
        b=stored_number(paired.mean_b, item.comparison, n=paired.n),
        difference=paired_difference(paired, item.comparison),
        p=p_number(paired.p_value, item.comparison, paired),
        p_holm=None if paired.p_holm is None else p_number(paired.p_holm, item.comparison, paired),
        verdict=item.verdict,
        verdict_words=item.verdict_words,
        source=item.comparison,
    )
