"""A side whose latents have several explanations each: every metric is the mean over them.

The surprising choice: confusion counts are averaged too, not summed, so that a side with three explanations a latent
and one with a single one weigh the same when sides are swapped in a test.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from saeinterp.compare.tables import ScoreTable, Side, side_columns
from saeinterp.stats.intervals import Floats

SEVERAL = "a latent has several explanations on one side, and an example a verdict for each"


def side_of(table: ScoreTable, keys: pl.DataFrame) -> Side:
    """`side_columns`, averaged over the explanations of each latent where there are several."""
    if table.samples is None:
        return side_columns(table, keys)
    parts = []
    for number in sorted(table.samples["sample"].unique()):
        verdicts = None if table.verdicts is None else table.verdicts.filter(sample=number)
        one = ScoreTable(table.title, table.samples.filter(sample=number), verdicts, floor=table.floor)
        parts.append(side_columns(one, keys))
    names = dict.fromkeys(name for part in parts for name in part.metrics)
    return Side(
        title=table.title,
        metrics={name: _mean([part.metrics[name] for part in parts if name in part.metrics]) for name in names},
        always_yes=parts[0].always_yes,
        counts=_over(parts, "counts", total=False),
        unusable=_over(parts, "unusable", total=False),
        examples=_over(parts, "examples", total=True),
        usable=_over(parts, "usable", total=True),
        failed=np.logical_and.reduce([part.failed for part in parts]),
        samples=tuple(parts),
    )


def _mean(columns: list[Floats]) -> Floats:
    """Mean over explanations where the metric is defined; NaN where it is for none."""
    stacked = np.stack(columns)
    known = np.isfinite(stacked)
    total = np.where(known, stacked, 0.0).sum(axis=0)
    return np.divide(total, known.sum(axis=0), out=np.full(total.shape, np.nan), where=known.any(axis=0))


def _over(parts: list[Side], name: str, *, total: bool) -> Floats | None:
    columns = [getattr(part, name) for part in parts]
    if any(column is None for column in columns):
        return None
    summed: Floats = np.sum(columns, axis=0)
    return summed if total else summed / len(parts)
