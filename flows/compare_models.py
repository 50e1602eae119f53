"""`compare-models`: two models, or two SAE recipes, by the health of their layers.

Each side's floor is its own architecture with random weights. A lane that two sides have in common (one control of
a model and its fine-tuned variant, or a control that is itself a side) is there once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Literal, NamedTuple

from prefect import flow
from prefect.states import State

from flows import adopting, lanes
from flows.ending import Outcome, conclude
from flows.lanes import Lane, Texts
from flows.runner import main, named_by_config, runner
from saeinterp.artifacts import Artifact, Recipe, Ref
from saeinterp.config import CompareModelsConfig, CorpusConfig, SubjectConfig, TrainingConfig
from saeinterp.report import Failure
from saeinterp.subject import subject_info
from tasks import steps
from tasks.step import finished

Letter = Literal["a", "b"]


class Side(NamedTuple):
    """One model with what its SAEs are trained and measured on."""

    title: str
    config: SubjectConfig
    subject: Artifact | Recipe
    texts: Texts
    corpus: Ref
    corpus_config: CorpusConfig
    trainings: Mapping[str, TrainingConfig]
    hookpoints: tuple[str, ...]

    @property
    def key(self) -> str:
        """Equal for sides with the same numbers: one content of the model (its title apart), texts and trainings."""
        content = self.subject.manifest()["config"] if isinstance(self.subject, Artifact) else self.subject.config
        model = {name: value for name, value in content.items() if name != "title"}
        parts = [model, self.corpus.hash, self.hookpoints]
        trainings = [[name, item.model_dump(mode="json")] for name, item in self.trainings.items()]
        return json.dumps([*parts, trainings], sort_keys=True)


@flow(
    name="compare-models",
    flow_run_name=named_by_config,
    task_runner=runner(),
    persist_result=True,
    result_serializer="json",
)
def compare_models(config: CompareModelsConfig = CompareModelsConfig()) -> State[Outcome]:
    """Train and measure both sides and their controls, then compare the sides layer by layer."""
    pipeline = lanes.Pipeline.of(config)
    sides, failures = _sides(config)
    controls = _controls(config, sides)
    tracks: dict[str, Lane] = {}
    texts: dict[str, Texts] = {}
    for side in (*sides.values(), *controls.values()):
        if side.key not in tracks:
            texts[side.key] = side.texts
            tracks[side.key] = lanes.train(
                side.config,
                side.subject,
                side.corpus,
                pipeline._replace(capture=config.capture.model_copy(update={"hookpoints": side.hookpoints})),
                corpus_config=side.corpus_config,
                trainings=side.trainings,
                side=side.title,
            )
    compared = {side.key for side in sides.values()}
    measuring = {
        key: lanes.measure(lane, texts[key], pipeline, absorption=key in compared) for key, lane in tracks.items()
    }

    measured = {key: lanes.collect(item) for key, item in measuring.items()}
    failures += [failure for item in measured.values() for failure in item.failures]
    names = (sides["a"].title, sides["b"].title)
    by_letter = {letter: measured[side.key] for letter, side in sides.items()}
    grades = lanes.grade({side.title: measured[side.key] for side in sides.values()}, config.grading)
    comparison = None
    if all(item.health for item in by_letter.values()):
        floors = {letter: measured[side.key].health for letter, side in controls.items() if side.key not in compared}
        comparison = finished(
            steps.compare_health.submit(
                a=by_letter["a"].health,
                b=by_letter["b"].health,
                controls={letter: health for letter, health in floors.items() if health},
                grades={letter: grades[side.title] for letter, side in sides.items()},
                config=config.comparison,
                names=names,
                label=" and ".join(names),
            )
        )
    titles: dict[str, str] = {}
    for side in (*sides.values(), *controls.values()):
        titles.setdefault(side.key, side.title)
    return conclude(
        title="Layer health of two models",
        key="compare-models",
        config=config,
        model_comparison=comparison,
        health={titles[key]: item.health for key, item in measured.items()},
        saes={titles[key]: item.saes for key, item in measured.items()},
        grades=grades,
        failures=failures,
    )


def _sides(config: CompareModelsConfig) -> tuple[dict[Letter, Side], list[Failure]]:
    """Both sides, and a failure per layer that only one of them has."""
    for training in (*config.trainings("a").values(), *config.trainings("b").values()):
        adopting.look_at(training.saes)
    subject_a = finished(steps.prepare_model.submit(config=config.subject_a, label="model a"))
    subject_b = finished(steps.prepare_model.submit(config=config.subject_b, label="model b"))
    names = _names(config, subject_a, subject_b)
    texts_a = lanes.texts(subject_a, config.corpus, config.health, side=names[0])
    texts_b, reader = texts_a, subject_a
    if not lanes.read_alike(subject_a, subject_b, (config.subject_a, config.subject_b)):
        texts_b, reader = lanes.texts(subject_b, config.corpus, config.health, side=names[1]), subject_b
    corpus_b = texts_b.corpus
    if config.corpus_b:
        pending = steps.prepare_corpus.submit(
            subject=reader, config=config.training_corpus("b"), label=f"training, {names[1]}"
        )
        corpus_b = finished(pending)
    missing_a, missing_b = (_missing(subject, config.capture.hookpoints) for subject in (subject_a, subject_b))
    # What neither has is left in: capturing it says what is there instead.
    both = missing_a.keys() & missing_b.keys()
    sides: dict[Letter, Side] = {
        "a": Side(
            title=names[0],
            config=config.subject_a,
            subject=subject_a,
            texts=texts_a,
            corpus=texts_a.corpus,
            corpus_config=config.corpus,
            trainings=config.trainings("a"),
            hookpoints=tuple(name for name in config.capture.hookpoints if name not in missing_a or name in both),
        ),
        "b": Side(
            title=names[1],
            config=config.subject_b,
            subject=subject_b,
            texts=texts_b,
            corpus=corpus_b,
            corpus_config=config.training_corpus("b"),
            trainings=config.trainings("b"),
            hookpoints=tuple(name for name in config.capture.hookpoints if name not in missing_b or name in both),
        ),
    }
    failures = [
        Failure(stage="capture", hookpoint=name, side=title, error=problem)
        for title, missing in zip(names, (missing_a, missing_b), strict=True)
        for name, problem in missing.items()
        if name not in both
    ]
    return sides, failures


def _controls(config: CompareModelsConfig, sides: Mapping[Letter, Side]) -> dict[Letter, Side]:
    """The floor of each side that is none itself; one SAE seed is enough for it."""
    found: dict[Letter, Side] = {}
    if not config.random_weights_control:
        return found
    first = config.model_copy(update={"seeds": config.seeds[:1]})
    for letter, side in sides.items():
        if side.config.weights == "random":
            continue
        at_random = side.config.control()
        title = f"{side.title} at random weights"
        subject = finished(steps.prepare_model.submit(config=at_random, label=title))
        found[letter] = side._replace(title=title, config=at_random, subject=subject, trainings=first.trainings(letter))
    return found


def _names(config: CompareModelsConfig, *subjects: Ref) -> tuple[str, str]:
    """What tells the sides apart: the models' titles, else what b does otherwise."""
    if config.names is not None:
        return config.names
    a, b = (_title(subject) for subject in subjects)
    if a == b:
        changed = {**config.training_b, **config.corpus_b}
        # Never their folders: a title stands in reports and recipes, a place in neither.
        if "saes" in changed:
            changed["saes"] = "others"
        b = f"{b} ({', '.join(f'{name}={value}' for name, value in changed.items())})" if changed else b
    return (f"{a} (a)", f"{b} (b)") if a == b else (a, b)


def _title(subject: Ref) -> str:
    there = lanes.made(subject)
    # While planning there is only the recipe, whose name is the title in a file name's letters.
    return str(subject_info(there)["title"]) if there else subject.name


def _missing(subject: Ref, hookpoints: tuple[str, ...]) -> dict[str, str]:
    """The hookpoints in blocks that a subject does not have, and what to say of each; none while it is not prepared."""
    there = lanes.made(subject)
    if there is None:
        return {}
    layers = subject_info(there)["num_layers"]
    problem = "layer {} does not exist: {} has layers.0 to layers.{}"
    title = _title(subject)
    blocks = {name: next((int(part) for part in name.split(".") if part.isdigit()), None) for name in hookpoints}
    return {
        name: problem.format(layer, title, layers - 1)
        for name, layer in blocks.items()
        if layer is not None and layer >= layers
    }


if __name__ == "__main__":
    main(compare_models, CompareModelsConfig)
