"""What `comparison.json` of two explainers holds: the schema that reports read and print.

Difference always means side b minus side a (or side minus control). The surprising choice: a number that
does not exist is null *with a reason beside it*, so the file never holds NaN or infinity and a renderer
cannot mistake absence for zero.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from saeinterp.compare.comparability import ComparabilityRow
from saeinterp.stats import Interval, PairedComparison, Verdict

FORMAT = 1


class Result(BaseModel):
    """Base: frozen, unknown keys refused, field docstrings become descriptions."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class IntervalResult(Result):
    """An interval, or why there is none."""

    low: float | None
    high: float | None
    level: float
    method: str
    n: int
    """Latents it rests on."""
    reason: str | None

    @classmethod
    def of(cls, interval: Interval) -> IntervalResult:
        """The stored form of an interval."""
        return cls(**interval._asdict())


class PairedResult(Result):
    """A paired comparison; see `saeinterp.stats.PairedComparison` for the definitions."""

    n: int
    mean_a: float
    mean_b: float
    sd_a: float | None
    sd_b: float | None
    difference: float
    sd_difference: float | None
    ci_low: float | None
    ci_high: float | None
    ci_reason: str | None
    p_value: float
    pearson_r: float | None
    spearman_r: float | None
    min_detectable: float | None
    equivalence_p: float
    verdict: Verdict
    alpha: float
    margin: float
    method: str
    p_holm: float | None = None
    """p adjusted over `family`; null where the family is this one test."""
    family: str
    """The family of tests this one belongs to."""

    @classmethod
    def of(cls, comparison: PairedComparison, *, family: str, p_holm: float | None = None) -> PairedResult:
        """The stored form of a comparison."""
        return cls(**comparison._asdict(), family=family, p_holm=p_holm)


class MacroResult(Result):
    """Mean over latents of a per-latent metric."""

    n: int
    """Latents on which the metric is defined on both sides."""
    undefined: int
    """Scored latents on which it is not, on one side or both."""
    mean_a: float | None
    mean_b: float | None
    interval_a: IntervalResult | None
    interval_b: IntervalResult | None
    paired: PairedResult | None
    reason: str | None
    """Why there are no values."""


class MicroResult(Result):
    """A metric of the examples of all latents pooled."""

    n: int
    """Latents pooled."""
    value_a: float | None
    value_b: float | None
    interval_a: IntervalResult | None
    interval_b: IntervalResult | None
    difference: float | None
    interval_difference: IntervalResult | None
    p_swap: float | None
    """Sides swapped for whole latents and the pooled metric recomputed."""
    p_holm: float | None
    method: str | None
    """How `p_swap` was made."""
    reason: str | None
    """Why something here is null."""


class BoundsResult(Result):
    """Worst cases of unusable verdicts: all wrong, all right; for the difference the worst joint assignment."""

    n: int
    low_a: float | None
    high_a: float | None
    low_b: float | None
    high_b: float | None
    difference_low: float | None
    """Side b's unusable verdicts all wrong and side a's all right."""
    difference_high: float | None
    reason: str | None


class AlwaysYes(Result):
    """What answering "match" to every example would score."""

    macro: float | None
    micro: float | None
    reason: str | None


class MetricResult(Result):
    """One metric, averaged over latents (macro) and pooled over examples (micro)."""

    name: str
    title: str
    description: str
    primary: bool
    macro: MacroResult
    micro: MicroResult
    always_yes: AlwaysYes
    bounds: BoundsResult


class ControlResult(Result):
    """A control's primary metric against both sides; differences are side minus control."""

    name: str
    title: str
    description: str
    n: int
    mean: float
    interval: IntervalResult
    against_a: PairedResult
    against_b: PairedResult
    metrics: dict[str, float | None]
    """Macro mean of every metric."""


class CoverageResult(Result):
    """Verdicts that could be used."""

    examples: int
    usable: int
    share: float | None
    latents_below: int
    """Latents with at least one unusable verdict."""
    lowest: float | None
    """Smallest share of any latent."""
    reason: str | None


class StatusCount(Result):
    """Latents that ended in a state, per side."""

    status: str
    a: int
    b: int


class HookpointResult(Result):
    """The primary metric at one hookpoint."""

    hookpoint: str
    n: int
    mean_a: float | None
    mean_b: float | None
    difference: float | None
    paired: PairedResult | None
    reason: str | None
    """Why no test is printed."""


class StratumResult(Result):
    """How often each side says "match" on one kind of example; right for true examples, wrong for false ones."""

    kind: str
    """`activating`, or the kind of negative."""
    quantile: int | None
    """Activation quantile of activating examples, numbered as in the example set."""
    truth: bool
    examples_a: int
    """Usable verdicts of side a."""
    examples_b: int
    share_a: float | None
    share_b: float | None
    interval_a: IntervalResult
    interval_b: IntervalResult


class VerdictResult(Result):
    """Example by example: on which examples only one side was right."""

    latents: int
    examples: int
    """Examples with a usable verdict on both sides."""
    both_right: int
    only_a: int
    only_b: int
    both_wrong: int
    difference: int
    """only_b - only_a."""
    p_value: float
    """Sign of each latent's difference flipped; examples of one latent are not independent."""
    p_holm: float | None
    method: str


class McNemarResult(Result):
    """Exact McNemar per latent, one example per document, adjusted by Holm; the p values are in latents.parquet."""

    tested: int
    examples: int
    """Examples left after keeping one per document."""
    significant: int
    """Latents with an adjusted p below alpha."""
    latents: tuple[str, ...]
    """Their ids."""


class FamilyResult(Result):
    """A family of tests, frozen before scoring."""

    name: Literal["primary", "equivalence", "controls", "secondary", "hookpoints", "latents"]
    tests: int
    adjustment: Literal["none", "Holm"]
    description: str


class Sentence(Result):
    """A generated sentence; `id` says which numbers it follows from."""

    id: str
    text: str


class ConfigurationDifference(Result):
    """A field in which the explainers' configurations differ."""

    field: str
    a: str
    b: str


class ExplainerComparison(Result):
    """Two explainers on the same latents and examples, judged by one scorer."""

    format: int = FORMAT
    title_a: str
    title_b: str
    metric: str
    """The primary endpoint."""
    metric_title: str
    alpha: float
    margin: float
    seed: int
    bootstrap: int
    hookpoints: tuple[str, ...]
    n_selected: int
    """Latents selected on both sides."""
    n_scored: int
    """Of those, latents that were scored (a failed explanation as the empty one)."""
    n_latents: int
    """Of those, latents in the primary comparison."""
    unmatched: tuple[str, ...]
    """Latents that only one side has."""
    verdict: Verdict
    verdict_words: str
    sentence: str
    primary: PairedResult
    complete_pairs: PairedResult | None
    """Secondary: only latents explained on both sides."""
    complete_pairs_reason: str | None
    better: tuple[int, int, int]
    """Latents on which side a scores higher, side b scores higher, and ties."""
    metrics: tuple[MetricResult, ...]
    controls: tuple[ControlResult, ...]
    floor: Literal["a", "b"] | None
    """The side without a model (top-tokens or a control): the floor the other has to beat."""
    statuses: tuple[StatusCount, ...]
    coverage_a: CoverageResult
    coverage_b: CoverageResult
    by_hookpoint: tuple[HookpointResult, ...]
    strata: tuple[StratumResult, ...]
    """By activation quantile and kind of negative; empty without verdicts."""
    verdicts: VerdictResult | None
    verdicts_reason: str | None
    mcnemar: McNemarResult | None
    families: tuple[FamilyResult, ...]
    comparability: tuple[ComparabilityRow, ...]
    matched: bool
    """No hard row of `comparability` differs."""
    configuration: tuple[ConfigurationDifference, ...]
    self_scored: bool
    """Every explainer was judged by its own model: two things changed at once."""
    pairs: int
    """Pairs of explainers compared together; beyond one, the verdict is that of the `explainer-pairs` artifact, which
    adjusts over them."""
    sentences: tuple[Sentence, ...]
