"""Health artifacts of hand-made SAEs and their comparison; layer health with planted numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from planted_health import Prepared, planted_sums, random_sae, sae_artifact

from saeinterp.artifacts import Artifact, ArtifactStore
from saeinterp.compare import compare_models
from saeinterp.compare.models import ModelComparison
from saeinterp.compare.sides import LayerHealth, Side
from saeinterp.config import ComparisonConfig, HealthConfig
from saeinterp.health import DocumentSums, evaluate_health
from saeinterp.health.documents import COLUMNS

NAMES = ("Real", "Control")
CONFIG = ComparisonConfig(bootstrap=400)


def health(
    store: ArtifactStore,
    parts: Prepared,
    hookpoint: str = "layers.1",
    *,
    health_config: HealthConfig | None = None,
    dataset: str | None = None,
    seed: int | None = None,
    **sae: Any,
) -> Artifact:
    """Health of a random SAE; `seed` is of its directions and in its recipe."""
    training = {key: sae.pop(key) for key in ("lr",) if key in sae}
    if seed is not None:
        training["seed"] = sae["seed"] = seed
    trained = sae_artifact(store, random_sae(64, **sae), parts.activations, hookpoint=hookpoint, **training)
    return evaluate_health(
        parts.artifact,
        parts.corpus,
        parts.activations,
        trained,
        hookpoint=hookpoint,
        config=health_config or HealthConfig(bootstrap=200),
        dataset=dataset,
        store=store,
    )


def compare(
    store: ArtifactStore,
    a: Sequence[Artifact],
    b: Sequence[Artifact],
    *,
    controls: Mapping[Side, Sequence[Artifact]] = {},
    grades: Mapping[Side, Artifact] = {},
    **config: Any,
) -> ModelComparison:
    """The comparison of both sides, read back."""
    settings = CONFIG.model_copy(update=config)
    made = compare_models(a, b, controls=controls, grades=grades, config=settings, names=NAMES, store=store)
    return ModelComparison.model_validate_json(made.file("comparison.json").read_bytes())


def layer(sums: DocumentSums, **change: Any) -> LayerHealth:
    """Layer health with the metrics of these sums."""
    values: dict[str, Any] = {"layer": 1, "dead_fraction": 0.1}
    for metric in ("loss_recovered", "loss_recovered_mean_ablation", "delta_ce", "fvu"):
        values[metric] = {"value": sums.value(metric), "low": None, "high": None, "reason": None}
    return LayerHealth({**values, **change}, sums)


def side(seed: int, *, fvu: float = 0.25, spliced: float = 4.0, count: int = 60, **options: Any) -> DocumentSums:
    """Document sums of one SAE; documents of equal number share nothing but that number."""
    return planted_sums(count, clean=3.0, spliced=spliced, zero=11.0, fvu=fvu, seed=seed, **options)


class Documents:
    """Documents that several SAEs are measured on: lengths, variance and hardness are theirs."""

    def __init__(self, count: int, *, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.tokens = rng.integers(50, 150, count).astype(float)
        self.variance = self.tokens * (10 + rng.standard_normal(count))
        self.hardness = rng.standard_normal(count)

    def sums(self, rng: np.random.Generator, *, fvu: float, l0: float = 2.0, hard: float = 0.02) -> DocumentSums:
        """One SAE: FVU differs by document as its hardness says, and a little at random."""
        count = len(self.tokens)
        shares = fvu + hard * self.hardness + 0.005 * rng.standard_normal(count)
        columns = {
            "tokens": self.tokens,
            "predictions": self.tokens,
            "ce_clean": 3.0 * self.tokens,
            "ce_spliced": (3.0 + 4 * shares) * self.tokens,
            "ce_zero": 11.0 * self.tokens,
            "ce_mean": 10.0 * self.tokens,
            "kl_spliced": self.tokens,
            "kl_zero": 8 * self.tokens,
            "squared_error": self.variance * shares,
            "squared_deviation": self.variance,
            "cosine": 0.9 * self.tokens,
            "l0": l0 * self.tokens,
        }
        ids = np.arange(count, dtype=np.int32)
        return DocumentSums(ids, np.stack([columns[name] for name in COLUMNS], axis=1))
