"""Sparse probing: how much of a user's label few latents know."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from saeinterp.config.base import Config, place
from saeinterp.config.flows import TrainSaesConfig


class SparseProbingConfig(Config):
    """Probes of one to a few latents for the classes of a labelled table (Gurnee et al. 2023; SAEBench)."""

    file: str = place(...)
    """A .jsonl, .csv or .parquet file with one labelled text per row; its content enters the recipe, not its place."""
    text_column: str = "text"
    """Column with the texts."""
    label_column: str = "label"
    """Column with the labels: text, whole numbers or true/false."""
    group_column: str | None = None
    """Rows with the same value (author, document) stay on one side of the split; default is the text itself."""
    ks: tuple[int, ...] = (1, 2, 5)
    """Latents per probe."""
    pooling: Literal["mean", "max"] = "mean"
    """How a text's tokens become one row: mean or maximum over unmasked tokens."""
    test_fraction: float = Field(0.3, gt=0, lt=1)
    """Share of each class's texts (or groups) that no probe sees."""
    min_rows: int = Field(5, ge=1)
    """Fewest rows of every class on either side of the split."""
    permutations: int = Field(20, ge=1)
    """Refits with permuted labels: the null of every sparse probe."""
    context_length: int = Field(128, ge=8)
    """Longer texts are cut to so many tokens."""
    batch_texts: int = Field(16, ge=1)
    """Texts per forward pass."""
    bootstrap: int = Field(2000, ge=100)
    """Bootstrap draws over test texts (or groups)."""
    seed: int = Field(0, ge=0)
    """Seed of split, permutations, the random SAE and the bootstrap."""

    @field_validator("ks")
    @classmethod
    def _counts(cls, ks: tuple[int, ...]) -> tuple[int, ...]:
        if not ks or min(ks) < 1 or len(set(ks)) != len(ks):
            raise ValueError(f"ks must be different whole numbers above 0, such as [1, 2, 5]; got {list(ks)}")
        return ks

    @model_validator(mode="after")
    def _different_columns(self) -> SparseProbingConfig:
        if self.text_column == self.label_column:
            raise ValueError(f"text_column and label_column are both {self.text_column!r}")
        return self


class ProbeLatentsConfig(TrainSaesConfig):
    """Train SAEs (or find them), then probe their latents for the classes of a labelled table."""

    probing: SparseProbingConfig
