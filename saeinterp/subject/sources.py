"""Reading documents: built-in corpora, local txt/jsonl/parquet files, hub datasets and local dataset folders.

Every reader is strict: what it cannot read is an error that names file, line and column, never a skipped row.
The surprising choice: rows that are single lines of WikiText (the hub's `wikitext` datasets) are joined into
articles again, because a document is the unit of splits and bootstraps.
"""

from __future__ import annotations

import difflib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from saeinterp.config import CorpusSource
from saeinterp.errors import DataError
from saeinterp.subject.builtin import builtin_characters, builtin_documents, builtin_fingerprint
from saeinterp.subject.fingerprints import file_fingerprint, files_fingerprint
from saeinterp.subject.origins import network_errors
from saeinterp.subject.paragraphs import is_heading, join_wikitext, split_text

SUFFIXES = (".txt", ".jsonl", ".parquet")
_PEEK = 200
_UNREACHABLE = ("reach", "offline", "refused", "timed out")
_FIELD = "corpus.sources.name"


def source_title(source: CorpusSource) -> str:
    """The name that goes into recipes and the `source` column: a local file's or folder's without its path."""
    if source.name.startswith("builtin:"):
        return source.name
    return Path(source.name).name if _is_local(source) else source.name


def source_recipe(source: CorpusSource, *, seed: int) -> dict[str, Any]:
    """What determines a source's documents; local content enters by its hash, wherever it lies.

    A hub dataset enters by name, revision and slice: pin `revision` where it may change.

    Raises:
        DataError: A local file is missing, empty or of an unknown kind.
    """
    columns = _columns(source)
    recipe: dict[str, Any] = {"title": source_title(source), "limit": source.limit}
    if source.name.startswith("builtin:"):
        return {**recipe, "content": builtin_fingerprint(source.name, seed=seed, limit=source.limit)}
    if not _is_local(source):
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
            field=_FIELD,
            got=str(path),
            expected="a .txt, .jsonl or .parquet file, a hub dataset or a built-in corpus",
            next_step=f"check the path (looked at {path.absolute()})",
        )
    if path.suffix not in SUFFIXES:
        raise DataError(
            f"unknown file type '{path.suffix}'",
            field=_FIELD,
            got=str(path),
            expected=", ".join(SUFFIXES),
            next_step="convert it to jsonl with one object per line",
        )
    if path.stat().st_size == 0:
        raise DataError(
            "the file is empty", field=_FIELD, got=str(path), expected="text", next_step="check how it was made"
        )


def _is_local(source: CorpusSource) -> bool:
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


def _columns(source: CorpusSource) -> list[str]:
    return [source.text_column] if isinstance(source.text_column, str) else list(source.text_column)


def _read(source: CorpusSource, *, seed: int) -> Iterator[str | None]:
    if source.name.startswith("builtin:"):
        yield from builtin_documents(source.name, seed=seed, limit=source.limit)
        return
    path = Path(source.name).expanduser()
    columns = _columns(source)
    if not _is_local(source) or path.is_dir():
        yield from _regroup(_hub(source, columns))
        return
    check_file(path)
    if path.suffix == ".txt":
        yield from split_text(_read_text(path))
    elif path.suffix == ".jsonl":
        yield from _regroup(_jsonl(path, columns))
    else:
        yield from _regroup(_parquet(path, columns))


def _read_text(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_utf8(path, data.count(b"\n", 0, error.start) + 1, error) from error


def _not_utf8(path: Path, line: int, error: UnicodeDecodeError) -> DataError:
    return DataError(
        f"line {line} is not UTF-8 (byte 0x{error.object[error.start]:02x})",
        field=_FIELD,
        got=str(path),
        expected="UTF-8 text",
        next_step=f"convert it: iconv -f latin1 -t utf-8 {path.name} > fixed{path.suffix}",
    )


def _jsonl(path: Path, columns: Sequence[str]) -> Iterator[str | None]:
    with path.open("rb") as handle:
        for number, raw in enumerate(handle, 1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise _not_utf8(path, number, error) from error
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(
                    f"line {number} is not JSON ({error})",
                    field=_FIELD,
                    got=where,
                    expected="one JSON object per line",
                    next_step="mend or remove that line",
                ) from error
            if not isinstance(row, dict):
                raise DataError(
                    f"line {number} is no JSON object",
                    field=_FIELD,
                    got=where,
                    expected='a line such as {"text": "..."}',
                )
            yield _text_of(row, columns, where=where)


def _parquet(path: Path, columns: Sequence[str]) -> Iterator[str | None]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        _check_columns(file.schema_arrow.names, columns, where=str(path))
        number = 0
        for batch in file.iter_batches(columns=list(columns)):
            for row in batch.to_pylist():
                number += 1
                yield _text_of(row, columns, where=f"{path}: row {number}")
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"not a readable Parquet file ({str(error).splitlines()[0]})",
            field=_FIELD,
            got=str(path),
            next_step="check that it was copied whole",
        ) from error


def _hub(source: CorpusSource, columns: Sequence[str]) -> Iterator[str | None]:
    """Rows of a hub dataset or a local dataset folder; never runs code shipped with a dataset."""
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
    for number, row in enumerate(rows.select_columns(list(columns))):
        yield _text_of(row, columns, where=f"{where}: row {number}")


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
        field=_FIELD,
        got=source.name,
        expected="a hub dataset, a local .txt/.jsonl/.parquet file, a dataset folder or a built-in corpus",
        next_step=next_step,
    )


def _check_columns(available: Sequence[str], columns: Sequence[str], *, where: str) -> None:
    for column in columns:
        if column not in available:
            near = difflib.get_close_matches(column, available, n=1, cutoff=0.4)
            guess = near[0] if near else next(iter(available), None)
            raise DataError(
                f"has no column '{column}'",
                field="corpus.sources.text_column",
                got=where,
                expected=f"one of: {', '.join(available)}",
                next_step=f"did you mean text_column: {guess}?" if guess else "choose another file",
            )


def _text_of(row: dict[str, Any], columns: Sequence[str], *, where: str) -> str | None:
    """The row's text: its columns joined by line ends; None where one of them is null."""
    _check_columns(list(row), columns, where=where)
    values = [row[column] for column in columns]
    for column, value in zip(columns, values, strict=True):
        if value is not None and not isinstance(value, str):
            raise DataError(
                f"column '{column}' holds {type(value).__name__}, not text",
                field="corpus.sources.text_column",
                got=where,
                expected="a column of strings",
                next_step=f"name another column (there are: {', '.join(row)})",
            )
    return None if None in values else "\n".join(values)


def _regroup(rows: Iterable[str | None]) -> Iterator[str | None]:
    """Join rows that are single lines of WikiText into articles; hand others on."""
    iterator = iter(rows)
    head = list(itertools.islice(iterator, _PEEK))
    together = itertools.chain(head, iterator)
    single_lines = all(row is None or "\n" not in row.rstrip("\n") for row in head)
    if single_lines and any(row is not None and is_heading(row) for row in head):
        return join_wikitext(row for row in together if row is not None)
    return together
