"""Which latents go with which tokens: the samples, the positions, the concepts and the tests."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from saeinterp.config.base import Config
from saeinterp.config.subject import CorpusSource

AssociationPreset = Literal["robust", "seed-gsm8k-chi2"]


class ProblemsConfig(Config):
    """The samples: problems with worked answers, or any texts."""

    source: CorpusSource = CorpusSource(name="builtin:word-problems", limit=3000)
    """Where they come from; `text_column` is not read."""
    question_column: str | None = "question"
    """Column with what comes before the reasoning; empty for texts without a question."""
    reasoning_column: str = "answer"
    """Column with the reasoning (the whole text where there is no question)."""
    id_column: str | None = None
    """Column with an id per problem; empty numbers them, as in `train_0`."""
    tags_column: str | None = None
    """Column with tags of your own (a list, or one string), for `concepts.grammar: column`."""
    samples: int = Field(1000, ge=2)
    """Problems that latents and tokens are associated on; the SAEs never train on them."""
    training: int | None = Field(None, ge=1)
    """Problems the SAEs train on; empty is all others."""
    order: Literal["hash", "id"] = "hash"
    """Which problems are the samples: the first by a hash of their text, or by their id as a string."""
    annotations: Literal["keep", "strip"] = "keep"
    """Whether the model reads the `<<48/2=24>>` of worked answers; concepts see them either way."""
    generate: bool = False
    """Let the model write the reasoning (greedily) instead of reading the one that is there."""
    max_new_tokens: int = Field(256, ge=1)
    """Longest reasoning that is generated."""
    max_tokens: int = Field(512, ge=8)
    """Problems with more tokens, question and reasoning together, are left out and counted."""
    seed: int = Field(0, ge=0)
    """Seed of the word-problem generator and of the order by hash."""

    @model_validator(mode="after")
    def _columns_differ(self) -> ProblemsConfig:
        if self.question_column == self.reasoning_column:
            raise ValueError(f"question_column and reasoning_column are both {self.reasoning_column!r}")
        if self.generate and self.question_column is None:
            raise ValueError("generate: there is nothing to generate from without question_column")
        return self


class ThoughtsConfig(Config):
    """A model that reasons in continuous thoughts: its last hidden state is fed back as the next input."""

    checkpoint: str | None = None
    """Folder or hub id of a CODI or Coconut checkpoint (safetensors); empty feeds back through the subject as it is."""
    revision: str | None = None
    """Hub revision of the checkpoint."""
    format: Literal["codi", "coconut"] = "codi"
    """How the checkpoint's tensors are named."""
    feedback: Literal["identity", "mlp"] = "mlp"
    """`mlp`: through the checkpoint's projection (CODI). `identity`: as it is (Coconut)."""
    lora_alpha: float = Field(32.0, gt=0)
    """Alpha of a CODI checkpoint's LoRA, which it does not say itself; 32 in the published ones."""
    bot: str | int | None = None
    """The token that begins the thoughts, by text or id; empty takes the checkpoint's (none without a checkpoint)."""
    remove_eos: bool = False
    """Leave out the end token between question and `bot` (CODI's own setting of that name)."""

    @model_validator(mode="after")
    def _projects(self) -> ThoughtsConfig:
        if self.feedback == "mlp" and self.checkpoint is None:
            raise ValueError("feedback 'mlp' needs the projection of a checkpoint; name one, or set feedback: identity")
        return self


class PositionsConfig(Config):
    """Where in a problem activations are taken."""

    select: str = "even:6@cot"
    """`all`, `last:n`, `even:n@cot` (n places spread over the reasoning), `token:ID`, `latent:n` (n continuous
    thoughts), `latent:n@bot` (n places from the beginning token on). `last:n@cot`, `all@cot`: within the reasoning."""
    pool: Literal["none", "any"] = "none"
    """With `all`: `any` calls a latent active in a problem when it fires at any token of it."""
    thoughts: ThoughtsConfig | None = None
    """With `latent:n`: the model's continuous thoughts."""

    @field_validator("select")
    @classmethod
    def _known(cls, select: str) -> str:
        if not re.fullmatch(
            r"all(@cot)?|last:[1-9]\d*(@cot)?|even:[1-9]\d*@cot|token:\d+|latent:[1-9]\d*(@bot)?", select
        ):
            raise ValueError(
                f"{select!r} is none of all, all@cot, last:n, last:n@cot, even:n@cot, token:ID, latent:n, latent:n@bot"
            )
        return select

    @model_validator(mode="after")
    def _fits(self) -> PositionsConfig:
        if self.select.startswith("all") != (self.pool == "any"):
            raise ValueError(
                "pool: 'any' goes with select: all, and only there: a latent must be active or not in a problem as a "
                "whole"
            )
        if self.thoughts is not None and not self.select.startswith("latent"):
            raise ValueError(f"thoughts: select {self.select!r} takes no continuous thoughts; set latent:n")
        if self.thoughts is None and self.select.startswith("latent"):
            raise ValueError("select 'latent:n' needs thoughts, such as {feedback: identity}")
        return self


class ConceptsConfig(Config):
    """What a problem holds: the tokens that latents are associated with."""

    grammar: Literal["canonical", "seed", "regex", "words", "tokens", "column"] = "canonical"
    """`canonical` and `seed`: numbers and operators of `<<…>>` annotations, numbers written in one way or as they are.
    `regex`: matches of `pattern`. `words`: words between white space, lower-case, without punctuation at their ends.
    `tokens`: tokens of the model's tokenizer. `column`: the tags of `corpus.tags_column`."""
    pattern: str | None = None
    """Of `regex`; a named group that matches is the category, as in `(?P<number>\\d+)|(?P<word>\\w+)`."""
    max_vocabulary: int = Field(20_000, ge=1)
    """At most so many tokens, those that most problems hold."""

    @model_validator(mode="after")
    def _pattern_fits(self) -> ConceptsConfig:
        if (self.grammar == "regex") != (self.pattern is not None):
            raise ValueError("pattern goes with grammar: regex, and only there")
        if self.pattern is not None:
            try:
                re.compile(self.pattern)
            except re.error as error:
                raise ValueError(f"pattern {self.pattern!r} is no regular expression: {error}") from error
        return self


class EnrichmentConfig(Config):
    """How latents are associated with tokens, and what chance would give."""

    presets: tuple[AssociationPreset, ...] = ("robust",)
    """Rules: `robust`, and `seed-gsm8k-chi2` (those of a published analysis)."""
    adjustment: Literal["bh", "by"] = "bh"
    """Of `robust`: Benjamini–Hochberg, or Benjamini–Yekutieli, which holds whatever depends on what and keeps less."""
    permutations: int = Field(200, ge=0)
    """Permutations of each null; 0 leaves both out, and the report says so."""
    half_samples: int = Field(200, ge=0)
    """Random half-samples of the problems, for the intervals of rates."""
    strata: int = Field(8, ge=1)
    """Strata of the second null at most: problems with about as many concept tokens are permuted among themselves."""
    seed: int = Field(0, ge=0)
    """Seed of halves, permutations and half-samples."""

    @field_validator("presets")
    @classmethod
    def _once(cls, presets: tuple[Any, ...]) -> tuple[Any, ...]:
        if not presets or len(set(presets)) < len(presets):
            raise ValueError(f"presets must name each rule once, at least one; got {list(presets)}")
        return presets
