"""The parts that flows share: train and grade the layers of one subject; explain and score its latents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from saeinterp.artifacts import Artifact, Ref, read_json
from saeinterp.config import (
    CaptureConfig,
    ComparisonConfig,
    CorpusConfig,
    ExamplesConfig,
    ExplainerConfig,
    HealthConfig,
    LaunchConfig,
    ScorerConfig,
    SubjectConfig,
    TrainingConfig,
)
from saeinterp.subject import streams
from tasks import steps
from tasks.step import Pending, finished


class Pipeline(NamedTuple):
    """How every side of a flow is trained and graded."""

    corpus: CorpusConfig
    capture: CaptureConfig
    training: TrainingConfig
    launch: LaunchConfig
    health: HealthConfig


class Lane(NamedTuple):
    """One subject on its way: a pending SAE and a pending health grade per hookpoint."""

    side: str
    config: SubjectConfig
    subject: Ref
    saes: dict[str, Pending]
    health: dict[str, Pending]


def prepare(config: SubjectConfig, corpus: CorpusConfig, *, side: str) -> tuple[Ref, Ref]:
    """The subject and its tokenised corpus; nothing can go on without them."""
    subject = finished(steps.prepare_model.submit(config=config, label=side))
    return subject, finished(steps.prepare_corpus.submit(subject=subject, config=corpus, label=side))


def train_and_grade(config: SubjectConfig, subject: Ref, corpus: Ref, pipeline: Pipeline, *, side: str) -> Lane:
    """One pass over the text, then one SAE and one health grade per hookpoint."""
    streamed = streams(subject, corpus, pipeline.capture, subject_config=config, corpus_config=pipeline.corpus)
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
    saes = _train(cache, text, pipeline, side=side)
    health = {
        hookpoint: steps.grade_layer_health.submit(
            subject=subject,
            corpus=corpus,
            activations=cache,
            sae=sae,
            hookpoint=hookpoint,
            config=pipeline.health,
            device=config.placement,
            label=f"{hookpoint} {side}",
        )
        for hookpoint, sae in saes.items()
    }
    return Lane(side=side, config=config, subject=subject, saes=saes, health=health)


def _train(cache: Ref, text: Mapping[str, Any], pipeline: Pipeline, *, side: str) -> dict[str, Pending]:
    """One SAE per hookpoint; those that share a process are trained ahead of their own tasks, which then find them."""
    hookpoints = pipeline.capture.hookpoints
    together = pipeline.launch.together or (len(hookpoints) if text["subject"] is not None else 1)
    saes: dict[str, Pending] = {}
    settings = {"activations": cache, "config": pipeline.training, "launch": pipeline.launch, **text}
    for start in range(0, len(hookpoints), together):
        some = hookpoints[start : start + together]
        missing = [name for name in some if not steps.train_layer.built(hookpoint=name, **settings)]
        after = []
        if len(missing) > 1:
            label = f"{', '.join(missing)} {side}"
            after = steps.train_together.submit(hookpoints=missing, label=label, **settings)
        for hookpoint in some:
            saes[hookpoint] = steps.train_layer.submit(
                hookpoint=hookpoint, label=f"{hookpoint} {side}", after=after, **settings
            )
    return saes


def freeze_examples(lane: Lane, corpus: Ref, capture: CaptureConfig, config: ExamplesConfig) -> dict[str, Pending]:
    """Per hookpoint: the latents of unseen text, and the examples every explainer and scorer shares."""
    cache = finished(
        steps.capture_activations.submit(
            subject=lane.subject,
            corpus=corpus,
            config=capture,
            splits=("explain", "score"),
            device=lane.config.placement,
            label=f"{lane.side} examples",
        )
    )
    examples = {}
    for hookpoint, sae in lane.saes.items():
        latents = steps.cache_layer_latents.submit(activations=cache, sae=sae, hookpoint=hookpoint, label=hookpoint)
        examples[hookpoint] = steps.freeze_examples.submit(
            latents=latents, corpus=corpus, sae=sae, hookpoint=hookpoint, config=config, label=hookpoint
        )
    return examples


def explain(lane: Lane, examples: dict[str, Pending], config: ExplainerConfig) -> dict[str, Pending]:
    """One set of explanations per hookpoint."""
    return {
        hookpoint: steps.explain_latents.submit(
            examples=example_set,
            subject=lane.subject,
            sae=lane.saes[hookpoint],
            hookpoint=hookpoint,
            config=config,
            label=f"{hookpoint} {config.title}",
        )
        for hookpoint, example_set in examples.items()
    }


def controls(
    explanations: dict[str, Pending], names: tuple[str, ...], config: ComparisonConfig
) -> dict[str, dict[str, Pending]]:
    """Per control, one set of control explanations per hookpoint."""
    return {
        name: {
            hookpoint: steps.make_control.submit(
                explanations=item, control=name, seed=config.seed, label=f"{hookpoint} {name}"
            )
            for hookpoint, item in explanations.items()
        }
        for name in names
    }


def score(
    explanations: dict[str, Pending], examples: dict[str, Pending], config: ScorerConfig, *, title: str
) -> dict[str, Pending]:
    """One set of scores per hookpoint."""
    return {
        hookpoint: steps.score_explanations.submit(
            explanations=item, examples=examples[hookpoint], config=config, label=f"{hookpoint} {title}"
        )
        for hookpoint, item in explanations.items()
    }


def shortfalls(scores: Mapping[str, Ref], *, title: str) -> list[str]:
    """One line per layer whose usable verdicts fall short of `scorer.min_coverage`."""
    lines = []
    for hookpoint, item in scores.items():
        if not isinstance(item, Artifact):
            continue
        summary = read_json(item.file("summary.json"))
        if summary["coverage"] is not None and not summary["coverage_ok"]:
            coverage, wanted = summary["coverage"], summary["min_coverage"]
            lines.append(f"{hookpoint}: coverage of {title} is {coverage:.3f}, below scorer.min_coverage {wanted:g}")
    return lines
