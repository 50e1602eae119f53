"""One model per flow."""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from saeinterp.config.absorption import AbsorptionConfig
from saeinterp.config.base import Config, recipe_of
from saeinterp.config.comparison import ComparisonConfig
from saeinterp.config.explaining import ExamplesConfig, ExplainerConfig, ScorerConfig
from saeinterp.config.grades import WORST_CASE, GradingConfig
from saeinterp.config.health import HealthConfig
from saeinterp.config.reporting import ReportConfig
from saeinterp.config.subject import CaptureConfig, CorpusConfig, SubjectConfig
from saeinterp.config.training import LaunchConfig, TrainingConfig


def _layers_are_captured(config: Any) -> Any:
    """Refuse overrides and SAEs for hookpoints that are not captured: a typing error would go unseen."""
    for field in ("overrides", "saes"):
        _among_hookpoints(getattr(config.training, field), config.capture, where=f"training.{field}")
    return config


def _among_hookpoints(names: Iterable[str], capture: CaptureConfig, *, where: str) -> None:
    for name in names:
        if name not in capture.hookpoints:
            raise ValueError(f"{where}: {name!r} is not among capture.hookpoints ({', '.join(capture.hookpoints)})")


def _no_control_of_adopted(saes: Iterable[str], *, wanted: bool) -> None:
    """Refuse the control where an SAE was trained elsewhere: one trained here would differ in more than the weights."""
    if wanted and (names := ", ".join(saes)):
        raise ValueError(
            f"random_weights_control: the SAEs that training.saes names ({names}) have no counterpart at random "
            "weights, since how they were trained is not known; set random_weights_control: false"
        )


def _grades_have_a_dataset(config: Any) -> Any:
    """Refuse grading by a dataset that is not evaluated."""
    known = [WORST_CASE, config.health.name, *(dataset.name for dataset in config.health.datasets)]
    if config.grading.dataset not in known:
        raise ValueError(f"grading.dataset: {config.grading.dataset!r} is none of {', '.join(known)}")
    return config


def _latents_exist(config: Any) -> Any:
    """Refuse latents that an SAE of this run will not have, before it is trained."""
    named = config.examples.named_latents or ()
    for hookpoint in config.capture.hookpoints:
        if hookpoint in config.training.saes:  # of a size that its files say
            continue
        size = config.training.at(hookpoint).num_latents
        outside = next((latent for latent in named if not 0 <= latent < size), None)
        if outside is not None:
            raise ValueError(
                f"examples.latents: {outside} is outside 0 to {size - 1}, the latents of {hookpoint} "
                "(training.num_latents)"
            )
    return config


def _second_scorer_is_another(config: Any) -> Any:
    """Refuse a second scorer that is the first one again, or that does not give the metric."""
    first, second = config.scorer, config.second_scorer
    if second is None:
        return config
    if (second.llm.model, second.llm.revision, second.kind) == (first.llm.model, first.llm.revision, first.kind):
        raise ValueError(
            f"second_scorer: {second.llm.model!r} with {second.kind!r} is the scorer again; name a model of "
            "another family"
        )
    if (second.kind == "simulation") != (config.comparison.metric == "correlation"):
        raise ValueError(
            f"second_scorer.kind: {second.kind!r} does not give comparison.metric {config.comparison.metric!r}, by "
            "which the two scorers are set side by side"
        )
    return config


def _merged(values: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Values with changes put in, sections field by field."""
    nested = {
        name: _merged(values[name], change)
        for name, change in changes.items()
        if isinstance(change, Mapping) and isinstance(values.get(name), dict)
    }
    return {**values, **changes, **nested}


class TrainSaesConfig(Config):
    """Train one SAE per hookpoint and grade each layer's health."""

    subject: SubjectConfig = SubjectConfig()
    corpus: CorpusConfig = CorpusConfig()
    capture: CaptureConfig = CaptureConfig()
    training: TrainingConfig = TrainingConfig()
    launch: LaunchConfig = LaunchConfig()
    health: HealthConfig = HealthConfig()
    absorption: AbsorptionConfig = AbsorptionConfig()
    grading: GradingConfig = GradingConfig()

    _captured = model_validator(mode="after")(_layers_are_captured)
    _graded = model_validator(mode="after")(_grades_have_a_dataset)


class ExplainFeaturesConfig(TrainSaesConfig):
    """Train, then explain and score latents of every layer with one explainer."""

    absorption: AbsorptionConfig = AbsorptionConfig(enabled=False)
    """First-letter absorption; off here, since it needs a pass over thousands of prompts."""
    examples: ExamplesConfig = ExamplesConfig()
    explainer: ExplainerConfig = ExplainerConfig()
    scorer: ScorerConfig = ScorerConfig()
    second_scorer: ScorerConfig | None = None
    """Another scorer, best of another model family, that judges everything too and stands beside `scorer`."""
    comparison: ComparisonConfig = ComparisonConfig()
    report: ReportConfig = ReportConfig()

    _latents = model_validator(mode="after")(_latents_exist)
    _judged_twice = model_validator(mode="after")(_second_scorer_is_another)


class CompareExplainersConfig(TrainSaesConfig):
    """Two or more explainers on the same latents and examples, scored by one fixed scorer."""

    absorption: AbsorptionConfig = AbsorptionConfig(enabled=False)
    """First-letter absorption; off here, since it needs a pass over thousands of prompts."""
    examples: ExamplesConfig = ExamplesConfig()
    explainer_a: ExplainerConfig = ExplainerConfig()
    explainer_b: ExplainerConfig = ExplainerConfig(kind="top-tokens")
    more_explainers: tuple[ExplainerConfig, ...] = ()
    """Explainers C, D, …: every pair is compared, p adjusted over all pairs by Holm."""
    controls: tuple[Literal["permuted", "empty"], ...] = ("permuted", "empty")
    """Control explanations: another latent's (`permuted`) and none (`empty`)."""
    scorer: ScorerConfig = ScorerConfig()
    second_scorer: ScorerConfig | None = None
    """Another scorer, best of another model family, that judges every explainer and control too. The primary analysis
    stays that of `scorer`; the second stands beside it, and the two are never averaged."""
    self_scored: bool = False
    """Let every explainer's own model score it, as some published comparisons do: two things then change at once, and
    the report says so. `scorer.llm` then scores only the explainers that have no model."""
    comparison: ComparisonConfig = ComparisonConfig()
    report: ReportConfig = ReportConfig()
    random_weights_control: bool = True
    """Also train and grade SAEs on the subject with random weights: the floor."""

    _latents = model_validator(mode="after")(_latents_exist)
    _judged_twice = model_validator(mode="after")(_second_scorer_is_another)

    @property
    def explainers(self) -> dict[str, ExplainerConfig]:
        """All explainers by letter, `a` first."""
        found = (self.explainer_a, self.explainer_b, *self.more_explainers)
        return {string.ascii_lowercase[index]: explainer for index, explainer in enumerate(found)}

    @model_validator(mode="after")
    def _control_fits(self) -> CompareExplainersConfig:
        _no_control_of_adopted(self.training.saes, wanted=self.random_weights_control)
        return self

    @model_validator(mode="after")
    def _explainers_differ(self) -> CompareExplainersConfig:
        if len(self.more_explainers) > len(string.ascii_lowercase) - 2:
            raise ValueError(f"more_explainers: {len(self.more_explainers)} are too many; at most 24")
        titles = [explainer.title for explainer in self.explainers.values()]
        for title in titles:
            if titles.count(title) > 1:
                raise ValueError(f"two explainers are called {title!r}; give one a label (explainer_b.label)")
        return self

    @model_validator(mode="after")
    def _scorer_gives_the_metric(self) -> CompareExplainersConfig:
        simulated, kind = self.comparison.metric == "correlation", self.scorer.kind
        if kind == "simulation" and not simulated:
            raise ValueError(
                f"comparison.metric: {self.comparison.metric!r} comes from verdicts, which a simulation scorer does "
                "not give; set 'correlation'"
            )
        if simulated and kind != "simulation":
            raise ValueError(
                f"comparison.metric: 'correlation' comes from a simulation scorer, and scorer.kind is {kind!r}; set "
                "scorer.kind to 'simulation', or another metric"
            )
        return self


class CompareModelsConfig(Config):
    """Two models, or two SAE recipes, by the health of their layers."""

    subject_a: SubjectConfig = SubjectConfig()
    """A base model, a fine-tuned checkpoint, a model with an adapter, or one with random weights."""
    subject_b: SubjectConfig = SubjectConfig(weights="random")
    """The other; the same model again where the SAEs are what differs (`training_b`, `corpus_b`)."""
    names: tuple[str, str] | None = None
    """Titles of the sides; empty takes the models'."""
    corpus: CorpusConfig = CorpusConfig()
    corpus_b: dict[str, Any] = Field(default_factory=dict)
    """Fields of `corpus` in which side b's training text differs, as in `{max_tokens: {train: 20000}}`. Both sides are
    evaluated on the held-out text of `corpus`."""
    capture: CaptureConfig = CaptureConfig()
    training: TrainingConfig = TrainingConfig()
    training_b: dict[str, Any] = Field(default_factory=dict)
    """Fields of `training` in which side b's SAEs differ, as in `{num_latents: 4096}`."""
    sweep: tuple[dict[str, Any], ...] = ()
    """Fields of `training` per recipe, as in `[{k: 16}, {k: 32}, {k: 64}]`: each side has an SAE of each at every
    layer, and the sides compare as FVU–L0 frontiers."""
    seeds: tuple[int, ...] = ()
    """Seeds of SAE training, one SAE each; empty is `training.seed` alone. From three a side on, what is said holds of
    models and not of single SAEs."""
    launch: LaunchConfig = LaunchConfig()
    health: HealthConfig = HealthConfig()
    absorption: AbsorptionConfig = AbsorptionConfig()
    grading: GradingConfig = GradingConfig()
    comparison: ComparisonConfig = ComparisonConfig()
    random_weights_control: bool = True
    """Also train and evaluate SAEs on each side's architecture with random weights: the floor."""

    _captured = model_validator(mode="after")(_layers_are_captured)
    _graded = model_validator(mode="after")(_grades_have_a_dataset)

    @model_validator(mode="after")
    def _sides_make_sense(self) -> CompareModelsConfig:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: {list(self.seeds)} names one twice; equal seeds give equal SAEs")
        if any(seed < 0 for seed in self.seeds):
            raise ValueError(f"seeds: {min(self.seeds)} is negative")
        if self.names is not None and self.names[0] == self.names[1]:
            raise ValueError(f"names: both sides are called {self.names[0]!r}")
        varied: dict[str, str] = dict.fromkeys(self.training_b, "training_b")
        for index, fields in enumerate(self.sweep):
            if not fields:
                raise ValueError(f"sweep.{index}: changes nothing; name at least one field of training")
            if "seed" in fields:
                raise ValueError(f"sweep.{index}: seeds of SAE training are listed under seeds")
            if fields in self.sweep[:index]:
                raise ValueError(f"sweep.{index}: {fields} comes twice")
            varied |= dict.fromkeys(fields, f"sweep.{index}")
        for hookpoint, fields in self.training.overrides.items():
            for name in fields:
                if name in varied or (name == "seed" and self.seeds):
                    where = varied.get(name, "seeds")
                    raise ValueError(f"training.overrides.{hookpoint} fixes {name}, which {where} changes: name one")
        for side in ("a", "b"):
            for training in self.trainings(side).values():
                for hookpoint in self.capture.hookpoints:
                    training.at(hookpoint)
        self._adopted_fit()
        self.training_corpus("b")
        if self.same_sides:
            raise ValueError(
                "both sides are the same model with the same SAEs: nothing to compare; change subject_b, training_b or "
                "corpus_b"
            )
        return self

    def _adopted_fit(self) -> None:
        """Refuse SAEs that exist where several are to be trained of one layer, or none of its kind can be."""
        found = {side: next(iter(self.trainings(side).values())).saes for side in ("a", "b")}
        if self.sweep and any("saes" in fields for fields in self.sweep):
            raise ValueError("sweep: saes is no setting of training; name the SAEs of a side in training or training_b")
        for field, several in (("sweep", bool(self.sweep)), ("seeds", len(self.seeds) > 1)):
            if several and any(found.values()):
                raise ValueError(f"{field}: SAEs that training.saes names are not trained; leave out {field} or saes")
        _among_hookpoints(found["b"], self.capture, where="training_b.saes")
        _no_control_of_adopted(dict.fromkeys((*found["a"], *found["b"])), wanted=self.random_weights_control)

    def trainings(self, side: Literal["a", "b"]) -> dict[str, TrainingConfig]:
        """The SAEs of one side per layer: what tells them apart (empty where there is one), and how they are trained.

        Raises:
            ValueError: A field of `training_b` or `sweep` does not exist, or has a value that is refused.
        """
        base = self.training if side == "a" else self.training.changed(self.training_b, where="training_b")
        recipes = {"": base}
        if self.sweep:
            recipes = {
                ", ".join(f"{name}={value}" for name, value in fields.items()): base.changed(
                    fields, where=f"sweep.{index}"
                )
                for index, fields in enumerate(self.sweep)
            }
        if not self.seeds:
            return recipes
        found = {}
        for title, recipe in recipes.items():
            for seed in self.seeds:
                parts = [title] if title else []
                if len(self.seeds) > 1:
                    parts.append(f"seed {seed}")
                found[", ".join(parts)] = recipe.model_copy(update={"seed": seed})
        return found

    def training_corpus(self, side: Literal["a", "b"]) -> CorpusConfig:
        """The corpus that one side's SAEs are trained on.

        Raises:
            ValueError: A field of `corpus_b` does not exist, or has a value that is refused.
        """
        if side == "a" or not self.corpus_b:
            return self.corpus
        try:
            return CorpusConfig.model_validate(_merged(self.corpus.model_dump(), self.corpus_b))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in ("corpus_b", *first["loc"]))
            raise ValueError(
                f"{where}: {first['msg'].removeprefix('Value error, ')} (got {first['input']!r})"
            ) from error

    @property
    def same_sides(self) -> bool:
        """Whether nothing tells the sides apart."""
        return (
            recipe_of(self.subject_a) == recipe_of(self.subject_b)
            and self.trainings("a") == self.trainings("b")
            and self.training_corpus("b") == self.corpus
        )
