"""Outside tables of scores: CSV, TSV, Parquet, JSON or Markdown in, rows per explainer and latent out.

The file is untrusted text: nothing in it is executed, and what cannot be read is refused with file, line, column, value
and expectation. The surprising choice: a value that only some explainers have on a latent is refused, not skipped,
since dropping it would decide the comparison silently; a latent without any value is kept and counted as not scored.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from saeinterp.compare.imported.claims import read_claims
from saeinterp.compare.imported.files import FileTable, open_table
from saeinterp.compare.imported.headings import METRICS, Column, metric_of
from saeinterp.compare.imported.records import ImportedExplainer, ImportedScores, ScoreClaim, ScoreFile, ScoreRow
from saeinterp.errors import ConfigError, DataError
from saeinterp.health.imported.cells import COUNT_COLUMNS, Quantity, number_of, plain_text, quantities
from saeinterp.health.imported.rows import hookpoint_of

UNNAMED = "table"
"""The hookpoint of a table that names none."""
SIGNED = ("mcc", "correlation")
"""Metrics from -1 to 1; the others lie in 0 to 1."""
_LATENT = re.compile(r"(?:L(?P<layer>\d+)(?:_P\d+)?_)?[FL]?(?P<latent>\d+)")
_LAYER = re.compile(r"\blayers?[\s.]+(\d+)\b", re.IGNORECASE)


class _Value(NamedTuple):
    """One cell: whose, of which latent, which metric (None: the file does not say)."""

    explainer: str
    key: tuple[str, int]
    metric: str | None
    quantity: Quantity | None
    line: int


def read_scores(
    paths: Sequence[str | Path],
    *,
    metric: str | None = None,
    explainers: Sequence[str] = (),
    columns: Sequence[str] = (),
    hookpoint: str | None = None,
) -> ImportedScores:
    """Read per-latent scores of two or more explainers.

    Args:
        paths: `.csv`, `.tsv`, `.parquet`, `.json`, `.md` or `.txt` (read as Markdown) files; several hold one or more
            explainers each.
        metric: What the values are; where a file calls its only values otherwise, this is believed. Empty takes the
            files' own word.
        explainers: Titles, in the order of the files; empty keeps the files' names.
        columns: Headings of the columns with the explainers' values, where they are not found by their names.
        hookpoint: Where the latents live, if the files do not say.

    Raises:
        DataError: A file holds no such table, or a value is missing, doubled, or out of the metric's range.
        ConfigError: A file's suffix, a title, a column or the metric does not fit.
    """
    found: dict[str, list[ScoreRow]] = {}
    claims: list[ScoreClaim] = []
    notes: list[str] = []
    files: list[ScoreFile] = []
    named, heading = metric, ""
    for path in paths:
        table, lines = open_table(Path(path).expanduser(), columns, notes)
        files.append(table.file)
        where = hookpoint or _layer_in(lines, table.file.file, notes) if table.layout.hookpoint is None else None
        values = list(_values(table, where or UNNAMED, named))
        stem = Path(table.file.file).stem
        values = [item if item.explainer else item._replace(explainer=stem) for item in values]
        named, called, values = _of_metric(values, named, table, notes, said=metric is not None)
        heading = heading or called
        rows = _rows(table, values)
        for explainer, own in rows.items():
            if explainer in found:
                raise ConfigError(
                    "two files hold the same explainer",
                    field="FILE",
                    got=explainer,
                    next_step="rename a column, or one of the files",
                )
            found[explainer] = own
        claims += read_claims(lines, list(rows), table.layout.differences, table.header, table.line, table.rows)
    _require_two(found, paths)
    assert named is not None
    return ImportedScores(
        files=tuple(files),
        metric=named,
        heading=heading,
        explainers=tuple(
            ImportedExplainer(title=title, name=name, rows=tuple(rows))
            for title, (name, rows) in zip(_titles(list(found), explainers), found.items())
        ),
        claims=tuple(claims),
        notes=tuple(notes),
    )


def _layer_in(lines: Sequence[str], file: str, notes: list[str]) -> str | None:
    """The layer that a report names in its prose, if it names exactly one."""
    found = {int(match[1]): number for number, line in enumerate(lines, 1) for match in _LAYER.finditer(line)}
    if len(found) != 1:
        return None
    (layer, line) = next(iter(found.items()))
    notes.append(f"{file}: latents taken to be of layers.{layer}, which line {line} names")
    return f"layers.{layer}"


def _key(table: FileTable, line: int, cells: Sequence[Any], where: str) -> tuple[str, int]:
    at = table.layout.latent
    text = plain_text(str(cells[at])) if cells[at] is not None else ""
    match = _LATENT.fullmatch(text)
    if match is None:
        table.place(line, at).refuse("is no latent", cells[at], expected="an index such as 10, or an id such as L4_F10")
    layer = f"layers.{int(match['layer'])}" if match["layer"] else where
    if table.layout.hookpoint is not None:
        place = table.place(line, table.layout.hookpoint)
        layer = hookpoint_of(plain_text(str(cells[table.layout.hookpoint] or "")), place)[0]
    return layer, int(match["latent"])


def _values(table: FileTable, where: str, named: str | None) -> Iterator[_Value]:
    layout = table.layout
    for line, cells in table.rows:
        key = _key(table, line, cells, where)
        own = plain_text(str(cells[layout.explainer] or "")) if layout.explainer is not None else ""
        if layout.explainer is not None and not own:
            table.place(line, layout.explainer).refuse("is empty", own, expected="the name of an explainer")
        if layout.value is not None and layout.metric is not None:
            name = metric_of(str(cells[layout.metric]))
            if name is None:
                place = table.place(line, layout.metric)
                place.refuse("is no metric", cells[layout.metric], expected=", ".join(METRICS))
            column = Column(layout.value, table.header[layout.value], own, name, False)
            yield _Value(own, key, name, _cell(table, line, cells, column, name), line)
            continue
        for column in layout.columns:
            quantity = _cell(table, line, cells, column, column.metric or named)
            yield _Value(column.explainer or own, key, column.metric, quantity, line)


def _cell(table: FileTable, line: int, cells: Sequence[Any], column: Column, metric: str | None) -> Quantity | None:
    place, cell = table.place(line, column.at), cells[column.at]
    if isinstance(cell, str):
        found = quantities(cell, metric or "", place, percent=column.percent)
        if len(found) > 1:
            place.refuse("holds several numbers", cell, expected="one number")
        quantity = found[0] if found else None
    else:
        quantity = number_of(cell, metric or "", place)
    if quantity is not None:
        lowest = -1 if metric in SIGNED else 0
        if not lowest <= quantity.value <= 1:
            hint = "write percentages with %" if 1 < quantity.value <= 100 else None
            place.refuse(f"lies outside {lowest} to 1", cell, expected="a score such as 0.218", next_step=hint)
    return quantity


def _of_metric(
    values: list[_Value], wanted: str | None, table: FileTable, notes: list[str], *, said: bool
) -> tuple[str, str, list[_Value]]:
    """The metric that is compared, what the file calls it, and the values with their metrics.

    Args:
        wanted: The metric, where the user (`said`) or an earlier file has named it.
    """
    known = list(dict.fromkeys(item.metric for item in values))
    own = [name for name in known if name is not None]
    expected = ", ".join(METRICS)
    if wanted is not None and wanted not in METRICS:
        raise ConfigError("is no metric", field="--metric", got=wanted, expected=expected)
    if wanted is not None and wanted in known:
        return wanted, wanted, values
    if wanted is None:
        if len(known) == 1 and own:
            return own[0], own[0], values
        raise ConfigError(
            "the file does not say which metric is to be compared",
            field="--metric",
            got=", ".join(own) or "no metric in a heading",
            expected=f"one of {', '.join(own) if own else expected}",
        )
    if len(known) > 1 or (own and not said):
        field = "--metric" if said else table.file.file
        raise ConfigError("the file has other metrics", field=field, got=wanted, expected=", ".join(own))
    heading = known[0] or "values"
    if known[0] is not None:
        notes.append(f"{table.file.file}: its {heading} is read as {wanted}, as --metric says")
    return wanted, heading, [item._replace(metric=wanted) for item in values]


def _rows(table: FileTable, values: Sequence[_Value]) -> dict[str, list[ScoreRow]]:
    """Rows per explainer, none doubled; of each latent all explainers have a value or none has."""
    cells = dict(table.rows)
    merged: dict[tuple[str, tuple[str, int]], dict[str | None, _Value]] = {}
    for item in values:
        have = merged.setdefault((item.explainer, item.key), {})
        if item.metric in have:
            raise DataError(
                f"latent {item.key[1]} comes twice for {item.explainer}",
                field=f"{table.file.file}, {table.file.unit} {item.line}",
                expected=f"one value; the first is {table.file.unit} {have[item.metric].line}",
            )
        have[item.metric] = item
    explainers = list(dict.fromkeys(explainer for explainer, _ in merged))
    _refuse_gaps(table, merged, explainers)
    rows: dict[str, list[ScoreRow]] = {name: [] for name in explainers}
    for (explainer, key), metrics in merged.items():
        line = next(iter(metrics.values())).line
        label = table.layout.labels.get(explainer, table.layout.labels.get(""))
        known = {str(name): item.quantity for name, item in metrics.items()}
        rows[explainer].append(
            ScoreRow(
                file=table.file.file,
                line=line,
                hookpoint=key[0],
                latent=key[1],
                explanation=plain_text(str(cells[line][label])) if label is not None and cells[line][label] else None,
                values={name: item.value if item is not None else None for name, item in known.items()},
                half_steps={name: item.half_step for name, item in known.items() if item is not None},
                counts=_counts(table, line, cells[line]),
            )
        )
    return rows


def _refuse_gaps(
    table: FileTable,
    merged: Mapping[tuple[str, tuple[str, int]], Mapping[str | None, _Value]],
    explainers: Sequence[str],
) -> None:
    for key in dict.fromkeys(key for _, key in merged):
        own = {name: merged.get((name, key), {}) for name in explainers}
        for metric in dict.fromkeys(item for found in own.values() for item in found):
            have = {name: metric in found and found[metric].quantity is not None for name, found in own.items()}
            if any(have.values()) and not all(have.values()):
                line = next(found[metric].line for found in own.values() if metric in found)
                lacking = next(name for name, there in have.items() if not there)
                raise DataError(
                    f"latent {key[1]} has no {metric or 'value'} for {lacking}",
                    field=f"{table.file.file}, {table.file.unit} {line}",
                    expected="a value for every explainer, or for none where the latent was not scored",
                    next_step="write the value, or empty the others'",
                )


def _counts(table: FileTable, line: int, cells: Sequence[Any]) -> dict[str, float]:
    found = {}
    for name, at in table.layout.counts.items():
        place = table.place(line, at)
        quantity = number_of(cells[at], COUNT_COLUMNS[0], place)
        if quantity is not None:
            found[name] = quantity.value
    return found


def _require_two(found: Mapping[str, Sequence[ScoreRow]], paths: Sequence[str | Path]) -> None:
    if len(found) < 2:
        raise DataError(
            "holds the scores of one explainer only",
            field=", ".join(Path(path).name for path in paths),
            got=", ".join(found),
            expected="two or more columns of values, or a second file",
        )


def _titles(names: Sequence[str], wanted: Sequence[str]) -> list[str]:
    titles = list(wanted) or list(names)
    if len(titles) != len(names):
        raise ConfigError(
            "does not name each explainer once",
            field="--explainer",
            got=", ".join(titles),
            expected=f"{len(names)} names, in the order {', '.join(names)}",
        )
    if len(set(titles)) < len(titles):
        raise ConfigError("two explainers have one name", field="--explainer", got=", ".join(titles))
    return titles
