"""The table of scores in an outside file of any format, before its cells are read.

The surprising choice: of a Markdown report the first table with a latent column is taken and the others are named,
since reports repeat the same scores in several tables.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from saeinterp.compare.imported.headings import Layout, layout_of
from saeinterp.compare.imported.records import ScoreFile
from saeinterp.errors import ConfigError, DataError
from saeinterp.health.imported.cells import Place, plain_text
from saeinterp.health.imported.files import csv_table, parse_json, read_bytes, read_text, starts_table, table_at

FORMATS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".json": "json",
    ".md": "markdown",
    ".markdown": "markdown",
    ".txt": "markdown",
}
_WIDE = (
    "a column latent, and one column of values per explainer (Qwen 70B F1), or columns latent, explainer, metric, value"
)


class FileTable(NamedTuple):
    """A table of one file, before its cells are read."""

    file: ScoreFile
    line: int
    header: list[str]
    rows: list[tuple[int, list[Any]]]
    layout: Layout

    def place(self, line: int, at: int) -> Place:
        """Where a cell stands."""
        return Place(self.file.file, line, plain_text(self.header[at]), self.file.unit)


def open_table(file: Path, columns: Sequence[str], notes: list[str]) -> tuple[FileTable, list[str]]:
    """The table of scores in a file and, of Markdown, all its lines.

    Args:
        columns: Headings of the columns with the explainers' values, where the user names them.
        notes: Gets a line for whatever is not read.

    Raises:
        DataError: The file cannot be read or holds no table of scores.
        ConfigError: Its suffix is unknown, or a chosen column is not there.
    """
    kind = FORMATS.get(file.suffix.lower())
    if kind is None:
        raise ConfigError("unknown kind of file", field="FILE", got=file.name, expected=", ".join(FORMATS))
    lines: list[str] = []
    if kind == "parquet":
        data, digest = read_bytes(file)
        tables = [_records(_parquet(data, file.name))]
    else:
        text, digest = read_text(file)
        if kind == "json":
            tables = [_records(_json_rows(text, file.name))]
        elif kind == "csv":
            one = csv_table(text, file.name)
            tables = [(one.line, one.header, list(one.rows))] if one is not None else []
        else:
            lines = text.splitlines()
            tables = list(_markdown_tables(lines, file.name))
    unit: Literal["line", "row"] = "row" if kind in ("json", "parquet") else "line"
    source = ScoreFile(file=file.name, sha256=digest, unit=unit)
    fitting = []
    for line, header, rows in tables:
        layout = layout_of(header, [cells for _, cells in rows], chosen=columns)
        if layout is not None and rows:
            fitting.append(FileTable(source, line, header, rows, layout))
    if not fitting:
        headings = [plain_text(name) for _, header, _ in tables for name in header]
        raise DataError("holds no table of scores", field=file.name, got=", ".join(headings) or "none", expected=_WIDE)
    table = fitting[0]
    wanted = [name for name in columns if name not in {column.heading for column in table.layout.columns}]
    if wanted:
        raise ConfigError(
            "the table has no such column",
            field="--column",
            got=", ".join(wanted),
            expected=", ".join(plain_text(name) for name in table.header),
        )
    notes += [f"{file.name}: the table on line {other.line} is not read" for other in fitting[1:]]
    if table.layout.unread:
        notes.append(f"{file.name}: columns not read: {', '.join(table.layout.unread)}")
    return table, lines


def _markdown_tables(lines: Sequence[str], file: str) -> Iterator[tuple[int, list[str], list[tuple[int, list[Any]]]]]:
    index = 0
    while index < len(lines):
        if starts_table(lines, index):
            table, index = table_at(lines, index, file)
            yield table.line, table.header, list(table.rows)
        else:
            index += 1


def _json_rows(text: str, file: str) -> Sequence[Mapping[str, Any]]:
    data = parse_json(text, file)
    items = data.get("rows", data.get("latents")) if isinstance(data, dict) else data
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        expected = '[{"latent": 10, "Qwen 70B": 0.218, "Qwen 7B": 0.127}]'
        raise DataError("is no list of rows", field=file, got=type(data).__name__, expected=expected)
    return items


def _parquet(data: bytes, file: str) -> Sequence[Mapping[str, Any]]:
    import polars as pl

    try:
        return pl.read_parquet(io.BytesIO(data)).to_dicts()
    except pl.exceptions.PolarsError as error:
        raise DataError("is no Parquet file", field=file, got=str(error).splitlines()[0]) from error


def _records(items: Sequence[Mapping[str, Any]]) -> tuple[int, list[str], list[tuple[int, list[Any]]]]:
    header = list(dict.fromkeys(str(key) for item in items for key in item))
    return 1, header, [(index, [item.get(key) for key in header]) for index, item in enumerate(items, 1)]
