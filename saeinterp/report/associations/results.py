"""The part of `results.json` that holds which latents go with which tokens, per model and set of rules.

The surprising choice: a rate and what chance gives for it are one row, so that no renderer can print one without the
other; a null that was not computed is a missing number with its reason.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from saeinterp.report.reasons import fold_reasons
from saeinterp.report.values import Check, Difference, Fact, Model, Number, Setting, Side


class ChanceCell(Model):
    """What one null gives for a number."""

    mean: Number
    """Mean over permutations."""
    sd: Number
    """Standard deviation over permutations."""
    p: Number
    """Share of permutations that reach the observed number, with the usual correction."""


class RateRow(Model):
    """One rate of one model at one place."""

    side: str = Field(title="Model")
    """The model."""
    scope: Literal["model", "layer", "position"]
    """What the rate is over."""
    where: str = Field(title="Where")
    """Layer or position, or all of them."""
    rate: str
    """Key of the rate."""
    title: str = Field(title="Rate")
    """Name of the rate."""
    value: Number = Field(title="Observed")
    """The rate, with n as its denominator."""
    strata: ChanceCell = Field(
        title="Chance, within strata", description="Problems permuted among those with about as many tokens"
    )
    free: ChanceCell = Field(title="Chance, free", description="Problems permuted freely")
    excess: Number = Field(
        title="Excess", description="(observed − chance) / (1 − chance), within strata; of rates over all latents"
    )


class CategoryRow(Model):
    """The share of interpretable latents whose first token is of a category."""

    side: str = Field(title="Model")
    """The model."""
    category: str = Field(title="Category")
    """Category of the tokens."""
    value: Number = Field(title="Share of interpretable latents")
    """Among latents that pass the rules."""
    strata: ChanceCell = Field(title="Chance, within strata")
    """Problems permuted among those with about as many tokens."""
    vocabulary: Number = Field(title="Share of the vocabulary", description="Of the tokens that can be tested")
    ratio: Number = Field(title="Share over vocabulary")
    """Share of the latents over share of the vocabulary."""


class KindRow(Model):
    """How many labels are of one kind, per model."""

    kind: str = Field(title="Kind")
    """Kind of label."""
    values: tuple[Number, ...]
    """Share of labels, per model."""


class TopLatent(Model):
    """A monosemantic latent and its token."""

    side: str
    """The model."""
    id: str
    """Layer, position and latent, such as `L9_P1_F355`."""
    label: str
    """Label of the latent."""
    score: Number
    """How strongly latent and token go together."""
    measure: str
    """What `score` is."""
    table: str
    """Samples with both, latent alone, token alone, neither."""


class PairFacts(Model):
    """How many pairs of latent and token one model has under one set of rules."""

    side: str = Field(title="Model")
    """The model."""
    listed: Number = Field(title="Pairs listed")
    """Pairs with p at most 0.05."""
    kept: Number = Field(title="Pairs kept")
    """Pairs that pass the rules."""
    level: Number = Field(title="Level")
    """The largest p at which a pair counts."""
    level_name: str = Field(title="Name of the level")
    """What the line at the level is called."""


class PresetSection(Model):
    """One set of rules applied to every model."""

    preset: str
    """Key of the rules."""
    title: str
    """Name of the rules."""
    rules: tuple[Setting, ...] = ()
    """What a pair of a latent and a token must pass, and what makes a latent monosemantic."""
    rates: tuple[RateRow, ...]
    """Every rate by model, layer and position."""
    categories: tuple[CategoryRow, ...]
    """Rates by category of the token."""
    kinds: tuple[KindRow, ...]
    """What kinds of labels there are."""
    top: tuple[TopLatent, ...]
    """The strongest monosemantic latents."""
    findings: tuple[str, ...]
    """Generated sentences on the rates."""
    pairs: tuple[PairFacts, ...] = ()
    """How many pairs there are, per model."""

    @property
    def by_scope(self) -> list[tuple[str, list[RateRow]]]:
        """The rows of each scope under its heading, in the order they are read."""
        headings = {"model": "Overall statistics", "layer": "By layer", "position": "By position"}
        groups = [(title, [row for row in self.rates if row.scope == scope]) for scope, title in headings.items()]
        return [group for group in groups if group[1]]

    @property
    def missing(self) -> list[tuple[str, list[str]]]:
        """Reasons of missing numbers, each with the rates it is about."""
        reasons: dict[str, list[str]] = {}
        for row in self.rates:
            for number in (row.value, row.strata.mean, row.free.mean, row.strata.p, row.free.p):
                if number.value is None and number.reason:
                    reasons.setdefault(number.reason, []).append(row.title)
        return [(reason, list(dict.fromkeys(titles))) for reason, titles in fold_reasons(reasons)]


class SideFacts(Model):
    """What one model's associations rest on."""

    title: str
    """Name of the model."""
    facts: tuple[Fact, ...]
    """Samples, tokens and sizes."""
    source: str
    """Id of the associations."""


class EnrichmentSection(Model):
    """Which latents go with which tokens."""

    sides: tuple[SideFacts, ...]
    """The models."""
    presets: tuple[PresetSection, ...]
    """One section per set of rules."""
    latents: int
    """Rows of `tables/associated.parquet`."""

    @property
    def headline(self) -> str:
        """The first model's share of interpretable and monosemantic latents under the first rules."""
        return " ".join(self.presets[0].findings[:2]) if self.presets else ""


class ComparedRate(Model):
    """One rate in both models."""

    preset: str
    """Key of the rules."""
    scope: Literal["model", "layer", "position"]
    """What the rate is over."""
    where: str
    """Layers or positions that face each other."""
    title: str
    """Name of the rate."""
    a: Number
    """Rate of side A."""
    b: Number
    """Rate of side B."""
    difference: Number = Field(title="B − A")
    """Side B minus side A."""
    chance: ChanceCell = Field(title="B − A by chance", description="What the null within strata gives for it")
    excess: Number = Field(title="B − A, excess", description="Of what is above chance on each side")
    models: Number | None = Field(
        None, title="B − A, models", description="Training seeds of the SAEs are in the interval"
    )
    verdict: str
    """What interval and null say."""


class AnswerRow(Model):
    """One question of the comparison under one set of rules."""

    question: str
    """The question."""
    preset: str
    """Key of the rules."""
    verdict: str
    """The answer in a word."""
    sentence: str
    """The answer with its numbers."""
    a: Number | None
    """Value of side A."""
    b: Number | None
    """Value of side B."""
    difference: Number | None
    """Side B minus side A."""
    chance: ChanceCell | None
    """What the null gives for the difference."""


class ControlSection(Model):
    """One model against its architecture with random weights."""

    title: str
    """Name of the model."""
    findings: tuple[str, ...]
    """Generated sentences on both."""


class InterpretabilitySection(Model):
    """Two models by the latents that go with tokens."""

    sides: tuple[Side, Side]
    """Side A and side B."""
    sentence: str
    """Generated: the first answer."""
    condition: str
    """What every number here is conditional on."""
    answers: tuple[AnswerRow, ...]
    """Every question under every set of rules."""
    rates: tuple[ComparedRate, ...]
    """Every rate in both models."""
    controls: tuple[ControlSection, ...]
    """Each model against random weights."""
    sizes: tuple[Number, Number]
    """Parameters of both models."""
    checks: tuple[Check, ...]
    """What must be equal for the comparison to mean something."""
    matched: bool
    """Every hard check holds."""
    differences: tuple[Difference, ...]
    """Settings in which the models differ."""
    source: str
    """Id of the comparison."""

    @property
    def questions(self) -> list[tuple[str, list[AnswerRow]]]:
        """Each question with its answers, one per set of rules."""
        asked = dict.fromkeys(answer.question for answer in self.answers)
        return [(question, [answer for answer in self.answers if answer.question == question]) for question in asked]

    @property
    def by_scope(self) -> list[tuple[str, list[ComparedRate]]]:
        """The rows of each scope under its heading."""
        headings = {"model": "All layers and positions", "layer": "By layer", "position": "By position"}
        groups = [(title, [row for row in self.rates if row.scope == scope]) for scope, title in headings.items()]
        return [group for group in groups if group[1]]
