"""`compare-models`: layer health of two subjects on one corpus, one SAE recipe for both."""

from __future__ import annotations

from prefect import flow
from prefect.states import State

from flows import lanes
from flows.ending import Outcome, conclude
from flows.runner import main, runner
from saeinterp.config import CompareModelsConfig
from tasks import steps
from tasks.step import finished, settle

A, B = "model A", "model B"


@flow(name="compare-models", task_runner=runner(), persist_result=True, result_serializer="json")
def compare_models(config: CompareModelsConfig = CompareModelsConfig()) -> State[Outcome]:
    """Train and grade both sides with the same recipe, then compare them layer by layer."""
    subject_a, corpus = lanes.prepare(config.subject_a, config.corpus, side=A)
    subject_b = finished(steps.prepare_model.submit(config=config.subject_b, label=B))
    pipeline = lanes.Pipeline(config.corpus, config.capture, config.training, config.launch, config.health)
    lane_a = lanes.train_and_grade(config.subject_a, subject_a, corpus, pipeline, side=A)
    lane_b = lanes.train_and_grade(config.subject_b, subject_b, corpus, pipeline, side=B)

    failures = []
    saes, health = {}, {}
    for lane in (lane_a, lane_b):
        saes[lane.side], more = settle("training", lane.side, lane.saes)
        failures += more
        health[lane.side], more = settle("health", lane.side, lane.health)
        failures += more
    comparison = None
    if health[A] and health[B]:
        comparison = finished(
            steps.compare_health.submit(
                a=tuple(health[A].values()),
                b=tuple(health[B].values()),
                config=config.comparison,
                names=(A, B),
                label="model A and model B",
            )
        )
    return conclude(
        title="Layer health of two models",
        key="compare-models",
        config=config,
        model_comparison=comparison,
        health={side: tuple(items.values()) for side, items in health.items()},
        saes={side: tuple(items.values()) for side, items in saes.items()},
        failures=failures,
    )


if __name__ == "__main__":
    main(compare_models, CompareModelsConfig)
