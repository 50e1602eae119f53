"""What a comparison tests."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from saeinterp.config.base import Config


class ComparisonConfig(Config):
    """What is tested, frozen before anything is scored."""

    metric: Literal["f1", "accuracy", "balanced_accuracy", "auroc", "correlation"] = "f1"
    """Primary endpoint, per latent, averaged over latents; `correlation` with a simulation scorer, and only there."""
    margin: float = Field(0.05, gt=0)
    """Equivalence margin."""
    alpha: float = Field(0.05, gt=0, lt=1)
    """Two-sided significance level."""
    bootstrap: int = Field(2000, ge=100)
    """Bootstrap draws."""
    seed: int = Field(0, ge=0)
    """Seed of resampling."""
    allow_unmatched: bool = False
    """Compare sides that differ in what should be equal; the report then carries a banner."""
