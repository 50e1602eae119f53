"""What `pairs.json` of three or more explainers holds: their ranking, and every pair with its adjusted verdict.

The surprising choice: an order of means is no finding. A ranked explainer carries the names of those that the adjusted
tests put below it, and that list may be empty for the first of them.
"""

from __future__ import annotations

from saeinterp.compare.results import (
    CoverageResult,
    FamilyResult,
    IntervalResult,
    McNemarResult,
    PairedResult,
    Result,
    Sentence,
)
from saeinterp.stats import Verdict

FORMAT = 1


class RankedExplainer(Result):
    """One explainer, by its mean over the latents that all explainers were scored on."""

    key: str
    """Its letter."""
    title: str
    rank: int
    """1 is the highest mean; equal means share a rank."""
    n: int
    """Latents."""
    mean: float
    interval: IntervalResult
    higher_than: tuple[str, ...]
    """Titles of the explainers that it is higher than, by the adjusted tests."""
    floor: bool
    """It uses no model: the floor that the others have to beat."""
    failed: int
    """Latents whose explanation failed; they score as an empty one does."""
    coverage: CoverageResult


class PairResult(Result):
    """Two of the explainers; the difference is b minus a."""

    key_a: str
    key_b: str
    title_a: str
    title_b: str
    comparison: str
    """Id of the `explainer-comparison` artifact with everything about this pair."""
    paired: PairedResult
    """As compared alone, with p adjusted over the pairs beside it."""
    equivalence_p_holm: float
    """p of the equivalence test, adjusted over the pairs."""
    verdict: Verdict
    """By the adjusted p values; `paired.verdict` is by the unadjusted ones."""
    verdict_words: str
    sentence: str
    better: tuple[int, int, int]
    """Latents on which a scores higher, b scores higher, and ties."""
    mcnemar: McNemarResult | None
    """Latents of this pair that differ by themselves, adjusted over latents and pairs."""
    matched: bool


class ControlTest(Result):
    """One explainer against one control; the difference is explainer minus control."""

    key: str
    title: str
    control: str
    mean: float
    """Of the control."""
    paired: PairedResult
    verdict: Verdict
    """By the adjusted p."""


class ExplainerPairs(Result):
    """Three or more explainers on the same latents and examples."""

    format: int = FORMAT
    metric: str
    metric_title: str
    alpha: float
    margin: float
    n_latents: int
    """Latents of the ranking: those on which every explainer has the metric."""
    ranking: tuple[RankedExplainer, ...]
    """Highest mean first."""
    pairs: tuple[PairResult, ...]
    controls: tuple[ControlTest, ...]
    families: tuple[FamilyResult, ...]
    self_scored: bool
    matched: bool
    """Every pair is."""
    sentences: tuple[Sentence, ...]
