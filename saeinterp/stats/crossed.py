"""Variance components of values [rows, columns] per group: how much groups, rows and columns contribute.

Rows and columns are crossed within a group and belong to it alone, as the documents and the sampled explanations of a
latent do. The surprising choice: estimates are those of the analysis of variance, unbiased and not cut at zero, so a
component that is not there comes out slightly below zero about as often as above.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from saeinterp.errors import DataError
from saeinterp.stats.intervals import Floats, Interval
from saeinterp.stats.resampling import OfTotals, bootstrap_intervals


class VarianceSplit(NamedTuple):
    """The variance of one group's mean over its rows, at one column, by where it comes from.

    Attributes:
        groups: Number of groups; `rows` and `columns` likewise, of all groups together and of each group.
        between: Variance of the groups' true means.
        of_rows: What the draw of rows adds: variance over rows / rows of a group.
        of_columns: What the draw of one column adds.
        rest: What is left, rows by columns: its variance / rows of a group.
        intervals: Of the four, by resampling groups.
    """

    groups: int
    rows: int
    columns: int
    between: float
    of_rows: float
    of_columns: float
    rest: float
    intervals: tuple[Interval, ...]


def split_variance(
    values: Sequence[Floats], *, draws: int = 2000, alpha: float = 0.05, seed: int = 0, unit: str = "groups"
) -> VarianceSplit:
    """Components of y = mean + group + row(group) + column(group) + rest, by the method of moments.

    With equal numbers of rows these are the estimates of the balanced analysis of variance (Searle, Casella & McCulloch
    1992, ch. 4): between = (MS_groups - MS_rows - MS_columns + MS_rest) / (rows * columns), and so on.

    Args:
        values: Per group, a table [rows, columns]; all of one number of columns, 2 or more.
        draws: Resamples of groups.
        unit: What the groups are, for the printed method.

    Raises:
        DataError: Under two groups, under two columns, or none with two rows.
    """
    tables = [np.asarray(table, dtype=np.float64) for table in values]
    widths = {table.shape[1] for table in tables}
    if len(tables) < 2 or len(widths) != 1 or min(widths, default=0) < 2 or max(map(len, tables)) < 2:
        raise DataError(
            "cannot be split into components",
            field="variance",
            got=f"{len(tables)} groups of {[table.shape for table in tables][:5]} rows and columns",
            expected="two groups or more, of two columns or more, one with two rows",
        )
    (columns,) = widths
    # Resampling takes totals of columns that are not negative; a shift changes no variance.
    lowest = min(float(table.mean()) for table in tables)
    statistic = OfTotals(np.array([_sums(table, lowest) for table in tables]), lambda totals: _parts(totals, columns))
    between, of_rows, of_columns, rest = (float(value) for value in statistic(np.ones(len(tables))))
    made = bootstrap_intervals(statistic, len(tables), draws=draws, alpha=alpha, seed=seed, unit=unit)
    rows = sum(map(len, tables))
    return VarianceSplit(len(tables), rows, columns, between, of_rows, of_columns, rest, intervals=tuple(made))


def _sums(table: Floats, lowest: float) -> list[float]:
    """1, mean and its square (above the lowest), 1 / rows, rows, rows - 1; sums of squares of rows, columns, rest."""
    rows, columns = table.shape
    mean = table.mean()
    by_row, by_column = table.mean(axis=1) - mean, table.mean(axis=0) - mean
    rest = table - mean - by_row[:, None] - by_column
    level = max(float(mean) - lowest, 0.0)
    return [
        *(1.0, level, level**2, 1 / rows, float(rows), rows - 1.0),
        columns * float(by_row @ by_row),
        rows * float(by_column @ by_column),
        float((rest**2).sum()),
    ]


def _parts(totals: Floats, columns: int) -> Floats:
    """Totals [..., 9] to the four parts [..., 4]; NaN where a resample leaves too little."""
    groups, level, squares, inverse, rows, free, of_rows, of_columns, of_rest = np.moveaxis(totals, -1, 0)

    def ratio(top: Floats, bottom: Floats) -> Floats:
        return np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=bottom > 0)

    rest = ratio(of_rest, free * (columns - 1))
    row = (ratio(of_rows, free) - rest) / columns
    column = ratio(ratio(of_columns, groups * (columns - 1)) - rest, ratio(rows, groups))
    share = ratio(inverse, groups)
    spread = ratio(squares - ratio(level**2, groups), groups - 1)
    between = spread - column / columns - share * (row + rest / columns)
    return np.stack([between, row * share, column, rest * share], axis=-1)
