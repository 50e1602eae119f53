"""What flows share once SAEs are trained: freeze examples, explain latents, score the explanations."""

from __future__ import annotations

from collections.abc import Mapping

from flows.lanes import Lane
from saeinterp.artifacts import Artifact, Ref, read_json
from saeinterp.config import CaptureConfig, ComparisonConfig, ExamplesConfig, ExplainerConfig, ScorerConfig
from tasks import steps
from tasks.step import Pending, finished


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
    for hookpoint, sae in lane.layers.items():
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
            sae=lane.layers[hookpoint],
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
