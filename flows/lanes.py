"""The parts that flows share: train the SAEs of one subject, measure them on every text, grade them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from flows import adopting
from saeinterp.artifacts import Artifact, ArtifactStore, Recipe, Ref
from saeinterp.config import (
    AbsorptionConfig,
    CaptureConfig,
    CompareModelsConfig,
    CorpusConfig,
    GradingConfig,
    HealthConfig,
    LaunchConfig,
    SubjectConfig,
    TrainingConfig,
    TrainSaesConfig,
)
from saeinterp.report import Failure
from saeinterp.subject import prepare_subject_recipe, same_tokenizer, streams, subject_info, subject_width
from tasks import measuring, steps
from tasks.step import Pending, finished, settle


class Pipeline(NamedTuple):
    """How every side of a flow is trained and measured."""

    capture: CaptureConfig
    launch: LaunchConfig
    health: HealthConfig
    absorption: AbsorptionConfig
    grading: GradingConfig

    @classmethod
    def of(cls, config: TrainSaesConfig | CompareModelsConfig) -> Pipeline:
        """From a flow's configuration."""
        return cls(config.capture, config.launch, config.health, config.absorption, config.grading)


class Member(NamedTuple):
    """One SAE of a side; prints as its layer and what tells it from the layer's others."""

    hookpoint: str
    variant: str = ""

    def __str__(self) -> str:
        return f"{self.hookpoint} ({self.variant})" if self.variant else self.hookpoint


class Texts(NamedTuple):
    """What one tokenizer makes of the texts: the corpus, and every evaluated text by its name, the corpus first."""

    corpus: Ref
    evaluated: Mapping[str, Ref]


class Lane(NamedTuple):
    """One subject on its way: what it was captured on, and a pending SAE per layer and variant."""

    side: str
    config: SubjectConfig
    subject: Ref
    activations: Ref
    saes: dict[Member, Pending]
    recipes: dict[Member, Recipe]

    @property
    def layers(self) -> dict[str, Pending]:
        """The SAEs by hookpoint, where there is one each."""
        return {member.hookpoint: sae for member, sae in self.saes.items()}


class Measuring(NamedTuple):
    """The pending measurements of a lane."""

    lane: Lane
    health: dict[str, dict[Member, Pending]]
    """By text."""
    probes: dict[str, Pending]
    """First-letter probes by hookpoint."""
    absorption: dict[Member, Pending]

    @property
    def pending(self) -> list[Pending]:
        """All of them, with the training they wait for."""
        pending = [*self.lane.saes.values(), *self.probes.values(), *self.absorption.values()]
        return [*pending, *(item for group in self.health.values() for item in group.values())]


class Measured(NamedTuple):
    """What a lane came to."""

    saes: tuple[Ref, ...]
    health: tuple[Ref, ...]
    """Layer by layer, each on every text."""
    absorption: tuple[Ref, ...]
    failures: list[Failure]


def prepare(
    config: SubjectConfig, corpus: CorpusConfig, health: HealthConfig, *, training: TrainingConfig, side: str
) -> tuple[Ref, Texts]:
    """The subject and its tokenised texts; nothing can go on without them, nor without the SAEs that are to exist."""
    adopting.look_at(training.saes)
    subject = finished(steps.prepare_model.submit(config=config, label=side))
    return subject, texts(subject, corpus, health, side=side)


def texts(subject: Ref, corpus: CorpusConfig, health: HealthConfig, *, side: str) -> Texts:
    """The corpus and the health datasets, tokenised for a subject."""
    pending = {health.name: steps.prepare_corpus.submit(subject=subject, config=corpus, label=side)}
    for dataset in health.datasets:
        pending[dataset.name] = steps.prepare_corpus.submit(
            subject=subject, config=dataset.corpus(corpus), label=f"{dataset.name}, {side}"
        )
    evaluated = {name: finished(item) for name, item in pending.items()}
    return Texts(evaluated[health.name], evaluated)


def read_alike(a: Ref, b: Ref, configs: tuple[SubjectConfig, SubjectConfig]) -> bool:
    """Whether two subjects have one tokenizer; while planning, only as far as that is known without preparing them."""
    first, second = configs
    if (first.model, first.revision) == (second.model, second.revision):
        return True
    if isinstance(a, Recipe) and isinstance(b, Recipe) and "assumed" in a.config and "assumed" in b.config:
        return bool(a.config["fingerprint"] == b.config["fingerprint"])  # stand-ins name their tokenizer
    there = [item for item in (made(a), made(b)) if item is not None]
    if len(there) == 2:
        return same_tokenizer(*there)
    # The fingerprint of a control covers configuration and tokenizer, not the weights.
    return len({prepare_subject_recipe(item.control()).config["fingerprint"] for item in configs}) == 1


def made(ref: Ref) -> Artifact | None:
    """The artifact behind a reference, if it is there (while planning it need not be)."""
    if isinstance(ref, Recipe):
        return ArtifactStore().find(ref, verify=False)
    assert isinstance(ref, Artifact)
    return ref


def train(
    config: SubjectConfig,
    subject: Ref,
    corpus: Ref,
    pipeline: Pipeline,
    *,
    corpus_config: CorpusConfig,
    trainings: Mapping[str, TrainingConfig],
    side: str,
) -> Lane:
    """One pass over the text, then one SAE per hookpoint and training (`variant` to configuration).

    SAEs that exist are taken over first: one that does not fit the subject should not cost that pass.
    """
    hookpoints = pipeline.capture.hookpoints
    width = _width(subject, config) if any(item.saes for item in trainings.values()) else None
    adopted = {variant: adopting.adopt(item, hookpoints, width=width, side=side) for variant, item in trainings.items()}
    streamed = streams(subject, corpus, pipeline.capture, subject_config=config, corpus_config=corpus_config)
    cache = finished(
        steps.capture_activations.submit(
            subject=subject,
            corpus=corpus,
            config=pipeline.capture,
            splits=("health",) if streamed else ("train", "health"),
            device=config.placement,
            label=side,
        )
    )
    text = {
        "subject": subject if streamed else None,
        "corpus": corpus if streamed else None,
        "capture": pipeline.capture if streamed else None,
        "device": config.placement,
    }
    saes: dict[Member, Pending] = {}
    recipes: dict[Member, Recipe] = {}
    for variant, training in trainings.items():
        settings = {"activations": cache, "config": training, "launch": pipeline.launch, **text}
        there = adopted[variant]
        trained = train_each([name for name in hookpoints if name not in there], settings, variant=variant, side=side)
        for hookpoint in hookpoints:
            member = Member(hookpoint, variant)
            if hookpoint in there:
                saes[member], recipes[member] = there[hookpoint]
            else:
                saes[member] = trained[member]
                recipes[member] = steps.train_layer.planned(hookpoint=hookpoint, **settings)
    return Lane(side=side, config=config, subject=subject, activations=cache, saes=saes, recipes=recipes)


def _width(subject: Ref, config: SubjectConfig) -> int | None:
    """Width of the residual stream; while planning, only as far as it is known without preparing the subject."""
    there = made(subject)
    return int(subject_info(there)["d_model"]) if there else subject_width(config)


def train_each(
    hookpoints: Sequence[str], settings: Mapping[str, Any], *, variant: str, side: str
) -> dict[Member, Pending]:
    """One SAE per hookpoint; those that share a process are trained ahead of their own tasks, which then find them."""
    launch: LaunchConfig = settings["launch"]
    together = launch.together or (max(1, len(hookpoints)) if settings["subject"] is not None else 1)
    saes: dict[Member, Pending] = {}
    for start in range(0, len(hookpoints), together):
        some = [Member(name, variant) for name in hookpoints[start : start + together]]
        missing = [item for item in some if not steps.train_layer.built(hookpoint=item.hookpoint, **settings)]
        after = []
        if len(missing) > 1:
            after = steps.train_together.submit(
                hookpoints=[item.hookpoint for item in missing],
                label=f"{', '.join(map(str, missing))} {side}",
                **settings,
            )
        for item in some:
            saes[item] = steps.train_layer.submit(
                hookpoint=item.hookpoint, label=f"{item} {side}", after=after, **settings
            )
    return saes


def measure(lane: Lane, texts: Texts, pipeline: Pipeline, *, absorption: bool) -> Measuring:
    """Health of every SAE on every text, one pass per text; and absorption, if asked for here and in `pipeline`."""
    health = {name: _measure(lane, corpus, pipeline.health, dataset=name) for name, corpus in texts.evaluated.items()}
    if not (absorption and pipeline.absorption.enabled):
        return Measuring(lane, health, {}, {})
    probes = _probe_letters(lane, pipeline)
    absorbed = {
        member: measuring.measure_layer_absorption.submit(
            probes=probes[member.hookpoint],
            sae=sae,
            hookpoint=member.hookpoint,
            config=pipeline.absorption,
            device=lane.config.placement,
            label=f"{member} {lane.side}",
        )
        for member, sae in lane.saes.items()
    }
    return Measuring(lane, health, probes, absorbed)


def _measure(lane: Lane, corpus: Ref, config: HealthConfig, *, dataset: str) -> dict[Member, Pending]:
    """Health on one text: measured for all SAEs together ahead of their own tasks, which then find theirs."""
    settings = {
        "subject": lane.subject,
        "corpus": corpus,
        "activations": lane.activations,
        "config": config,
        "dataset": dataset,
        "device": lane.config.placement,
    }
    # Named only where there are several, as there is nothing to tell apart otherwise.
    where = f"{lane.side}, {dataset}" if config.datasets else lane.side
    missing = [
        member
        for member, sae in lane.recipes.items()
        if not measuring.measure_health.built(sae=sae, hookpoint=member.hookpoint, **settings)
    ]
    after = []
    if len(missing) > 1:
        after = measuring.measure_together.submit(
            saes=[lane.saes[member] for member in missing],
            hookpoints=[member.hookpoint for member in missing],
            label=where,
            **settings,
        )
    return {
        member: measuring.measure_health.submit(
            sae=sae, hookpoint=member.hookpoint, label=f"{member} {where}", after=after, **settings
        )
        for member, sae in lane.saes.items()
    }


def _probe_letters(lane: Lane, pipeline: Pipeline) -> dict[str, Pending]:
    """First-letter probes per hookpoint, from one pass over the prompts for all."""
    settings = {"subject": lane.subject, "config": pipeline.absorption, "device": lane.config.placement}
    hookpoints = list(lane.layers)
    missing = [name for name in hookpoints if not measuring.probe_letters.built(hookpoint=name, **settings)]
    after = []
    if len(missing) > 1:
        after = measuring.probe_letters_together.submit(hookpoints=missing, label=lane.side, **settings)
    return {
        name: measuring.probe_letters.submit(hookpoint=name, label=f"{name} {lane.side}", after=after, **settings)
        for name in hookpoints
    }


def collect(work: Measuring) -> Measured:
    """Wait for a lane and part what finished from what failed."""
    side = work.lane.side
    saes, failures = settle("training", side, work.lane.saes)
    health: dict[Member, list[Ref]] = {}
    several = len(work.health) > 1
    for name, pending in work.health.items():
        done, more = settle(f"health on {name}" if several else "health", side, pending)
        failures += more
        for member, artifact in done.items():
            health.setdefault(member, []).append(artifact)
    _, more = settle("letter probes", side, work.probes)
    failures += more
    absorption, more = settle("absorption", side, work.absorption)
    failures += more
    ordered = [artifact for member in work.lane.saes for artifact in health.get(member, ())]
    return Measured(tuple(saes.values()), tuple(ordered), tuple(absorption.values()), failures)


def grade(sides: Mapping[str, Measured], config: GradingConfig) -> dict[str, Ref]:
    """Grades of every side that has health."""
    pending = {
        side: measuring.grade_side.submit(
            health=measured.health, absorption=measured.absorption, config=config, label=side
        )
        for side, measured in sides.items()
        if measured.health
    }
    return {side: finished(item) for side, item in pending.items()}
