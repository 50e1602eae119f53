"""The step that probes SAEs for the labels of a user's table: what one, two or five latents know of each class.

Beside every sparse probe stand its nulls (the majority class, always saying yes, probes of permuted labels), the same
probe on a random SAE, and a probe of the whole activation as the ceiling. The surprising choice: which rows are masked
comes from the activation cache that the SAEs were trained on, as everywhere in layer health.

Payload: `results.json`, `report.md`, `tables/probes.parquet` (a row per hookpoint, class, features and k).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from saeinterp.artifacts import Artifact, ArtifactStore, Recipe, Ref, Workspace, read_json, write_json
from saeinterp.config import Placement, SparseProbingConfig, recipe_of
from saeinterp.errors import ConfigError, DataError
from saeinterp.health.evaluation import refuse_misfit
from saeinterp.health.letters.absorption import random_sae_like
from saeinterp.health.letters.logistic import SURE
from saeinterp.health.probing.k_sparse import Fit, fit_dense, fit_k_sparse, permuted, quality
from saeinterp.health.probing.labelled import LabelledTexts, labelled_fingerprint, read_labelled, split_rows
from saeinterp.health.probing.pooled import Pooled, Site, contexts_of, pool_texts
from saeinterp.health.probing.report import probing_report
from saeinterp.health.tally import RowMask
from saeinterp.progress import Progress, silent
from saeinterp.sae import TopKSae
from saeinterp.stats import OfTotals, always_yes, bootstrap_intervals, classification, wilson_interval
from saeinterp.subject import ActivationCache, load_subject
from saeinterp.subject.placement import main_device, placed

VERSION = 1
KIND = "sparse-probing"
SAE, RANDOM, DENSE = "sae", "random-sae", "activations"
_SCHEMA: dict[str, Any] = {
    "hookpoint": pl.String,
    "label": pl.String,
    "features": pl.String,
    "k": pl.Int64,
    "latents": pl.List(pl.Int64),
    "weights": pl.List(pl.Float64),
    "train_rows": pl.Int64,
    "train_positives": pl.Int64,
    "test_rows": pl.Int64,
    "test_positives": pl.Int64,
    "accuracy": pl.Float64,
    "accuracy_low": pl.Float64,
    "accuracy_high": pl.Float64,
    "f1": pl.Float64,
    "f1_low": pl.Float64,
    "f1_high": pl.Float64,
    "interval_reason": pl.String,
    "auroc": pl.Float64,
    "null_accuracy": pl.Float64,
    "null_f1": pl.Float64,
    "permuted_accuracy": pl.Float64,
    "permuted_f1": pl.Float64,
    "permuted_auroc": pl.Float64,
    "permuted_auroc_max": pl.Float64,
    "p_auroc": pl.Float64,
    "permutations": pl.Int64,
}


class _Task(NamedTuple):
    """One class against the rest; arrays over the rows that are used."""

    label: str
    truth: NDArray[np.bool_]
    test: NDArray[np.bool_]
    groups: NDArray[np.int64]
    dealt: list[NDArray[np.bool_]]
    """The permuted labels, the same for every hookpoint and SAE."""


def probe_labels_recipe(
    subject: Ref, activations: Ref, saes: Sequence[Ref], *, hookpoints: Sequence[str], config: SparseProbingConfig
) -> Recipe:
    """The recipe of a table's probes.

    Raises:
        DataError: The table is missing, empty or of an unknown kind.
        ConfigError: Not one SAE per hookpoint.
    """
    if len(saes) != len(hookpoints) or not saes or len(set(hookpoints)) != len(hookpoints):
        raise ConfigError("must name one hookpoint per SAE, each once", field="hookpoints", got=tuple(hookpoints))
    table = labelled_fingerprint(config)
    return Recipe(
        kind=KIND,
        name=f"{subject.name}-{table['title'].rpartition('.')[0]}",
        version=VERSION,
        config={**recipe_of(config), "table": table, "hookpoints": list(hookpoints)},
        inputs=(subject, activations, *saes),
    )


def probe_labels(
    subject: Artifact,
    activations: Artifact,
    saes: Sequence[Artifact],
    *,
    hookpoints: Sequence[str],
    config: SparseProbingConfig,
    store: ArtifactStore,
    device: str | Placement = "auto",
    progress: Progress | None = None,
) -> Artifact:
    """Probe one SAE per hookpoint for every class of the table; the texts run through the subject once.

    Args:
        activations: The cache the SAEs were trained on; gives masks, its activations are not read.
        saes: In the order of `hookpoints`.

    Raises:
        DataError: The table cannot be used (see `labelled.read_labelled`), an SAE does not fit its hookpoint, or the
            subject gives NaN or infinite activations.
        ConfigError: `ks` exceeds a dictionary, or the cache has no such hookpoint.
    """
    recipe = probe_labels_recipe(subject, activations, saes, hookpoints=hookpoints, config=config)
    report = progress or silent

    def write(space: Workspace) -> None:
        table = read_labelled(config)
        test = split_rows(table, config)  # before anything runs: it may refuse the table
        sites = {
            name: _site(activations, sae, name, config, main_device(placed(device)))
            for name, sae in zip(hookpoints, saes)
        }
        loaded = load_subject(subject, device=device)
        contexts, cut = contexts_of(loaded.tokenizer, table.texts, length=config.context_length)
        pooled = pool_texts(
            loaded,
            contexts,
            sites,
            pooling=config.pooling,
            batch_texts=config.batch_texts,
            work=space.work,
            report=report,
        )
        rows: list[dict[str, Any]] = []
        empty: dict[str, int] = {}
        for done, (name, found) in enumerate(pooled.items(), 1):
            keep = found.tokens > 0
            empty[name] = int((~keep).sum())
            rows += _probe_layer(name, found, keep, table, test, config)
            report(done, len(pooled), "layers probed")
        frame = pl.DataFrame(rows, schema=_SCHEMA)
        (space.out / "tables").mkdir()
        frame.write_parquet(space.out / "tables" / "probes.parquet", compression="zstd")
        results = {
            "table": labelled_fingerprint(config),
            "settings": recipe_of(config),
            "rows": len(table.texts),
            "groups": len(set(table.groups)),
            "distinct_texts": len(set(table.texts)),
            "classes": {
                label: {
                    side: sum(own == label and bool(held) == (side == "test") for own, held in zip(table.labels, test))
                    for side in ("train", "test")
                }
                for label in table.classes
            },
            "truncated": cut,
            "without_tokens": empty,
            "forward_passes": -(-len(contexts) // config.batch_texts),
            "layers": _averages(frame),
        }
        write_json(space.out / "results.json", results)
        (space.out / "report.md").write_text(probing_report(results, frame), encoding="utf-8")
        space.counts = {"rows": len(table.texts), "classes": len(table.classes), "probes": len(frame)}

    return store.build(recipe, write)


def read_probes(artifact: Artifact) -> tuple[dict[str, Any], pl.DataFrame]:
    """`results.json` and the table of probes."""
    results: dict[str, Any] = read_json(artifact.file("results.json"))
    return results, pl.read_parquet(artifact.file("tables") / "probes.parquet")


def _site(activations: Artifact, sae: Artifact, hookpoint: str, config: SparseProbingConfig, device: str) -> Site:
    cache = ActivationCache.open(activations, hookpoint)
    coder = TopKSae.load(sae.path, device=device)
    refuse_misfit(coder, d_in=cache.d_in, hookpoint=hookpoint)
    if max(config.ks) > coder.num_latents:
        raise ConfigError(
            f"the SAE of {hookpoint} has {coder.num_latents} latents",
            field="probing.ks",
            got=config.ks,
            expected=f"at most {coder.num_latents}",
        )
    saes = {SAE: coder, RANDOM: random_sae_like(coder, seed=config.seed)}
    return Site(RowMask.of(cache), cache.dtype, saes)


def _probe_layer(
    hookpoint: str,
    pooled: Pooled,
    keep: NDArray[np.bool_],
    table: LabelledTexts,
    test: NDArray[np.bool_],
    config: SparseProbingConfig,
) -> list[dict[str, Any]]:
    """The probes of one hookpoint, as rows of the table."""
    labels = np.array(table.labels, dtype=object)[keep]
    groups = np.unique(np.array(table.groups, dtype=object)[keep], return_inverse=True)[1].astype(np.int64)
    rows = []
    for index, label in enumerate(table.classes):
        truth, held = labels == label, test[keep]
        if not all(0 < truth[part].sum() < part.sum() for part in (held, ~held)):
            raise DataError(
                f"class '{label}' is left with no rows on one side, once texts without unmasked tokens are out",
                field=hookpoint,
                next_step="label longer texts",
            )
        generator = np.random.default_rng([config.seed, index])
        dealt = [permuted(truth, held, groups, generator) for _ in range(config.permutations)]
        task = _Task(label, truth, held, groups, dealt)
        for features, x in pooled.latents.items():
            fits = fit_k_sparse(x[keep], truth, held, config.ks)
            nulls = [fit_k_sparse(x[keep], labels_dealt, held, config.ks) for labels_dealt in dealt]
            for k, fit in fits.items():
                rows.append(_row(hookpoint, task, features, k, fit, [null[k] for null in nulls], config))
        scores = fit_dense(pooled.activations[keep], truth, held)
        rows.append(_row(hookpoint, task, DENSE, None, Fit([], [], scores), [], config))
    return rows


def _row(
    hookpoint: str, task: _Task, features: str, k: int | None, fit: Fit, nulls: list[Fit], config: SparseProbingConfig
) -> dict[str, Any]:
    truth = task.truth[task.test]
    found = quality(fit.scores, truth)
    null = [quality(item.scores, dealt[task.test]) for item, dealt in zip(nulls, task.dealt)]
    positives, negatives = int(truth.sum()), int((~truth).sum())
    # What always answering the training rows' larger class gets here.
    majority = positives if 2 * task.truth[~task.test].sum() > (~task.test).sum() else negatives
    (accuracy, f1), reason = _intervals(fit.scores, truth, task.groups[task.test], config)
    beaten = [item.auroc for item in null if item.auroc is not None]
    row: dict[str, Any] = {
        "hookpoint": hookpoint,
        "label": task.label,
        "features": features,
        "k": k,
        "latents": fit.features if k is not None else None,
        "weights": fit.weights if k is not None else None,
        "train_rows": int((~task.test).sum()),
        "train_positives": int(task.truth[~task.test].sum()),
        "test_rows": len(truth),
        "test_positives": positives,
        "accuracy": found.accuracy,
        "accuracy_low": accuracy[0],
        "accuracy_high": accuracy[1],
        "f1": found.f1,
        "f1_low": f1[0],
        "f1_high": f1[1],
        "interval_reason": reason,
        "auroc": found.auroc,
        "null_accuracy": majority / len(truth),
        "null_f1": float(always_yes(positives, negatives).f1),
    }
    if null and found.auroc is not None:
        row |= {
            "permuted_accuracy": float(np.mean([item.accuracy for item in null])),
            "permuted_f1": float(np.mean([item.f1 for item in null])),
            "permuted_auroc": float(np.mean(beaten)),
            "permuted_auroc_max": float(np.max(beaten)),
            "p_auroc": (1 + sum(value >= found.auroc for value in beaten)) / (1 + len(beaten)),
            "permutations": len(beaten),
        }
    return {name: row.get(name) for name in _SCHEMA}


Ends = tuple[float | None, float | None]


def _intervals(
    scores: NDArray[np.float64], truth: NDArray[np.bool_], groups: NDArray[np.int64], config: SparseProbingConfig
) -> tuple[tuple[Ends, Ends], str | None]:
    """95% intervals of accuracy and F1 over the test groups, given the probe; and why one is missing.

    Accuracy has Wilson's where every group is one row, because a bootstrap of answers that are all right says nothing.
    """
    said = scores > SURE
    ids, index = np.unique(groups, return_inverse=True)
    counts = np.stack([said & truth, said & ~truth, ~said & ~truth, ~said & truth], axis=1).astype(np.float64)
    columns = np.zeros((len(ids), 4))
    np.add.at(columns, index, counts)

    def values(totals: NDArray[np.float64]) -> NDArray[np.float64]:
        found = classification(*np.moveaxis(totals, -1, 0))
        return np.stack([found.accuracy, found.f1], axis=-1)

    accuracy, f1 = bootstrap_intervals(
        OfTotals(columns, values),
        len(ids),
        bounds=[(0.0, 1.0)] * 2,
        draws=config.bootstrap,
        seed=config.seed,
        unit="groups" if config.group_column else "texts",
    )
    if len(ids) == len(truth):
        accuracy = wilson_interval(int((said == truth).sum()), len(truth))
    return ((accuracy.low, accuracy.high), (f1.low, f1.high)), accuracy.reason or f1.reason


def _averages(frame: pl.DataFrame) -> list[dict[str, Any]]:
    """Means over classes, per hookpoint, features and k."""
    metrics = [
        "accuracy",
        "f1",
        "auroc",
        "null_accuracy",
        "null_f1",
        "permuted_accuracy",
        "permuted_f1",
        "permuted_auroc",
    ]
    means = frame.group_by(["hookpoint", "features", "k"], maintain_order=True).agg(
        *(pl.col(name).mean() for name in metrics), pl.len().alias("classes")
    )
    return means.to_dicts()
