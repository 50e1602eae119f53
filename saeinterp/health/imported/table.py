"""Outside tables of layer health: CSV, JSON or Markdown in, rows for grading out.

The file is untrusted text: nothing in it is executed, and what cannot be read is refused with file, line, column,
value and expectation. The surprising choice: a JSON object may be one of our own `health.json`, so a colleague's
numbers come in by the same door as a table from a paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from saeinterp.errors import ConfigError, DataError
from saeinterp.health.grading.inputs import NOT_MEASURED
from saeinterp.health.grading.results import Measured
from saeinterp.health.imported.cells import (
    COUNT_COLUMNS,
    METRIC_COLUMNS,
    Place,
    Quantity,
    column_of,
    number_of,
    plain_text,
    printed_grade,
    quantities,
)
from saeinterp.health.imported.files import csv_table, parse_json, read_text
from saeinterp.health.imported.markdown import read_markdown
from saeinterp.health.imported.rows import (
    UNNAMED,
    ImportedModel,
    ImportedRow,
    ImportedTable,
    hookpoint_of,
    rows_of_layer,
)

FORMATS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".md": "markdown",
    ".markdown": "markdown",
    ".txt": "markdown",
}
_JSON_KEYS = {"hookpoint": "layer", "l0_mean": "l0"}


def read_health_table(
    path: str | Path, *, models: Sequence[str] = (), num_latents: int | None = None, k: int | None = None
) -> ImportedTable:
    """Read an outside table of layer health.

    Args:
        path: A `.csv`, `.tsv`, `.json`, `.md` or `.txt` (read as Markdown) file.
        models: Names for its models, in the order of the file; empty keeps the file's.
        num_latents: Dictionary size of every SAE, where the file does not say or says wrongly.
        k: Latents per token, likewise.

    Raises:
        DataError: The file cannot be read, holds no table of layers, or a value is not what its column needs.
        ConfigError: The suffix is unknown, or there are more or fewer names than models.
    """
    file = Path(path).expanduser()
    kind = FORMATS.get(file.suffix.lower())
    if kind is None:
        raise ConfigError("unknown kind of file", field="FILE", got=file.name, expected=", ".join(FORMATS))
    text, digest = read_text(file)
    readers = {"csv": _read_csv, "json": _read_json, "markdown": read_markdown}
    name = file.name
    table = ImportedTable(file=name, sha256=digest, **readers[kind](text, name, models))
    if not table.rows:
        raise DataError(
            "holds no table of layers",
            field=name,
            expected="columns layer, loss_recovered, l0, dead_fraction, absorption (any of the last four)",
        )
    table = _named(table, models)
    changes = {key: value for key, value in (("num_latents", num_latents), ("k", k)) if value is not None}
    rows = tuple(row.model_copy(update=changes) for row in table.rows)
    _refuse_doubles(rows, table)
    return table.model_copy(update={"rows": rows})


def _read_csv(text: str, file: str, models: Sequence[str]) -> dict[str, Any]:
    rows: list[ImportedRow] = []
    notes: list[str] = []
    found = csv_table(text, file)
    if found is not None:
        _require_columns(found.header, file, found.line, notes)
        for line, cells in found.rows:
            rows += _row(dict(zip(found.header, cells)), file, line, models, notes)
    return {"models": _models(rows), "rows": tuple(rows), "claims": (), "notes": tuple(notes)}


def _require_columns(header: Sequence[str], file: str, line: int, notes: list[str]) -> None:
    known = [column_of(name)[0] for name in header]
    where = f"{file}, line {line}"
    if "layer" not in known or not set(known) & set(METRIC_COLUMNS):
        raise DataError(
            "the heading names no layer or no metric",
            field=where,
            got=list(header),
            expected="a column layer, and one of loss_recovered, l0, dead_fraction, absorption",
        )
    doubled = [name for name, column in zip(header, known) if column is not None and known.count(column) > 1]
    if doubled:
        raise DataError("two columns mean the same", field=where, got=doubled, expected="each metric in one column")
    unread = [name for name, column in zip(header, known) if column is None and name.strip()]
    if unread:
        notes.append(f"line {line}: columns not read: {', '.join(unread)}")


def _row(cells: Mapping[str, str], file: str, line: int, models: Sequence[str], notes: list[str]) -> list[ImportedRow]:
    by_column = {column: (name, percent) for name in cells for column, percent in [column_of(name)] if column}

    def text(column: str) -> str:
        return plain_text(cells[by_column[column][0]]) if column in by_column else ""

    def found(column: str) -> list[Quantity]:
        name, percent = by_column[column]
        return quantities(cells[name], column, Place(file, line, name), percent=percent)

    hookpoint, layer = hookpoint_of(text("layer"), Place(file, line, "layer"))
    counts = {name: int(items[0].value) for name in COUNT_COLUMNS if name in by_column and (items := found(name))}
    made = rows_of_layer(
        {metric: found(metric) for metric in METRIC_COLUMNS if metric in by_column},
        model=text("model") or (models[0] if models else ""),
        hookpoint=hookpoint,
        layer=layer,
        place=Place(file, line, "layer"),
        k=counts.get("k"),
        num_latents=counts.get("num_latents"),
        printed=printed_grade(text("status")),
        notes=notes,
    )
    largest = found("l0_max") if "l0_max" in by_column else []
    extra: dict[str, Any] = {"alive": counts.get("alive"), "l0_max": largest[0].value if largest else None}
    if text("dataset") and len(made) == 1:
        extra["dataset"] = text("dataset")
    return [row.model_copy(update={**extra, "values": _bounded(row.values, found, by_column)}) for row in made]


def _bounded(values: Mapping[str, Measured], found: Any, columns: Mapping[str, Any]) -> dict[str, Measured]:
    """The values with intervals from the columns `<metric>_low` and `<metric>_high`."""
    result = dict(values)
    for metric in METRIC_COLUMNS:
        ends = [found(f"{metric}{end}") if f"{metric}{end}" in columns else [] for end in ("_low", "_high")]
        if all(ends) and values[metric].value is not None:
            low, high = (end[0].value for end in ends)
            result[metric] = values[metric].model_copy(update={"low": low, "high": high})
    return result


def _read_json(text: str, file: str, models: Sequence[str]) -> dict[str, Any]:
    data = parse_json(text, file)
    items = data.get("rows", data.get("layers", [data])) if isinstance(data, dict) else data
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise DataError(
            "is no list of rows", field=file, got=type(data).__name__, expected='[{"layer": 4, "loss_recovered": 0.98}]'
        )
    shared = {key: data[key] for key in ("model", "dataset", "k", "num_latents") if key in data and items != [data]}
    rows = [_json_row({**shared, **item}, file, index, models) for index, item in enumerate(items, 1)]
    return {"models": _models(rows), "rows": tuple(rows), "claims": (), "notes": (), "unit": "row"}


def _place(file: str, row: int, column: str) -> Place:
    # JSON keeps no line numbers once it is read; a row's number is what a person can count.
    return Place(file, row, column, "row")


def _json_row(item: Mapping[str, Any], file: str, index: int, models: Sequence[str]) -> ImportedRow:
    named = {_JSON_KEYS.get(key, key): value for key, value in item.items()}
    hookpoint, layer = hookpoint_of(str(named.get("layer", "")).strip(), _place(file, index, "layer"))
    if isinstance(item.get("hookpoint"), str):
        hookpoint, layer = hookpoint_of(item["hookpoint"].strip(), _place(file, index, "hookpoint"))
    values, rounding = {}, {}
    for metric in METRIC_COLUMNS:
        entry = named.get(metric)
        parts = entry if isinstance(entry, Mapping) else {"value": entry}
        value, low, high = (
            number_of(parts.get(part), metric, _place(file, index, metric)) for part in ("value", "low", "high")
        )
        reason = parts.get("reason")
        values[metric] = (
            NOT_MEASURED if metric not in named else Measured(value=None, reason=str(reason or "empty in the table"))
        )
        if value is not None:
            ends = (low, high) if low is not None and high is not None else (None, None)
            low_end, high_end = (end.value if end is not None else None for end in ends)
            values[metric] = Measured(value=value.value, low=low_end, high=high_end)
            rounding[metric] = value.half_step
    counts = {name: number_of(named.get(name), name, _place(file, index, name)) for name in (*COUNT_COLUMNS, "l0_max")}
    known = {name: found.value for name, found in counts.items() if found is not None}
    whole = {name: int(known[name]) for name in COUNT_COLUMNS if name in known}
    return ImportedRow(
        model=str(named.get("model") or (models[0] if models else "")),
        hookpoint=hookpoint,
        layer=layer,
        dataset=str(named.get("dataset") or UNNAMED),
        line=index,
        values=values,
        rounding=rounding,
        l0_max=known.get("l0_max"),
        printed=printed_grade(str(named.get("status", ""))),
        **whole,
    )


def _models(rows: Sequence[ImportedRow]) -> tuple[ImportedModel, ...]:
    lines = {row.model: row.line for row in reversed(rows)}
    return tuple(ImportedModel(title=name, names=(name,), line=lines[name]) for name in dict.fromkeys(lines))[::-1]


def _named(table: ImportedTable, models: Sequence[str]) -> ImportedTable:
    """The table with the user's names for its models, and with a name for one that has none."""
    wanted = list(models) or [model.title or Path(table.file).stem for model in table.models]
    if len(wanted) != len(table.models):
        raise ConfigError(
            "does not name each model of the file once",
            field="--model",
            got=", ".join(wanted),
            expected=f"{len(table.models)} names, in the order {', '.join(model.title for model in table.models)}",
        )
    if len(set(wanted)) < len(wanted):
        raise ConfigError("two models have one name", field="--model", got=", ".join(wanted), expected="distinct names")
    new = {model.title: name for model, name in zip(table.models, wanted)}
    renamed = {
        "models": tuple(model.model_copy(update={"title": new[model.title]}) for model in table.models),
        "rows": tuple(row.model_copy(update={"model": new.get(row.model, row.model)}) for row in table.rows),
        "claims": tuple(
            claim.model_copy(update={"model": new.get(claim.model or ""), "other": new.get(claim.other or "")})
            for claim in table.claims
        ),
    }
    return table.model_copy(update=renamed)


def _refuse_doubles(rows: Sequence[ImportedRow], table: ImportedTable) -> None:
    seen: dict[tuple[str, str, str], int] = {}
    for row in rows:
        key = (row.model, row.hookpoint, row.dataset)
        if key in seen:
            raise DataError(
                "a layer comes twice with one dataset",
                field=f"{table.file}, {table.unit} {row.line}",
                got=f"{row.hookpoint} of {row.model or 'the model'}, {row.dataset}",
                expected=f"one row; the first is {table.unit} {seen[key]}",
            )
        seen[key] = row.line
