"""`explain-features`: train, grade, then explain and score latents of every layer with one explainer."""

from __future__ import annotations

from typing import Literal

from prefect import flow
from prefect.states import State

from flows import explaining, lanes
from flows.ending import Outcome, conclude
from flows.runner import main, runner
from flows.serving import Servers
from saeinterp.config import ExplainFeaturesConfig
from tasks import steps
from tasks.step import finished, settle

SIDE = "subject"
EXPLAINER = "explainer"
CONTROLS: tuple[Literal["empty", "permuted"], ...] = ("empty", "permuted")


@flow(name="explain-features", task_runner=runner(), persist_result=True, result_serializer="json")
def explain_features(config: ExplainFeaturesConfig = ExplainFeaturesConfig()) -> State[Outcome]:
    """Explain latents with one explainer and score it against the empty and permuted controls."""
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
    measuring = lanes.measure(lane, texts, pipeline, absorption=True)

    examples = explaining.freeze_examples(lane, texts.corpus, config.capture, config.examples)
    with Servers(after=measuring.pending) as servers:
        explained, scores = explaining.explain_and_score(
            lane,
            examples,
            {EXPLAINER: config.explainer},
            dict.fromkeys((EXPLAINER, *CONTROLS), config.scorer),
            control_names=CONTROLS,
            comparison=config.comparison,
            servers=servers,
        )

    measured = lanes.collect(measuring)
    failures = measured.failures
    for stage, items in {"examples": examples, "explaining": explained[EXPLAINER]}.items():
        _, more = settle(stage, SIDE, items)
        failures += more
    settled, short = {}, list(servers.endings)
    for name, items in scores.items():
        settled[name], more = settle(f"scoring ({name})", SIDE, items)
        failures += more
        short += explaining.shortfalls(settled[name], title=name)
    layers = [h for h in config.capture.hookpoints if all(h in done for done in settled.values())]
    comparison = None
    if layers:
        # The explainer is paired with no explanation at all: its score means nothing below that.
        comparison = finished(
            steps.compare_scores.submit(
                a=tuple(settled["empty"][h] for h in layers),
                b=tuple(settled[EXPLAINER][h] for h in layers),
                controls={"permuted": tuple(settled["permuted"][h] for h in layers)},
                config=config.comparison,
                label="against controls",
            )
        )
    return conclude(
        title="Explained latents",
        key="explain-features",
        config=config,
        explainer_comparison=comparison,
        health={SIDE: measured.health},
        saes={SIDE: measured.saes},
        grades=lanes.grade({SIDE: measured}, config.grading),
        failures=failures,
        shortfalls=short,
    )


if __name__ == "__main__":
    main(explain_features, ExplainFeaturesConfig)
