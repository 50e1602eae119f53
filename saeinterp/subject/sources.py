"""Reading documents: built-in corpora, local txt/jsonl/parquet files, hub datasets and local dataset folders.

Readers are strict (see `tables.py`): what they cannot read is an error, never a skipped row. The surprising choice:
rows that are single lines of WikiText (the hub's `wikitext` datasets) are joined into articles again, because a
document is the unit of splits and bootstraps.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from saeinterp.config import CorpusSource
from saeinterp.errors import DataError
from saeinterp.subject.builtin import builtin_characters, builtin_documents, builtin_fingerprint
from saeinterp.subject.fingerprints import file_fingerprint, files_fingerprint
from saeinterp.subject.paragraphs import is_heading, join_wikitext, split_text
from saeinterp.subject.tables import (
    NAME_FIELD,
    Column,
    Row,
    column_names,
    hub_rows,
    jsonl_rows,
    not_utf8,
    parquet_rows,
    text_in,
)

SUFFIXES = (".txt", ".jsonl", ".parquet")
_PEEK = 200
_TEXT_FIELD = "corpus.sources.text_column"


def source_title(source: CorpusSource) -> str:
    """The name that goes into recipes and the `source` column: a local file's or folder's without its path."""
    if source.name.startswith("builtin:"):
        return source.name
    return Path(source.name).name if is_local(source) else source.name


def source_recipe(source: CorpusSource, *, seed: int) -> dict[str, Any]:
    """What determines a source's documents; local content enters by its hash, wherever it lies.

    A hub dataset enters by name, revision and slice: pin `revision` where it may change.

    Raises:
        DataError: A local file is missing, empty or of an unknown kind.
    """
    columns = column_names(_columns(source))
    recipe: dict[str, Any] = {"title": source_title(source), "limit": source.limit}
    if source.name.startswith("builtin:"):
        return {**recipe, "content": builtin_fingerprint(source.name, seed=seed, limit=source.limit)}
    if not is_local(source):
        hub = {"hub_config": source.hub_config, "split": source.split, "revision": source.revision}
        return {**recipe, "columns": columns, **hub}
    path = Path(source.name).expanduser()
    if path.is_dir():
        content = files_fingerprint([file for file in path.rglob("*") if file.is_file()], root=path)
        return {
            **recipe,
            "columns": columns,
            "hub_config": source.hub_config,
            "split": source.split,
            "content": content,
        }
    check_file(path)
    if path.suffix != ".txt":
        recipe["columns"] = columns
    return {**recipe, "content": file_fingerprint(path), "suffix": path.suffix}


def read_source(source: CorpusSource, *, seed: int) -> Iterator[str | None]:
    """The documents of a source, in order; None stands for a row without text.

    Raises:
        DataError: The source is missing, empty, malformed, unreachable, or lacks the column.
        ConfigError: No such built-in corpus.
    """
    return itertools.islice(_read(source, seed=seed), source.limit)


def has_columns(source: CorpusSource) -> bool:
    """Whether a source is a table (jsonl, parquet, hub, folder), not plain documents (built-in, txt)."""
    if source.name.startswith("builtin:"):
        return False
    path = Path(source.name).expanduser()
    return not is_local(source) or path.is_dir() or path.suffix != ".txt"


def read_rows(source: CorpusSource, columns: Sequence[Column]) -> Iterator[Row]:
    """The rows of a table, in order, with at least these columns, whatever they hold.

    Args:
        source: One that `has_columns`; its `text_column` is not read.

    Raises:
        DataError: The source is missing, empty, malformed, unreachable, or lacks a column.
    """
    return itertools.islice(_rows(source, columns), source.limit)


def source_characters(source: CorpusSource, *, seed: int) -> int | None:
    """About how many characters a source holds, without reading it; None where that is unknown (hub, folders)."""
    if source.name.startswith("builtin:"):
        return builtin_characters(source.name, seed=seed, limit=source.limit)
    path = Path(source.name).expanduser()
    if not path.is_file() or source.limit is not None:
        return None
    # Parquet is compressed about threefold; jsonl carries some markup.
    return int(path.stat().st_size * (2.5 if path.suffix == ".parquet" else 1))


def check_file(path: Path) -> None:
    """Refuse what cannot be a corpus file.

    Raises:
        DataError: Missing, empty, or of an unknown kind.
    """
    if not path.exists():
        raise DataError(
            "no such file",
            field=NAME_FIELD,
            got=str(path),
            expected="a .txt, .jsonl or .parquet file, a hub dataset or a built-in corpus",
            next_step=f"check the path (looked at {path.absolute()})",
        )
    if path.suffix not in SUFFIXES:
        raise DataError(
            f"unknown file type '{path.suffix}'",
            field=NAME_FIELD,
            got=str(path),
            expected=", ".join(SUFFIXES),
            next_step="convert it to jsonl with one object per line",
        )
    if path.stat().st_size == 0:
        raise DataError(
            "the file is empty", field=NAME_FIELD, got=str(path), expected="text", next_step="check how it was made"
        )


def is_local(source: CorpusSource) -> bool:
    """Whether a source is a file or folder, not a hub dataset; whether it exists is not asked."""
    name = source.name
    path = Path(name).expanduser()
    # A hub name has at most one slash and no suffix of ours; a folder of that name wins, as in `datasets`.
    return (
        path.exists()
        or path.suffix in SUFFIXES
        or name.startswith((".", "/", "~"))
        or name.count("/") > 1
        or ("/" not in name and path.suffix != "")
    )


def _columns(source: CorpusSource) -> list[Column]:
    names = [source.text_column] if isinstance(source.text_column, str) else source.text_column
    return [Column(_TEXT_FIELD, name) for name in names]


def _read(source: CorpusSource, *, seed: int) -> Iterator[str | None]:
    if source.name.startswith("builtin:"):
        yield from builtin_documents(source.name, seed=seed, limit=source.limit)
        return
    if has_columns(source):
        columns = _columns(source)
        yield from _regroup(_text_of(row, columns) for row in _rows(source, columns))
        return
    path = Path(source.name).expanduser()
    check_file(path)
    yield from split_text(_read_text(path))


def _rows(source: CorpusSource, columns: Sequence[Column]) -> Iterator[Row]:
    path = Path(source.name).expanduser()
    if not is_local(source) or path.is_dir():
        return hub_rows(source, columns)
    check_file(path)
    return jsonl_rows(path, columns) if path.suffix == ".jsonl" else parquet_rows(path, columns)


def _read_text(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise not_utf8(path, data.count(b"\n", 0, error.start) + 1, error) from error


def _text_of(row: Row, columns: Sequence[Column]) -> str | None:
    """The row's text: its columns joined by line ends; None where one of them is null."""
    values = [text_in(row, column) for column in columns]
    return None if None in values else "\n".join(value for value in values if value is not None)


def _regroup(rows: Iterable[str | None]) -> Iterator[str | None]:
    """Join rows that are single lines of WikiText into articles; hand others on."""
    iterator = iter(rows)
    head = list(itertools.islice(iterator, _PEEK))
    together = itertools.chain(head, iterator)
    single_lines = all(row is None or "\n" not in row.rstrip("\n") for row in head)
    if single_lines and any(row is not None and is_heading(row) for row in head):
        return join_wikitext(row for row in together if row is not None)
    return together
