"""`report.md`: the sections a person would write (set-up, results, findings, statistics, provenance).

The surprising choice: text is escaped unless it was made here, the reverse of what Jinja does outside
HTML, because labels and errors come from models and would otherwise be read as markup.
"""

from __future__ import annotations

from pathlib import Path

from saeinterp.health.grading.rules import GRADED
from saeinterp.report.format import markdown_text, number, plural, with_interval
from saeinterp.report.grade_results import DatasetRow
from saeinterp.report.results import ABSENT, HEALTH_COLUMNS, LayerHealth, Results
from saeinterp.report.tables import plain_latents, read_table
from saeinterp.report.values import Number

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
    environment.filters.update(num=_num, plural=plural, code=_code, safe=Plain)
    latents = read_table(tables, "latents")
    return environment.get_template("report.md.jinja").render(
        r=results,
        retry=RETRY,
        absent=ABSENT,
        latents=plain_latents(latents, LATENT_ROWS) if latents else [],
        latent_count=len(latents["id"]) if latents else 0,
        health_columns=[(name, LayerHealth.model_fields[name]) for name in HEALTH_COLUMNS],
        grade_columns=[(name, DatasetRow.model_fields[name]) for name in GRADED],
        missing=_missing(results),
        number=number,
    )


def _num(item: Number) -> Plain:
    text, bounds = with_interval(item.value, item.low, item.high, item.style)
    return Plain(f"{text} {bounds}" if bounds else text)


def _code(text: str) -> Plain:
    return Plain(f"`{text.replace('`', '')}`")


def _missing(results: Results) -> list[tuple[str, str]]:
    """Reasons of NA cells in the health table, with where they apply."""
    reasons: dict[str, dict[str, list[str]]] = {}
    for layer in results.layers:
        for name in HEALTH_COLUMNS:
            item: Number = getattr(layer, name)
            if item.value is None:
                title = str(LayerHealth.model_fields[name].title)
                reasons.setdefault(item.reason or "", {}).setdefault(title, []).append(
                    ", ".join([layer.side, layer.title, *([layer.dataset] if len(results.datasets) > 1 else [])])
                )
    everywhere = len(results.layers)
    return [
        (
            reason.rstrip("."),
            "; ".join(
                title if len(where) == everywhere else f"{title} ({'; '.join(where)})"
                for title, where in titles.items()
            ),
        )
        for reason, titles in reasons.items()
    ]
