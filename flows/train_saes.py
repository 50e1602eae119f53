"""`train-saes`: one SAE per hookpoint, each graded on held-out text."""

from __future__ import annotations

from prefect import flow
from prefect.states import State

from flows.ending import Outcome, conclude
from flows.lanes import Pipeline, prepare, train_and_grade
from flows.runner import main, runner
from saeinterp.config import TrainSaesConfig
from tasks.step import settle

SIDE = "subject"


@flow(name="train-saes", task_runner=runner(), persist_result=True, result_serializer="json")
def train_saes(config: TrainSaesConfig = TrainSaesConfig()) -> State[Outcome]:
    """Train one TopK SAE per hookpoint and grade each layer's health on held-out text."""
    subject, corpus = prepare(config.subject, config.corpus, side=SIDE)
    pipeline = Pipeline(config.corpus, config.capture, config.training, config.launch, config.health)
    lane = train_and_grade(config.subject, subject, corpus, pipeline, side=SIDE)

    saes, train_failures = settle("training", SIDE, lane.saes)
    health, health_failures = settle("health", SIDE, lane.health)
    return conclude(
        title="Layer health",
        key="train-saes",
        config=config,
        health={SIDE: tuple(health.values())},
        saes={SIDE: tuple(saes.values())},
        failures=[*train_failures, *health_failures],
    )


if __name__ == "__main__":
    main(train_saes, TrainSaesConfig)
