"""A user's labelled table: read strictly, and split into training and test rows.

The surprising choice: rows with the same text count as one text, and a text lies on one side of the split, whether or
not a group column is named; otherwise a probe would be tested on what it was trained on.
"""

from __future__ import annotations

import difflib
import math
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from saeinterp.config import SparseProbingConfig
from saeinterp.errors import DataError
from saeinterp.subject.fingerprints import file_fingerprint

SUFFIXES = (".jsonl", ".csv", ".parquet")
_FIELD = "probing.file"


class LabelledTexts(NamedTuple):
    """Rows in the file's order; the lists are parallel."""

    texts: list[str]
    labels: list[str]
    groups: list[str]
    """What must stay together: the group, or the text."""

    @property
    def classes(self) -> list[str]:
        """The different labels, sorted."""
        return sorted(set(self.labels))


def labelled_fingerprint(config: SparseProbingConfig) -> dict[str, str]:
    """What the table contains, for recipes.

    Raises:
        DataError: Missing, empty, or of an unknown kind.
    """
    path = _path(config)
    return {"title": path.name, "content": file_fingerprint(path)}


def read_labelled(config: SparseProbingConfig) -> LabelledTexts:
    """The table's rows.

    Raises:
        DataError: The file or a column is missing, a text or label is missing or no text or class, there is only one
            class, or a class has too few rows for both sides of the split.
    """
    path = _path(config)
    frame = _read(path)
    columns = [config.text_column, config.label_column, *([config.group_column] if config.group_column else [])]
    for field, column in zip(("text_column", "label_column", "group_column"), columns):
        if column not in frame.columns:
            near = difflib.get_close_matches(column, frame.columns, n=1, cutoff=0.4)
            raise DataError(
                f"the table has no column '{column}'",
                field=f"probing.{field}",
                got=path.name,
                expected=f"one of: {', '.join(frame.columns)}",
                next_step=f"did you mean {field}: {near[0]}?" if near else f"set probing.{field}",
            )
    texts = [_text(value, row, config) for row, value in enumerate(frame[config.text_column].to_list(), 1)]
    labels = [
        _name(value, row, config.label_column) for row, value in enumerate(frame[config.label_column].to_list(), 1)
    ]
    groups = texts
    if config.group_column is not None:
        values = frame[config.group_column].to_list()
        groups = [_name(value, row, config.group_column) for row, value in enumerate(values, 1)]
    found = LabelledTexts(texts, labels, groups)
    _check_classes(found, config)
    return found


def split_rows(table: LabelledTexts, config: SparseProbingConfig) -> np.ndarray:
    """`[n]` bool, True for test rows: per class, a seeded share of the groups that have it most.

    Raises:
        DataError: A class has fewer than `min_rows` rows on one side.
    """
    members: dict[str, Counter[str]] = {}
    for label, group in zip(table.labels, table.groups):
        members.setdefault(group, Counter())[label] += 1
    generator = np.random.default_rng(config.seed)
    chosen: set[str] = set()
    for name in table.classes:
        own = [group for group, counts in members.items() if min(counts, key=lambda x: (-counts[x], x)) == name]
        order = generator.permutation(len(own))
        chosen.update(own[index] for index in order[: round(config.test_fraction * len(own))])
    test = np.array([group in chosen for group in table.groups])
    labels = np.array(table.labels, dtype=object)
    for name in table.classes:
        for side, rows in (("training", ~test), ("test", test)):
            count = int((labels[rows] == name).sum())
            if count < config.min_rows:
                raise DataError(
                    f"class '{name}' has {count} {side} rows",
                    field="probing.min_rows",
                    got=f"{int((labels == name).sum())} rows of that class, test_fraction {config.test_fraction:g}",
                    expected=f"at least {config.min_rows} on either side",
                    next_step="label more texts, leave that class out, or change test_fraction"
                    + (" or seed (whole groups are dealt)" if config.group_column else ""),
                )
    return test


def _path(config: SparseProbingConfig) -> Path:
    path = Path(config.file).expanduser()
    problem = None
    if not path.is_file():
        problem = "no such file"
    elif path.suffix not in SUFFIXES:
        problem = f"unknown file type '{path.suffix}'"
    elif path.stat().st_size == 0:
        problem = "the file is empty"
    if problem is not None:
        raise DataError(
            problem,
            field=_FIELD,
            got=config.file,
            expected=f"a table ({', '.join(SUFFIXES)}) with a column of texts and one of labels",
            next_step=f"check the path (looked at {path.absolute()})",
        )
    return path


def _read(path: Path) -> pl.DataFrame:
    try:
        if path.suffix == ".csv":
            # As text: a column of numbers is a column of names here, and 01 is not 1.
            return pl.read_csv(path, infer_schema=False)
        return pl.read_parquet(path) if path.suffix == ".parquet" else pl.read_ndjson(path, infer_schema_length=None)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(
            f"cannot be read as {path.suffix[1:]}: {' '.join(str(error).split())[:200]}",
            field=_FIELD,
            got=str(path),
            next_step="check that it was written whole, in UTF-8",
        ) from error


def _text(value: Any, row: int, config: SparseProbingConfig) -> str:
    if isinstance(value, str) and value.strip():
        return value
    raise DataError(
        f"row {row} has no text",
        field="probing.text_column",
        got=value,
        expected=f"text in column '{config.text_column}' of every row",
        next_step="fill or remove that row",
    )


def _name(value: Any, row: int, column: str) -> str:
    """A label or group as text; 1.0 is 1, because a column of whole numbers with a gap becomes one of floats."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        return str(int(value))
    if isinstance(value, int) or (isinstance(value, str) and value.strip() and value.strip().lower() != "nan"):
        return str(value).strip()
    raise DataError(
        f"row {row} has no usable value in column '{column}'",
        field=_FIELD,
        got=value,
        expected="text, a whole number or true/false in every row",
        next_step="fill or remove that row; numbers with a fraction are no classes",
    )


def _check_classes(table: LabelledTexts, config: SparseProbingConfig) -> None:
    counts = Counter(table.labels)
    if len(counts) < 2:
        raise DataError(
            f"{len(counts)} class in column '{config.label_column}'",
            field="probing.label_column",
            got=next(iter(counts), None),
            expected="at least two classes",
            next_step="add texts of another class, or name another column",
        )
    if len(counts) > max(50, len(table.labels) // 4):
        raise DataError(
            f"{len(counts)} classes in {len(table.labels)} rows",
            field="probing.label_column",
            got=config.label_column,
            expected="a column of classes",
            next_step="name the column that holds the classes",
        )
