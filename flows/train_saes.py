"""`train-saes`: one SAE per hookpoint, each measured and graded on held-out text."""

from __future__ import annotations

from prefect import flow
from prefect.states import State

from flows import lanes
from flows.ending import Outcome, conclude
from flows.runner import main, named_by_config, runner
from saeinterp.config import TrainSaesConfig

SIDE = "subject"


@flow(
    name="train-saes",
    flow_run_name=named_by_config,
    task_runner=runner(),
    persist_result=True,
    result_serializer="json",
)
def train_saes(config: TrainSaesConfig = TrainSaesConfig()) -> State[Outcome]:
    """Train one TopK SAE per hookpoint and grade each layer's health on held-out text."""
    subject, texts = lanes.prepare(config.subject, config.corpus, config.health, training=config.training, side=SIDE)
    pipeline = lanes.Pipeline.of(config)
    lane = lanes.train(
        config.subject,
        subject,
        texts.corpus,
        pipeline,
        corpus_config=config.corpus,
        trainings={"": config.training},
        side=SIDE,
    )
    measured = lanes.collect(lanes.measure(lane, texts, pipeline, absorption=True))
    return conclude(
        title="Layer health",
        key="train-saes",
        config=config,
        health={SIDE: measured.health},
        saes={SIDE: measured.saes},
        grades=lanes.grade({SIDE: measured}, config.grading),
        failures=measured.failures,
    )


if __name__ == "__main__":
    main(train_saes, TrainSaesConfig)
