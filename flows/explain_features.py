"""`explain-features`: train, grade, then explain and score latents of every layer with one explainer."""

from __future__ import annotations

from typing import Literal

from prefect import flow
from prefect.states import State

from flows import explaining, lanes
from flows.ending import Outcome, conclude
from flows.runner import main, named_by_config, runner
from flows.serving import Servers
from saeinterp.config import ExplainFeaturesConfig
from tasks import steps
from tasks.step import finished, settle

SIDE = "subject"
EXPLAINER = "explainer"
CONTROLS: tuple[Literal["empty", "permuted"], ...] = ("empty", "permuted")


@flow(
    name="explain-features",
    flow_run_name=named_by_config,
    task_runner=runner(),
    persist_result=True,
    result_serializer="json",
)
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

    examples, profiles = explaining.freeze(lane, texts.corpus, config.capture, config.examples)
    with Servers(after=[*profiles.values(), *measuring.pending]) as servers:
        explained, scores = explaining.explain_and_score(
            lane,
            examples,
            {EXPLAINER: config.explainer},
            [
                dict.fromkeys((EXPLAINER, *CONTROLS), scorer)
                for scorer in (config.scorer, config.second_scorer)
                if scorer is not None
            ],
            control_names=CONTROLS,
            comparison=config.comparison,
            servers=servers,
        )

    measured = lanes.collect(measuring)
    failures = measured.failures
    for stage, items in {"examples": examples, "explaining": explained[EXPLAINER]}.items():
        _, more = settle(stage, SIDE, items)
        failures += more
    described, more = settle("describing latents", SIDE, profiles)
    failures += more
    judged, more, short = explaining.settle_scores(scores, {}, hookpoints=config.capture.hookpoints, side=SIDE)
    failures += more
    agreement = None
    # The explainer is paired with no explanation at all: its score means nothing below that.
    pending = [
        steps.compare_scores.submit(
            a=done["empty"],
            b=done[EXPLAINER],
            controls={"permuted": done["permuted"]},
            config=config.comparison,
            label=f"against controls{', second scorer' if number else ''}",
        )
        for number, done in enumerate(judged)
    ]
    compared = [finished(item) for item in pending]
    if len(compared) > 1:
        agreement = finished(
            steps.set_scorers_side_by_side.submit(
                first={"ab": compared[0]},
                second={"ab": compared[1]},
                config=config.comparison,
                label="against controls",
            )
        )
    return conclude(
        title="Explained latents",
        key="explain-features",
        config=config,
        explainer_comparison=compared[0] if compared else None,
        scorer_agreement=agreement,
        health={SIDE: measured.health},
        profiles=tuple(described.values()),
        detail_latents=config.report.latents,
        saes={SIDE: measured.saes},
        grades=lanes.grade({SIDE: measured}, config.grading),
        failures=failures,
        shortfalls=[*servers.endings, *short],
    )


if __name__ == "__main__":
    main(explain_features, ExplainFeaturesConfig)
