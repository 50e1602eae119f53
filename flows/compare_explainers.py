"""`compare-explainers`: two or more explainers on the same latents and examples, one fixed scorer.

With `random_weights_control` the subject is also compared with itself at random weights: the floor that
tells how much of a layer's health is the model's doing.
"""

from __future__ import annotations

from itertools import combinations

from prefect import flow
from prefect.states import State

from flows import explaining, lanes
from flows.ending import Outcome, conclude
from flows.runner import main, named_by_config, runner
from flows.serving import Servers
from saeinterp.artifacts import Ref
from saeinterp.config import CompareExplainersConfig, ScorerConfig, SubjectConfig, parse_config
from saeinterp.report.format import listing
from tasks import steps
from tasks.step import finished, settle

SIDE = "subject"
CONTROL = "random weights"


@flow(
    name="compare-explainers",
    flow_run_name=named_by_config,
    task_runner=runner(),
    persist_result=True,
    result_serializer="json",
)
def compare_explainers(config: CompareExplainersConfig = CompareExplainersConfig()) -> State[Outcome]:
    """Compare explainers pair by pair, by paired tests over the same latents and examples."""
    subject, texts = lanes.prepare(config.subject, config.corpus, config.health, training=config.training, side=SIDE)
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

    examples, profiles = explaining.freeze(sides[0], texts.corpus, config.capture, config.examples)
    titles = {letter: explainer.title for letter, explainer in config.explainers.items()}
    with Servers(after=[*profiles.values(), *(pending for item in measuring for pending in item.pending)]) as servers:
        explained, scores = explaining.explain_and_score(
            sides[0],
            examples,
            config.explainers,
            scorers(config),
            control_names=config.controls,
            comparison=config.comparison,
            servers=servers,
        )

    measured = {item.lane.side: lanes.collect(item) for item in measuring}
    failures = [failure for item in measured.values() for failure in item.failures]
    explaining_of = {f"explaining ({titles.get(name, name)})": items for name, items in explained.items()}
    for stage, items in {"examples": examples, **explaining_of}.items():
        _, more = settle(stage, SIDE, items)
        failures += more
    described, more = settle("describing latents", SIDE, profiles)
    failures += more
    judged, more, short = explaining.settle_scores(scores, titles, hookpoints=config.capture.hookpoints, side=SIDE)
    failures += more

    ranking = models = agreement = None
    pending = []
    together = list(combinations(titles, 2))
    for number, sides_of in enumerate(judged):
        pending.append(
            {
                f"{a}{b}": steps.compare_scores.submit(
                    a=sides_of[a],
                    b=sides_of[b],
                    controls={name: sides_of[name] for name in config.controls},
                    config=config.comparison,
                    self_scored=config.self_scored and number == 0,
                    pairs=len(together),
                    label=f"{titles[a]} and {titles[b]}{', second scorer' if number else ''}",
                )
                for a, b in together
            }
        )
    compared: list[dict[str, Ref]] = [{pair: finished(item) for pair, item in by_pair.items()} for by_pair in pending]
    pairs = compared[0] if compared else {}
    if len(compared) > 1:
        agreement = finished(
            steps.set_scorers_side_by_side.submit(
                first=pairs, second=compared[1], config=config.comparison, label="of every pair"
            )
        )
    if len(pairs) > 1:
        ranking = finished(
            steps.rank_explainers.submit(
                comparisons=pairs, config=config.comparison, label=listing(list(titles.values()))
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
        title=f"{listing(list(titles.values()))} as explainers",
        key="compare-explainers",
        config=config,
        explainer_comparison=pairs.get("ab"),
        explainer_pairs=ranking,
        scorer_agreement=agreement,
        model_comparison=models,
        health={side: item.health for side, item in measured.items()},
        profiles=tuple(described.values()),
        detail_latents=config.report.latents,
        saes={side: item.saes for side, item in measured.items()},
        grades=grades,
        failures=failures,
        shortfalls=[*servers.endings, *short],
    )


def scorers(config: CompareExplainersConfig) -> list[dict[str, ScorerConfig]]:
    """Who judges every explainer and control, and who judges them all again, where a second scorer is asked for.

    Raises:
        ConfigError: An explainer's model cannot judge as `scorer` asks.
    """
    second = config.second_scorer
    again = [] if second is None else [dict.fromkeys([*config.explainers, *config.controls], second)]
    return [first_scorers(config), *again]


def first_scorers(config: CompareExplainersConfig) -> dict[str, ScorerConfig]:
    """Who judges for the primary analysis: `scorer`, or with `self_scored` each explainer's own model.

    The model alone is replaced: how it is asked and sampled stays as the scorer has it. Controls are judged as A is,
    since their texts stand in for A's.

    Raises:
        ConfigError: An explainer's model cannot judge as `scorer` asks.
    """
    judges = dict.fromkeys(config.explainers, config.scorer)
    if config.self_scored:
        asked = {name: getattr(config.scorer.llm, name) for name in ("temperature", "max_tokens", "seed", "structured")}
        for letter, explainer in config.explainers.items():
            if explainer.kind != "top-tokens":
                own = explainer.llm.model_copy(update=asked)
                values = {**config.scorer.model_dump(), "llm": own.model_dump()}
                judges[letter] = parse_config(ScorerConfig, values, source=f"self_scored, explainer_{letter}")
    return judges | dict.fromkeys(config.controls, judges["a"])


if __name__ == "__main__":
    main(compare_explainers, CompareExplainersConfig)
