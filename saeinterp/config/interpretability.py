"""The flows that associate latents with tokens, for one model and for two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from saeinterp.config.base import Config, recipe_of
from saeinterp.config.comparison import ComparisonConfig
from saeinterp.config.enrichment import ConceptsConfig, EnrichmentConfig, PositionsConfig, ProblemsConfig
from saeinterp.config.reporting import ReportConfig
from saeinterp.config.subject import CaptureConfig, SubjectConfig
from saeinterp.config.training import LaunchConfig, TrainingConfig


def _captured_in_full(capture: CaptureConfig) -> None:
    """Refuse ways of capturing that chosen positions do not take."""
    if capture.source == "stream":
        raise ValueError(
            "capture.source: 'stream' trains on every token; chosen positions are few, and are kept as files: leave it "
            "out"
        )
    if capture.processes > 1:
        raise ValueError(f"capture.processes: chosen positions are captured by one process, got {capture.processes}")


def _trained_here(training: TrainingConfig, where: str) -> None:
    if training.saes:
        raise ValueError(f"{where}.saes: SAEs of one layer and position are trained here; leave it out")


def _different(seeds: tuple[int, ...]) -> None:
    if len(set(seeds)) < len(seeds) or any(seed < 0 for seed in seeds):
        raise ValueError(f"seeds must be different whole numbers from 0 on, got {list(seeds)}")


class CorrelateTokensConfig(Config):
    """SAEs per layer and position of a model reasoning over problems, and which latents go with which tokens."""

    subject: SubjectConfig = SubjectConfig()
    corpus: ProblemsConfig = ProblemsConfig()
    positions: PositionsConfig = PositionsConfig()
    capture: CaptureConfig = CaptureConfig()
    training: TrainingConfig = TrainingConfig(num_latents=256, k=16, epochs=20, activation="abs_topk")
    seeds: tuple[int, ...] = ()
    """Seeds of SAE training; empty is `training.seed` alone. Each seed is associated and reported by itself."""
    launch: LaunchConfig = LaunchConfig()
    concepts: ConceptsConfig = ConceptsConfig()
    enrichment: EnrichmentConfig = EnrichmentConfig()
    random_weights_control: bool = True
    """Also do all of it for the subject with random weights: what there is to find without a trained model."""
    report: ReportConfig = ReportConfig()

    @model_validator(mode="after")
    def _makes_sense(self) -> CorrelateTokensConfig:
        _captured_in_full(self.capture)
        _trained_here(self.training, "training")
        _different(self.seeds)
        return self

    @property
    def trainings(self) -> tuple[TrainingConfig, ...]:
        """One per seed."""
        return _by_seed(self.training, self.seeds)


class CompareInterpretabilityConfig(Config):
    """Two models: how many latents go with tokens, how many with one, and whether the models differ."""

    subject_a: SubjectConfig = SubjectConfig()
    """One model."""
    subject_b: SubjectConfig = SubjectConfig(weights="random")
    """The other."""
    names: tuple[str, str] | None = None
    """Titles of the sides; empty takes the models'."""
    corpus: ProblemsConfig = ProblemsConfig()
    corpus_b: dict[str, Any] = Field(default_factory=dict)
    """Fields of `corpus` in which side b differs, as in `{training: 800}`."""
    positions: PositionsConfig = PositionsConfig()
    positions_b: dict[str, Any] = Field(default_factory=dict)
    """Fields of `positions` in which side b differs, such as its `thoughts`."""
    capture: CaptureConfig = CaptureConfig()
    hookpoints_b: tuple[str, ...] = ()
    """Hookpoints of side b, where its layers are counted otherwise; empty is `capture.hookpoints`."""
    training: TrainingConfig = TrainingConfig(num_latents=256, k=16, epochs=20, activation="abs_topk")
    training_b: dict[str, Any] = Field(default_factory=dict)
    """Fields of `training` in which side b's SAEs differ, as in `{k: 150}`."""
    seeds: tuple[int, ...] = ()
    """Seeds of SAE training, each associated by itself; empty is `training.seed` alone. From three a side on, what is
    said holds of the models and not of single SAEs."""
    launch: LaunchConfig = LaunchConfig()
    concepts: ConceptsConfig = ConceptsConfig()
    enrichment: EnrichmentConfig = EnrichmentConfig()
    comparison: ComparisonConfig = ComparisonConfig()
    match_problems: bool = True
    """Associate both sides on the problems they share; off, each keeps its own, and the comparison names it."""
    random_weights_control: bool = True
    """Also do all of it for each side with random weights."""
    report: ReportConfig = ReportConfig()

    @model_validator(mode="after")
    def _sides_make_sense(self) -> CompareInterpretabilityConfig:
        _captured_in_full(self.capture)
        _different(self.seeds)
        if self.names is not None and self.names[0] == self.names[1]:
            raise ValueError(f"names: both sides are called {self.names[0]!r}")
        for side in ("a", "b"):
            of_side = self.side(side)
            _trained_here(of_side.training, "training" if side == "a" else "training_b")
        if recipe_of(self.side("a")) == recipe_of(self.side("b")):
            raise ValueError(
                "both sides are the same model with the same SAEs: nothing to compare; change subject_b, corpus_b, "
                "positions_b or training_b"
            )
        return self

    def side(self, side: Literal["a", "b"]) -> CorrelateTokensConfig:
        """One side as a flow of its own.

        Raises:
            ValueError: A field named for side b does not exist, or has a value that is refused.
        """
        parts: dict[str, Any] = {
            "subject": self.subject_a,
            "corpus": self.corpus,
            "positions": self.positions,
            "capture": self.capture,
            "training": self.training,
        }
        if side == "b":
            hookpoints = self.hookpoints_b or self.capture.hookpoints
            parts = {
                "subject": self.subject_b,
                "corpus": _changed(self.corpus, self.corpus_b, where="corpus_b"),
                "positions": _changed(self.positions, self.positions_b, where="positions_b"),
                "capture": self.capture.model_copy(update={"hookpoints": hookpoints}),
                "training": self.training.changed(self.training_b, where="training_b"),
            }
        shared = {
            name: getattr(self, name)
            for name in ("seeds", "launch", "concepts", "enrichment", "random_weights_control")
        }
        return CorrelateTokensConfig(**parts, **shared)


def _by_seed(training: TrainingConfig, seeds: tuple[int, ...]) -> tuple[TrainingConfig, ...]:
    return tuple(training.model_copy(update={"seed": seed}) for seed in seeds) or (training,)


def _changed(config: Config, fields: Mapping[str, Any], *, where: str) -> Any:
    """A section with some fields replaced; a section within it is replaced as a whole.

    Raises:
        ValueError: One does not exist, or has a value that is refused.
    """
    try:
        return type(config).model_validate({**config.model_dump(), **fields})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in (where, *first["loc"]))
        raise ValueError(f"{place}: {first['msg'].removeprefix('Value error, ')} (got {first['input']!r})") from error
