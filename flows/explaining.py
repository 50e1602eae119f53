"""What flows share once SAEs are trained: freeze examples, explain latents, score the explanations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from flows.lanes import Lane
from flows.serving import Servers, server_key
from saeinterp.artifacts import Artifact, Ref, read_json
from saeinterp.config import CaptureConfig, ComparisonConfig, ExamplesConfig, ExplainerConfig, LLMConfig, ScorerConfig
from saeinterp.report import Failure
from tasks import steps
from tasks.step import Pending, finished, results, settle


class Frozen(NamedTuple):
    """What is known of latents before anything is asked, by hookpoint."""

    examples: dict[str, Pending]
    """What every explainer and scorer shares."""
    profiles: dict[str, Pending]
    """How the latents fire and what they write, for the report."""


def freeze(lane: Lane, corpus: Ref, capture: CaptureConfig, config: ExamplesConfig) -> Frozen:
    """Encode unseen text, freeze the examples of the latents to be studied, and describe these."""
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
    examples, profiles = {}, {}
    for hookpoint, sae in lane.layers.items():
        latents = steps.cache_layer_latents.submit(activations=cache, sae=sae, hookpoint=hookpoint, label=hookpoint)
        examples[hookpoint] = steps.freeze_examples.submit(
            latents=latents, corpus=corpus, sae=sae, hookpoint=hookpoint, config=config, label=hookpoint
        )
        profiles[hookpoint] = steps.describe_layer_latents.submit(
            latents=latents,
            examples=examples[hookpoint],
            subject=lane.subject,
            sae=sae,
            hookpoint=hookpoint,
            label=hookpoint,
        )
    return Frozen(examples, profiles)


def explain_and_score(
    lane: Lane,
    examples: dict[str, Pending],
    explainers: Mapping[str, ExplainerConfig],
    scorers: Sequence[Mapping[str, ScorerConfig]],
    *,
    control_names: tuple[str, ...],
    comparison: ComparisonConfig,
    servers: Servers,
) -> tuple[dict[str, dict[str, Pending]], list[dict[str, dict[str, Pending]]]]:
    """Explanations by explainer and control, and by scorer their scores, all by hookpoint; every model is served once.

    Args:
        explainers: By name; the controls take the first one's explanations.
        scorers: Who judges each explainer and control; a second mapping judges them all again.
    """
    first = next(iter(explainers))
    names = [*explainers, *control_names]
    explained: dict[str, dict[str, Pending]] = {}
    waiting = [(number, name) for number in range(len(scorers)) for name in names]
    scores: dict[tuple[int, str], dict[str, Pending]] = {}

    def judge(key: str | None) -> None:
        """All that is explained and waits for one server."""
        for number, name in list(waiting):
            config = scorers[number][name]
            if name in explained and server_key(config.llm) == key:
                title = explainers[name].title if name in explainers else name
                label = title if number == 0 else f"{title}, second scorer"
                scores[number, name] = score(explained[name], examples, config, title=label, servers=servers)
                waiting.remove((number, name))

    for name in in_serving_order(explainers, scorers):
        explained[name] = explain(lane, examples, explainers[name], servers=servers)
        if name == first:
            explained |= controls(explained[name], control_names, comparison)
        if (key := explainer_key(explainers[name])) is not None:
            judge(key)
    for key in dict.fromkeys(server_key(scorers[number][name].llm) for number, name in waiting):
        judge(key)
    judged = [{name: scores[number, name] for name in names} for number in range(len(scorers))]
    return {name: explained[name] for name in names}, judged


def in_serving_order(
    explainers: Mapping[str, ExplainerConfig], scorers: Sequence[Mapping[str, ScorerConfig]]
) -> list[str]:
    """Explainers of one model next to each other, and those whose model judges others last."""
    keys = {name: explainer_key(explainer) for name, explainer in explainers.items()}
    judges = [(key, server_key(by_name[name].llm)) for by_name in scorers for name, key in keys.items()]
    judging = {judge for key, judge in judges if judge != key}
    order = list(keys.values())

    def place(name: str) -> tuple[bool, int]:
        key = keys[name]
        return (key is not None and key in judging, list(keys).index(name) if key is None else order.index(key))

    return sorted(keys, key=place)


def explainer_key(config: ExplainerConfig) -> str | None:
    """Equal for explainers that one server answers; None where the flow starts none."""
    return None if config.kind == "top-tokens" else server_key(config.llm)


def explain(
    lane: Lane, examples: dict[str, Pending], config: ExplainerConfig, *, servers: Servers
) -> dict[str, Pending]:
    """One set of explanations per hookpoint."""

    def submit(llm: LLMConfig) -> dict[str, Pending]:
        asking = config.model_copy(update={"llm": llm})
        return {
            hookpoint: steps.explain_latents.submit(
                examples=item,
                subject=lane.subject,
                sae=lane.layers[hookpoint],
                hookpoint=hookpoint,
                config=asking,
                label=f"{hookpoint} {config.title}",
            )
            for hookpoint, item in examples.items()
        }

    def needed() -> bool:
        return any(
            not steps.explain_latents.intact(
                examples=item,
                subject=lane.subject,
                sae=finished(lane.layers[hookpoint]),
                hookpoint=hookpoint,
                config=config,
            )
            for hookpoint, item in results(examples).items()
        )

    return submit(config.llm) if config.kind == "top-tokens" else servers.ask(config.llm, submit, needed=needed)


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
    explanations: dict[str, Pending],
    examples: dict[str, Pending],
    config: ScorerConfig,
    *,
    title: str,
    servers: Servers,
) -> dict[str, Pending]:
    """One set of scores per hookpoint."""

    def submit(llm: LLMConfig) -> dict[str, Pending]:
        asking = config.model_copy(update={"llm": llm})
        return {
            hookpoint: steps.score_explanations.submit(
                explanations=item, examples=examples[hookpoint], config=asking, label=f"{hookpoint} {title}"
            )
            for hookpoint, item in explanations.items()
        }

    def needed() -> bool:
        return any(
            not steps.score_explanations.intact(
                explanations=item, examples=finished(examples[hookpoint]), config=config
            )
            for hookpoint, item in results(explanations).items()
        )

    return servers.ask(config.llm, submit, needed=needed)


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


def settle_scores(
    scores: Sequence[Mapping[str, Mapping[str, Pending]]],
    titles: Mapping[str, str],
    *,
    hookpoints: Sequence[str],
    side: str,
) -> tuple[list[dict[str, tuple[Ref, ...]]], list[Failure], list[str]]:
    """Wait for the scores of every scorer.

    Returns:
        Per scorer the scores of each explainer and control at the layers that all of them finished, up to the first
        scorer that finished none; what failed; and what falls short.
    """
    judged: list[dict[str, tuple[Ref, ...]]] = []
    failures: list[Failure] = []
    short: list[str] = []
    layers = list(hookpoints)
    for number, by_name in enumerate(scores):
        settled: dict[str, dict[str, Ref]] = {}
        for name, items in by_name.items():
            title = f"{titles.get(name, name)}{', second scorer' if number else ''}"
            settled[name], more = settle(f"scoring ({title})", side, items)
            failures += more
            short += shortfalls(settled[name], title=title)
        layers = [h for h in layers if all(h in done for done in settled.values())]
        if layers:
            judged.append({name: tuple(done[h] for h in layers) for name, done in settled.items()})
    return judged, failures, short
