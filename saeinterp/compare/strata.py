"""How often each side says "match", by activation quantile of true examples and by kind of false ones.

The surprising choice: no test here. Strata say where a score comes from (strong activations only? easy
negatives only?); ten more p values per comparison would only find noise.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from saeinterp.compare.results import IntervalResult, StratumResult
from saeinterp.compare.tables import KEY, usable_verdict
from saeinterp.stats import Interval, OfTotals, bootstrap_intervals
from saeinterp.stats.intervals import Floats

_STRATUM = ["truth", "kind", "quantile"]


def strata_results(
    verdicts_a: pl.DataFrame | None,
    verdicts_b: pl.DataFrame | None,
    keys: pl.DataFrame,
    *,
    draws: int,
    alpha: float,
    seed: int,
) -> list[StratumResult]:
    """Share of usable verdicts that say "match" per stratum, with intervals over latents; empty without verdicts."""
    if verdicts_a is None or verdicts_b is None or "kind" not in verdicts_a.columns:
        return []
    usable = [_usable(verdicts, keys) for verdicts in (verdicts_a, verdicts_b)]
    strata = (
        pl.concat([rows.select(_STRATUM) for rows in usable])
        .unique()
        .sort(["truth", "kind", "quantile"], descending=[True, False, False], nulls_last=True)
    )
    if not len(strata):
        return []
    sides = [_shares(rows, strata, keys, draws=draws, alpha=alpha, seed=seed) for rows in usable]
    results = []
    for index, row in enumerate(strata.iter_rows(named=True)):
        (share_a, interval_a, examples_a), (share_b, interval_b, examples_b) = (side[index] for side in sides)
        results.append(
            StratumResult(
                kind=row["kind"],
                quantile=row["quantile"],
                truth=row["truth"],
                examples_a=examples_a,
                examples_b=examples_b,
                share_a=share_a,
                share_b=share_b,
                interval_a=IntervalResult.of(interval_a),
                interval_b=IntervalResult.of(interval_b),
            )
        )
    return results


def _usable(verdicts: pl.DataFrame, keys: pl.DataFrame) -> pl.DataFrame:
    rows = verdicts.filter(usable_verdict()).join(keys.select(KEY), on=KEY, how="semi")
    if "quantile" not in rows.columns:
        rows = rows.with_columns(quantile=pl.lit(None, dtype=pl.Int8))
    return rows.with_columns(pl.col("quantile").cast(pl.Int64)).select(*KEY, *_STRATUM, "verdict")


def _shares(
    rows: pl.DataFrame, strata: pl.DataFrame, keys: pl.DataFrame, *, draws: int, alpha: float, seed: int
) -> list[tuple[float | None, Interval, int]]:
    """Per stratum: share of "match", its interval over latents, usable verdicts."""
    size = len(strata)
    columns = np.zeros((len(keys), 2 * size))
    cells = (
        rows.join(strata.with_row_index("stratum"), on=_STRATUM, how="inner", nulls_equal=True)
        .group_by([*KEY, "stratum"])
        .agg(yes=pl.col("verdict").sum(), count=pl.len())
        .join(keys.select(KEY).with_row_index("row"), on=KEY, how="inner")
    )
    row, stratum = cells["row"].to_numpy(), cells["stratum"].to_numpy()
    columns[row, stratum] = cells["yes"].to_numpy()
    columns[row, size + stratum] = cells["count"].to_numpy()

    def share(totals: Floats) -> Floats:
        yes, count = totals[..., :size], totals[..., size:]
        return np.divide(yes, count, out=np.full(yes.shape, np.nan), where=count > 0)

    statistic = OfTotals(columns, share)
    values = statistic(np.ones(len(keys)))
    intervals = bootstrap_intervals(
        statistic, len(keys), bounds=[(0.0, 1.0)] * size, draws=draws, alpha=alpha, seed=seed, unit="latents"
    )
    counts = columns[:, size:].sum(axis=0)
    return [
        (float(value) if np.isfinite(value) else None, interval, int(count))
        for value, interval, count in zip(values, intervals, counts)
    ]
