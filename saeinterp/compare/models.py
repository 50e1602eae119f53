"""Two models by the health of their layers, SAEs trained alike on the same text.

With one or two SAEs per layer and side everything here is conditional on these SAEs; from three training seeds
on, differences of the models are given beside it. The surprising choice: "beats its control" is said per metric,
since on a model with random weights ΔCE is small whatever the SAE does (its layers hardly change the loss), and
FVU may be lower.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from saeinterp.artifacts import Artifact, ArtifactStore, Recipe, Ref, Workspace, write_json
from saeinterp.compare.comparability import require_comparable
from saeinterp.compare.direct import Graded, compare_directly, grading_rows
from saeinterp.compare.evaluated import TextLibrary, pair_documents
from saeinterp.compare.frontiers import compare_frontiers
from saeinterp.compare.layers import LayerSummary, compare_layers
from saeinterp.compare.model_checks import Group, check_sides
from saeinterp.compare.model_facts import (
    control_side,
    failed_checks,
    recipe_differences,
    require_control,
    require_shared,
    subject_differences,
)
from saeinterp.compare.model_results import ControlComparison, ModelComparison
from saeinterp.compare.model_sentences import LayerResult, condition, headline, layer_results, sentences
from saeinterp.compare.model_table import write_layers
from saeinterp.compare.results import Sentence
from saeinterp.compare.sides import Side, ordered, places, read_side
from saeinterp.compare.trends import LayerRow, depth_trends
from saeinterp.config import ComparisonConfig
from saeinterp.health.grading.step import read_grades

__all__ = ["ModelComparison", "compare_models", "compare_models_recipe"]

VERSION = 2


def compare_models_recipe(
    a: Sequence[Ref],
    b: Sequence[Ref],
    *,
    controls: Mapping[Side, Sequence[Ref]] = {},
    grades: Mapping[Side, Ref] = {},
    config: ComparisonConfig,
    names: tuple[str, str],
) -> Recipe:
    """The recipe of a comparison of two models; see `compare_models` for the arguments."""
    slug = "-vs-".join(re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-.") for name in names)
    values = config.model_dump(mode="json", include={"alpha", "bootstrap", "seed", "allow_unmatched"})
    both: tuple[Side, Side] = ("a", "b")
    return Recipe(
        kind="model-comparison",
        name=slug[:80] or "models",
        version=VERSION,
        config={
            "names": list(names),
            "sides": [len(a), len(b)],
            "controls": [len(controls.get(side, ())) for side in both],
            "grades": [side in grades for side in both],
            **values,
        },
        inputs=(
            *a,
            *b,
            *(item for side in both for item in controls.get(side, ())),
            *(grades[side] for side in both if side in grades),
        ),
    )


def compare_models(
    a: Sequence[Artifact],
    b: Sequence[Artifact],
    *,
    controls: Mapping[Side, Sequence[Artifact]] = {},
    grades: Mapping[Side, Artifact] = {},
    config: ComparisonConfig,
    names: tuple[str, str],
    store: ArtifactStore,
) -> Artifact:
    """Compare the health of two models' layers, matched by hookpoint, dataset and SAE recipe.

    Payload: `comparison.json` (a `ModelComparison`) and `layers.parquet` (one row per place and metric).

    Args:
        a: Health of side a: one artifact per hookpoint, dataset, SAE recipe and SAE training seed.
        b: Health of side b.
        controls: Side -> health of its architecture with random weights, SAEs trained as its own.
        grades: Side -> its grades.
        config: Level, draws, seed, and whether sides that differ may be compared.
        names: Titles of the sides.
        store: Where the result goes.

    Raises:
        ComparabilityError: No layer is on both sides with a dataset, or text, SAE training or health settings
            differ and `allow_unmatched` is off.
        ConfigError: A side holds several models, or an SAE comes twice with one dataset.
    """
    recipe = compare_models_recipe(a, b, controls=controls, grades=grades, config=config, names=names)

    def write(space: Workspace) -> None:
        result = _compare(a, b, controls=controls, grades=grades, config=config, names=names)
        write_json(space.out / "comparison.json", result.model_dump(mode="json"))
        write_layers(space.out / "layers.parquet", result)
        space.counts = {
            "layers": len(result.layers),
            "missing": sum(layer.missing is not None for layer in result.layers),
            "frontiers": len(result.frontiers),
        }

    return store.build(recipe, write)


def _compare(
    a: Sequence[Artifact],
    b: Sequence[Artifact],
    *,
    controls: Mapping[Side, Sequence[Artifact]],
    grades: Mapping[Side, Artifact],
    config: ComparisonConfig,
    names: tuple[str, str],
) -> ModelComparison:
    sides = [read_side(a, side="a"), read_side(b, side="b")]
    floors = [read_side(controls.get(side, ()), side=f"{side}, control") for side in ("a", "b")]
    left, right, *floor_groups = places(*sides, *floors)
    require_shared(left, right, names)
    library = TextLibrary()
    rows = check_sides(left, right, library=library)
    groups: Mapping[Side, Group] = {"a": left, "b": right}
    compared_floors: list[tuple[Side, Group, Group]] = []
    for (side, group), floor in zip(groups.items(), floor_groups):
        if not floor:
            continue
        require_control(floor, side)
        compared_floors.append((side, group, {place: saes for place, saes in floor.items() if place in group}))
        rows += [
            row.model_copy(update={"field": f"control of {names[0] if side == 'a' else names[1]}: {row.field}"})
            for row in check_sides(group, floor, library=library)
            if not row.ok
        ]
    known = {side: read_grades(artifact) for side, artifact in grades.items()}
    if len(known) == 2:
        rows += grading_rows(known["a"], known["b"])
    matched = require_comparable(rows, allow_unmatched=config.allow_unmatched)

    control = control_side(sides)
    layers, summary, method = _layers(left, right, control=control, config=config, names=names, library=library)
    frontiers = compare_frontiers(
        pair_documents(left, right, order=ordered(left, right), library=library),
        layers={sae.hookpoint: sae.layer for side in sides for sae in side},
        titles=names,
        draws=config.bootstrap,
        alpha=config.alpha,
        seed=config.seed,
    )
    trends = depth_trends(
        [LayerRow(layer.layer, row) for layer in layers for row in layer.metrics],
        titles=names,
        alpha=config.alpha,
        seed=config.seed,
    )
    direct = compare_directly(
        layers,
        summary,
        graded={side: Graded(found, groups[side]) for side, found in known.items()},
        names=names,
        alpha=config.alpha,
    )
    floors_found = tuple(
        _against_control(side, group, floor, config=config, names=names, library=library)
        for side, group, floor in compared_floors
    )
    sentence = headline(layers, control=control, names=names)
    said = [
        *sentences(layers, summary, names=names, alpha=config.alpha),
        *(Sentence(id=f"frontier.{item.hookpoint}@{item.dataset}", text=item.sentence) for item in frontiers),
        *(Sentence(id=f"trend.{item.metric}.{item.of}{item.end}", text=item.sentence) for item in trends),
        *(Sentence(id=f"direct.{index}", text=text) for index, text in enumerate(direct.sentences)),
        *(Sentence(id=f"controls.{item.side}", text=item.sentence) for item in floors_found),
    ]
    return ModelComparison(
        title_a=names[0],
        title_b=names[1],
        condition=condition(layers, names=names),
        alpha=config.alpha,
        bootstrap=config.bootstrap,
        seed=config.seed,
        datasets=tuple(dict.fromkeys(layer.dataset for layer in layers)),
        interval_method=method,
        control=control,
        layers=layers,
        summary=summary,
        trends=trends,
        frontiers=frontiers,
        direct=direct,
        controls=floors_found,
        sentence=sentence,
        sentences=tuple(said),
        comparability=tuple(rows),
        matched=matched,
        configuration=(*subject_differences(sides), *recipe_differences(rows)),
        failed_checks=(*failed_checks("a", sides[0]), *failed_checks("b", sides[1])),
    )


def _layers(
    left: Group,
    right: Group,
    *,
    control: Side | None,
    config: ComparisonConfig,
    names: tuple[str, str],
    library: TextLibrary,
) -> tuple[tuple[LayerResult, ...], tuple[LayerSummary, ...], str | None]:
    order = ordered(left, right)
    pairs = pair_documents(left, right, order=order, library=library)
    found = compare_layers(pairs, titles=names, draws=config.bootstrap, alpha=config.alpha, seed=config.seed)
    seeds = {
        place: (
            tuple(sae.seed for sae in left.get(place, ())),
            tuple(sae.seed for sae in right.get(place, ())),
        )
        for place in order
    }
    layers = layer_results(pairs, found.metrics, seeds=seeds, control=control, names=names, alpha=config.alpha)
    return layers, found.summary, found.interval_method


def _against_control(
    side: Side,
    group: Group,
    floor: Group,
    *,
    config: ComparisonConfig,
    names: tuple[str, str],
    library: TextLibrary,
) -> ControlComparison:
    own = names[0] if side == "a" else names[1]
    titles = (own, f"random-weights control of {own}")
    layers, summary, _ = _layers(group, floor, control="b", config=config, names=titles, library=library)
    return ControlComparison(
        side=side,
        title=titles[1],
        layers=layers,
        summary=summary,
        condition=condition(layers, names=titles),
        sentence=headline(layers, control="b", names=titles),
    )
