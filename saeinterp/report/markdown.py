"""`report.md`: the sections a person would write (set-up, results, findings, statistics, provenance).

The surprising choice: text is escaped unless it was made here, the reverse of what Jinja does outside
HTML, because labels and errors come from models and would otherwise be read as markup.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from saeinterp.health.grading.rules import GRADED
from saeinterp.report.associations.results import ChanceCell
from saeinterp.report.associations.tables import plain_rows
from saeinterp.report.format import listing, markdown_text, number, plural, visible, with_interval
from saeinterp.report.grade_results import DatasetRow
from saeinterp.report.reasons import fold_reasons
from saeinterp.report.results import ABSENT, HEALTH_COLUMNS, LayerHealth, Results
from saeinterp.report.tables import plain_latents, read_table, table_sizes
from saeinterp.report.values import Number

if TYPE_CHECKING:
    import jinja2

LATENT_ROWS = 200
"""Latents in the per-latent table; the rest are in `tables/latents.parquet`, and the report says so."""
RETRY = (
    "To retry, run the same command again: finished steps are reused, and only what failed is computed. "
    "A failure that returns has a cause named in its text."
)


class Plain(str):
    """Text that is Markdown already."""

    __slots__ = ()


def render_markdown(results: Results, tables: Path) -> str:
    """The report as Markdown.

    Args:
        results: What `results.json` holds.
        tables: The folder of the Parquet tables that belong to it.
    """
    latents = read_table(tables, "latents")
    associated = read_table(tables, "associated")
    return (
        markdown_environment()
        .get_template("report.md.jinja")
        .render(
            r=results,
            retry=RETRY,
            absent=ABSENT,
            latents=plain_latents(latents, LATENT_ROWS) if latents else [],
            latent_count=len(latents["id"]) if latents else 0,
            associated=plain_rows(associated, LATENT_ROWS) if associated else [],
            health_columns=[(name, LayerHealth.model_fields[name]) for name in HEALTH_COLUMNS],
            grade_columns=[(name, DatasetRow.model_fields[name]) for name in GRADED],
            missing=_missing(results),
            tables=table_sizes(tables),
        )
    )


def markdown_environment() -> jinja2.Environment:
    """Templates whose every value is escaped for Markdown, but for what was made here."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=False,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: value if isinstance(value, Plain) else markdown_text(str(value)),
    )
    environment.filters.update(num=_num, chance=_chance, plural=plural, code=_code, literal=_literal, safe=Plain)
    environment.globals["number"] = number
    return environment


def _num(item: Number) -> Plain:
    text, bounds = with_interval(item.value, item.low, item.high, item.style)
    return Plain(f"{text} {bounds}" if bounds else text)


def _chance(cell: ChanceCell) -> Plain:
    """Mean ± sd of a null."""
    if cell.mean.value is None or cell.sd.value is None:
        return _num(cell.mean)
    return Plain(f"{_num(cell.mean)} ± {_num(cell.sd)}")


def _code(text: str) -> Plain:
    shown = visible(text).replace("`", "").replace("|", "\\|")
    return Plain(f"`{shown}`")


def _literal(text: str) -> Plain:
    """A text as a Python literal, for a code block that it cannot leave."""
    return Plain(json.dumps(visible(text)))


def _missing(results: Results) -> list[tuple[str, str]]:
    """Reasons of NA cells in the health table, with the column and where they apply."""
    reasons: dict[str, dict[str, list[tuple[str, str, str]]]] = {}
    for layer in results.layers:
        for name in HEALTH_COLUMNS:
            item: Number = getattr(layer, name)
            if item.value is None:
                title = str(LayerHealth.model_fields[name].title)
                place = (layer.side, layer.title, layer.dataset)
                reasons.setdefault(title, {}).setdefault((item.reason or "").rstrip("."), []).append(place)
    everywhere = len(results.layers)
    return [
        (reason, title if len(places) == everywhere else f"{title} ({_places(places, results)})")
        for title, found in reasons.items()
        for reason, places in fold_reasons(found)
    ]


def _places(places: Sequence[tuple[str, str, str]], results: Results) -> str:
    """Layers by side, with their datasets where not all are meant."""
    sides: dict[str, dict[str, list[str]]] = {}
    for side, title, dataset in places:
        sides.setdefault(side, {}).setdefault(title, []).append(dataset)
    shown = []
    for side, layers in sides.items():
        wanted = [layer for layer in results.layers if layer.side == side]
        if sum(map(len, layers.values())) == len(wanted):
            shown.append(side)
            continue
        names = [
            title if len(datasets) == len(results.datasets) else f"{title} on {listing(datasets)}"
            for title, datasets in layers.items()
        ]
        shown.append(f"{side}, {', '.join(names)}")
    return "; ".join(shown)
