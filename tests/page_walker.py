"""Walks a whole report page: every number against `results.json`, every row of a table against its Parquet file."""

from __future__ import annotations

import base64
import gzip
import json
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import polars as pl

from saeinterp.report.format import Style, number, visible, with_interval

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
SILENT = {"script", "style"}
NO_NUMBER = re.compile(r"(?<![\w/.-])(NaN|nan|None|inf|-inf|Infinity|Undefined)(?![\w-])")
"""What a program writes where it meant a number."""
ATTRIBUTES = ("title", "aria-label", "value", "alt", "content")


@dataclass
class Table:
    """One table of a page, its cells as text."""

    head: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)


@dataclass
class Shown:
    """One `<data class=num>`."""

    path: str
    value: str
    text: str = ""


class Walker(HTMLParser):
    """Numbers, tables and visible texts of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.numbers: list[Shown] = []
        self.tables: list[Table] = []
        self.texts: list[str] = []
        self.attributes: list[str] = []
        self._open: list[tuple[str, dict[str, str | None]]] = []
        self._table: list[Table] = []
        self._cell: list[str] | None = None
        self._row: list[str] | None = None
        self._heads = 0
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.attributes += [value for name in ATTRIBUTES if (value := given.get(name))]
        if tag == "data" and "data-path" in given:
            self.numbers.append(Shown(str(given["data-path"]), str(given["value"])))
        if tag == "table":
            self._table.append(Table())
        elif tag == "tr":
            self._row, self._heads = [], 0
        elif tag in ("td", "th"):
            self._cell = []
            self._heads += tag == "th" and given.get("scope") == "col"
        if tag not in VOID:
            self._open.append((tag, given))

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open[-1][0] != tag:
            self._open.pop()
        if self._open:
            self._open.pop()
        if tag in ("td", "th") and self._cell is not None and self._row is not None:
            self._row.append("".join(self._cell).strip())
            self._cell = None
        elif tag == "tr" and self._row is not None and self._table:
            if self._heads == len(self._row) and not self._table[-1].head:
                self._table[-1].head = self._row
            else:
                self._table[-1].rows.append(self._row)
            self._row = None
        elif tag == "table" and self._table:
            self.tables.append(self._table.pop())

    def handle_data(self, data: str) -> None:
        if any(tag in SILENT or given.get("class") == "licence" for tag, given in self._open):
            return
        self.texts.append(data)
        if self._cell is not None:
            self._cell.append(data)
        if self._open and self._open[-1][0] == "data":
            self.numbers[-1].text += data


LATENTS: dict[str, tuple[str, Style | None]] = {
    "Layer": ("hookpoint", None),
    "Label A": ("explanation_a", None),
    "Label B": ("explanation_b", None),
    "B − A": ("delta", "difference"),
    "Density": ("density", "rate"),
    "Status": ("status", None),
}
"""Heading of the table of latents to its column, and how a number of it is written."""
ASSOCIATED: dict[str, tuple[str, Style | None]] = {
    "Label": ("label", None),
    "Token": ("token", None),
    "MCC": ("mcc", "score"),
}
VOLCANO: dict[str, tuple[str, Style | None]] = {
    "Token": ("token", None),
    "p": ("p_value", "p"),
    "q": ("q_value", "p"),
}


def check_page(html: str, folder: Path) -> Walker:
    """Hold a page against the results and tables beside it; returns what was walked.

    Every `<data>` has a path in `results.json`, the value that stands there and the text that this value has in its
    style; every row of the latent and token tables is a row of its Parquet file; nothing reads NaN or None.
    """
    page = Walker(html)
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    for shown in page.numbers:
        stored = _at(results, shown.path)
        assert json.loads(shown.value) == stored["value"], shown.path
        text, _ = with_interval(stored["value"], stored["low"], stored["high"], stored["style"])
        assert shown.text == text, shown.path
    for text in (*page.texts, *page.attributes):
        assert not NO_NUMBER.search(text), text[:300]
    explained = results["explainers"]
    if (latents := _table(folder, "latents")) is not None:
        latents = latents.with_columns(pl.col("status").str.replace_all("_", " "))
        title = explained["metric_title"]
        known = {**LATENTS, f"{title} A": ("value_a", "score"), f"{title} B": ("value_b", "score")}
        assert _matched(page, latents, "Latent", known) > 0
    if (associated := _table(folder, "associated")) is not None:
        assert _matched(page, associated, "Latent", ASSOCIATED) > 0
    if (marks := _table(folder, "volcano")) is not None:
        assert _matched(page, marks, "Latent", VOLCANO) > 0
    return page


def check_payload(html: str, folder: Path) -> int:
    """Hold the columns of the sortable table against the file's rows; returns how many cells were compared."""
    latents = _table(folder, "latents")
    if latents is None:
        return 0
    packed = re.search(r'<script type="application/gzip;base64" id="payload">([^<]*)</script>', html)
    assert packed is not None
    columns = json.loads(gzip.decompress(base64.b64decode(packed[1])))["latents"]["columns"]
    rows = {(row["hookpoint"], row["id"]): row for row in latents.iter_rows(named=True)}
    assert len(rows) == len(columns["id"]) == len(latents)
    styles: dict[str, Style] = {"value_a": "score", "value_b": "score", "delta": "difference", "density": "rate"}
    for place, key in enumerate(zip(columns["hookpoint"], columns["id"])):
        for name, style in styles.items():
            value = rows[key][name]
            assert columns[name][place] == value, (key, name)
            assert columns[f"{name}_text"][place].split(" [")[0] == number(value, style), (key, name)
    return len(rows) * len(styles)


def check_markdown(text: str) -> None:
    """Nothing of a Markdown report reads NaN or None, no table row breaks, no control character is in it."""
    found = NO_NUMBER.search(text)
    assert not found, text[max(0, found.start() - 100) : found.end() + 100] if found else ""
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]", text)
    columns = None
    for line in text.splitlines():
        if not line.startswith("|"):
            columns = None
            continue
        bars = len(re.findall(r"(?<!\\)\|", line))
        columns = columns or bars
        assert bars == columns, line


def _at(results: Any, path: str) -> Any:
    node = results
    for part in path.split("."):
        node = node[int(part)] if part.isdigit() else node[part]
    return node


def _table(folder: Path, name: str) -> pl.DataFrame | None:
    path = folder / "tables" / f"{name}.parquet"
    return pl.read_parquet(path) if path.exists() else None


def _matched(page: Walker, table: pl.DataFrame, key: str, known: dict[str, tuple[str, Style | None]]) -> int:
    """How many cells of the page's tables with all these columns were compared with the file's rows."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in table.iter_rows(named=True):
        rows.setdefault(row["id"], []).append(row)
    compared = 0
    for shown in page.tables:
        if not {key, *known} <= set(shown.head):
            continue
        places = {name: shown.head.index(name) for name in known}
        of_key = shown.head.index(key)
        for cells in shown.rows:
            if len(cells) != len(shown.head) or cells[of_key] not in rows:
                continue
            written = [
                {name: _text(row[column], style) for name, (column, style) in known.items()}
                for row in rows[cells[of_key]]
            ]
            found = {name: cells[place] for name, place in places.items()}
            assert any(all(one[name] == text for name, text in found.items()) for one in written), found
            compared += len(found)
    return compared


def _text(value: Any, style: Style | None) -> str:
    if style is not None:
        return number(value, style)
    return "—" if value is None or value == "" else visible(str(value)).strip()
