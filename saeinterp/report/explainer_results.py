"""The part of `results.json` that holds explainers: two of them in full, and of more the ranking and every pair."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from saeinterp.compare.tables import SIMULATED
from saeinterp.report.values import Check, Difference, Fact, Model, Number, Side
from saeinterp.stats import Verdict


class MetricRow(Model):
    """One metric of both sides and the test of their difference."""

    metric: str
    title: str
    description: str
    level: Literal["macro", "micro"]
    """macro: mean over latents. micro: pooled over examples."""
    primary: bool
    """The endpoint frozen in the recipe before scoring."""
    a: Number = Field(title="A")
    b: Number = Field(title="B")
    difference: Number = Field(title="B − A")
    p: Number = Field(title="p", description="Sign-flip test over latents, two-sided")
    p_holm: Number | None = Field(None, title="p (Holm)", description="Adjusted over the family of tests")
    detectable: Number | None = Field(
        None,
        title="Smallest detectable",
        description="True difference found with power 0.8 at the two-sided level, at the spread of differences seen",
    )
    always_yes: Number = Field(title="Always-yes", description="The value of answering yes to every example")


class Control(Model):
    """A control explanation, scored by the same scorer on the same examples."""

    name: str
    title: str
    description: str
    value: Number
    difference_a: Number = Field(title="A − control")
    p_a: Number = Field(title="p")
    difference_b: Number = Field(title="B − control")
    p_b: Number = Field(title="p")


class LayerScore(Model):
    """The primary metric at one layer."""

    hookpoint: str = Field(title="Layer")
    a: Number = Field(title="A")
    b: Number = Field(title="B")
    difference: Number = Field(title="B − A")
    p: Number = Field(title="p")
    p_holm: Number | None = Field(None, title="p (Holm)")


class StatusCount(Model):
    """How many latents ended in a state, per side."""

    status: str
    a: int
    b: int


class Family(Model):
    """A family of tests, frozen before scoring."""

    name: str
    tests: int
    adjustment: str
    description: str


class ExplainerSection(Model):
    """Two explainers on the same latents."""

    sides: tuple[Side, Side]
    metric: str
    metric_title: str
    alpha: float
    margin: float
    verdict: Verdict
    verdict_words: str
    sentence: str
    """Generated from the test; the first line of the report."""
    n_latents: int
    rows: tuple[MetricRow, ...]
    controls: tuple[Control, ...]
    coverage: tuple[Number, Number]
    """Share of examples with a usable verdict, per side."""
    bounds: Number
    """The difference, with the worst joint assignment of unusable verdicts as its interval."""
    by_layer: tuple[LayerScore, ...]
    better: tuple[Number, Number, Number]
    """Latents on which A scores higher, B scores higher, and ties."""
    examples: tuple[Fact, ...]
    """On how many examples both sides, one of them or none was right."""
    spread: tuple[Fact, ...]
    """Standard deviation, range and correlation of the two columns."""
    statuses: tuple[StatusCount, ...]
    families: tuple[Family, ...]
    checks: tuple[Check, ...]
    matched: bool
    self_scored: bool
    """Every explainer was judged by its own model."""
    differences: tuple[Difference, ...]
    source: str

    @property
    def simulated(self) -> bool:
        """The scorer predicted activations: there are no verdicts, and always-yes means nothing."""
        return self.metric == SIMULATED

    @property
    def primary(self) -> MetricRow:
        """The row of the primary endpoint."""
        return next(row for row in self.rows if row.primary)


class RankedRow(Model):
    """One explainer of several."""

    key: str
    title: str = Field(title="Explainer")
    rank: Number = Field(title="Rank")
    value: Number
    """Mean over the latents that every explainer was scored on."""
    higher_than: tuple[str, ...] = Field(title="Higher than", description="By tests adjusted over all pairs")
    floor: bool
    coverage: Number = Field(title="Coverage", description="Share of examples with a usable verdict, or prediction")
    failed: Number = Field(title="Failed", description="Latents whose explanation failed; they score as an empty one")


class PairRow(Model):
    """Two of several explainers; the difference is b minus a."""

    key_a: str
    key_b: str
    title_a: str
    title_b: str
    difference: Number = Field(title="Difference", description="Second minus first, interval before adjustment")
    p: Number = Field(title="p", description="Sign-flip test over latents, two-sided")
    p_holm: Number = Field(title="p (Holm)", description="Adjusted over all pairs")
    equivalence: Number = Field(title="p, equivalence (Holm)", description="TOST within the margin, adjusted")
    detectable: Number = Field(title="Smallest detectable")
    verdict: Verdict
    verdict_words: str = Field(title="Verdict")
    sentence: str
    better: tuple[Number, Number, Number]
    """Latents on which the first scores higher, the second does, and ties."""
    alone: Number | None = None
    """Latents on which the two differ by themselves, by McNemar adjusted over latents and pairs."""
    rows: tuple[MetricRow, ...]
    matched: bool
    checks: tuple[Check, ...]
    """Those that do not hold."""
    source: str

    @property
    def title(self) -> str:
        """`A: name and B: other`."""
        return f"{self.key_a.upper()}: {self.title_a} and {self.key_b.upper()}: {self.title_b}"


class ControlRow(Model):
    """One of several explainers against one control."""

    title: str = Field(title="Explainer")
    control: str = Field(title="Control")
    value: Number
    """Of the control."""
    difference: Number = Field(title="Explainer − control")
    p: Number = Field(title="p")
    p_holm: Number = Field(title="p (Holm)", description="Adjusted over all tests against controls")


class PairsSection(Model):
    """Three or more explainers on the same latents."""

    metric: str
    metric_title: str
    alpha: float
    margin: float
    n_latents: int
    sentence: str
    """The order of the means, and what of it the tests support."""
    ranking: tuple[RankedRow, ...]
    pairs: tuple[PairRow, ...]
    controls: tuple[ControlRow, ...]
    families: tuple[Family, ...]
    matched: bool
    self_scored: bool
    source: str

    @property
    def explainers(self) -> list[RankedRow]:
        """The explainers in the order of their letters."""
        return sorted(self.ranking, key=lambda row: row.key)


class JudgedRow(Model):
    """Two explainers as one of two scorers judged them; the difference is b minus a."""

    scorer: str
    a: Number
    b: Number
    difference: Number
    p: Number
    p_holm: Number | None = None
    """Adjusted over this scorer's pairs, where there are several."""
    verdict: Verdict
    verdict_words: str
    source: str


class TwiceJudgedRow(Model):
    """Two explainers under both scorers, and whether these agree."""

    title: str
    judged: tuple[JudgedRow, JudgedRow]
    same_sign: bool
    same_verdict: bool
    pearson: Number
    """Of the per-latent differences under both scorers."""
    spearman: Number


class ScorersSection(Model):
    """A second scorer beside that of the primary analysis."""

    scorer: str
    second_scorer: str
    metric_title: str
    alpha: float
    pairs: tuple[TwiceJudgedRow, ...]
    sentences: tuple[str, ...]
    checks: tuple[Check, ...]
    matched: bool
    source: str


class VarianceRow(Model):
    """The variance of the score of one explanation of one latent, by where it comes from."""

    explainer: str
    scorer: str
    hookpoint: str
    latents: Number
    """Between the latents themselves."""
    documents: Number
    """By the draw of the documents that the latent is scored on."""
    sampling: Number
    """By the draw of the explanation."""
    rest: Number
    """Documents by sampling: what suits one explanation and not another, and the scorer's own noise."""
    left_out: int
    """Latents on which a part is undefined."""
    source: str
