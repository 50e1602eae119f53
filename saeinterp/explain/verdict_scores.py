"""Scores of a table of verdicts, for use outside the flows: pooled and per-latent metrics with bounds and interval.

The surprising choice: the interval of the pooled F1 resamples whole latents, since the examples of one latent share
its explanation; examples taken as independent make it far too narrow.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import polars as pl

from saeinterp.errors import DataError
from saeinterp.explain.metrics import VerdictMetrics, verdict_metrics
from saeinterp.stats import OfTotals, bootstrap_intervals, classification
from saeinterp.stats.intervals import Floats

REQUIRED = {"latent": (), "truth": (pl.Boolean,), "prediction": (pl.Boolean, pl.Null)}
"""Columns that must be there, with the types they may have (any where none is named)."""


class VerdictScores(NamedTuple):
    """Metrics of verdicts; None where the examples leave one undefined, see `saeinterp.stats.classification`.

    Attributes:
        micro_f1: Of all latents' examples pooled, as are `micro_precision`, `micro_recall` and `balanced_accuracy`.
        macro_f1: Mean of the latents' F1, over those that have one.
        frequency_weighted_f1: `sum(F1 * firings) / sum(firings)` over those latents; None without `firings`.
        auroc: Mean of within-latent AUROCs, over latents with both classes; None without `probability`.
        coverage: Share of examples with a verdict; the metrics above are of these.
        micro_f1_low: Lower end of the 95% bootstrap interval over latents; None below six latents.
        micro_f1_high: Its upper end.
        interval: How it was made, or why there is none.
        micro_f1_worst: Pooled F1 if every missing verdict were wrong.
        micro_f1_best: If every one were right.
        micro_f1_always_yes: Pooled F1 of answering "match" to everything.
        num_latents: Latents in the table.
        num_examples: Its rows, those without a verdict included.
    """

    micro_f1: float | None
    macro_f1: float | None
    micro_precision: float | None
    micro_recall: float | None
    balanced_accuracy: float | None
    frequency_weighted_f1: float | None
    auroc: float | None
    coverage: float
    micro_f1_low: float | None
    micro_f1_high: float | None
    interval: str
    micro_f1_worst: float | None
    micro_f1_best: float | None
    micro_f1_always_yes: float | None
    num_latents: int
    num_examples: int


def score_verdicts(frame: pl.DataFrame, *, seed: int = 0) -> VerdictScores:
    """Score verdicts.

    Args:
        frame: One row per example: `latent`, `truth` (bool), `prediction` (bool, null = no verdict) and, where known,
            `probability` (of a match, in [0, 1]) and `firings` (how often the latent fires, one value per latent).
        seed: Of the bootstrap.

    Raises:
        DataError: A column is missing or of another type, the frame is empty, `truth` has nulls, `probability` or
            `firings` is out of range, or a latent has several `firings`.
    """
    _check(frame)
    has_probability = "probability" in frame.columns
    latents = frame.partition_by("latent", maintain_order=True)
    per_latent = [_metrics(part, has_probability) for part in latents]
    pooled = _metrics(frame, has_probability)
    counts = np.array([[item.tp, item.fp, item.tn, item.fn] for item in per_latent], dtype=np.float64)
    interval = bootstrap_intervals(OfTotals(counts, _f1), len(counts), bounds=[(0.0, 1.0)], seed=seed, unit="latents")[
        0
    ]
    known = [item.f1 for item in per_latent if item.f1 is not None]
    areas = [item.auroc for item in per_latent if item.auroc is not None]
    assert pooled.coverage is not None
    return VerdictScores(
        micro_f1=pooled.f1,
        macro_f1=_mean(known),
        micro_precision=pooled.precision,
        micro_recall=pooled.recall,
        balanced_accuracy=pooled.balanced_accuracy,
        frequency_weighted_f1=_weighted(latents, per_latent),
        auroc=_mean(areas),
        coverage=pooled.coverage,
        micro_f1_low=interval.low,
        micro_f1_high=interval.high,
        interval=interval.reason or interval.method,
        micro_f1_worst=pooled.f1_low,
        micro_f1_best=pooled.f1_high,
        micro_f1_always_yes=pooled.f1_always_yes,
        num_latents=len(latents),
        num_examples=pooled.n,
    )


def _metrics(rows: pl.DataFrame, has_probability: bool) -> VerdictMetrics:
    probability = rows["probability"].to_list() if has_probability else [None] * len(rows)
    return verdict_metrics(rows["truth"].to_list(), rows["prediction"].to_list(), probability)


def _f1(totals: Floats) -> Floats:
    return classification(*np.moveaxis(totals, -1, 0)).f1[..., None]


def _weighted(latents: list[pl.DataFrame], metrics: list[VerdictMetrics]) -> float | None:
    if "firings" not in latents[0].columns:
        return None
    pairs = [(item.f1, part["firings"][0]) for part, item in zip(latents, metrics, strict=True) if item.f1 is not None]
    total = math.fsum(weight for _, weight in pairs)
    return math.fsum(f1 * weight for f1, weight in pairs) / total if total else None


def _mean(values: list[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _check(frame: pl.DataFrame) -> None:
    for name, types in REQUIRED.items():
        if name not in frame.columns:
            raise DataError("is missing", field=name, got=", ".join(frame.columns) or "no column", expected=_COLUMNS)
        if types and frame.schema[name] not in types:
            raise DataError("has another type", field=name, got=str(frame.schema[name]), expected="Boolean")
    if not len(frame):
        raise DataError("has no rows", field="frame", expected="one row per example")
    for name in ("latent", "truth"):
        if frame[name].null_count():
            raise DataError("holds nulls", field=name, got=frame[name].null_count(), expected="a value in every row")
    if "probability" in frame.columns:
        known = frame["probability"].drop_nulls()
        if not known.is_between(0, 1).all():
            raise DataError("is no probability", field="probability", got=(known.min(), known.max()), expected="[0, 1]")
    if "firings" in frame.columns:
        firings = frame["firings"]
        if firings.null_count() or not (firings.is_finite() & (firings >= 0)).all():
            raise DataError("is no count", field="firings", expected="a number of 0 or more in every row")
        several = frame.group_by("latent").agg(pl.col("firings").n_unique()).filter(pl.col("firings") > 1)
        if len(several):
            raise DataError(
                "differs within a latent", field="firings", got=f"latent {several['latent'][0]}", expected="one value"
            )


_COLUMNS = "latent, truth, prediction, and optionally probability, firings"
