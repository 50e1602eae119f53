"""What `scorers.json` of two scorers holds: every pair of explainers as each of them judged it, side by side.

The surprising choice: nothing here is a mean of both. The primary analysis is the first scorer's, frozen before; the
second one's numbers stand beside it under its own name, and whether they agree is said in words and as a correlation.
"""

from __future__ import annotations

from saeinterp.compare.comparability import ComparabilityRow
from saeinterp.compare.results import PairedResult, Result, Sentence
from saeinterp.stats import Verdict

FORMAT = 1


class JudgedPair(Result):
    """Two explainers as one scorer judged them; the difference is b minus a."""

    comparison: str
    """Id of the `explainer-comparison` artifact with everything about it."""
    paired: PairedResult
    """The primary metric; with several pairs `p_holm` is adjusted over those of this scorer."""
    verdict: Verdict
    """By the adjusted p values, where there are several pairs."""
    verdict_words: str


class TwiceJudgedPair(Result):
    """Two explainers, judged by both scorers."""

    key_a: str
    key_b: str
    title_a: str
    title_b: str
    first: JudgedPair
    second: JudgedPair
    same_sign: bool
    """Both differences point the same way, or both are zero."""
    same_verdict: bool
    n: int
    """Latents with the metric on both sides under both scorers."""
    pearson_r: float | None
    """Of the per-latent differences under the first scorer and under the second."""
    spearman_r: float | None
    reason: str | None
    """Why there is no correlation."""


class ScorerAgreement(Result):
    """Two scorers on the same explanations, latents and examples."""

    format: int = FORMAT
    metric: str
    metric_title: str
    alpha: float
    margin: float
    scorer: str
    """The first, whose comparison is the primary analysis, as in `model (detection)`."""
    second_scorer: str
    pairs: tuple[TwiceJudgedPair, ...]
    comparability: tuple[ComparabilityRow, ...]
    """What should be equal under both scorers, and what the second one's own comparisons flag."""
    matched: bool
    sentences: tuple[Sentence, ...]
