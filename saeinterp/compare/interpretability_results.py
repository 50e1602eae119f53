"""What `comparison.json` of two models' interpretability holds: the schema that reports read and print.

Difference always means side b minus side a. The surprising choice: every rate keeps what chance gives beside it, and so
does a difference, since two models whose latents fire at other rates differ by chance too.
"""

from __future__ import annotations

from typing import Literal

from saeinterp.compare.comparability import ComparabilityRow
from saeinterp.compare.model_results import SubjectDifference
from saeinterp.compare.results import Result, Sentence
from saeinterp.compare.sides import Side

FORMAT = 1

Null = Literal["free", "strata"]
"""Rows of the token matrix permuted freely, or among problems with about as many concept tokens."""
Scope = Literal["model", "layer", "position"]
DifferenceVerdict = Literal["different", "inconclusive", "chance"]
"""`chance`: neither side is above what its null gives, or the null gives differences as large: nothing follows."""


class Chance(Result):
    """What a null gives for a number."""

    mean: float | None
    sd: float | None
    p: float | None
    """Of one side: (1 + draws at or above the observed) / (draws + 1). Of a difference: two-sided, about the mean."""
    low: float | None
    """2.5% of the draws lie below."""
    high: float | None
    """2.5% of the draws lie above."""
    permutations: int
    """Draws; where fewer than half of them define the number, the rest here is null."""


class SideRate(Result):
    """One side's rate: the mean over its SAE trainings."""

    value: float | None
    reason: str | None
    """Why there is no value or no interval."""
    low: float | None
    high: float | None
    count: int | None
    """Latents counted; null with several SAE trainings."""
    of: int | None
    values: tuple[float | None, ...]
    """One per SAE training."""
    sd: float | None
    """Over SAE trainings, where there are several."""
    nulls: dict[Null, Chance]
    excess: float | None
    """(value − null) / (1 − null), null within strata; only of rates over all latents."""
    vocabulary_share: float | None
    """Of a category: its share of the tokens that can be tested."""
    over_vocabulary: float | None
    """The rate over that share."""


class ModelDifference(Result):
    """The same difference with SAE training seeds in its interval, from three a side on."""

    low: float | None
    high: float | None
    method: str
    saes: int
    reason: str | None


class RateDifference(Result):
    """One rate in both models."""

    preset: str
    rate: str
    title: str
    scope: Scope
    where: str
    hookpoints: tuple[str | None, str | None]
    """The layer of each side, matched by relative depth."""
    position: int | None
    a: SideRate
    b: SideRate
    difference: float | None
    low: float | None
    high: float | None
    method: str
    reason: str | None
    excess_difference: float | None
    excess_low: float | None
    excess_high: float | None
    by_chance: dict[Null, Chance]
    """The difference that each null gives."""
    models: ModelDifference | None
    verdict: DifferenceVerdict | None
    higher: Side | None
    sentence: str


class LargestPair(Result):
    """The kept pair with the largest finite enrichment."""

    id: str
    token: str
    enrichment: float
    a: int
    b: int
    c: int
    d: int
    low: float
    """95% interval of the ratio of two proportions, as if the pair had not been chosen for being the largest."""
    high: float
    one_sample: int
    """Of the ten largest, those whose token occurs in one sample without the latent (c = 1)."""
    largest: int
    """How many those ten are, where there are fewer."""


class SideMaximum(Result):
    """The largest enrichment of one side."""

    value: float | None
    reason: str | None
    values: tuple[float | None, ...]
    nulls: dict[Null, Chance]
    pair: LargestPair | None


class Maximum(Result):
    """The largest enrichment in both models; an extreme has no interval, so its null stands in its place."""

    a: SideMaximum
    b: SideMaximum
    difference: float | None
    by_chance: dict[Null, Chance]


class Sizes(Result):
    """How many parameters the models have, counted once where tied."""

    a: int | None
    b: int | None

    @property
    def larger(self) -> Side | None:
        """The side with more; None where they are equal or one is not known."""
        if self.a is None or self.b is None or self.a == self.b:
            return None
        return "a" if self.a > self.b else "b"


class Answer(Result):
    """One research question under one preset: its statistic, interval, null and verdict."""

    id: Literal["monosemantic", "category", "maximum", "size"]
    question: str
    preset: str
    verdict: str
    short: str
    """What a headline needs of the sentence."""
    sentence: str
    rate: RateDifference | None
    maximum: Maximum | None


class ControlRates(Result):
    """One side against its own architecture with random weights: side a is the model, side b its control."""

    side: Side
    title: str
    rates: tuple[RateDifference, ...]
    """Over all layers and positions."""


class InterpretabilityComparison(Result):
    """Everything a report prints of two models compared by the latents that go with tokens."""

    format: int = FORMAT
    title_a: str
    title_b: str
    condition: str
    """What every number is conditional on."""
    alpha: float
    sizes: Sizes
    presets: tuple[str, ...]
    answers: tuple[Answer, ...]
    rates: tuple[RateDifference, ...]
    controls: tuple[ControlRates, ...]
    sentence: str
    sentences: tuple[Sentence, ...]
    comparability: tuple[ComparabilityRow, ...]
    matched: bool
    configuration: tuple[SubjectDifference, ...]
