"""Two models by the latents that go with tokens: rates beside chance, and the questions they are asked for.

With one SAE training a side everything here is about this pair of SAEs only; from three a side on, training seeds are
in the intervals. The surprising choice: sides that differ in k, split, training rows, layers or dictionary are refused,
for each of these alone moves the rates as far as models do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from saeinterp.artifacts import Artifact, ArtifactStore, Recipe, Ref, Workspace, write_json
from saeinterp.compare.comparability import differing, require_comparable
from saeinterp.compare.interpretability_answers import HEADLINE, answer_questions
from saeinterp.compare.interpretability_checks import check_interpretability, shared_problems
from saeinterp.compare.interpretability_rates import Pairing, compare_rates
from saeinterp.compare.interpretability_results import (
    Answer,
    ControlRates,
    InterpretabilityComparison,
    RateDifference,
    Sizes,
)
from saeinterp.compare.interpretability_sides import Associated, layer_pairs, read_trainings
from saeinterp.compare.model_results import SubjectDifference
from saeinterp.compare.results import Sentence
from saeinterp.compare.sides import MIN_SEEDS, Side
from saeinterp.config import ComparisonConfig
from saeinterp.errors import ComparabilityError, ConfigError
from saeinterp.subject.sizes import parameter_count

VERSION = 1
SIDES: tuple[Side, Side] = ("a", "b")
QUESTIONS = ("monosemantic", "category", "maximum", "size")
"""The order of the answers; of one question, that of the presets."""


def compare_interpretability_recipe(
    a: Sequence[Ref],
    b: Sequence[Ref],
    *,
    controls: Mapping[Side, Sequence[Ref]] = {},
    config: ComparisonConfig,
    names: tuple[str, str],
) -> Recipe:
    """The recipe of a comparison of interpretability; see `compare_interpretability` for the arguments."""
    slug = "-vs-".join(re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-.") for name in names)
    return Recipe(
        kind="interpretability-comparison",
        name=slug[:80] or "models",
        version=VERSION,
        config={
            "names": list(names),
            "sides": [len(a), len(b)],
            "controls": [len(controls.get(side, ())) for side in SIDES],
            **config.model_dump(mode="json", include={"alpha", "allow_unmatched"}),
        },
        inputs=(*a, *b, *(item for side in SIDES for item in controls.get(side, ()))),
    )


def compare_interpretability(
    a: Sequence[Artifact],
    b: Sequence[Artifact],
    *,
    controls: Mapping[Side, Sequence[Artifact]] = {},
    config: ComparisonConfig,
    names: tuple[str, str],
    store: ArtifactStore,
) -> Artifact:
    """Compare how many latents of two models go with tokens, and answer the questions of such a comparison.

    Payload: `comparison.json` (an `InterpretabilityComparison`).

    Args:
        a: Enrichments of side a: one per SAE training seed, each over all layers and positions.
        b: Enrichments of side b.
        controls: Side -> enrichments of its architecture with random weights, SAEs trained as its own.
        config: Level, and whether sides that differ may be compared; nothing else of it is read.
        names: Titles of the sides.
        store: Where the result goes.

    Raises:
        ComparabilityError: The sides share no preset or no layer, or differ in what should be equal and
            `allow_unmatched` is off.
        ConfigError: A side holds several models, or one training twice; a control has weights of its own.
    """

    def write(space: Workspace) -> None:
        result = _compare(a, b, controls=controls, config=config, names=names)
        write_json(space.out / "comparison.json", result.model_dump(mode="json"))
        space.counts = {"rates": len(result.rates), "answers": len(result.answers)}

    return store.build(compare_interpretability_recipe(a, b, controls=controls, config=config, names=names), write)


def read_interpretability(artifact: Artifact) -> InterpretabilityComparison:
    """The comparison that an artifact holds."""
    return InterpretabilityComparison.model_validate_json(artifact.file("comparison.json").read_bytes())


def _compare(
    a: Sequence[Artifact],
    b: Sequence[Artifact],
    *,
    controls: Mapping[Side, Sequence[Artifact]],
    config: ComparisonConfig,
    names: tuple[str, str],
) -> InterpretabilityComparison:
    left, right = read_trainings(a, side="a"), read_trainings(b, side="b")
    presets = _common_presets(left, right, names)
    rows = check_interpretability(left, right)
    floors: dict[Side, list[Associated]] = {}
    for side, own, name in zip(SIDES, (left, right), names):
        if not controls.get(side):
            continue
        floors[side] = read_trainings(controls[side], side=f"{side}, control")
        _require_control(floors[side], side)
        rows += [
            row.model_copy(update={"field": f"control of {name}: {row.field}"})
            for row in check_interpretability(own, floors[side])
            if not row.ok
        ]
    matched = require_comparable(rows, allow_unmatched=config.allow_unmatched)
    pairing = Pairing(names, config.alpha, paired=shared_problems(left, right))
    sizes = Sizes(a=_parameters(left), b=_parameters(right))
    about = condition((len(left), len(right)), names)
    rates: list[RateDifference] = []
    answers: list[Answer] = []
    for preset in presets:
        found = compare_rates(left, right, preset, pairing=pairing)
        rates += found
        answers += answer_questions(left, right, preset, found, sizes=sizes, pairing=pairing)
    answers.sort(key=lambda item: QUESTIONS.index(item.id))
    against = tuple(
        _against_control(side, own, floors[side], name, config.alpha)
        for side, own, name in zip(SIDES, (left, right), names)
        if side in floors
    )
    sentences = [
        *(Sentence(id=f"{answer.id}.{answer.preset}", text=answer.sentence) for answer in answers),
        *(Sentence(id=_sentence_id(row), text=row.sentence) for row in rates),
        *(
            Sentence(id=f"control.{item.side}.{_sentence_id(row)}", text=row.sentence)
            for item in against
            for row in item.rates
        ),
    ]
    return InterpretabilityComparison(
        title_a=names[0],
        title_b=names[1],
        condition=about,
        alpha=config.alpha,
        sizes=sizes,
        presets=tuple(presets),
        answers=tuple(answers),
        rates=tuple(rates),
        controls=against,
        sentence=_headline(answers, presets, about),
        sentences=tuple(sentences),
        comparability=tuple(rows),
        matched=matched,
        configuration=_subject_differences(left, right),
    )


def condition(trainings: tuple[int, int], names: tuple[str, str]) -> str:
    """What is said holds of: this pair of SAE trainings, or models, by how many trainings each side has."""
    if trainings == (1, 1):
        return "this pair of SAEs only: one SAE training each"
    counted = " and ".join(f"{count} of {name}" for count, name in zip(trainings, names))
    if min(trainings) >= MIN_SEEDS:
        return f"SAE training seeds included: SAE trainings {counted}"
    return f"these SAEs only: SAE trainings {counted}; from {MIN_SEEDS} each on, seeds would be included"


def _common_presets(a: Sequence[Associated], b: Sequence[Associated], names: tuple[str, str]) -> list[str]:
    presets = [preset for preset in a[0].presets if all(preset in item.presets for item in (*a, *b))]
    if not presets:
        raise ComparabilityError(
            "the sides share no preset of association rules",
            field="enrichment.presets",
            got=f"{', '.join(a[0].presets)} ({names[0]}) and {', '.join(b[0].presets)} ({names[1]})",
            next_step="associate both with the same presets",
        )
    if not layer_pairs(a[0], b[0]):
        raise ComparabilityError(
            "no layer of one side has a counterpart at the same relative depth",
            field="capture.hookpoints",
            got=f"{', '.join(a[0].hookpoints)} ({names[0]}) and {', '.join(b[0].hookpoints)} ({names[1]})",
            next_step="choose layers at the same share of each model's depth",
        )
    # The recommended rules are read first.
    return sorted(presets, key=list(HEADLINE).index)


def _require_control(floor: Sequence[Associated], side: str) -> None:
    for item in floor:
        subject = item.subject
        if subject is None or subject.config.get("weights") != "random":
            raise ConfigError(
                "the control's model has weights of its own",
                field=f"controls.{side}",
                got=item.artifact.id,
                expected="enrichment of a model with random weights",
            )


def _against_control(
    side: Side, own: Sequence[Associated], floor: Sequence[Associated], name: str, alpha: float
) -> ControlRates:
    title = f"random-weights control of {name}"
    pairing = Pairing((name, title), alpha, paired=shared_problems(own, floor))
    presets = [preset for preset in own[0].presets if preset in floor[0].presets]
    rates = [row for preset in presets for row in compare_rates(own, floor, preset, pairing=pairing, scopes=["model"])]
    return ControlRates(side=side, title=title, rates=tuple(rates))


def _parameters(side: Sequence[Associated]) -> int | None:
    subject = side[0].subject
    if subject is None or not subject.manifest:
        return None
    return parameter_count(subject.artifact)


def _headline(answers: Sequence[Answer], presets: Sequence[str], about: str) -> str:
    """The first preset's monosemantic rate, then whether it speaks of size."""
    said = [item.short for item in answers if item.preset == presets[0] and item.id in ("monosemantic", "size")]
    return " ".join([f"{about[:1].upper()}{about[1:]}.", *said])


def _sentence_id(row: RateDifference) -> str:
    place = {"model": "model", "layer": row.hookpoints[0] or "", "position": f"position.{row.position}"}[row.scope]
    return f"{row.rate}.{row.preset}.{place}"


def _subject_differences(a: Sequence[Associated], b: Sequence[Associated]) -> tuple[SubjectDifference, ...]:
    first, second = a[0].subject, b[0].subject
    if first is None or second is None:
        return ()
    return tuple(
        SubjectDifference(
            step="subject", field=key, a="not known" if x is None else str(x), b="not known" if y is None else str(y)
        )
        for key, x, y in differing(first.config, second.config)
        if key != "fingerprint"
    )
