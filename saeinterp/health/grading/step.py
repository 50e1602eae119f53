"""The step that grades all layers of one model, from their health and absorption.

Payload: `grades.json` (a `LayerGrades`). The surprising choice: a dataset that one SAE lacks and another has is
an NA of the first, which can then not be healthy; nothing is ever better for not having been measured.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from saeinterp.artifacts import Artifact, ArtifactStore, Recipe, Ref, Workspace, write_json
from saeinterp.config import WORST_CASE, GradingConfig, recipe_of
from saeinterp.errors import ConfigError, DataError
from saeinterp.health.grading.inputs import LayerRow, rows_of
from saeinterp.health.grading.results import (
    CheckResult,
    Counts,
    DatasetGrade,
    GradedMetric,
    LayerGrades,
    Measured,
    SaeGrade,
)
from saeinterp.health.grading.rules import GRADED, LABELS, crossed, grade_layer, label
from saeinterp.health.grading.summary import best_of, means_of, reasons_of, recommendations_of, sentences_of, trends_of
from saeinterp.stats import interval_text

VERSION = 1
_WORDS = {"num_latents": "{} latents", "k": "k = {}", "seed": "seed {}"}


def grade_layers_recipe(health: Sequence[Ref], absorption: Sequence[Ref] = (), *, config: GradingConfig) -> Recipe:
    """The recipe of one model's grades.

    Args:
        health: One artifact per SAE and dataset.
        absorption: At most one per SAE.
    """
    name = health[0].name.rpartition("-")[0] if health else ""
    return Recipe(
        kind="grades",
        name=name or "layers",
        version=VERSION,
        config={"health": len(health), **recipe_of(config)},
        inputs=(*health, *absorption),
    )


def grade_layers(
    health: Sequence[Artifact],
    absorption: Sequence[Artifact] = (),
    *,
    config: GradingConfig,
    store: ArtifactStore,
) -> Artifact:
    """Grade every SAE of one model on every dataset; arguments as of the recipe.

    Raises:
        DataError: There is no health artifact.
        ConfigError: An SAE comes twice with one dataset.
    """
    recipe = grade_layers_recipe(health, absorption, config=config)

    def write(space: Workspace) -> None:
        grades = grade_rows(rows_of(health, absorption), config=config)
        write_json(space.out / "grades.json", grades.model_dump(mode="json"))
        space.counts = {"saes": len(grades.saes), **grades.counts.model_dump()}

    return store.build(recipe, write)


def read_grades(artifact: Artifact) -> LayerGrades:
    """The content of `grades.json`."""
    return LayerGrades.model_validate_json(artifact.file("grades.json").read_bytes())


def grade_rows(rows: Sequence[LayerRow], *, config: GradingConfig) -> LayerGrades:
    """Grade rows, ours or imported ones.

    Raises:
        DataError: There is no row, or a value is impossible.
        ConfigError: An SAE comes twice with one dataset.
    """
    if not rows:
        raise DataError("no layer to grade", field="health", next_step="see which layers failed, and why")
    # A dataset that is to decide and was evaluated nowhere is NA everywhere, never replaced by another.
    deciding = [] if config.dataset == WORST_CASE else [config.dataset]
    datasets = tuple(dict.fromkeys([*(row.dataset for row in rows), *deciding]))
    by_sae: dict[str, dict[str, LayerRow]] = {}
    for row in rows:
        group = by_sae.setdefault(row.key, {})
        if row.dataset in group:
            raise ConfigError(
                "a layer comes twice with one dataset",
                field=row.hookpoint,
                got=f"{group[row.dataset].source} and {row.source}, both on {row.dataset}",
                expected="one health artifact per SAE and dataset",
            )
        group[row.dataset] = row
    titles = _titles([next(iter(group.values())) for group in by_sae.values()])
    saes = [_sae(titles[key], group, datasets, config) for key, group in by_sae.items()]
    order = sorted(saes, key=lambda item: (item.layer is None, item.layer or 0))
    counts = Counts(**{word: sum(item.label == word for item in order) for word in LABELS})
    best = best_of(order, config)
    means, trends = means_of(order, datasets), trends_of(order, datasets)
    return LayerGrades(
        profile=config.profile,
        thresholds=config.limits,
        dataset=config.dataset,
        ties=config.ties,
        datasets=datasets,
        saes=tuple(order),
        counts=counts,
        best=best,
        means=means,
        trends=trends,
        sentences=sentences_of(order, counts, best, means, trends),
        recommendations=recommendations_of(order, config.limits),
    )


def decide(grades: Sequence[DatasetGrade], *, dataset: str = WORST_CASE) -> DatasetGrade:
    """The dataset's grade that counts: of a primary dataset its own, else that with most failures.

    Of equal failures fewer passes decide, then the lower loss recovered, then the order given.
    """
    if dataset != WORST_CASE:
        return next(item for item in grades if item.dataset == dataset)

    def rank(item: DatasetGrade) -> tuple[int, int, float]:
        recovered = item.metric("loss_recovered").value
        return -(item.applicable - item.passed), item.passed, float("inf") if recovered is None else recovered

    return min([item for item in grades if item.source is not None] or list(grades), key=rank)


def _sae(title: str, group: Mapping[str, LayerRow], datasets: Sequence[str], config: GradingConfig) -> SaeGrade:
    first = next(iter(group.values()))
    graded = [_graded(group.get(name) or _absent(first, name), config) for name in datasets]
    missing = tuple(name for name in datasets if name not in group)
    decided = decide(graded, dataset=config.dataset)
    # A primary dataset asks for no other; the worst case of what is missing is not known.
    incomplete = decided.label == "healthy" and bool(missing) and config.dataset == WORST_CASE
    return SaeGrade(
        title=title,
        hookpoint=first.hookpoint,
        layer=first.layer,
        sae=first.sae,
        seed=first.seed,
        num_latents=first.num_latents,
        k=first.k,
        recipe=_recipe(first),
        passed=decided.passed,
        applicable=decided.applicable,
        label="incomplete" if incomplete else decided.label,
        undecided=decided.undecided,
        decided_by=decided.dataset if len(datasets) > 1 else None,
        missing=missing,
        datasets=tuple(graded),
        reasons=reasons_of(decided, missing, config),
        absorption_source=first.absorption_source,
        absorption_control=first.control,
        decoder_top_cosine=first.cosine,
    )


def _graded(row: LayerRow, config: GradingConfig) -> DatasetGrade:
    values = {metric: row.values[metric].value for metric in GRADED}
    grade = grade_layer(**values, profile=config)
    metrics = []
    for metric in GRADED:
        item = row.values[metric]
        across = () if item.low is None or item.high is None else crossed(metric, item.low, item.high, config.limits)
        limits = " and ".join(f"{limit:g}" for limit in across)
        metrics.append(
            GradedMetric(
                metric=metric,
                **item.model_dump(),
                outcome=getattr(grade, metric),
                undecided=f"{interval_text(item.low, item.high)} crosses {limits}" if across else None,
                note=_set_by_k(row.k, item.value) if metric == "l0" else None,
            )
        )
    return DatasetGrade(
        dataset=row.dataset,
        source=row.source,
        metrics=tuple(metrics),
        passed=grade.passed,
        applicable=grade.applicable,
        label=label(grade.passed, grade.applicable),
        undecided=any(metric.undecided for metric in metrics),
        checks=tuple(CheckResult(**check._asdict()) for check in row.checks),
    )


def _recipe(row: LayerRow) -> str:
    """What SAEs share that differ in their training seed alone, as JSON."""
    settings = {"num_latents": row.num_latents, "k": row.k, **row.training}
    return json.dumps({name: value for name, value in settings.items() if name != "seed"}, sort_keys=True)


def _absent(row: LayerRow, dataset: str) -> LayerRow:
    missing = Measured(value=None, reason=f"not evaluated on {dataset}")
    values: dict[str, Measured] = {name: row.values[name] if name == "absorption" else missing for name in GRADED}
    return row._replace(dataset=dataset, source=None, values=values, checks=())


def _set_by_k(k: int | None, l0: float | None) -> str | None:
    """TopK lets no more than k latents through, so its L0 is a setting before it is a result."""
    if k is None or l0 is None or l0 > k * (1 + 1e-9):
        return None
    return f"set by k = {k}" if l0 > 0.99 * k else f"at most k = {k}"


def _titles(rows: Sequence[LayerRow]) -> dict[str, str]:
    """Key -> hookpoint, with the settings in which the SAEs of one hookpoint differ."""
    titles = {}
    settings = {row.key: {"num_latents": row.num_latents, "k": row.k, "seed": row.seed, **row.training} for row in rows}
    for row in rows:
        beside = [settings[other.key] for other in rows if other.hookpoint == row.hookpoint]
        own = settings[row.key]
        differing = [name for name in own if any(other.get(name) != own[name] for other in beside)]
        said = [_WORDS.get(name, f"{name.replace('_', ' ')} {{}}").format(own[name]) for name in differing]
        if beside.count(own) > 1:
            said.append(row.key)
        titles[row.key] = f"{row.hookpoint} ({', '.join(said)})" if said else row.hookpoint
    return titles
