"""Tables of layers in a Markdown report, and what the report says about them elsewhere.

A table belongs to the heading above it; settings come from the text in between (`k=32, 400 latents`). The surprising
choice: the prose counts that can be recomputed (healthy layers, means, ranges, gaps) are read as claims and checked,
since they are where reports written by hand went wrong.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from saeinterp.health.imported.cells import (
    COUNT_COLUMNS,
    METRIC_COLUMNS,
    NUMBER,
    Place,
    column_of,
    plain_text,
    printed_grade,
    quantities,
)
from saeinterp.health.imported.files import TextTable, starts_table, table_at
from saeinterp.health.imported.rows import Claim, ImportedModel, ImportedRow, hookpoint_of, rows_of_layer

_HEADING = re.compile(r"#{1,6}\s+(.*)")
_MODEL = re.compile(r"[-*]?\s*\**model\**\s*:\s*\**\s*(.+)", re.IGNORECASE)
_K = re.compile(r"(?<![\w.])k\s*=\s*(\d+)", re.IGNORECASE)
_LATENTS = re.compile(r"(\d[\d,]*)\s+latents", re.IGNORECASE)
_TAIL = re.compile(
    r"\s+(layer|training|performance|health|results?|summary|analysis|overall|sae|key)\b.*$", re.IGNORECASE
)
_COUNT = re.compile(r"(\d+)\s*/\s*(\d+)\s+(?:layers?\s+)?(fully healthy|partially healthy|unhealthy|incomplete)")
_LABEL = {"fully healthy": "healthy", "partially healthy": "partial"}
_SHARE = re.compile(r"(\d+)\s*/\s*(\d+)")
_PERCENT = re.compile(rf"(?P<value>{NUMBER})\s*%")
_SPAN = re.compile(rf"(?P<low>{NUMBER})\s*%?\s*(?:-|–|to)\s*(?P<high>\d+(?:\.\d+)?)\s*(?P<percent>%)?")


def read_markdown(text: str, file: str, models: Sequence[str]) -> dict[str, Any]:
    """The parts of an `ImportedTable`.

    Raises:
        DataError: A cell of a table of layers cannot be read.
    """
    lines = text.splitlines()
    found: list[ImportedModel] = []
    rows: list[ImportedRow] = []
    notes: list[str] = []
    claims: list[Claim] = []
    comparisons: list[TextTable] = []
    heading, said = "", ""
    settings: dict[str, tuple[int, int]] = {}
    index = 0
    while index < len(lines):
        line = lines[index]
        if match := _HEADING.match(line):
            heading = plain_text(match[1])
        elif match := _MODEL.match(line):
            # The first code span, or all of it: what stands behind is prose.
            code = re.search(r"`([^`]+)`", match[1])
            said = code[1] if code else plain_text(match[1])
        elif starts_table(lines, index):
            table, index = table_at(lines, index, file)
            columns = [column_of(name)[0] for name in table.header]
            if "layer" in columns and set(columns) & set(METRIC_COLUMNS):
                title = _title(heading) or said or (models[0] if len(models) == 1 else "")
                model = ImportedModel(title=title, names=tuple(filter(None, (title, said))), line=table.line)
                if any(item.title == title for item in found):
                    model = next(item for item in found if item.title == title)
                else:
                    found.append(model)
                rows += _layers(table, file, title, settings, notes)
                said = ""
            else:
                comparisons.append(table)
            continue
        else:
            _read_settings(line, index + 1, settings)
            if found:
                claims += _counts(line, index + 1, found[-1].title)
        index += 1
    for table in comparisons:
        claims += _comparison(table, found)
    return {"models": tuple(found), "rows": tuple(rows), "claims": tuple(claims), "notes": tuple(notes)}


def _title(heading: str) -> str:
    """A model's name from a heading such as `📊 **Llama-2-7B Layer-by-Layer Performance Analysis**`."""
    words = re.sub(r"^[^\w(]+", "", plain_text(heading))
    return _TAIL.sub("", words).strip() if _TAIL.search(words) else ""


def _read_settings(line: str, number: int, settings: dict[str, tuple[int, int]]) -> None:
    """Settings from prose such as `k=32, 400 latents`, each with its line."""
    for name, pattern in (("k", _K), ("num_latents", _LATENTS)):
        if match := pattern.search(line):
            settings[name] = (int(match[1].replace(",", "")), number)


def _layers(
    table: TextTable, file: str, model: str, settings: Mapping[str, tuple[int, int]], notes: list[str]
) -> list[ImportedRow]:
    said = {
        name: found for name, found in settings.items() if name not in {column_of(cell)[0] for cell in table.header}
    }
    if said:
        words = " and ".join(f"{name} = {value} from line {line}" for name, (value, line) in said.items())
        notes.append(f"table on line {table.line}: {words}")
    columns = {column: (at, percent) for at, name in enumerate(table.header) for column, percent in [column_of(name)]}
    rows: list[ImportedRow] = []
    for line, cells in table.rows:

        def place(column: str, line: int = line) -> Place:
            return Place(file, line, plain_text(table.header[columns[column][0]]))

        hookpoint, layer = hookpoint_of(plain_text(cells[columns["layer"][0]]), place("layer"))
        values = {
            metric: quantities(cells[at], metric, place(metric), percent=percent)
            for metric, (at, percent) in columns.items()
            if metric in METRIC_COLUMNS
        }
        own = {
            name: int(items[0].value)
            for name in COUNT_COLUMNS
            if name in columns and (items := quantities(cells[columns[name][0]], name, place(name)))
        }
        made = rows_of_layer(
            values,
            model=model,
            hookpoint=hookpoint,
            layer=layer,
            place=place("layer"),
            k=own.get("k", said["k"][0] if "k" in said else None),
            num_latents=own.get("num_latents", said["num_latents"][0] if "num_latents" in said else None),
            printed=printed_grade(cells[columns["status"][0]]) if "status" in columns else None,
            notes=notes,
        )
        update: dict[str, Any] = {"alive": own.get("alive")}
        if "dataset" in columns and len(made) == 1 and plain_text(cells[columns["dataset"][0]]):
            update["dataset"] = plain_text(cells[columns["dataset"][0]])
        rows += [row.model_copy(update=update) for row in made]
    return rows


def _counts(line: str, number: int, model: str) -> list[Claim]:
    """`3/5 layers fully healthy, 2/5 partially healthy` in prose."""
    return [
        Claim(
            line=number,
            subject=_LABEL.get(match[3], match[3]),
            metric=None,
            model=model,
            values=(float(match[1]),),
            of=int(match[2]),
            half_step=0.0,
            percent=False,
            text=match[0],
        )
        for match in _COUNT.finditer(plain_text(line).lower())
    ]


def _comparison(table: TextTable, models: Sequence[ImportedModel]) -> list[Claim]:
    """Cells of a table with one column per model that can be computed from the tables of layers."""
    owner = {at: _find(name, models) for at, name in enumerate(table.header)}
    sides = [(at, model) for at, model in owner.items() if model is not None]
    if not sides or len({model for _, model in sides}) < len(sides):
        return []
    claims = []
    for line, cells in table.rows:
        what = re.sub(r"[^a-z0-9]", "", plain_text(cells[0]).lower())
        for at, model in sides:
            claims += _cell_claims(what, plain_text(cells[at]), line, model)
        rest = [at for at in range(1, len(cells)) if at not in dict(sides)]
        if len(sides) == 2 and rest and (match := _PERCENT.search(plain_text(cells[rest[0]]))):
            subject = "mean" if "loss" in what else "healthy" if "healthy" in what or "success" in what else None
            if subject:
                metric = "loss_recovered" if subject == "mean" else None
                gap = _claim(line, "gap", match, match["value"], sides[0][1], metric=metric, percent=True)
                claims.append(gap.model_copy(update={"other": sides[1][1]}))
    return claims


def _cell_claims(what: str, text: str, line: int, model: str) -> list[Claim]:
    found = []
    if ("healthy" in what or "success" in what) and (match := _SHARE.search(text)):
        claim = _claim(line, "healthy", match, match[1], model, percent=False)
        found.append(claim.model_copy(update={"of": int(match[2]), "half_step": 0.0}))
        if percent := _PERCENT.search(text):
            found.append(_claim(line, "share", percent, percent["value"], model, percent=True))
    elif "loss" in what and (match := _PERCENT.search(text)):
        found.append(_claim(line, "mean", match, match["value"], model, metric="loss_recovered", percent=True))
    elif ("dead" in what or what.startswith("l0")) and (match := _SPAN.search(text)):
        metric = "dead_fraction" if "dead" in what else "l0"
        percent_sign = bool(match["percent"])
        ends = [_claim(line, "range", match, match[end], model, percent=percent_sign) for end in ("low", "high")]
        values = (ends[0].values[0], ends[1].values[0])
        half_step = max(end.half_step for end in ends)
        found.append(ends[0].model_copy(update={"metric": metric, "values": values, "half_step": half_step}))
    return found


def _claim(
    line: int, subject: str, match: re.Match[str], number: str, model: str, *, percent: bool, metric: str | None = None
) -> Claim:
    quantity = quantities(number, "", Place("", line, ""), percent=percent)[0]
    return Claim(
        line=line,
        subject=subject,
        metric=metric,
        model=model,
        values=(quantity.value,),
        half_step=quantity.half_step,
        percent=percent,
        text=match[0],
    )


def _find(name: str, models: Sequence[ImportedModel]) -> str | None:
    wanted = plain_text(name).lower()
    for model in models:
        if wanted in {other.lower() for other in (model.title, *model.names)}:
            return model.title
    return None
