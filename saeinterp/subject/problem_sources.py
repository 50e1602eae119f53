"""Problems as they are read: question, worked answer and id per row, and which of them are the samples.

Which problems are samples depends on their texts (or ids) alone, never on the tokenizer, so that two models can be
compared on the same ones. The surprising choice: a problem that is there twice is taken once, because repeated rows
make associations significant that are not.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from saeinterp.config import CorpusSource, ProblemsConfig, Split
from saeinterp.errors import ConfigError, DataError
from saeinterp.subject.builtin import WORD_PROBLEMS
from saeinterp.subject.sources import has_columns, is_local, read_rows, read_source
from saeinterp.subject.tables import Column, Row, text_in

_ANNOTATION = re.compile(r"<<.*?>>", re.DOTALL)


class Problem(NamedTuple):
    """One problem, as read; `question` is empty for texts without one."""

    id: str
    question: str
    reasoning: str
    tags: list[str] | None

    def text(self, annotations: str) -> str:
        """The reasoning as the model reads it (`keep` or `strip`)."""
        return self.reasoning if annotations == "keep" else _ANNOTATION.sub("", self.reasoning)


class Found(NamedTuple):
    """The problems of both splits, each in order, and how many were there twice."""

    splits: dict[Split, list[Problem]]
    duplicates: int


def find_problems(config: ProblemsConfig) -> Found:
    """Read a source and share it out: the samples (`health`), and the problems that SAEs train on (`train`).

    Raises:
        DataError: The source cannot be read, a problem has no question, reasoning or id of its own, or there are too
            few.
        ConfigError: Columns of a source that has none.
    """
    keyed: dict[str, Problem] = {}
    ids: set[str] = set()
    duplicates = 0
    for problem in _read(config):
        if problem.id in ids:
            raise DataError(
                "two problems have the same id",
                field="corpus.id_column",
                got=problem.id,
                expected="an id of its own for every problem",
                next_step="name another id_column, or leave it out to number them",
            )
        ids.add(problem.id)
        key = _digest(problem, config.seed)
        duplicates += key in keyed
        keyed.setdefault(key, problem)
    if config.order == "id":
        ordered = sorted(keyed.values(), key=lambda problem: problem.id)
    else:
        ordered = [keyed[key] for key in sorted(keyed)]
    wanted = config.samples + (config.training or 1)
    if len(ordered) < wanted:
        raise DataError(
            f"there are too few problems: {len(ordered)} in {config.source.name}",
            field="corpus.samples",
            got=config.samples,
            expected=f"at least {wanted} problems: {config.samples} samples, and {config.training or 'others'} that "
            "the SAEs train on",
            next_step="take more problems (corpus.source.limit), or lower corpus.samples or corpus.training",
        )
    stop = None if config.training is None else wanted
    return Found({"train": ordered[config.samples : stop], "health": ordered[: config.samples]}, duplicates)


def id_prefix(source: CorpusSource) -> str:
    """What numbered ids begin with: a dataset's split, the last word of a file's name (`gsm8k-train` -> `train`)."""
    if source.name.startswith("builtin:"):
        name = source.name
    elif is_local(source) and not Path(source.name).expanduser().is_dir():
        name = Path(source.name).stem
    else:
        return source.split.partition("[")[0]
    return re.split(r"[-_:]", name)[-1] or name


def _read(config: ProblemsConfig) -> Iterator[Problem]:
    """Every problem of the source, in its order."""
    source = config.source
    prefix = id_prefix(source)
    with single_source():
        if not has_columns(source):
            _refuse_columns(config)
            for number, text in enumerate(read_source(source, seed=config.seed)):
                head, _, rest = ("", "", text) if config.question_column is None else (text or "").partition("\n")
                yield _checked(f"{prefix}_{number}", head, rest, None, config, where=f"problem {number}")
            return
        asked = _Columns.of(config)
        for number, row in enumerate(read_rows(source, [column for column in asked if column is not None])):
            name = f"{prefix}_{number}" if asked.id is None else _id(row, asked.id)
            question = "" if asked.question is None else text_in(row, asked.question)
            tags = None if asked.tags is None else _tags(row, asked.tags)
            yield _checked(name, question, text_in(row, asked.reasoning), tags, config, where=row.where)


@contextlib.contextmanager
def single_source() -> Iterator[None]:
    """Errors of a source, with the field that names it here: problems have one source, a corpus several."""
    try:
        yield
    except DataError as error:
        if error.field is None or not error.field.startswith("corpus.sources."):
            raise
        field = error.field.replace("sources", "source", 1)
        raise DataError(
            error.problem, field=field, got=error.got, expected=error.expected, next_step=error.next_step
        ) from error


class _Columns(NamedTuple):
    """The columns of a table that are read."""

    question: Column | None
    reasoning: Column
    id: Column | None
    tags: Column | None

    @classmethod
    def of(cls, config: ProblemsConfig) -> _Columns:
        def column(field: str) -> Column | None:
            name = getattr(config, field)
            return None if name is None else Column(f"corpus.{field}", name)

        reasoning = Column("corpus.reasoning_column", config.reasoning_column)
        return cls(column("question_column"), reasoning, column("id_column"), column("tags_column"))


def _refuse_columns(config: ProblemsConfig) -> None:
    """Built-in and txt sources are plain documents; only the word problems are known to begin with their question."""
    for field in ("id_column", "tags_column", "question_column"):
        if getattr(config, field) is None or (field == "question_column" and config.source.name == WORD_PROBLEMS):
            continue
        raise ConfigError(
            f"{config.source.name} has no columns",
            field=f"corpus.{field}",
            got=getattr(config, field),
            expected="a jsonl or Parquet file, or a hub dataset",
            next_step=f"set {field}: null" + (" (each text is then a sample)" if field == "question_column" else ""),
        )


def _checked(
    name: str,
    question: str | None,
    reasoning: str | None,
    tags: list[str] | None,
    config: ProblemsConfig,
    *,
    where: str,
) -> Problem:
    """A problem whose texts are there and can be written.

    Raises:
        DataError: Naming the problem.
    """
    for field, text in (("question_column", question), ("reasoning_column", reasoning)):
        if getattr(config, field) is not None and (text is None or not text.strip()):
            raise DataError(
                f"problem {name} has no {field.removesuffix('_column')}",
                field=f"corpus.{field}",
                got=where,
                expected="text that is not blank",
                next_step="mend or remove that problem, or name another column",
            )
    assert question is not None
    assert reasoning is not None
    try:
        "".join((name, question, reasoning, *(tags or ()))).encode()
    except UnicodeEncodeError as error:  # jsonl can smuggle half a surrogate pair in
        raise DataError(
            f"problem {name} holds half a surrogate pair",
            field="corpus.source.name",
            got=where,
            expected="text that UTF-8 can write",
            next_step="mend that problem",
        ) from error
    return Problem(name, question, reasoning, tags)


def _id(row: Row, column: Column) -> str:
    value = row.values[column.name]
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        raise DataError(
            f"column '{column.name}' holds {type(value).__name__}, no id",
            field=column.field,
            got=row.where,
            expected="a column of names or whole numbers",
            next_step="name another column, or leave id_column out to number the problems",
        )
    return str(value)


def _tags(row: Row, column: Column) -> list[str]:
    value = row.values[column.name]
    tags = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise DataError(
            f"column '{column.name}' holds {type(value).__name__}, no tags",
            field=column.field,
            got=row.where,
            expected="a string, or a list of strings",
            next_step="name another column",
        )
    return tags


def _digest(problem: Problem, seed: int) -> str:
    """Of the texts and the seed: equal for problems that are there twice, and the order by hash."""
    text = hashlib.sha256(f"{problem.question}\0{problem.reasoning}".encode()).hexdigest()
    return hashlib.sha256(f"{seed}:{text}".encode()).hexdigest()
