"""The step that compares two explainers: reads scores artifacts, checks that they may be compared, stores the result.

The arithmetic is `saeinterp.compare.scores.compare_scores`, the same for a run and for an imported table.
The surprising choice: the check runs inside the step, on the manifests of what was really scored, so a
comparison that should not exist leaves no artifact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import polars as pl

from saeinterp.artifacts import Artifact, ArtifactStore, Recipe, Ref, Workspace, write_json
from saeinterp.compare.comparability import (
    ComparabilityRow,
    check_comparability,
    comparability_row,
    explainer_difference,
    fold_rows,
    require_comparable,
)
from saeinterp.compare.results import ExplainerComparison
from saeinterp.compare.scores import ComparedExplainers, compare_scores
from saeinterp.compare.tables import read_score_table
from saeinterp.config import ComparisonConfig, recipe_of
from saeinterp.errors import DataError
from saeinterp.progress import Progress

VERSION = 2


def compare_explainers_recipe(
    a: Sequence[Ref],
    b: Sequence[Ref],
    controls: Mapping[str, Sequence[Ref]],
    *,
    config: ComparisonConfig,
    self_scored: bool = False,
    pairs: int = 1,
) -> Recipe:
    """The recipe of a comparison of scores artifacts, one per hookpoint on each side and per control.

    Args:
        self_scored: Every explainer was judged by its own model.
        pairs: Pairs of explainers that are compared together, this one included.
    """
    names = sorted(controls)
    return Recipe(
        kind="explainer-comparison",
        name="explainers",
        version=VERSION,
        config={
            "comparison": recipe_of(config),
            "a": len(a),
            "b": len(b),
            "controls": [[name, len(controls[name])] for name in names],
            "self_scored": self_scored,
            "pairs": pairs,
        },
        inputs=(*a, *b, *(item for name in names for item in controls[name])),
    )


def compare_explainers(
    a: Sequence[Artifact],
    b: Sequence[Artifact],
    controls: Mapping[str, Sequence[Artifact]],
    *,
    config: ComparisonConfig,
    store: ArtifactStore,
    self_scored: bool = False,
    pairs: int = 1,
    progress: Progress | None = None,
) -> Artifact:
    """Compare two explainers by their scores; the difference is b minus a.

    Args:
        a: `scores` artifacts of side a, one per hookpoint; `b` likewise, same hookpoints.
        controls: Control name (`permuted`, `empty`) to its scores artifacts.
        self_scored: Every explainer was judged by its own model; the result and its report say so.
        pairs: Pairs of explainers that are compared together; beyond one, `compare_pairs` adjusts over them.

    Returns:
        An `explainer-comparison` artifact: `comparison.json` (an `ExplainerComparison`), `latents.parquet`.

    Raises:
        ComparabilityError: The sides differ in something that should be equal and `allow_unmatched` is off.
        DataError: No latent was scored, the primary metric is missing, or the tables contradict themselves.
    """

    def write(space: Workspace) -> None:
        rows = _comparability(a, b, controls, self_scored=self_scored)
        require_comparable(rows, allow_unmatched=config.allow_unmatched)
        outcome = compare_scores(
            read_score_table(a),
            read_score_table(b),
            controls={name: read_score_table(items) for name, items in sorted(controls.items())},
            config=config,
            comparability=rows,
            configuration=explainer_difference(a[0], b[0]),
            self_scored=self_scored,
            pairs=pairs,
            progress=progress,
        )
        write_comparison(space, outcome)

    recipe = compare_explainers_recipe(a, b, controls, config=config, self_scored=self_scored, pairs=pairs)
    return store.build(recipe, write)


def write_comparison(space: Workspace, outcome: ComparedExplainers) -> None:
    """Write `comparison.json` and `latents.parquet`, whatever the scores came from."""
    write_json(space.out / "comparison.json", outcome.result.model_dump(mode="json"))
    outcome.latents.write_parquet(space.out / "latents.parquet", compression="zstd")
    space.counts = {"latents": outcome.result.n_latents, "selected": outcome.result.n_selected}


def read_explainer_comparison(artifact: Artifact) -> ExplainerComparison:
    """The stored result of `compare_explainers`."""
    return ExplainerComparison.model_validate_json(artifact.file("comparison.json").read_bytes())


def _comparability(
    a: Sequence[Artifact],
    b: Sequence[Artifact],
    controls: Mapping[str, Sequence[Artifact]],
    *,
    self_scored: bool,
) -> list[ComparabilityRow]:
    sides = [{_hookpoint(item): item for item in items} for items in (a, b)]
    rows = [comparability_row("hookpoints", *(", ".join(side) for side in sides), severity="hard")]
    shared = [name for name in sides[0] if name in sides[1]]
    rows += fold_rows(
        {name: check_comparability(sides[0][name], sides[1][name], self_scored=self_scored) for name in shared}
    )
    for control, items in sorted(controls.items()):
        found = {_hookpoint(item): item for item in items}
        broken = {
            name: [row for row in check_comparability(sides[0][name], found[name]) if row.severity == "hard"]
            for name in shared
            if name in found
        }
        control_rows = [
            comparability_row("hookpoints", ", ".join(sides[0]), ", ".join(found), severity="hard"),
            *fold_rows(broken),
        ]
        rows += [
            row.model_copy(update={"field": f"control {control}: {row.field}"}) for row in control_rows if not row.ok
        ]
    return rows


def _hookpoint(scores: Artifact) -> str:
    names = pl.read_parquet(scores.file("scores.parquet"), columns=["hookpoint"])["hookpoint"].unique().to_list()
    if len(names) != 1:
        raise DataError("a scores artifact covers one hookpoint", field=scores.id, got=names)
    return str(names[0])
