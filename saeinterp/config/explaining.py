"""Frozen examples, and who explains and scores them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from pydantic import Field, field_validator, model_validator

from saeinterp.config.base import Config
from saeinterp.config.llm import LLMConfig


class ExamplesConfig(Config):
    """Frozen example sets, shared by every explainer and scorer."""

    latents: str | tuple[int, ...] = "sample:4"
    """`"10:21"` (a range), a list of indices, `"sample:N"` (seeded, uniform over alive latents) or `"all"`."""
    window: int = Field(32, ge=4)
    """Tokens per example window."""
    explain_activating: int = Field(12, ge=1)
    """Activating examples shown to the explainer."""
    explain_silent: int = Field(6, ge=0)
    """Windows of the explain split in which the latent is silent, for explainers that show what it is not."""
    score_activating: int = Field(15, ge=1)
    """Activating examples to be scored, over the quantiles."""
    score_random: int = Field(5, ge=0)
    """Non-activating windows drawn at random."""
    score_similar: int = Field(5, ge=0)
    """Windows where a latent with a near decoder direction fires but this one is silent."""
    score_near_miss: int = Field(5, ge=0)
    """Windows holding the latent's top token while it is silent."""
    quantiles: int = Field(10, ge=1)
    """Activation quantiles over which positives are spread."""
    min_windows: int = Field(10, ge=1)
    """Fewer activating windows in a split make a latent `too_rare`."""
    max_share: float = Field(0.8, gt=0, le=1)
    """Activity in a larger share of windows makes a latent `too_dense`."""
    seed: int = Field(0, ge=0)
    """Seed of every draw."""

    @property
    def named_latents(self) -> Sequence[int] | None:
        """The latents that are named by their index; None where they are drawn, or all."""
        if not isinstance(self.latents, str):
            return self.latents
        start, _, stop = self.latents.partition(":")
        return range(int(start), int(stop)) if start.isdigit() else None

    @field_validator("latents")
    @classmethod
    def _selects(cls, latents: str | tuple[int, ...]) -> str | tuple[int, ...]:
        if isinstance(latents, str) and not re.fullmatch(r"all|sample:[0-9]+|[0-9]+:[0-9]+", latents):
            raise ValueError("expected '10:21', a list such as [3, 17], 'sample:N' or 'all'")
        return latents


class ExplainerConfig(Config):
    """Who writes the explanations."""

    kind: Literal["llm", "contrastive", "top-tokens"] = "llm"
    """`llm` asks a model; `contrastive` also shows it texts in which the latent is silent; `top-tokens` lists the
    most associated tokens, without a model."""
    label: str | None = None
    """Name in reports; default is the model's or the kind's."""
    llm: LLMConfig = LLMConfig()
    """The model, for `llm` and `contrastive`."""
    logit_lens: bool = True
    """Show the tokens that the decoder direction promotes and suppresses most."""
    chain_of_thought: bool = False
    """Ask for reasoning before the label; raise `llm.max_tokens` with it."""
    samples: int = Field(1, ge=1)
    """Explanations per latent, each with a sampling seed of its own; a latent's score is their mean. Beyond one,
    `llm.temperature` must be above 0."""

    @property
    def title(self) -> str:
        """The name reports use."""
        if self.label:
            return self.label
        if self.kind == "top-tokens":
            return self.kind
        model = self.llm.model.rstrip("/").rsplit("/", 1)[-1]
        return model if self.kind == "llm" else f"{model} ({self.kind})"

    @model_validator(mode="after")
    def _samples_differ(self) -> ExplainerConfig:
        if self.samples > 1 and self.kind == "top-tokens":
            raise ValueError(f"samples: {self.samples} of 'top-tokens' would be the same, since it draws nothing")
        if self.samples > 1 and self.llm.temperature == 0:
            raise ValueError(
                f"samples: {self.samples} at llm.temperature 0 would be the same; set a temperature above 0, as in 0.7"
            )
        return self


class ScorerConfig(Config):
    """Who judges the explanations; fixed and independent of the explainers."""

    kind: Literal["detection", "fuzz", "simulation"] = "detection"
    """`detection`: does the text match the explanation? `fuzz`: are the marked tokens those it describes?
    `simulation`: predict every token's activation, where the server gives log-probabilities of prompts."""
    llm: LLMConfig = LLMConfig(max_tokens=1)
    """The judging model."""
    examples_per_prompt: int | None = Field(None, ge=1)
    """Examples judged by one request; empty is 5 on a server and 1 in process."""
    threshold: float = Field(0.5, gt=0, lt=1)
    """P(match) above which a verdict is true."""
    min_coverage: float = Field(0.95, ge=0, le=1)
    """Below this share of usable verdicts the run ends `completed with failures`."""

    @property
    def together(self) -> int:
        """Examples judged by one request."""
        if self.examples_per_prompt is not None:
            return self.examples_per_prompt
        return 1 if self.llm.provider == "in-process" else 5

    @model_validator(mode="after")
    def _in_process_judges_one(self) -> ScorerConfig:
        if self.llm.provider == "in-process" and self.together > 1:
            raise ValueError(
                f"examples_per_prompt: {self.together} needs a server that answers by JSON schema; in process it is 1"
            )
        return self
