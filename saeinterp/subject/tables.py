"""Rows of tables: jsonl and Parquet files, hub datasets and local dataset folders.

Every reader is strict: what it cannot read is an error that names file, line and column, never a skipped row. A
dataset's own code is never run.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from saeinterp.config import CorpusSource
from saeinterp.errors import DataError
from saeinterp.subject.origins import network_errors

NAME_FIELD = "corpus.sources.name"
_UNREACHABLE = ("reach", "offline", "refused", "timed out")


class Column(NamedTuple):
    """A column that is asked for, and the configuration field that names it, for errors."""

    field: str
    name: str


class Row(NamedTuple):
    """One row of a table, and where it stands, for errors."""

    where: str
    values: dict[str, Any]


def column_names(columns: Sequence[Column]) -> list[str]:
    """Their names, each once."""
    return list(dict.fromkeys(column.name for column in columns))


def jsonl_rows(path: Path, columns: Sequence[Column]) -> Iterator[Row]:
    """The rows of a file with one JSON object per line; blank lines are none.

    Raises:
        DataError: A line is no JSON object or not UTF-8, or a row lacks a column.
    """
    with path.open("rb") as handle:
        for number, raw in enumerate(handle, 1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise not_utf8(path, number, error) from error
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(
                    f"line {number} is not JSON ({error})",
                    field=NAME_FIELD,
                    got=where,
                    expected="one JSON object per line",
                    next_step="mend or remove that line",
                ) from error
            if not isinstance(row, dict):
                raise DataError(
                    f"line {number} is no JSON object",
                    field=NAME_FIELD,
                    got=where,
                    expected='a line such as {"text": "..."}',
                )
            _check_columns(list(row), columns, where=where)
            yield Row(where, row)


def parquet_rows(path: Path, columns: Sequence[Column]) -> Iterator[Row]:
    """The rows of a Parquet file.

    Raises:
        DataError: It cannot be read, or lacks a column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        _check_columns(file.schema_arrow.names, columns, where=str(path))
        number = 0
        for batch in file.iter_batches(columns=column_names(columns)):
            for row in batch.to_pylist():
                number += 1
                yield Row(f"{path}: row {number}", row)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"not a readable Parquet file ({str(error).splitlines()[0]})",
            field=NAME_FIELD,
            got=str(path),
            next_step="check that it was copied whole",
        ) from error


def hub_rows(source: CorpusSource, columns: Sequence[Column]) -> Iterator[Row]:
    """The rows of a hub dataset or a local dataset folder.

    Raises:
        DataError: It does not exist, cannot be reached, or lacks a column.
    """
    import datasets

    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(
            os.path.expanduser(source.name), source.hub_config, split=source.split, revision=source.revision
        )
    except (*network_errors(), ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        if isinstance(error, OSError) and error.errno in (28, 122):  # full disk: the store explains that one
            raise
        raise _hub_error(source, error) from error
    finally:
        if shown:
            datasets.enable_progress_bars()
    where = f"{source.name} [{source.split}]"
    _check_columns(rows.column_names, columns, where=where)
    for number, row in enumerate(rows.select_columns(column_names(columns))):
        yield Row(f"{where}: row {number}", row)


def _hub_error(source: CorpusSource, error: Exception) -> DataError:
    from huggingface_hub import constants

    text = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    problem, next_step = f"cannot be loaded: {text[:300]}", "check name, hub_config and split on the hub"
    lower = str(error).lower()
    absent = isinstance(error, FileNotFoundError) and constants.HF_HUB_OFFLINE
    if "gated" in lower:
        next_step = f"accept its terms at https://huggingface.co/datasets/{source.name}, then set HF_TOKEN"
    elif "dataset scripts are no longer supported" in lower:
        next_step = "this dataset needs code of its own, which is never run; use a Parquet copy of it"
    elif absent or isinstance(error, ConnectionError) or any(word in lower for word in _UNREACHABLE):
        problem = f"the hub cannot be reached ({text[:200]})"
        next_step = "check the network (HF_HUB_OFFLINE, proxy), or use a local file or builtin:python-reference"
    return DataError(
        problem,
        field=NAME_FIELD,
        got=source.name,
        expected="a hub dataset, a local .txt/.jsonl/.parquet file, a dataset folder or a built-in corpus",
        next_step=next_step,
    )


def _check_columns(available: Sequence[str], columns: Sequence[Column], *, where: str) -> None:
    for field, column in columns:
        if column not in available:
            near = difflib.get_close_matches(column, available, n=1, cutoff=0.4)
            guess = near[0] if near else next(iter(available), None)
            raise DataError(
                f"has no column '{column}'",
                field=field,
                got=where,
                expected=f"one of: {', '.join(available)}",
                next_step=f"did you mean {field.rpartition('.')[2]}: {guess}?" if guess else "choose another file",
            )


def text_in(row: Row, column: Column) -> str | None:
    """The text of one column; None where it is null.

    Raises:
        DataError: The column holds something else.
    """
    value = row.values[column.name]
    if value is not None and not isinstance(value, str):
        raise DataError(
            f"column '{column.name}' holds {type(value).__name__}, not text",
            field=column.field,
            got=row.where,
            expected="a column of strings",
            next_step=f"name another column (there are: {', '.join(row.values)})",
        )
    return value


def not_utf8(path: Path, line: int, error: UnicodeDecodeError) -> DataError:
    """The error of a file in another encoding, naming the line."""
    return DataError(
        f"line {line} is not UTF-8 (byte 0x{error.object[error.start]:02x})",
        field=NAME_FIELD,
        got=str(path),
        expected="UTF-8 text",
        next_step=f"convert it: iconv -f latin1 -t utf-8 {path.name} > fixed{path.suffix}",
    )
