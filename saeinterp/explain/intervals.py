"""Estimates of one set of scores, with intervals: over documents within a latent, over latents beyond it.

The surprising choice: latents are the units of every pooled number, because the examples of one latent share its
explanation; examples taken as independent make intervals far too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import polars as pl

from saeinterp.progress import Progress, silent
from saeinterp.stats import (
    Interval,
    OfTotals,
    PooledAuroc,
    auroc,
    bootstrap_intervals,
    classification,
    mean_interval,
)
from saeinterp.stats.intervals import Floats

OVER_DOCUMENTS = ("f1", "balanced_accuracy")
"""Metrics of one latent that get an interval over its documents."""
POOLED = ("precision", "recall", "f1", "accuracy", "balanced_accuracy", "mcc")
"""Metrics of pooled counts."""
DOCUMENT_DRAWS = 1000
"""Resamples of the documents of one latent."""
MAX_AUROC_LATENTS = 500
"""Pooled AUROC compares every latent with every other: beyond this no interval is made."""


class Estimate(NamedTuple):
    """A number over latents and its 95% interval.

    Attributes:
        value: None where it is undefined.
        n: Latents behind it.
        low: Lower limit; None when there is no interval.
        high: Upper limit.
        interval: How the interval was made, or why there is none.
    """

    value: float | None
    n: int
    low: float | None
    high: float | None
    interval: str


def document_intervals(verdicts: pl.DataFrame, *, progress: Progress | None = None) -> pl.DataFrame:
    """Per latent, intervals over the documents of its usable verdicts; null under six documents.

    Returns:
        `latent` and, for each metric of `OVER_DOCUMENTS`, `<metric>_ci_low` and `<metric>_ci_high`.
    """
    truth, said = pl.col("truth"), pl.col("verdict")
    counts = (
        verdicts.filter(said.is_not_null())
        .group_by("latent", "doc_id")
        .agg(tp=(truth & said).sum(), fp=(~truth & said).sum(), tn=(~truth & ~said).sum(), fn=(truth & ~said).sum())
        .sort("latent", "doc_id")
    )

    def values(totals: Floats) -> Floats:
        found = classification(*np.moveaxis(totals, -1, 0))._asdict()
        return np.stack([found[name] for name in OVER_DOCUMENTS], axis=-1)

    report = progress or silent
    parts = counts.partition_by("latent", as_dict=True, maintain_order=True)
    rows = []
    for done, ((latent,), part) in enumerate(parts.items(), start=1):
        table = part.select("tp", "fp", "tn", "fn").to_numpy().astype(np.float64)
        made = bootstrap_intervals(
            OfTotals(table, values),
            len(table),
            bounds=[(0.0, 1.0)] * len(OVER_DOCUMENTS),
            draws=DOCUMENT_DRAWS,
            unit="documents",
        )
        limits = {f"{name}_ci_low": item.low for name, item in zip(OVER_DOCUMENTS, made, strict=True)}
        limits |= {f"{name}_ci_high": item.high for name, item in zip(OVER_DOCUMENTS, made, strict=True)}
        rows.append({"latent": latent, **limits})
        report(done, len(parts), "intervals over documents")
    names = [f"{name}_ci_{end}" for name in OVER_DOCUMENTS for end in ("low", "high")]
    return pl.DataFrame(rows, schema={"latent": pl.Int32, **dict.fromkeys(names, pl.Float64)})


def macro_estimate(column: pl.Series, *, bootstrap: bool = False) -> Estimate:
    """The mean over the latents that have the metric; its interval is that of the sign-flip test, inverted.

    Args:
        column: One value per latent; null where it is undefined.
        bootstrap: Resample latents instead, as for AUROC, itself a ratio over pairs.
    """
    values = column.drop_nulls().to_numpy().astype(np.float64)
    if not len(values):
        return Estimate(None, 0, None, None, "no latent has it")
    interval = mean_interval(values)
    if bootstrap:
        mean = OfTotals(np.stack([values, np.ones_like(values)], axis=1), _ratio)
        interval = bootstrap_intervals(mean, len(values), bounds=[(0.0, 1.0)], unit="latents")[0]
    return _estimate(math.fsum(values) / len(values), interval, len(values))


def pooled_estimates(latents: pl.DataFrame) -> dict[str, Estimate]:
    """Metrics of all examples pooled, F1 weighted by firings, and precision at natural prevalence.

    Args:
        latents: One row per judged latent: `tp`, `fp`, `tn`, `fn`, `f1`, `firings`, `prevalence` and
            `false_positives` (of random negatives), null where undefined.
    """
    names = (*POOLED, "frequency_weighted_f1", "natural_precision")
    n = len(latents)
    if not n:
        return {name: Estimate(None, 0, None, None, "no latent was judged") for name in names}
    counts = latents.select("tp", "fp", "tn", "fn").to_numpy().astype(np.float64)
    recall = pl.col("tp") / (pl.col("tp") + pl.col("fn"))
    share, wrong = pl.col("prevalence"), pl.col("false_positives")
    known = recall.is_not_nan() & share.is_not_null() & wrong.is_not_null()
    columns = latents.select(
        weighted=(pl.col("f1") * pl.col("firings")).fill_null(0.0),
        weight=pl.when(pl.col("f1").is_not_null()).then(pl.col("firings")).otherwise(0.0),
        right=pl.when(known).then(share * recall).otherwise(0.0),
        wrong=pl.when(known).then((1 - share) * wrong).otherwise(0.0),
        known=known.cast(pl.Float64),
    ).to_numpy()
    statistic = OfTotals(np.concatenate([counts, columns.astype(np.float64)], axis=1), _pooled)
    bounds = [(-1.0 if name == "mcc" else 0.0, 1.0) for name in names]
    intervals = bootstrap_intervals(statistic, n, bounds=bounds, unit="latents")
    values = statistic(np.ones(n))
    return {name: _estimate(float(values[i]), intervals[i], n) for i, name in enumerate(names)}


def pooled_auroc(truths: Sequence[Sequence[bool]], probabilities: Sequence[Sequence[float]]) -> Estimate:
    """AUROC of all latents' examples together; not the mean of within-latent AUROCs.

    Args:
        truths: Per latent, whether it fires in each example with a usable verdict.
        probabilities: Per latent, P(match) of the same examples.
    """
    n = len(truths)
    value = auroc([item for part in truths for item in part], [item for part in probabilities for item in part])
    if value is None:
        return Estimate(None, n, None, None, "one class of examples is absent")
    if n > MAX_AUROC_LATENTS:
        return Estimate(value, n, None, None, f"no interval above {MAX_AUROC_LATENTS} latents")
    statistic = PooledAuroc(
        [np.array(part, dtype=bool) for part in truths], [np.array(part, dtype=np.float64) for part in probabilities]
    )
    return _estimate(value, bootstrap_intervals(statistic, n, bounds=[(0.0, 1.0)], unit="latents")[0], n)


def _pooled(totals: Floats) -> Floats:
    """Totals [..., 9] to values [..., 8]."""
    found = classification(*np.moveaxis(totals[..., :4], -1, 0))._asdict()
    weighted = _ratio(totals[..., 4:6])
    right, said = totals[..., 6], totals[..., 6] + totals[..., 7]
    # As any precision: 0 where nothing is said to match, undefined only where nothing is known.
    natural = _ratio(np.stack([right, np.where(said > 0, said, totals[..., 8])], axis=-1))
    return np.concatenate([np.stack([found[name] for name in POOLED], axis=-1), weighted, natural], axis=-1)


def _ratio(totals: Floats) -> Floats:
    """First over second of totals [..., 2], as [..., 1]; NaN over 0."""
    top, bottom = totals[..., 0], totals[..., 1]
    return np.divide(top, bottom, out=np.full(bottom.shape, np.nan), where=bottom > 0)[..., None]


def _estimate(value: float, interval: Interval, n: int) -> Estimate:
    known = value if math.isfinite(value) else None
    return Estimate(known, n, interval.low, interval.high, interval.reason or interval.method)
