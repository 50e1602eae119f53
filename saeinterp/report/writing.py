"""The step that writes a report: artifacts to `results.json` and tables, and from these alone the two pages.

The surprising choice: the renderers are given what was read back from disk, never the objects in memory,
so whatever stands on a page is in `results.json` or a table beside it.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import BaseModel

from saeinterp.artifacts import TIMING, Artifact, ArtifactStore, Recipe, Ref, Workspace, read_json, write_json
from saeinterp.compare.interpretability_sides import read_associated
from saeinterp.config import ReportConfig, recipe_of
from saeinterp.progress import Progress, silent
from saeinterp.report.associations.pairs import associated_pairs
from saeinterp.report.associations.results import EnrichmentSection
from saeinterp.report.associations.section import enrichment_section
from saeinterp.report.associations.tables import associated_latents, rate_rows
from saeinterp.report.associations.volcano import volcano_table
from saeinterp.report.collect import (
    curve_rows,
    density_rows,
    layer_health,
    layer_rows,
    layer_training,
    provenance,
    timing_rows,
    titles_of,
)
from saeinterp.report.explainers import explainer_section
from saeinterp.report.exports.schema import results_schema
from saeinterp.report.findings import findings
from saeinterp.report.grades import absorption_of, grade_section
from saeinterp.report.interpretability import interpretability_section
from saeinterp.report.latents import example_table, latent_table
from saeinterp.report.lineage import Lineage
from saeinterp.report.markdown import render_markdown
from saeinterp.report.models import model_section
from saeinterp.report.pages.dashboard import pair_shards, render_dashboard, shards
from saeinterp.report.pages.profiles import profile_facts, profile_table
from saeinterp.report.pages.shards import PAIRS, write_shards
from saeinterp.report.pairs import adjusted, pairs_section
from saeinterp.report.results import HEALTH_COLUMNS, Failure, Results
from saeinterp.report.sampling import variance_rows
from saeinterp.report.scorers import scorers_section
from saeinterp.report.scores_table import scores_table
from saeinterp.report.setup import setup_lines
from saeinterp.report.tables import write_rows, write_table

VERSION = 8
T = TypeVar("T")
NONE: Mapping[str, Any] = MappingProxyType({})


def write_report_recipe(
    *,
    title: str,
    explainer_comparison: Ref | None,
    model_comparison: Ref | None,
    health: Mapping[str, Sequence[Ref]],
    saes: Mapping[str, Sequence[Ref]],
    failures: Sequence[Failure],
    config: BaseModel | Mapping[str, Any],
    explainer_pairs: Ref | None = None,
    scorer_agreement: Ref | None = None,
    grades: Mapping[str, Ref] = NONE,
    review: Ref | None = None,
    enrichment: Mapping[str, Ref] = NONE,
    interpretability: Ref | None = None,
    profiles: Sequence[Ref] = (),
    detail_latents: int = ReportConfig().latents,
) -> Recipe:
    """The recipe of a report.

    Args:
        title: Heading of the report.
        explainer_comparison: What `compare_explainers` makes, where explainers were compared; of several pairs the one
            whose latents are shown.
        explainer_pairs: What `compare_pairs` makes, where there are three or more explainers.
        scorer_agreement: What `compare_scorers` makes, where a second scorer judged too.
        model_comparison: What `compare_models` makes, where models (or model and control) were compared.
        health: Model title to its `health` artifacts, in the order of the report.
        saes: Model title to its `sae` artifacts.
        failures: Steps that did not finish.
        config: The run's configuration, printed in full: a model, or what a recipe holds of it; empty where no run is
            behind the report.
        grades: Model title to its `grades` artifact, where layers were graded.
        review: The review of an outside table, where the grades or scores are of one.
        enrichment: Model title to its `enrichment` artifact, where latents were associated with tokens; a control with
            random weights is a model of its own.
        interpretability: What `compare_interpretability` makes, where two models were compared so.
        profiles: What `describe_latents` makes of the latents that are explained, one per layer.
        detail_latents: Latents whose examples can be opened in the report.
    """
    parts = (explainer_comparison, explainer_pairs, scorer_agreement, model_comparison, review, interpretability)
    given = [item for item in parts if item is not None]
    return Recipe(
        kind="report",
        name=re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:60] or "report",
        version=VERSION,
        config={
            "title": title,
            "explainer_comparison": explainer_comparison is not None,
            "explainer_pairs": explainer_pairs is not None,
            "scorer_agreement": scorer_agreement is not None,
            "model_comparison": model_comparison is not None,
            "health": [[side, len(items)] for side, items in health.items()],
            "saes": [[side, len(items)] for side, items in saes.items()],
            "grades": list(grades),
            "review": review is not None,
            "enrichment": list(enrichment),
            "interpretability": interpretability is not None,
            "profiles": len(profiles),
            "detail_latents": detail_latents,
            "failures": [failure.model_dump() for failure in failures],
            "config": _values(config),
        },
        inputs=(*given, *_flat(health), *_flat(saes), *grades.values(), *enrichment.values(), *profiles),
    )


def write_report(
    *,
    title: str,
    explainer_comparison: Artifact | None,
    model_comparison: Artifact | None,
    health: Mapping[str, Sequence[Artifact]],
    saes: Mapping[str, Sequence[Artifact]],
    failures: Sequence[Failure],
    config: BaseModel | Mapping[str, Any],
    store: ArtifactStore,
    explainer_pairs: Artifact | None = None,
    scorer_agreement: Artifact | None = None,
    grades: Mapping[str, Artifact] = NONE,
    review: Artifact | None = None,
    enrichment: Mapping[str, Artifact] = NONE,
    interpretability: Artifact | None = None,
    profiles: Sequence[Artifact] = (),
    detail_latents: int = ReportConfig().latents,
    progress: Progress | None = None,
) -> Artifact:
    """Write `report.md`, `report.html`, `results.json`, its schema and `tables/*.parquet`; arguments as of the recipe.

    Pages of latents for which `report.html` has no room are written to `latents/*.js`.

    Wall times and hosts go into `timing.parquet` (artifact, seconds, at, host) and nowhere else.

    Raises:
        DamagedArtifactError: An input lacks a file.
        MissingDependencyError: plotly is not installed.
    """
    report = progress or silent
    recipe = write_report_recipe(
        title=title,
        explainer_comparison=explainer_comparison,
        explainer_pairs=explainer_pairs,
        scorer_agreement=scorer_agreement,
        model_comparison=model_comparison,
        health=health,
        saes=saes,
        failures=failures,
        config=config,
        grades=grades,
        review=review,
        enrichment=enrichment,
        interpretability=interpretability,
        profiles=profiles,
        detail_latents=detail_latents,
    )

    def write(space: Workspace) -> None:
        report(0, 3, "parts of the report")
        lineage = Lineage(store)
        given = (explainer_comparison, explainer_pairs, scorer_agreement, model_comparison, review, interpretability)
        roots = [item for item in given if item is not None]
        roots += [*_flat(health), *_flat(saes), *grades.values(), *enrichment.values(), *profiles]
        tables = space.out / "tables"
        tables.mkdir()
        latents = None
        section = None
        if explainer_comparison is not None:
            section = explainer_section(explainer_comparison)
            latents = latent_table(explainer_comparison, section, lineage)
            write_table(tables, "latents", latents)
            if (examples := example_table(explainer_comparison, lineage)) is not None:
                write_table(tables, "examples", examples)
            if profiles:
                write_table(tables, "profiles", profile_table(profiles))
        pairs = pairs_section(explainer_pairs, lineage) if explainer_pairs is not None else None
        if explainer_pairs is not None and pairs is not None:
            section = adjusted(section, pairs) if section is not None else None
            shutil.copyfile(explainer_pairs.file("latents.parquet"), tables / "explainers.parquet")
        models = model_section(model_comparison, grades=grades) if model_comparison is not None else None
        associated = _associated(enrichment, tables) if enrichment else None
        titles = {**titles_of(health, lineage), **titles_of(saes, lineage)}
        absorption = absorption_of(grades)
        layers = tuple(
            layer_health(side, item, title=titles[side, item.id], absorption=absorption.get((side, item.id)))
            for side, items in health.items()
            for item in items
        )
        write_rows(tables, "layers", layer_rows(layers, HEALTH_COLUMNS))
        write_rows(tables, "curves", curve_rows(saes, titles))
        write_rows(tables, "density", density_rows(health, layers))
        results = Results(
            title=title,
            setup=setup_lines(roots, lineage, comparison=explainer_comparison, section=section, pairs=pairs),
            explainers=section,
            pairs=pairs,
            scorers=None if scorer_agreement is None else scorers_section(scorer_agreement),
            variance=variance_rows(roots, lineage, metric=section.metric) if section is not None else (),
            models=models,
            interpretability=interpretability_section(interpretability) if interpretability is not None else None,
            enrichment=associated,
            profiles=profile_facts(profiles),
            detail_latents=detail_latents,
            layers=layers,
            grades=grade_section(grades, review=review),
            scores_table=scores_table(review, store),
            training=tuple(
                layer_training(side, item, title=titles[side, item.id])
                for side, items in saes.items()
                for item in items
            ),
            failures=tuple(failures),
            findings=(
                *(line for preset in (associated.presets if associated else ()) for line in preset.findings),
                *findings(explainer_comparison, explainer_pairs, section, layers, latents, failures),
            ),
            provenance=provenance(roots, lineage, _values(config)),
        )
        write_json(space.out / "results.json", results.model_dump(mode="json"))
        report(1, 3, "parts of the report")
        render(space.out)
        report(3, 3, "parts of the report")
        write_rows(space.out, Path(TIMING).stem, timing_rows(roots, lineage))
        space.counts = {
            "latents": len(latents) if latents is not None else 0,
            "layers": len(layers),
            "failures": len(failures),
        }

    return store.build(recipe, write)


def render(folder: Path) -> None:
    """Write `report.md`, `report.html` with its shards, and `results.schema.json` from the results and tables there."""
    results = Results.model_validate(read_json(folder / "results.json"))
    write_json(folder / "results.schema.json", results_schema())
    (folder / "report.md").write_text(render_markdown(results, folder / "tables"), encoding="utf-8")
    (folder / "report.html").write_text(render_dashboard(results, folder / "tables"), encoding="utf-8")
    write_shards(folder, shards(results, folder / "tables"))
    write_shards(folder, pair_shards(results, folder / "tables"), PAIRS)


def _values(config: BaseModel | Mapping[str, Any]) -> dict[str, Any]:
    return recipe_of(config) if isinstance(config, BaseModel) else dict(config)


def _associated(enrichment: Mapping[str, Artifact], tables: Path) -> EnrichmentSection:
    """The section of associations, its tables written."""
    read = {title: read_associated(artifact) for title, artifact in enrichment.items()}
    latents = associated_latents(read)
    write_table(tables, "associated", latents)
    pairs = associated_pairs(read)
    write_table(tables, "pairs", pairs)
    write_table(tables, "volcano", volcano_table(pairs))
    write_rows(tables, "rates", rate_rows(read))
    return enrichment_section(read, latents)


def _flat(sides: Mapping[str, Sequence[T]]) -> list[T]:
    return [item for items in sides.values() for item in items]
