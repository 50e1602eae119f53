"""`compare-explainers`: two explainers on the same latents and examples, one fixed scorer.

With `random_weights_control` the subject is also compared with itself at random weights: the floor that
tells how much of a layer's health is the model's doing.
"""

from __future__ import annotations

from prefect import flow
from prefect.states import State

from flows import lanes
from flows.ending import Outcome, conclude
from flows.runner import main, runner
from saeinterp.config import CompareExplainersConfig
from tasks import steps
from tasks.step import finished, settle

SIDE = "subject"
CONTROL = "random weights"


@flow(name="compare-explainers", task_runner=runner(), persist_result=True, result_serializer="json")
def compare_explainers(config: CompareExplainersConfig = CompareExplainersConfig()) -> State[Outcome]:
    """Compare two explainers by paired tests over the same latents and examples."""
    subject, corpus = lanes.prepare(config.subject, config.corpus, side=SIDE)
    pipeline = lanes.Pipeline(config.corpus, config.capture, config.training, config.launch, config.health)
    lane = lanes.train_and_grade(config.subject, subject, corpus, pipeline, side=SIDE)
    sides = [lane]
    if config.random_weights_control:
        at_random = config.subject.model_copy(update={"weights": "random", "quantization": "none"})
        control = finished(steps.prepare_model.submit(config=at_random, label=CONTROL))
        sides.append(lanes.train_and_grade(at_random, control, corpus, pipeline, side=CONTROL))

    examples = lanes.freeze_examples(lane, corpus, config.capture, config.examples)
    explained = {
        "a": lanes.explain(lane, examples, config.explainer_a),
        "b": lanes.explain(lane, examples, config.explainer_b),
    }
    explained |= lanes.controls(explained["a"], config.controls, config.comparison)
    titles = {"a": config.explainer_a.title, "b": config.explainer_b.title}
    scores = {
        name: lanes.score(items, examples, config.scorer, title=titles.get(name, name))
        for name, items in explained.items()
    }

    failures = []
    saes, health = {}, {}
    for side in sides:
        saes[side.side], more = settle("training", side.side, side.saes)
        failures += more
        health[side.side], more = settle("health", side.side, side.health)
        failures += more
    for stage, items in {"examples": examples, **{f"explaining ({k})": v for k, v in explained.items()}}.items():
        _, more = settle(stage, SIDE, items)
        failures += more
    settled, short = {}, []
    for name, items in scores.items():
        settled[name], more = settle(f"scoring ({titles.get(name, name)})", SIDE, items)
        failures += more
        short += lanes.shortfalls(settled[name], title=titles.get(name, name))

    explainers = models = None
    layers = [h for h in config.capture.hookpoints if all(h in done for done in settled.values())]
    if layers:
        explainers = finished(
            steps.compare_scores.submit(
                a=tuple(settled["a"][h] for h in layers),
                b=tuple(settled["b"][h] for h in layers),
                controls={name: tuple(settled[name][h] for h in layers) for name in config.controls},
                config=config.comparison,
                label=f"{titles['a']} and {titles['b']}",
            )
        )
    if config.random_weights_control and health[SIDE] and health[CONTROL]:
        models = finished(
            steps.compare_health.submit(
                a=tuple(health[SIDE].values()),
                b=tuple(health[CONTROL].values()),
                config=config.comparison,
                names=(SIDE, CONTROL),
                label=f"{SIDE} and {CONTROL}",
            )
        )
    return conclude(
        title=f"{titles['a']} and {titles['b']} as explainers",
        key="compare-explainers",
        config=config,
        explainer_comparison=explainers,
        model_comparison=models,
        health={side: tuple(items.values()) for side, items in health.items()},
        saes={side: tuple(items.values()) for side, items in saes.items()},
        failures=failures,
        shortfalls=short,
    )


if __name__ == "__main__":
    main(compare_explainers, CompareExplainersConfig)
