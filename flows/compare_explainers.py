"""`compare-explainers`: two explainers on the same latents and examples, one fixed scorer.

With `random_weights_control` the subject is also compared with itself at random weights: the floor that
tells how much of a layer's health is the model's doing.
"""

from __future__ import annotations

from prefect import flow
from prefect.states import State

from flows import explaining, lanes
from flows.ending import Outcome, conclude
from flows.runner import main, runner
from saeinterp.artifacts import Ref
from saeinterp.config import CompareExplainersConfig, SubjectConfig
from tasks import steps
from tasks.step import finished, settle

SIDE = "subject"
CONTROL = "random weights"


@flow(name="compare-explainers", task_runner=runner(), persist_result=True, result_serializer="json")
def compare_explainers(config: CompareExplainersConfig = CompareExplainersConfig()) -> State[Outcome]:
    """Compare two explainers by paired tests over the same latents and examples."""
    subject, texts = lanes.prepare(config.subject, config.corpus, config.health, side=SIDE)
    pipeline = lanes.Pipeline.of(config)

    def train(model: SubjectConfig, prepared: Ref, side: str) -> lanes.Lane:
        trainings = {"": config.training}
        return lanes.train(
            model, prepared, texts.corpus, pipeline, corpus_config=config.corpus, trainings=trainings, side=side
        )

    sides = [train(config.subject, subject, SIDE)]
    if config.random_weights_control:
        at_random = config.subject.control(seed=config.subject.weights_seed)
        control = finished(steps.prepare_model.submit(config=at_random, label=CONTROL))
        sides.append(train(at_random, control, CONTROL))
    measuring = [lanes.measure(side, texts, pipeline, absorption=side.side == SIDE) for side in sides]

    examples = explaining.freeze_examples(sides[0], texts.corpus, config.capture, config.examples)
    explained = {
        "a": explaining.explain(sides[0], examples, config.explainer_a),
        "b": explaining.explain(sides[0], examples, config.explainer_b),
    }
    explained |= explaining.controls(explained["a"], config.controls, config.comparison)
    titles = {"a": config.explainer_a.title, "b": config.explainer_b.title}
    scores = {
        name: explaining.score(items, examples, config.scorer, title=titles.get(name, name))
        for name, items in explained.items()
    }

    measured = {item.lane.side: lanes.collect(item) for item in measuring}
    failures = [failure for item in measured.values() for failure in item.failures]
    for stage, items in {"examples": examples, **{f"explaining ({k})": v for k, v in explained.items()}}.items():
        _, more = settle(stage, SIDE, items)
        failures += more
    settled, short = {}, []
    for name, items in scores.items():
        settled[name], more = settle(f"scoring ({titles.get(name, name)})", SIDE, items)
        failures += more
        short += explaining.shortfalls(settled[name], title=titles.get(name, name))

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
    grades = lanes.grade(measured, config.grading)
    if config.random_weights_control and measured[SIDE].health and measured[CONTROL].health:
        models = finished(
            steps.compare_health.submit(
                a=measured[SIDE].health,
                b=measured[CONTROL].health,
                controls={},
                grades={"a": grades[SIDE], "b": grades[CONTROL]},
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
        health={side: item.health for side, item in measured.items()},
        saes={side: item.saes for side, item in measured.items()},
        grades=grades,
        failures=failures,
        shortfalls=short,
    )


if __name__ == "__main__":
    main(compare_explainers, CompareExplainersConfig)
