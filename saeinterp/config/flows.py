"""One model per flow."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator

from saeinterp.config.base import Config
from saeinterp.config.grading import ComparisonConfig, ExamplesConfig, ExplainerConfig, HealthConfig, ScorerConfig
from saeinterp.config.subject import CaptureConfig, CorpusConfig, SubjectConfig
from saeinterp.config.training import LaunchConfig, TrainingConfig


def _overrides_have_a_hookpoint(config: Any) -> Any:
    """Refuse overrides for hookpoints that are not captured: a typing error would go unseen."""
    known = config.capture.hookpoints
    for name in config.training.overrides:
        if name not in known:
            raise ValueError(f"training.overrides: {name!r} is not among capture.hookpoints ({', '.join(known)})")
    return config


class TrainSaesConfig(Config):
    """Train one SAE per hookpoint and grade each layer's health."""

    subject: SubjectConfig = SubjectConfig()
    corpus: CorpusConfig = CorpusConfig()
    capture: CaptureConfig = CaptureConfig()
    training: TrainingConfig = TrainingConfig()
    launch: LaunchConfig = LaunchConfig()
    health: HealthConfig = HealthConfig()

    _overrides = model_validator(mode="after")(_overrides_have_a_hookpoint)


class ExplainFeaturesConfig(TrainSaesConfig):
    """Train, then explain and score latents of every layer with one explainer."""

    examples: ExamplesConfig = ExamplesConfig()
    explainer: ExplainerConfig = ExplainerConfig()
    scorer: ScorerConfig = ScorerConfig()
    comparison: ComparisonConfig = ComparisonConfig()


class CompareExplainersConfig(TrainSaesConfig):
    """Two explainers on the same latents and examples, scored by one fixed scorer."""

    examples: ExamplesConfig = ExamplesConfig()
    explainer_a: ExplainerConfig = ExplainerConfig()
    explainer_b: ExplainerConfig = ExplainerConfig(kind="top-tokens")
    controls: tuple[Literal["permuted", "empty"], ...] = ("permuted", "empty")
    """Control explanations: another latent's (`permuted`) and none (`empty`)."""
    scorer: ScorerConfig = ScorerConfig()
    comparison: ComparisonConfig = ComparisonConfig()
    random_weights_control: bool = True
    """Also train and grade SAEs on the subject with random weights: the floor."""


class CompareModelsConfig(Config):
    """Layer health of two subjects, same corpus and same SAE recipe."""

    subject_a: SubjectConfig = SubjectConfig()
    subject_b: SubjectConfig = SubjectConfig(weights="random")
    corpus: CorpusConfig = CorpusConfig()
    capture: CaptureConfig = CaptureConfig()
    training: TrainingConfig = TrainingConfig()
    launch: LaunchConfig = LaunchConfig()
    health: HealthConfig = HealthConfig()
    comparison: ComparisonConfig = ComparisonConfig()

    _overrides = model_validator(mode="after")(_overrides_have_a_hookpoint)
