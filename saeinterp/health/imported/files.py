"""Outside files as text tables: what health tables and score tables are both read from.

The surprising choice: a row keeps the line it stands on, so that whatever is wrong with a cell is told by its place.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from saeinterp.errors import DataError

LARGEST = 10_000_000
"""Bytes of a file that is read at all."""
_RULE = re.compile(r"\|?(\s*:?-+:?\s*\|)*\s*:?-+:?\s*\|?\s*")


class TextTable(NamedTuple):
    """A table: the line of its heading, heading cells, then rows, each with its line."""

    line: int
    header: list[str]
    rows: list[tuple[int, list[str]]]


def read_bytes(file: Path) -> tuple[bytes, str]:
    """A file's content and its SHA-256.

    Raises:
        DataError: It is not there or too large.
    """
    try:
        if file.stat().st_size > LARGEST:
            raise DataError("is too large for an outside table", field=file.name, got=f"{file.stat().st_size} bytes")
        data = file.read_bytes()
    except OSError as error:
        raise DataError("cannot be read", field=str(file), got=error.strerror, next_step="check the path") from error
    return data, hashlib.sha256(data).hexdigest()


def read_text(file: Path) -> tuple[str, str]:
    """A text file's content and its SHA-256.

    Raises:
        DataError: It is not there, too large, or not UTF-8.
    """
    data, digest = read_bytes(file)
    try:
        return data.decode("utf-8-sig"), digest
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(
            "is not UTF-8", field=f"{file.name}, line {line}", got=data[error.start : error.start + 4], expected="UTF-8"
        ) from error


def csv_table(text: str, file: str) -> TextTable | None:
    """The table of a CSV file (commas, semicolons or tabs); None where it is empty.

    Raises:
        DataError: It is no valid CSV, or a row has another number of columns than the heading.
    """
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
    found: TextTable | None = None
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if found is None:
                found = TextTable(reader.line_num, cells, [])
                continue
            if len(cells) != len(found.header):
                raise DataError(
                    "has another number of columns than the heading",
                    field=f"{file}, line {reader.line_num}",
                    got=len(cells),
                    expected=f"{len(found.header)} columns, separated by {delimiter!r}",
                )
            found.rows.append((reader.line_num, cells))
    except csv.Error as error:
        raise DataError(f"is no valid CSV: {error}", field=f"{file}, line {reader.line_num}") from error
    return found


def parse_json(text: str, file: str) -> Any:
    """The value of a JSON file.

    Raises:
        DataError: It is no valid JSON, holds NaN or infinity, or is nested too deeply.
    """
    try:
        return json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise DataError(
            f"is no valid JSON: {error.msg}", field=f"{file}, line {error.lineno}, column {error.colno}"
        ) from error
    except ValueError as error:
        raise DataError(str(error), field=file, expected="null where a number is missing") from error
    except RecursionError as error:
        raise DataError("is nested too deeply", field=file) from error


def starts_table(lines: Sequence[str], index: int) -> bool:
    """Whether a Markdown table begins on this line."""
    return (
        "|" in lines[index]
        and index + 1 < len(lines)
        and bool(_RULE.fullmatch(lines[index + 1].strip()))
        and ("-" in lines[index + 1])
    )


def table_at(lines: Sequence[str], index: int, file: str) -> tuple[TextTable, int]:
    """The Markdown table that begins on a line, and the line behind it.

    Raises:
        DataError: A row has another number of cells than the heading.
    """
    header, start = split_cells(lines[index]), index + 1
    rows = []
    index += 2
    while index < len(lines) and "|" in lines[index]:
        cells = split_cells(lines[index])
        if len(cells) != len(header):
            raise DataError(
                "has another number of cells than the heading of its table",
                field=f"{file}, line {index + 1}",
                got=len(cells),
                expected=f"{len(header)} cells",
            )
        rows.append((index + 1, cells))
        index += 1
    return TextTable(start, header, rows), index


def split_cells(line: str) -> list[str]:
    body = line.strip().removeprefix("|")
    body = body[:-1] if body.endswith("|") and not body.endswith("\\|") else body
    return [cell.replace("\\|", "|").strip() for cell in re.split(r"(?<!\\)\|", body)]


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number that can be read")
