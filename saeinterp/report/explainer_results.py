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
    """Key of the metric."""
    title: str
    """Name of the metric."""
    description: str
    """What the metric measures."""
    level: Literal["macro", "micro"]
    """macro: mean over latents. micro: pooled over examples."""
    primary: bool
    """The endpoint frozen in the recipe before scoring."""
    a: Number = Field(title="A")
    """Value of side A."""
    b: Number = Field(title="B")
    """Value of side B."""
    difference: Number = Field(title="B − A")
    """Side B minus side A."""
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
    """Key of the control."""
    title: str
    """Name of the control."""
    description: str
    """What explanation it gives."""
    value: Number
    """Primary metric of the control."""
    difference_a: Number = Field(title="A − control")
    """Side A minus the control."""
    p_a: Number = Field(title="p")
    """Sign-flip test of side A against the control, two-sided."""
    p_holm_a: Number | None = Field(None, title="p (Holm)")
    """The same, adjusted over all tests against controls."""
    difference_b: Number = Field(title="B − control")
    """Side B minus the control."""
    p_b: Number = Field(title="p")
    """Sign-flip test of side B against the control, two-sided."""
    p_holm_b: Number | None = Field(None, title="p (Holm)")
    """The same, adjusted over all tests against controls."""


class LayerScore(Model):
    """The primary metric at one layer."""

    hookpoint: str = Field(title="Layer")
    """The layer."""
    a: Number = Field(title="A")
    """Primary metric of side A."""
    b: Number = Field(title="B")
    """Primary metric of side B."""
    difference: Number = Field(title="B − A")
    """Side B minus side A."""
    p: Number = Field(title="p")
    """Sign-flip test over the latents of this layer, two-sided."""
    p_holm: Number | None = Field(None, title="p (Holm)")
    """Adjusted over the layers."""


class StatusCount(Model):
    """How many latents ended in a state, per side."""

    status: str
    """What became of a latent, such as `scored` or `too_rare`."""
    a: int
    """Latents of side A."""
    b: int
    """Latents of side B."""


class Family(Model):
    """A family of tests, frozen before scoring."""

    name: str
    """Name of the family."""
    tests: int
    """How many tests it holds."""
    adjustment: str
    """How their p are adjusted."""
    description: str
    """What is tested."""


class ExplainerSection(Model):
    """Two explainers on the same latents."""

    sides: tuple[Side, Side]
    """Side A and side B."""
    metric: str
    """Key of the primary metric."""
    metric_title: str
    """Name of the primary metric."""
    alpha: float
    """Two-sided level of the tests."""
    margin: float
    """Differences up to it count as equivalent."""
    verdict: Verdict
    """What the tests of the primary endpoint say."""
    verdict_words: str
    """The same in words."""
    sentence: str
    """Generated from the test; the first line of the report."""
    against: str | None = None
    """What the tests against the controls say of both sides; empty where there are no controls."""
    n_latents: int
    """Latents in the primary comparison."""
    rows: tuple[MetricRow, ...]
    """Every metric, averaged over latents and pooled over examples."""
    controls: tuple[Control, ...]
    """Explanations without knowledge of the latent, scored alike."""
    coverage: tuple[Number, Number]
    """Share of examples with a usable verdict, per side."""
    bounds: Number
    """The difference, with the worst joint assignment of unusable verdicts as its interval."""
    by_layer: tuple[LayerScore, ...]
    """The primary metric layer by layer."""
    better: tuple[Number, Number, Number]
    """Latents on which A scores higher, B scores higher, and ties."""
    examples: tuple[Fact, ...]
    """On how many examples both sides, one of them or none was right."""
    spread: tuple[Fact, ...]
    """Standard deviation, range and correlation of the two columns."""
    statuses: tuple[StatusCount, ...]
    """What became of the selected latents."""
    families: tuple[Family, ...]
    """Families of tests."""
    checks: tuple[Check, ...]
    """What must be equal for the comparison to mean something."""
    matched: bool
    """Every hard check holds."""
    self_scored: bool
    """Every explainer was judged by its own model."""
    differences: tuple[Difference, ...]
    """Settings in which the sides differ."""
    source: str
    """Id of the comparison."""

    @property
    def simulated(self) -> bool:
        """The scorer predicted activations: there are no verdicts, and always-yes means nothing."""
        return self.metric == SIMULATED

    @property
    def unexplained(self) -> list[str]:
        """Sides without a single explanation, in words: what the comparison says of them is said of nothing."""
        counts = {row.status: {"a": row.a, "b": row.b} for row in self.statuses}
        failed, scored = counts.get("explanation_failed", {}), counts.get("scored", {})
        return [
            f"Every explanation of {side.title} failed; where it is scored, it is scored as an empty one."
            for side in self.sides
            if failed.get(side.key) and not scored.get(side.key)
        ]

    @property
    def primary(self) -> MetricRow:
        """The row of the primary endpoint."""
        return next(row for row in self.rows if row.primary)


class RankedRow(Model):
    """One explainer of several."""

    key: str
    """Letter of the explainer."""
    title: str = Field(title="Explainer")
    """Name of the explainer."""
    rank: Number = Field(title="Rank")
    """Place by the mean."""
    value: Number
    """Mean over the latents that every explainer was scored on."""
    higher_than: tuple[str, ...] = Field(title="Higher than", description="By tests adjusted over all pairs")
    floor: bool
    """It uses no model: what the others have to beat."""
    coverage: Number = Field(title="Coverage", description="Share of examples with a usable verdict, or prediction")
    failed: Number = Field(title="Failed", description="Latents whose explanation failed; they score as an empty one")


class PairRow(Model):
    """Two of several explainers; the difference is b minus a."""

    key_a: str
    """Letter of the first."""
    key_b: str
    """Letter of the second."""
    title_a: str
    """Name of the first."""
    title_b: str
    """Name of the second."""
    difference: Number = Field(title="Difference", description="Second minus first, interval before adjustment")
    p: Number = Field(title="p", description="Sign-flip test over latents, two-sided")
    p_holm: Number = Field(title="p (Holm)", description="Adjusted over all pairs")
    equivalence: Number = Field(title="p, equivalence (Holm)", description="TOST within the margin, adjusted")
    detectable: Number = Field(title="Smallest detectable")
    """True difference found with power 0.8, at the spread of differences seen."""
    verdict: Verdict
    """What the adjusted tests say."""
    verdict_words: str = Field(title="Verdict")
    """The same in words."""
    sentence: str
    """Generated from the adjusted tests."""
    better: tuple[Number, Number, Number]
    """Latents on which the first scores higher, the second does, and ties."""
    alone: Number | None = None
    """Latents on which the two differ by themselves, by McNemar adjusted over latents and pairs."""
    rows: tuple[MetricRow, ...]
    """Every metric of the pair."""
    matched: bool
    """Every hard check holds."""
    checks: tuple[Check, ...]
    """Those that do not hold."""
    source: str
    """Id of the comparison."""

    @property
    def title(self) -> str:
        """`A: name and B: other`."""
        return f"{self.key_a.upper()}: {self.title_a} and {self.key_b.upper()}: {self.title_b}"


class ControlRow(Model):
    """One of several explainers against one control."""

    title: str = Field(title="Explainer")
    """Name of the explainer."""
    control: str = Field(title="Control")
    """Name of the control."""
    value: Number
    """Of the control."""
    difference: Number = Field(title="Explainer − control")
    """Explainer minus control."""
    p: Number = Field(title="p")
    """Sign-flip test over latents, two-sided."""
    p_holm: Number = Field(title="p (Holm)", description="Adjusted over all tests against controls")


class PairsSection(Model):
    """Three or more explainers on the same latents."""

    metric: str
    """Key of the primary metric."""
    metric_title: str
    """Name of the primary metric."""
    alpha: float
    """Two-sided level of the tests."""
    margin: float
    """Differences up to it count as equivalent."""
    n_latents: int
    """Latents that every explainer was scored on."""
    sentence: str
    """The order of the means, and what of it the tests support."""
    ranking: tuple[RankedRow, ...]
    """The explainers, highest mean first."""
    pairs: tuple[PairRow, ...]
    """Every pair of explainers."""
    controls: tuple[ControlRow, ...]
    """Every explainer against every control."""
    families: tuple[Family, ...]
    """Families of tests."""
    matched: bool
    """Every hard check of every pair holds."""
    self_scored: bool
    """Every explainer was judged by its own model."""
    source: str
    """Id of the ranking."""

    @property
    def explainers(self) -> list[RankedRow]:
        """The explainers in the order of their letters."""
        return sorted(self.ranking, key=lambda row: row.key)


class JudgedRow(Model):
    """Two explainers as one of two scorers judged them; the difference is b minus a."""

    scorer: str
    """Name of the scorer."""
    a: Number
    """Primary metric of the first explainer."""
    b: Number
    """Primary metric of the second."""
    difference: Number
    """Second minus first."""
    p: Number
    """Sign-flip test over latents, two-sided."""
    p_holm: Number | None = None
    """Adjusted over this scorer's pairs, where there are several."""
    verdict: Verdict
    """What the tests say."""
    verdict_words: str
    """The same in words."""
    source: str
    """Id of the comparison."""


class TwiceJudgedRow(Model):
    """Two explainers under both scorers, and whether these agree."""

    title: str
    """The two explainers."""
    judged: tuple[JudgedRow, JudgedRow]
    """As the first and as the second scorer judged them."""
    same_sign: bool
    """Both scorers give the difference the same sign."""
    same_verdict: bool
    """Both scorers lead to the same verdict."""
    pearson: Number
    """Of the per-latent differences under both scorers."""
    spearman: Number
    """Of the same differences by rank."""


class ScorersSection(Model):
    """A second scorer beside that of the primary analysis."""

    scorer: str
    """The scorer of the primary analysis."""
    second_scorer: str
    """The scorer that judged again."""
    metric_title: str
    """Name of the primary metric."""
    alpha: float
    """Two-sided level of the tests."""
    pairs: tuple[TwiceJudgedRow, ...]
    """Every pair of explainers under both scorers."""
    sentences: tuple[str, ...]
    """Generated: where the scorers agree."""
    checks: tuple[Check, ...]
    """What must be equal for the comparison to mean something."""
    matched: bool
    """Every hard check holds."""
    source: str
    """Id of the comparison of scorers."""


class VarianceRow(Model):
    """The variance of the score of one explanation of one latent, by where it comes from."""

    explainer: str
    """Name of the explainer."""
    scorer: str
    """Name of the scorer."""
    hookpoint: str
    """The layer."""
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
    """Id of the scores."""
