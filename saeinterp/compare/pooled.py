"""The example-level parts of a comparison: pooled (micro) metrics, verdict-level tests, McNemar within a latent.

The surprising choice: nothing here treats examples as independent. Examples of one latent share its
explanation, so pooled metrics are resampled and swapped by whole latents, and McNemar is used only inside
one latent with one example per document (pooled McNemar rejects a true null 24 to 34% of the time).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import polars as pl

from saeinterp.compare.results import IntervalResult, MicroResult
from saeinterp.compare.tables import KEY, Side, usable_verdict
from saeinterp.errors import DataError
from saeinterp.progress import Progress
from saeinterp.stats import (
    OfTotals,
    PooledAuroc,
    SignFlips,
    bootstrap_intervals,
    classification,
    mcnemar_exact,
    swap_p_values,
)
from saeinterp.stats.intervals import Floats
from saeinterp.stats.paired import DRAWS, EXACT_PAIRS

POOLED = ("f1", "precision", "recall", "accuracy", "balanced_accuracy", "mcc")
"""Metrics of pooled counts."""
WEIGHTED = "frequency_weighted_f1"
MAX_AUROC_LATENTS = 500
"""Pooled AUROC compares every latent with every other: beyond this no interval is made."""


class VerdictLevel(NamedTuple):
    """Paired verdicts of both sides.

    Attributes:
        latents: Latents with at least one example judged by both sides.
        cells: Examples on which both, only a, only b, neither was right [4].
        p_value: Sign-flip p of sum(only b - only a), signs flipped per latent.
        method: How p was made.
    """

    latents: int
    cells: tuple[int, int, int, int]
    p_value: float
    method: str


class McNemar(NamedTuple):
    """Per latent [n]: discordant counts on one example per document, and the exact p."""

    only_a: np.ndarray
    only_b: np.ndarray
    examples: np.ndarray
    p: Floats


def micro_results(
    a: Side, b: Side, firings: Floats | None, *, draws: int, alpha: float, seed: int
) -> list[MicroResult]:
    """Pooled metrics of both sides in the order of `POOLED`, then frequency-weighted F1; without Holm p.

    Args:
        firings: Times each latent fired [n], the weights of the last metric; NaN where not known.
        draws: Bootstrap draws over latents.
    """
    names = (*POOLED, WEIGHTED)
    if a.counts is None or b.counts is None:
        return [no_micro(len(a.failed), "the table holds no confusion counts") for _ in names]
    n = len(a.counts)
    columns = [_with_weights(side, other, firings) for side, other in ((a, b), (b, a))]
    units = OfTotals(np.concatenate(columns), _pooled_metrics)
    both = OfTotals(np.concatenate(columns, axis=1), _both_and_difference)
    low = [-1.0 if name == "mcc" else 0.0 for name in names]
    bounds = [(x, 1.0) for x in low] * 2 + [(x - 1, 1 - x) for x in low]
    values = both(np.ones(n))
    intervals = bootstrap_intervals(both, n, bounds=bounds, draws=draws, alpha=alpha, seed=seed, unit="latents")
    p_values = swap_p_values(units, n, seed=seed)
    size = len(names)
    results = []
    for index, name in enumerate(names):
        value_a, value_b, difference = (_finite(values[index + part * size]) for part in range(3))
        missing = value_a is None or value_b is None
        reason = None
        if missing:
            reason = "firings are not known" if name == WEIGHTED else "undefined: one class of examples is absent"
        results.append(
            MicroResult(
                n=n,
                value_a=value_a,
                value_b=value_b,
                interval_a=IntervalResult.of(intervals[index]),
                interval_b=IntervalResult.of(intervals[index + size]),
                difference=difference,
                interval_difference=IntervalResult.of(intervals[index + 2 * size]),
                p_swap=None if missing else p_values[index],
                p_holm=None,
                method=None if missing else _swap_method(n),
                reason=reason,
            )
        )
    return results


def pooled_auroc(
    verdicts_a: pl.DataFrame | None,
    verdicts_b: pl.DataFrame | None,
    keys: pl.DataFrame,
    *,
    draws: int,
    alpha: float,
    seed: int,
) -> MicroResult:
    """AUROC of all latents' examples pooled; not the mean of within-latent AUROCs, and not tested."""
    n = len(keys)
    if verdicts_a is None or verdicts_b is None:
        return no_micro(n, "the table holds no verdicts")
    sides: list[PooledAuroc] = []
    for verdicts in (verdicts_a, verdicts_b):
        rows = verdicts.filter(usable_verdict())
        if not len(rows) or rows["probability"].null_count():
            return no_micro(n, "the scorer gave no probabilities")
        grouped = keys.join(
            rows.group_by(KEY, maintain_order=True).agg("truth", "probability"),
            on=KEY,
            how="left",
            maintain_order="left",
        )
        truths = [np.array(item if item is not None else [], dtype=bool) for item in grouped["truth"].to_list()]
        scores = [np.array(item if item is not None else [], dtype=float) for item in grouped["probability"].to_list()]
        sides.append(PooledAuroc(truths, scores))
    values = [float(side(np.ones(n))[0]) for side in sides]
    intervals: list[IntervalResult | None] = [None, None]
    reason = "the mean of within-latent AUROCs is the one that is tested"
    if not np.isfinite(values).all():
        return no_micro(n, "undefined: one class of examples is absent")
    if n <= MAX_AUROC_LATENTS:
        made = [
            bootstrap_intervals(side, n, bounds=[(0.0, 1.0)], draws=draws, alpha=alpha, seed=seed, unit="latents")[0]
            for side in sides
        ]
        intervals = [IntervalResult.of(interval) for interval in made]
    else:
        reason += f"; no interval above {MAX_AUROC_LATENTS} latents"
    return MicroResult(
        n=n,
        value_a=values[0],
        value_b=values[1],
        interval_a=intervals[0],
        interval_b=intervals[1],
        difference=values[1] - values[0],
        interval_difference=None,
        p_swap=None,
        p_holm=None,
        method=None,
        reason=reason,
    )


def paired_verdicts(verdicts_a: pl.DataFrame, verdicts_b: pl.DataFrame, keys: pl.DataFrame) -> pl.DataFrame:
    """Examples with a usable verdict on both sides: key, example_id, doc_id, right_a, right_b.

    Raises:
        DataError: The sides disagree on what is true of an example.
    """
    columns = [*KEY, "example_id", "doc_id", "truth", (pl.col("verdict") == pl.col("truth")).alias("right")]
    left, right = (
        verdicts.filter(usable_verdict()).select(columns).join(keys.select(KEY), on=KEY, how="semi")
        for verdicts in (verdicts_a, verdicts_b)
    )
    rows = left.join(right.drop("doc_id"), on=[*KEY, "example_id"], how="inner", suffix="_b", maintain_order="left")
    wrong = rows.filter(pl.col("truth") != pl.col("truth_b"))
    if len(wrong):
        row = wrong.row(0, named=True)
        raise DataError(
            f"the sides disagree on the truth of {len(wrong)} example(s)",
            field="verdicts",
            got=f"{row['hookpoint']} latent {row['latent']} example {row['example_id']}",
            expected="one example set on both sides",
        )
    return rows.select(*KEY, "example_id", "doc_id", pl.col("right").alias("right_a"), "right_b")


def verdict_level(pairs: pl.DataFrame, *, seed: int) -> VerdictLevel | None:
    """The verdict-level test over latents; None without paired verdicts."""
    if not len(pairs):
        return None
    a, b = pl.col("right_a"), pl.col("right_b")
    table = pairs.group_by(KEY, maintain_order=True).agg(
        both=(a & b).sum(), only_a=(a & ~b).sum(), only_b=(~a & b).sum(), neither=(~a & ~b).sum()
    )
    difference = table["only_b"].cast(pl.Int64) - table["only_a"].cast(pl.Int64)
    flips = SignFlips(difference.to_numpy().astype(np.float64), seed=seed)
    cells = [int(table[name].sum()) for name in ("both", "only_a", "only_b", "neither")]
    return VerdictLevel(len(table), (cells[0], cells[1], cells[2], cells[3]), flips.p_value(), flips.method)


def mcnemar_per_latent(pairs: pl.DataFrame, keys: pl.DataFrame, *, seed: int) -> McNemar:
    """Exact McNemar within each latent of `keys`, on one example per document drawn with the seed."""
    order = np.random.default_rng(seed).permutation(len(pairs))
    kept = pairs[order].unique(subset=[*KEY, "doc_id"], keep="first", maintain_order=True)
    a, b = pl.col("right_a"), pl.col("right_b")
    table = kept.group_by(KEY).agg(only_a=(a & ~b).sum(), only_b=(~a & b).sum(), examples=pl.len())
    rows = keys.select(KEY).join(table, on=KEY, how="left", maintain_order="left").fill_null(0)
    only_a, only_b, examples = (rows[name].to_numpy().astype(np.int64) for name in ("only_a", "only_b", "examples"))
    p = np.array([mcnemar_exact(int(x), int(y)) for x, y in zip(only_a, only_b)])
    return McNemar(only_a, only_b, examples, p)


def document_intervals(
    verdicts: pl.DataFrame,
    keys: pl.DataFrame,
    metrics: tuple[str, ...],
    *,
    draws: int,
    alpha: float,
    seed: int,
    progress: Progress,
    what: str,
) -> dict[str, tuple[Floats, Floats]]:
    """Per latent of `keys`, the interval of each metric over documents: metric -> (low [n], high [n]); NaN for none."""
    limits = {name: (np.full(len(keys), np.nan), np.full(len(keys), np.nan)) for name in metrics}
    truth, said = pl.col("truth"), pl.col("verdict")
    counts = (
        verdicts.filter(usable_verdict())
        .group_by([*KEY, "doc_id"])
        .agg(tp=(truth & said).sum(), fp=(~truth & said).sum(), tn=(~truth & ~said).sum(), fn=(truth & ~said).sum())
        .sort([*KEY, "doc_id"])
    )
    groups = dict(counts.group_by(KEY))
    bounds = [(-1.0 if name == "mcc" else 0.0, 1.0) for name in metrics]

    def values(totals: Floats) -> Floats:
        computed = classification(*np.moveaxis(totals, -1, 0))._asdict()
        return np.stack([computed[name] for name in metrics], axis=-1)

    for row, key in enumerate(keys.select(KEY).iter_rows()):
        progress(row, len(keys), what)
        if key not in groups:
            continue
        columns = groups[key].select("tp", "fp", "tn", "fn").to_numpy().astype(np.float64)
        made = bootstrap_intervals(
            OfTotals(columns, values),
            len(columns),
            bounds=bounds,
            draws=draws,
            alpha=alpha,
            seed=seed,
            unit="documents",
        )
        for name, interval in zip(metrics, made):
            if interval.low is not None and interval.high is not None:
                limits[name][0][row], limits[name][1][row] = interval.low, interval.high
    return limits


def _with_weights(side: Side, other: Side, firings: Floats | None) -> Floats:
    """Columns tp, fp, tn, fn, F1 * firings, firings [n, 6]; weight 0 where F1 is undefined on a side."""
    if side.counts is None:
        raise AssertionError("pooled metrics need counts")
    f1 = side.metrics["f1"]
    weight = np.zeros(len(f1)) if firings is None else np.nan_to_num(firings)
    weight = np.where(np.isnan(f1) | np.isnan(other.metrics["f1"]), 0.0, weight)
    return np.column_stack([side.counts, np.nan_to_num(f1) * weight, weight])


def _pooled_metrics(totals: Floats) -> Floats:
    """Totals [..., 6] to the metrics of `POOLED` and frequency-weighted F1 [..., 7]."""
    computed = classification(totals[..., 0], totals[..., 1], totals[..., 2], totals[..., 3])._asdict()
    weight = totals[..., 5]
    weighted = np.divide(totals[..., 4], weight, out=np.full(weight.shape, np.nan), where=weight > 0)
    return np.stack([*(computed[name] for name in POOLED), weighted], axis=-1)


def _both_and_difference(totals: Floats) -> Floats:
    first, second = _pooled_metrics(totals[..., :6]), _pooled_metrics(totals[..., 6:])
    return np.concatenate([first, second, second - first], axis=-1)


def _swap_method(n: int) -> str:
    how = f"exact over 2^{n}" if n <= EXACT_PAIRS else f"{DRAWS} draws"
    return f"sides swapped by latent, {how}"


def no_micro(n: int, reason: str) -> MicroResult:
    """A pooled metric that does not exist, with the reason."""
    return MicroResult(
        n=n,
        value_a=None,
        value_b=None,
        interval_a=None,
        interval_b=None,
        difference=None,
        interval_difference=None,
        p_swap=None,
        p_holm=None,
        method=None,
        reason=reason,
    )


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
