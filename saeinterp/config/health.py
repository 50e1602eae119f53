"""Layer health: on which texts, and how."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from saeinterp.config.base import Config, place
from saeinterp.config.subject import CorpusConfig, CorpusSource, SplitFractions, SplitTokens


class HealthDataset(Config):
    """Text of its own on which layer health is measured, cut into contexts as the corpus is."""

    name: str = Field(min_length=1)
    """What reports call it, such as `SQuAD`."""
    source: CorpusSource
    """Where it comes from; every document counts as held out."""
    max_tokens: int | None = Field(None, ge=1)
    """Evaluate at most so many tokens (whole contexts are kept); empty means all."""

    def corpus(self, like: CorpusConfig) -> CorpusConfig:
        """The corpus that holds this text alone, all of it in the split `health`."""
        return like.model_copy(
            update={
                "sources": (self.source,),
                "fractions": SplitFractions(train=0, health=1, explain=0, score=0),
                "max_tokens": SplitTokens(health=self.max_tokens),
            }
        )


class HealthConfig(Config):
    """Layer health on held-out text: the corpus's own, and that of further datasets."""

    name: str = place("held-out")
    """What reports call the corpus's own held-out split."""
    datasets: tuple[HealthDataset, ...] = place(())
    """Further texts, each with a row of its own beside the held-out split."""
    allow_overlap: bool = False
    """Also evaluate on text that holds training documents; how many is printed."""
    splice: Literal["all", "unmasked"] = "all"
    """Replace the hookpoint at every position, or only where tokens are not masked."""
    batch_contexts: int = Field(16, ge=1)
    """Contexts per forward pass."""
    together: int | None = Field(None, ge=1, json_schema_extra={"in_recipe": False})
    """SAEs measured in one pass over the text; empty is all of a subject, which their weights must fit."""
    bootstrap: int = Field(2000, ge=100)
    """Bootstrap draws over documents."""
    seed: int = Field(0, ge=0)
    """Seed of the bootstrap."""

    @model_validator(mode="after")
    def _names_differ(self) -> HealthConfig:
        names = [self.name, *(dataset.name for dataset in self.datasets)]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two datasets are called {name!r} (health.name counts); give each a name of its own")
        return self
