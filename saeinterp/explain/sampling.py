"""Several explanations per latent: their mean score, and where the variance of a score comes from.

The surprising choice: a score such as F1 is no mean over documents, so it is split by jackknife pseudo-values
(Efron & Tibshirani 1993, ch. 11): leaving out one document at a time gives each document's part in the score, and for
accuracy with one example per document these parts are the verdicts themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from saeinterp.errors import DataError
from saeinterp.explain.explanation_table import SAMPLE
from saeinterp.explain.score_tables import SCORE_SCHEMA
from saeinterp.stats import OfTotals, PooledAuroc, Statistic, classification, split_variance
from saeinterp.stats.intervals import Floats

OF_VERDICTS = ("precision", "recall", "f1", "accuracy", "balanced_accuracy", "mcc")
PARTS = ("latents", "documents", "sampling", "rest")
"""Where the variance of the score of one explanation of one latent comes from; `rest` is documents by sampling."""
ROUNDING = 1e-12
"""A part that is smaller is none."""
_SUMMED = ("n", "usable", "tp", "fp", "tn", "fn")
_OF_ONE = ("hookpoint", "prevalence", "firings", "density")


def numbered(tables: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Tables of the same latents as one, with the number of the explanation behind `latent`."""
    parts = [table.with_columns(pl.lit(number, dtype=pl.Int32).alias(SAMPLE)) for number, table in enumerate(tables)]
    return (
        pl.concat(parts)
        .select("latent", SAMPLE, pl.exclude("latent", SAMPLE))
        .sort("latent", SAMPLE, maintain_order=True)
    )


def mean_scores(samples: pl.DataFrame) -> pl.DataFrame:
    """`scores.parquet` of latents with several explanations: counts summed, every metric averaged where it is defined.

    A latent is `scored` where one of its explanations is, and shows the first of these. Intervals over documents, which
    would be those of another number, are left out.

    Args:
        samples: `samples.parquet`: rows of `scores.parquet` per latent and sample.
    """
    scored = pl.col("status") == "scored"
    kept = (*_SUMMED, *_OF_ONE, "latent", "status", "explanation", "coverage")
    averaged = [name for name in SCORE_SCHEMA if name not in kept and "_ci_" not in name]
    found = samples.group_by("latent", maintain_order=True).agg(
        pl.when(scored.any()).then(pl.lit("scored")).otherwise(pl.col("status").first()).first().alias("status"),
        pl.col("explanation").drop_nulls().first(),
        pl.col(_OF_ONE).first(),
        pl.col(_SUMMED).sum(),
        pl.col(averaged).mean(),
    )
    coverage = pl.when(pl.col("n") > 0).then(pl.col("usable") / pl.col("n")).alias("coverage")
    absent = [pl.lit(None).alias(name) for name in SCORE_SCHEMA if "_ci_" in name]
    whole_table = found.with_columns(coverage, *absent).select(list(SCORE_SCHEMA))
    return whole_table.cast(pl.Schema(SCORE_SCHEMA)).sort("latent")


def verdict_variance(verdicts: pl.DataFrame) -> dict[str, Any]:
    """Per metric of verdicts the split of its variance.

    Args:
        verdicts: Rows of `verdicts.parquet` with the number of the explanation; all of one number of them a latent.
    """
    said = verdicts.filter(pl.col("verdict").is_not_null())
    truth, answer = pl.col("truth"), pl.col("verdict")
    counts = said.group_by("latent", SAMPLE, "doc_id").agg(
        tp=(truth & answer).sum(),
        fp=(~truth & answer).sum(),
        tn=(~truth & ~answer).sum(),
        fn=(truth & ~answer).sum(),
    )
    shared = verdicts.select("latent", SAMPLE, "doc_id").unique()
    counts = shared.join(counts, on=["latent", SAMPLE, "doc_id"], how="left").fill_null(0)
    found = {}
    tables = _tables(counts, ["tp", "fp", "tn", "fn"])
    for name in OF_VERDICTS:
        values = [
            np.stack([_pseudo_values(OfTotals(part, _metric(name)), len(part)) for part in parts], axis=1)
            for parts in tables
        ]
        found[name] = _split(values)
    if not said["probability"].null_count():
        found["auroc"] = _split([_auroc_values(rows) for _, rows in said.group_by("latent", maintain_order=True)])
    return found


def correlation_variance(windows: pl.DataFrame) -> dict[str, Any]:
    """The split of the correlation of predicted and true activations.

    Args:
        windows: Rows of `simulations.parquet` with the number of the explanation and the true `activations`.
    """
    known = windows.filter(status="ok").select("latent", SAMPLE, "doc_id", "predicted", "activations")
    tokens = known.explode("predicted", "activations").with_columns(
        x=pl.col("activations").abs().cast(pl.Float64), y=pl.col("predicted").cast(pl.Float64)
    )
    x, y = pl.col("x"), pl.col("y")
    sums = tokens.group_by("latent", SAMPLE, "doc_id").agg(
        n=pl.len().cast(pl.Float64), x=x.sum(), y=y.sum(), xx=(x * x).sum(), yy=(y * y).sum(), xy=(x * y).sum()
    )
    columns = ["n", "x", "y", "xx", "yy", "xy"]
    values = [
        np.stack([_pseudo_values(OfTotals(part, _pearson), len(part)) for part in parts], axis=1)
        for parts in _tables(sums, columns)
    ]
    return {"correlation": _split(values)}


def _tables(sums: pl.DataFrame, columns: Sequence[str]) -> list[list[Floats]]:
    """Per latent, per explanation, document sums [documents, columns]; latents whose documents differ are left out."""
    found = []
    samples = sums[SAMPLE].n_unique()
    for _, rows in sums.sort("latent", SAMPLE, "doc_id").group_by("latent", maintain_order=True):
        parts = rows.partition_by(SAMPLE, maintain_order=True)
        documents = [part["doc_id"].to_list() for part in parts]
        if len(parts) == samples and all(item == documents[0] for item in documents):
            found.append([part.select(columns).to_numpy().astype(np.float64) for part in parts])
    return found


def _auroc_values(rows: pl.DataFrame) -> Floats:
    """Pseudo-values of one latent's AUROC [documents, explanations]; NaN where its documents differ."""
    columns = []
    for part in rows.sort(SAMPLE, "doc_id", "example_id").partition_by(SAMPLE, maintain_order=True):
        documents = part.group_by("doc_id", maintain_order=True).agg("truth", "probability")
        truths = [np.array(item, dtype=bool) for item in documents["truth"]]
        scores = [np.array(item, dtype=np.float64) for item in documents["probability"]]
        columns.append(_pseudo_values(PooledAuroc(truths, scores), len(documents)))
    if len({len(column) for column in columns}) > 1:
        return np.full((1, len(columns)), np.nan)
    return np.stack(columns, axis=1)


def _pseudo_values(statistic: Statistic, documents: int) -> Floats:
    """n value(all) - (n - 1) value(all but one), per document [n]; the value itself where there is one document."""
    weights = np.ones(documents)
    whole = statistic(weights)[0]
    if documents < 2:
        return np.array([whole])
    return documents * whole - (documents - 1) * statistic.without_each(weights)[:, 0]


def _metric(name: str) -> Any:
    return lambda totals: classification(*np.moveaxis(totals, -1, 0))._asdict()[name][..., None]


def _pearson(totals: Floats) -> Floats:
    """Sums [..., 6] to the correlation [..., 1]; 0 where the predictions do not vary, as in the score."""
    n, x, y, xx, yy, xy = np.moveaxis(totals, -1, 0)
    true, said, together = n * xx - x * x, n * yy - y * y, n * xy - x * y
    scale = np.sqrt(np.maximum(true, 0) * np.maximum(said, 0))
    varies = scale > 1e-9 * np.maximum(n * xx, 1)
    found = np.divide(together, scale, out=np.zeros(np.shape(scale)), where=varies)
    return np.where(true > 0, found, np.nan)[..., None]


def _split(values: Sequence[Floats]) -> dict[str, Any]:
    """The split over the latents whose parts are all defined, with n of each, or why there is none."""
    whole = [table for table in values if np.isfinite(table).all()]
    facts: dict[str, Any] = {"left_out": len(values) - len(whole)}
    try:
        split = split_variance(whole, unit="latents")
    except DataError as error:
        return {**facts, "reason": str(error)}
    of = {"latents": split.groups, "documents": split.rows, "sampling": split.columns, "rest": split.rows}
    amounts = (split.between, split.of_rows, split.of_columns, split.rest)
    parts = {
        name: {
            "value": value if abs(value) > ROUNDING else 0.0,
            "n": of[name],
            "low": interval.low,
            "high": interval.high,
            "interval": interval.reason or interval.method,
        }
        for name, value, interval in zip(PARTS, amounts, split.intervals, strict=True)
    }
    return {**facts, **parts, "reason": None}
