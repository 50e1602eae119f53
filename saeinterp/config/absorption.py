"""First-letter absorption of an SAE."""

from __future__ import annotations

from pydantic import Field

from saeinterp.config.base import Config, place


class AbsorptionConfig(Config):
    """First-letter absorption (Chanin et al. 2024), with SAEBench's settings unless a line says otherwise."""

    enabled: bool = place(True)
    """Measure it."""
    words: int = Field(5000, ge=1)
    """Words: a seeded sample of the vocabulary's single-token words, balanced over letters (SAEBench takes all)."""
    context_examples: int = Field(10, ge=0)
    """Solved examples before the word, drawn for each prompt."""
    test_fraction: float = Field(0.2, gt=0, lt=1)
    """Share of the words that no probe is trained on."""
    batch_prompts: int = Field(64, ge=1)
    """Prompts per forward pass."""
    epochs: int = Field(50, ge=1)
    """Passes over the training words, of either kind of probe."""
    lr: float = Field(1e-2, gt=0)
    """Adam's learning rate in the first epoch."""
    lr_end: float = Field(1e-5, gt=0)
    """What the learning rate falls to, by one factor per epoch."""
    probe_batch: int = Field(64, ge=1)
    """Words per step of the ground-truth probes."""
    probe_weight_decay: float = Field(1e-4, ge=0)
    """L2 penalty of the ground-truth probes."""
    sparse_batch: int = Field(512, ge=1)
    """Words per step of the L1 probes; with 5,000 words that makes as many steps as SAEBench's 4,096 of 31,000."""
    sparse_l1: float = Field(0.01, ge=0)
    """L1 penalty of the probes that rank latents."""
    sparse_weight_decay: float = Field(1e-6, ge=0)
    """L2 penalty of the probes that rank latents."""
    max_k: int = Field(10, ge=1)
    """Most latents that a letter may be split over."""
    f1_gain: float = Field(0.03, ge=0)
    """F1 that one more latent must add to count as a main latent."""
    min_probe_f1: float = Field(0.6, ge=0, lt=1)
    """A letter counts where its ground-truth probe has a larger F1."""
    min_letters: int = Field(20, ge=1, le=26)
    """Fewer such letters: absorption is not applicable."""
    min_sparse_f1: float = Field(0.3, ge=0, le=1)
    """A smaller mean F1 of the best single latents: absorption is not applicable."""
    bootstrap: int = Field(2000, ge=100)
    """Bootstrap draws over letters."""
    seed: int = Field(0, ge=0)
    """Seed of words, split, prompts, shuffles, the random SAE and the bootstrap."""
