"""The tables of a report as CSV, for spreadsheets and for tools that read no Parquet.

The surprising choice: text that a spreadsheet would run as a formula gets an apostrophe before it, since labels,
tokens and replies come from models. Whoever needs the exact text reads the Parquet file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saeinterp.errors import DataError

if TYPE_CHECKING:
    import polars as pl

BATCH_ROWS = 20_000
"""Rows held in memory at once."""
_FORMULA = r"^[=+\-@\t\r\n＝＋－＠]"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # without it Excel reads another encoding


def write_csv(folder: Path, out: Path) -> list[Path]:
    """Write every table of a report as `<out>/<table>.csv`; returns the files.

    UTF-8 with a byte order mark, header first, numbers unrounded, nulls empty (an empty text is `""`), lists and
    structures as JSON.

    Args:
        folder: A report folder.
        out: Is made where it is missing; files of the same names are replaced.

    Raises:
        DataError: The report has no tables.
    """
    tables = sorted((folder / "tables").glob("*.parquet"))
    if not tables:
        raise DataError("the report has no tables", field=str(folder), expected="tables/*.parquet")
    out.mkdir(parents=True, exist_ok=True)
    return [_write(path, out / f"{path.stem}.csv") for path in tables]


def _write(source: Path, target: Path) -> Path:
    unfinished = target.with_name(f".{target.name}.part")
    with unfinished.open("wb") as handle:
        handle.write(_BYTE_ORDER_MARK)
        for number, frame in enumerate(_batches(source)):
            frame.select(_cell(frame[name]) for name in frame.columns).write_csv(handle, include_header=number == 0)
    unfinished.replace(target)
    return target


def _batches(path: Path) -> Iterator[pl.DataFrame]:
    """The rows in order; a table without rows gives one empty frame, for its header."""
    import polars as pl
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        empty = True
        for batch in file.iter_batches(batch_size=BATCH_ROWS):
            empty = False
            yield _framed(pl.from_arrow(batch))
        if empty:
            yield _framed(pl.from_arrow(file.schema_arrow.empty_table()))


def _framed(found: Any) -> pl.DataFrame:
    import polars as pl

    assert isinstance(found, pl.DataFrame)
    return found


def _cell(column: pl.Series) -> pl.Series:
    """A column as CSV can hold it."""
    import polars as pl

    kind = column.dtype
    if kind.is_nested() or kind == pl.Binary:
        texts = [None if value is None else _json(value) for value in column.to_list()]
        return pl.Series(column.name, texts, dtype=pl.String)
    if kind.is_float():
        return column.fill_nan(None)
    if kind in (pl.Categorical, pl.Enum, pl.Object):
        column = column.cast(pl.String)
    if column.dtype != pl.String:
        return column
    # Many readers take NUL for the end of the file.
    text = column.str.replace_all("\x00", "␀", literal=True)
    return pl.select(
        pl.when(text.str.contains(_FORMULA)).then(pl.lit("'") + text).otherwise(text).alias(column.name)
    ).to_series()


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=_plain).replace("\x00", "␀")


def _plain(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else value.to_list() if hasattr(value, "to_list") else str(value)
