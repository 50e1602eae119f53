"""`compare-interpretability`: how the latents of two models go with tokens, on the same problems."""

from __future__ import annotations

from typing import Literal, NamedTuple

from prefect import flow
from prefect.states import State

from flows import enriching, lanes
from flows.ending import Outcome, conclude
from flows.enriching import Active, Track
from flows.runner import main, named_by_config, runner
from saeinterp.artifacts import Ref
from saeinterp.config import CompareInterpretabilityConfig, CorrelateTokensConfig, SubjectConfig, recipe_of
from saeinterp.subject import subject_info
from tasks import enriching as tasks
from tasks import steps
from tasks.step import finished, settle

Letter = Literal["a", "b"]


class Member(NamedTuple):
    """One model of the comparison: a side, or the control of one."""

    config: CorrelateTokensConfig
    track: Track
    active: Active


@flow(
    name="compare-interpretability",
    flow_run_name=named_by_config,
    task_runner=runner(),
    persist_result=True,
    result_serializer="json",
)
def compare_interpretability(
    config: CompareInterpretabilityConfig = CompareInterpretabilityConfig(),
) -> State[Outcome]:
    """Do what correlate-tokens does for two models and their controls, then compare the models."""
    sides: dict[Letter, CorrelateTokensConfig] = {"a": config.side("a"), "b": config.side("b")}
    names = _names(config)
    tracks = {
        letter: enriching.train(side, side.subject, title=name)
        for (letter, side), name in zip(sides.items(), names, strict=True)
    }
    controls: dict[Letter, Track] = {}
    if config.random_weights_control:
        known = [recipe_of(side.subject) for side in sides.values()]
        for letter, side in sides.items():
            # A side with random weights has no floor, and may be the other's.
            if side.subject.weights != "random" and recipe_of(side.subject.control()) not in known:
                seeds = (side.trainings[0].seed,)
                title = f"{tracks[letter].title} at random weights"
                controls[letter] = enriching.train(side, side.subject.control(), title=title, seeds=seeds)
    members = {letter: Member(sides[letter], track, enriching.extract(track)) for letter, track in tracks.items()}
    floors = {letter: Member(sides[letter], track, enriching.extract(track)) for letter, track in controls.items()}

    shared = _shared(list(members.values())) if config.match_problems else ()
    failures = [item for member in (*members.values(), *floors.values()) for item in member.active.failures]
    found: dict[str, dict[int, Ref]] = {}
    pending = {
        member.track.title: enriching.correlate(member.config, member.track, member.active, matched=shared)
        for member in (*members.values(), *floors.values())
    }
    for title, items in pending.items():
        found[title], failed = settle("association", title, items)
        failures += failed
    comparison = None
    of_side = {letter: tuple(found[member.track.title].values()) for letter, member in members.items()}
    if all(of_side.values()):
        comparison = finished(
            tasks.compare_sides.submit(
                a=of_side["a"],
                b=of_side["b"],
                controls={letter: tuple(found[member.track.title].values()) for letter, member in floors.items()},
                config=config.comparison,
                names=names,
                label=" and ".join(names),
            )
        )
    return conclude(
        title="Interpretability of two models",
        key="compare-interpretability",
        config=config,
        interpretability=comparison,
        enrichment={
            key: ref for title, by_seed in found.items() for key, ref in enriching.titled(title, by_seed).items()
        },
        detail_latents=config.report.latents,
        saes={member.track.title: member.active.saes for member in (*members.values(), *floors.values())},
        failures=failures,
    )


def _shared(members: list[Member]) -> tuple[Ref, ...]:
    """What decides which problems both sides have: their concepts and activities."""
    return tuple(
        ref
        for member in members
        for ref in (member.track.concepts, *(item for items in member.active.activities.values() for item in items))
    )


def _names(config: CompareInterpretabilityConfig) -> tuple[str, str]:
    """What tells the sides apart."""
    if config.names is not None:
        return config.names
    a, b = (_title(item) for item in (config.subject_a, config.subject_b))
    return (f"{a} (a)", f"{b} (b)") if a == b else (a, b)


def _title(config: SubjectConfig) -> str:
    subject = finished(steps.prepare_model.submit(config=config, label=config.model))
    there = lanes.made(subject)
    return str(subject_info(there)["title"]) if there else subject.name


if __name__ == "__main__":
    main(compare_interpretability, CompareInterpretabilityConfig)
