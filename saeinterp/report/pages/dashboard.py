"""`report.html`: one offline file, rendered from `results.json` and the tables beside it.

Every section is plain HTML that needs no script; the tables, the pages of latents and the plots are added to it. The
surprising choice: libraries and data lie in the page as gzip + base64, and a Content-Security-Policy admits
exactly those scripts by their hashes and no connection at all, so a label that says `<script>` stays text
and a five-megabyte plotly costs two.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from saeinterp.health.grading.rules import GRADED
from saeinterp.report.associations.figures import layer_rates
from saeinterp.report.associations.pages import Explorer
from saeinterp.report.associations.results import CategoryRow, ComparedRate, RateRow
from saeinterp.report.associations.tables import GRID_ROWS, plain_rows
from saeinterp.report.associations.volcano import volcanoes
from saeinterp.report.explainer_results import ControlRow, ExplainerSection, MetricRow, PairRow, RankedRow
from saeinterp.report.format import number, plural, visible, with_interval
from saeinterp.report.grade_results import DatasetRow
from saeinterp.report.latents import OUTCOMES
from saeinterp.report.markdown import RETRY
from saeinterp.report.model_results import LayerDifference, ModelSection
from saeinterp.report.pages import figures
from saeinterp.report.pages.details import Pages, Places
from saeinterp.report.pages.libraries import TABULATOR_INSTALL, plotly_library, tabulator_library
from saeinterp.report.pages.payload import latent_payload
from saeinterp.report.pages.shards import as_json, nonce, packed
from saeinterp.report.results import (
    ABSENT,
    HEALTH_COLUMNS,
    LayerHealth,
    LayerTraining,
    Results,
)
from saeinterp.report.tables import every_label, plain_latents, read_table
from saeinterp.report.values import Model, Number

if TYPE_CHECKING:
    import jinja2

PLAIN_ROWS = 500
"""Rows of the latent table that needs no script; the rest are in the tables, and the page says so."""
TINTED = ("loss_recovered", "loss_recovered_mean", "kl_recovered", "explained_variance", "fvu", "cosine", "dead")
"""Health columns whose values lie between 0 and 1 when all is well."""

NARROWEST = 0.05
"""Difference axes reach at least so far to both sides, so that nothing small is drawn large."""

_HERE = Path(__file__).parent
_PARTS = ("payload", "table", "associated", "pages", "examples", "profile", "latent", "plots", "main")


def render_dashboard(results: Results, tables: Path) -> str:
    """The page as one string.

    Args:
        results: What `results.json` holds.
        tables: The folder of the Parquet tables that belong to it.

    Raises:
        MissingDependencyError: plotly is not installed.
    """
    section = results.explainers
    latents = read_table(tables, "latents") if section is not None else None
    explorer = _explorer(results, tables)
    plots = [*_associations(results, explorer), *_figures(section, latents, tables)]
    embedded = {
        "lib-plotly": plotly_library() if plots else None,
        "lib-tabulator": tabulator_library() if latents is not None or explorer is not None else None,
    }
    libraries = {name: item for name, item in embedded.items() if item is not None}
    payload: dict[str, Any] = {"figures": [figure.payload() for figure in plots]}
    details: dict[str, str] = {}
    places = None
    if section is not None and latents is not None:
        places = Places.of(latents, limit=results.detail_latents)
        payload["latents"] = latent_payload(section, latents) | places.payload(places.note(latents))
        made = _pages(results, section, latents, tables).chunks(places.chunks)
        details = {f"details-{place}": packed(as_json(chunk)) for place, chunk in enumerate(made)}
    if explorer is not None:
        payload["associated"] = explorer.payload()
        details |= explorer.parts()
    # In a scope of its own, so that a name here can never meet a library's.
    script = '"use strict";\n(() => {\n' + "".join(_asset(f"{name}.js") for name in _PARTS) + "})();\n"
    template = _environment(results).get_template("report.html.jinja")
    beside = (places is not None and places.shards) or (explorer is not None and explorer.beside)
    admitted = nonce(results.model_dump_json()) if beside else None
    return template.render(
        r=results,
        policy=_policy([script, *(item.script for item in libraries.values())], nonce=admitted),
        nonce=admitted,
        left_out=places.note(latents) if places is not None and latents is not None else None,
        style=Markup(_asset("report.css")),
        library_styles=Markup("".join(item.style for item in libraries.values())),
        packed={
            "payload": packed(as_json(payload)),
            **details,
            **{name: packed(item.script) for name, item in libraries.items()},
        },
        script=Markup(script),
        libraries=[(item.name, Markup(escape(item.licence))) for item in libraries.values()],
        has_grid="lib-tabulator" in libraries,
        tabulator_install=TABULATOR_INSTALL,
        latents=plain_latents(latents, PLAIN_ROWS) if latents is not None else [],
        latent_count=len(latents["id"]) if latents is not None else 0,
        associated=plain_rows(explorer.columns, PLAIN_ROWS) if explorer is not None else [],
        pages=explorer.pages if explorer is not None else {},
        grid_rows=GRID_ROWS,
        tokens_left_out=explorer.note if explorer is not None else None,
        has_pages=latents is not None or (explorer is not None and bool(explorer.pages)),
        quick=_quick(latents["outcome"]) if latents is not None else [],
        axis=_axis(section) if section is not None else None,
        figures=plots,
        sections=_sections(results, plots, latents is not None),
        health_columns=[(name, LayerHealth.model_fields[name]) for name in HEALTH_COLUMNS],
        tinted=TINTED,
        grade_columns=[(name, DatasetRow.model_fields[name]) for name in GRADED],
        every_label=_labels(results, tables),
        labels=MetricRow.model_fields,
        ranked_labels=RankedRow.model_fields,
        pair_labels=PairRow.model_fields,
        control_labels=ControlRow.model_fields,
        rate_labels=RateRow.model_fields,
        compared_labels=ComparedRate.model_fields,
        category_labels=CategoryRow.model_fields,
        training_labels=LayerTraining.model_fields,
        retry=RETRY,
        absent=ABSENT,
        version=next((line.value for line in results.provenance.versions if line.field == "saeinterp"), ""),
    )


def numbers(item: Any, path: str = "") -> list[tuple[str, Number]]:
    """Every `Number` of a model with its path, such as `explainers.rows.0.difference`."""
    if isinstance(item, Number):
        return [(path, item)]
    found: list[tuple[str, Number]] = []
    if isinstance(item, Model):
        for name in type(item).model_fields:
            found += numbers(getattr(item, name), f"{path}.{name}" if path else name)
    elif isinstance(item, tuple):
        for index, part in enumerate(item):
            found += numbers(part, f"{path}.{index}")
    return found


def shards(results: Results, tables: Path) -> Iterator[tuple[int, dict[int, Any]]]:
    """The pages of latents that do not fit into the page, by the number of their file."""
    section, latents = results.explainers, read_table(tables, "latents")
    if section is None or latents is None:
        return
    places = Places.of(latents, limit=results.detail_latents)
    made = _pages(results, section, latents, tables).chunks([rows for _, rows in places.shards])
    yield from zip((number for number, _ in places.shards), made, strict=True)


def pair_shards(results: Results, tables: Path) -> Iterator[tuple[int, dict[int, Any]]]:
    """The same of latents and their tokens."""
    explorer = _explorer(results, tables)
    return iter(()) if explorer is None else explorer.shards()


def _explorer(results: Results, tables: Path) -> Explorer | None:
    if results.enrichment is None or not (tables / "associated.parquet").exists():
        return None
    return Explorer(results.enrichment, tables, limit=results.detail_latents, grid_rows=GRID_ROWS)


def _pages(results: Results, section: ExplainerSection, latents: Mapping[str, list[Any]], tables: Path) -> Pages:
    return Pages(section, results.pairs, results.profiles, latents, tables)


def _environment(results: Results) -> jinja2.Environment:
    import jinja2

    paths = {id(item): path for path, item in numbers(results)}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE.parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    environment.filters.update(
        num=lambda item: _num(item, paths[id(item)]),
        at=_at,
        count=lambda value: number(value, "count"),
        level=lambda value: f"{min(max(value, 0.0), 1.0) * 100:.1f}",
        plural=plural,
        reach=_reach,
        by_side=lambda layers: [(side, list(items)) for side, items in groupby(layers, key=lambda item: item.side)],
        reasons=_reasons,
    )
    return environment


def _asset(name: str) -> str:
    return (_HERE / "assets" / name).read_text(encoding="utf-8")


def _policy(scripts: Sequence[str], *, nonce: str | None) -> str:
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in scripts
    )
    beside = f" 'nonce-{nonce}'" if nonce is not None else ""
    return (
        f"default-src 'none'; script-src {hashes}{beside}; style-src 'unsafe-inline'; img-src data: blob:; "
        "connect-src 'none'; form-action 'none'; base-uri 'none'"
    )


def _num(item: Number, path: str) -> Markup:
    """A number as a `data` element: raw value, path in results.json, and n, interval and source on hover."""
    if item.value is None:
        return Markup('<abbr class="na" title="{0}">NA</abbr>').format(visible(item.reason or ""))
    about = [
        f"n = {number(item.n, 'count')} {item.of}" if item.n is not None else None,
        item.interval or item.no_interval,
        item.source,
    ]
    shown, bounds = with_interval(item.value, item.low, item.high, item.style)
    text = Markup('<data class="num" value="{0}" data-path="{1}" title="{2}">{3}</data>').format(
        json.dumps(item.value), path, visible(" · ".join(part for part in about if part)), shown
    )
    return text + Markup(' <span class="ci">{0}</span>').format(bounds) if bounds else text


def _at(value: float, low: float, high: float) -> str:
    """A position on an axis from `low` to `high`, in percent for CSS."""
    share = (value - low) / (high - low) if high > low else 0.5
    return f"{min(max(share, 0.0), 1.0) * 100:.2f}%"


def _reach(rows: Sequence[LayerDifference]) -> float:
    """Half the width of an axis that shows every difference and its interval."""
    ends = [end for row in rows for end in (row.difference.value, row.difference.low, row.difference.high)]
    return max([NARROWEST, *(abs(end) for end in ends if end is not None)]) * 1.08


def _reasons(item: Any) -> dict[str, str]:
    """The reasons of a table's missing numbers, each once, with the letter that marks it.

    A difference is missing because a side is, which has its own mark.
    """
    parts = item
    if isinstance(item, ModelSection):
        parts = (*(side for row in item.layers for side in (row.a, row.b)), *item.summary)
    found = dict.fromkeys(number.reason for _, number in numbers(parts) if number.value is None and number.reason)
    return {reason: _letter(index) for index, reason in enumerate(found)}


def _letter(index: int) -> str:
    return (_letter(index // 26 - 1) if index >= 26 else "") + chr(ord("a") + index % 26)


def _axis(section: ExplainerSection) -> dict[str, Any]:
    """Axes of the verdict card: scores from 0 (or -1) to 1, differences symmetric about 0."""
    primary = section.primary
    ends = [primary.difference.value, primary.difference.low, primary.difference.high, section.margin]
    ends += [primary.detectable.value] if primary.detectable is not None else []
    reach = max(abs(end) for end in ends if end is not None) * 1.12
    scores = [primary.a, primary.b, *(control.value for control in section.controls)]
    lowest = min((end for item in scores for end in (item.value, item.low) if end is not None), default=0.0)
    low = -1 if lowest < 0 else 0
    return {"low": low, "high": 1, "reach": reach, "ticks": [low, (low + 1) / 2, 1]}


def _sections(results: Results, plots: Sequence[figures.Figure], has_latents: bool) -> list[tuple[str, str]]:
    """The navigation: what this page holds, in order."""
    explained = results.explainers is not None
    compared = results.models is not None
    associated = results.enrichment is not None
    known = [
        ("failures", "Failures", bool(results.failures)),
        ("interpretability", "Questions", results.interpretability is not None),
        ("enrichment", "Rates", associated),
        ("associated", "Latents and tokens", associated),
        ("ranking", "Ranking", results.pairs is not None),
        ("verdict", "A and B" if results.pairs is not None else "Verdict", explained),
        ("scorers", "Second scorer", results.scorers is not None),
        ("table", "Outside table", results.scores_table is not None),
        ("models", "Models", compared and not explained),
        ("latents", "Latents", has_latents),
        ("plots", "Plots", bool(plots)),
        ("metrics", "Metrics", explained),
        ("grades", "Grades", results.grades is not None),
        ("findings", "Findings", bool(results.findings)),
        ("layers", "Layer health", bool(results.layers)),
        ("models", "Models", compared and explained),
        ("training", "Training", bool(results.training)),
        ("setup", "Set-up", True),
        ("provenance", "Provenance", True),
        ("about", "About", True),
    ]
    return [(name, title) for name, title, there in known if there]


def _labels(results: Results, tables: Path) -> list[dict[str, Any]]:
    """Latents with the labels of three or more explainers; none where there are two."""
    columns = read_table(tables, "explainers")
    if results.pairs is None or columns is None:
        return []
    return every_label(columns, results.pairs.metric, [row.key for row in results.pairs.explainers], PLAIN_ROWS)


def _quick(outcomes: Sequence[str]) -> list[tuple[str, str]]:
    """The quick filters that some latent passes, with how many do."""
    counts = {name: outcomes.count(name) for name in OUTCOMES}
    chips = [(name, f"{text} ({counts[name]})") for name, text in OUTCOMES.items() if counts[name]]
    return [("all", f"All ({len(outcomes)})"), *chips]


def _associations(results: Results, explorer: Explorer | None) -> list[figures.Figure]:
    presets = results.enrichment.presets if results.enrichment is not None else ()
    made = [layer_rates(preset) for preset in presets]
    if explorer is not None and explorer.marks is not None:
        made += [figure for preset in presets for figure in volcanoes(preset, explorer.marks, explorer.pages)]
    return [figure for figure in made if figure is not None]


def _figures(
    section: ExplainerSection | None, latents: Mapping[str, list[Any]] | None, tables: Path
) -> list[figures.Figure]:
    made: list[figures.Figure | None] = []
    if section is not None and latents is not None:
        made.append(figures.scatter(section, latents))
    if rows := _rows(tables, "curves"):
        made += [
            figures.curves(
                rows,
                value="fvu_heldout",
                title="Held-out FVU during training",
                caption="Fraction of variance unexplained on the held-out split; lower is closer.",
                label="Held-out FVU",
            ),
            figures.curves(
                rows,
                value="dead",
                title="Dead latents during training",
                caption="Latents silent over the last rows seen.",
                label="Dead latents",
            ),
        ]
    if rows := _rows(tables, "density"):
        made.append(figures.densities(rows))
    return [figure for figure in made if figure is not None]


def _rows(tables: Path, name: str) -> list[dict[str, Any]]:
    columns = read_table(tables, name)
    return [dict(zip(columns, values)) for values in zip(*columns.values())] if columns else []
