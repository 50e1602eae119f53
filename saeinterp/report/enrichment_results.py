"""The part of `results.json` that holds which latents go with which tokens, per model and set of rules.

The surprising choice: a rate and what chance gives for it are one row, so that no renderer can print one without the
other; a null that was not computed is a missing number with its reason.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from saeinterp.report.reasons import fold_reasons
from saeinterp.report.values import Check, Difference, Fact, Model, Number, Side


class ChanceCell(Model):
    """What one null gives for a number."""

    mean: Number
    sd: Number
    p: Number


class RateRow(Model):
    """One rate of one model at one place."""

    side: str = Field(title="Model")
    scope: Literal["model", "layer", "position"]
    where: str = Field(title="Where")
    rate: str
    title: str = Field(title="Rate")
    value: Number = Field(title="Observed")
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
    category: str = Field(title="Category")
    value: Number = Field(title="Share of interpretable latents")
    strata: ChanceCell = Field(title="Chance, within strata")
    vocabulary: Number = Field(title="Share of the vocabulary", description="Of the tokens that can be tested")
    ratio: Number = Field(title="Share over vocabulary")


class KindRow(Model):
    """How many labels are of one kind, per model."""

    kind: str = Field(title="Kind")
    values: tuple[Number, ...]


class TopLatent(Model):
    """A monosemantic latent and its token."""

    side: str
    id: str
    label: str
    score: Number
    measure: str
    """What `score` is."""
    table: str
    """Samples with both, latent alone, token alone, neither."""


class PairFacts(Model):
    """How many pairs of latent and token one model has under one set of rules."""

    side: str = Field(title="Model")
    listed: Number = Field(title="Pairs listed", description="Those with p at most 0.05")
    kept: Number = Field(title="Pairs kept")
    level: Number = Field(title="Level", description="The largest p at which a pair counts")
    level_name: str


class PresetSection(Model):
    """One set of rules applied to every model."""

    preset: str
    title: str
    rates: tuple[RateRow, ...]
    categories: tuple[CategoryRow, ...]
    kinds: tuple[KindRow, ...]
    top: tuple[TopLatent, ...]
    findings: tuple[str, ...]
    pairs: tuple[PairFacts, ...] = ()

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
    facts: tuple[Fact, ...]
    source: str


class EnrichmentSection(Model):
    """Which latents go with which tokens."""

    sides: tuple[SideFacts, ...]
    presets: tuple[PresetSection, ...]
    latents: int
    """Rows of `tables/associated.parquet`."""

    @property
    def headline(self) -> str:
        """The first model's share of interpretable and monosemantic latents under the first rules."""
        return " ".join(self.presets[0].findings[:2]) if self.presets else ""


class ComparedRate(Model):
    """One rate in both models."""

    preset: str
    scope: Literal["model", "layer", "position"]
    where: str
    title: str
    a: Number
    b: Number
    difference: Number = Field(title="B − A")
    chance: ChanceCell = Field(title="B − A by chance", description="What the null within strata gives for it")
    excess: Number = Field(title="B − A, excess", description="Of what is above chance on each side")
    models: Number | None = Field(
        None, title="B − A, models", description="Training seeds of the SAEs are in the interval"
    )
    verdict: str


class AnswerRow(Model):
    """One question of the comparison under one set of rules."""

    question: str
    preset: str
    verdict: str
    sentence: str
    a: Number | None
    b: Number | None
    difference: Number | None
    chance: ChanceCell | None


class ControlSection(Model):
    """One model against its architecture with random weights."""

    title: str
    findings: tuple[str, ...]


class InterpretabilitySection(Model):
    """Two models by the latents that go with tokens."""

    sides: tuple[Side, Side]
    sentence: str
    condition: str
    answers: tuple[AnswerRow, ...]
    rates: tuple[ComparedRate, ...]
    controls: tuple[ControlSection, ...]
    sizes: tuple[Number, Number]
    checks: tuple[Check, ...]
    matched: bool
    differences: tuple[Difference, ...]
    source: str

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
