"""The volcano plot of pairs of latent and token: how strong each association is over how unlikely it is by chance.

The surprising choice: a plot of a bounded number of marks is no plot of the strongest alone. The smallest p come first,
and of all other listed pairs an even sample by rank, so that the cloud keeps its shape; the same pairs every time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl
from markupsafe import Markup

from saeinterp.compare.interpretability_sides import Associated
from saeinterp.enrichment.published import LARGEST_P
from saeinterp.enrichment.robust import LISTED, RATE
from saeinterp.report.associations.results import PairFacts, PresetSection
from saeinterp.report.associations.tables import odds_text
from saeinterp.report.format import number, plural, visible
from saeinterp.report.pages.figures import PALETTE, SYMBOLS, Figure, axes, pick, plain_text
from saeinterp.report.values import Number

STRONGEST = 500
"""Pairs with the smallest p that are marked, per model and set of rules."""
SAMPLED = 1000
"""Of the others."""
TABLE_ROWS = 100
"""Pairs in the table behind a plot."""
_KEYS = ["side", "preset", "id", "token"]
_SIZES = ["kept", "odds_ratio", "odds_ratio_low", "odds_ratio_high", "p_value", "log10_p", "q_value"]

Columns = Mapping[str, list[Any]]


def marked_pairs(item: Associated, preset: str) -> pl.Series:
    """The rows of `pairs-<preset>.parquet` that are marked, by rising p."""
    scan = pl.scan_parquet(item.artifact.file(f"pairs-{preset}.parquet"))
    ranked = scan.select("log10_p").with_row_index("row").collect().sort("log10_p", "row")["row"]
    others = ranked.len() - STRONGEST
    if others <= SAMPLED:
        return ranked
    places = [STRONGEST + round(step * (others - 1) / (SAMPLED - 1)) for step in range(SAMPLED)]
    return pl.concat([ranked.head(STRONGEST), ranked[places]])


def volcano_table(pairs: pl.DataFrame) -> pl.DataFrame:
    """`tables/volcano.parquet`: the marks, per model and set of rules by rising p.

    Args:
        pairs: Of `associated_pairs`.
    """
    log2 = (pl.col("odds_ratio").log() / math.log(2)).alias("log2_odds_ratio")
    marks = pairs.filter(pl.col("mark").is_not_null()).sort("mark", maintain_order=True)
    # Models and presets stay in the order of the report.
    groups = pairs.select("side", "preset").unique(maintain_order=True)
    ordered = groups.join(marks, on=["side", "preset"], how="inner", maintain_order="left_right")
    return ordered.select(*_KEYS, log2, *_SIZES)


def pair_facts(title: str, item: Associated, preset: str) -> PairFacts:
    """How many pairs there are, and from which p on they count."""
    source = item.artifact.id
    scan = pl.scan_parquet(item.artifact.file(f"pairs-{preset}.parquet"))
    rejected = pl.col("p_value").filter(pl.col("q_value") <= RATE).max()
    level = rejected if preset == "robust" else pl.lit(LARGEST_P)
    listed, kept, largest = scan.select(pl.len(), pl.col("kept").sum().alias("kept"), level.alias("p")).collect().row(0)
    reason = f"no pair has q at most {RATE}" if largest is None else None
    return PairFacts(
        side=title,
        listed=Number(value=listed, style="count", source=source),
        kept=Number(value=kept, style="count", n=listed, of=f"pairs with p at most {LISTED}", source=source),
        level=Number(value=largest, style="plain", source=source, reason=reason),
        level_name=f"q = {RATE}" if preset == "robust" else f"p = {LARGEST_P}",
    )


def volcanoes(preset: PresetSection, marks: Columns, pages: Mapping[tuple[str, str], int]) -> list[Figure]:
    """One plot per model that has pairs under these rules; all with the same axes.

    Args:
        marks: `tables/volcano.parquet`.
        pages: Model and id to the number of the latent's page.
    """
    mine = [index for index, name in enumerate(marks["preset"]) if name == preset.preset]
    if not mine:
        return []
    reach = max(1.0, *(abs(marks["log2_odds_ratio"][index]) for index in mine)) * 1.06
    lowest = min(0.0, *(marks["log2_odds_ratio"][index] for index in mine)) * 1.06
    top = max(-marks["log10_p"][index] for index in mine) * 1.06
    layout = axes(
        x="log₂ odds ratio",
        y="−log₁₀ p",
        xaxis={"range": [min(lowest, -0.04 * reach), reach]},
        yaxis={"range": [0, top]},
    )
    made = []
    for order, facts in enumerate(preset.pairs):
        rows = [index for index in mine if marks["side"][index] == facts.side]
        if rows:
            made.append(_volcano(preset.preset, order, facts, rows, marks, pages, layout))
    return made


def _volcano(
    preset: str,
    order: int,
    facts: PairFacts,
    rows: Sequence[int],
    marks: Columns,
    pages: Mapping[tuple[str, str], int],
    layout: Mapping[str, Any],
) -> Figure:
    kept = int(facts.kept.value or 0)
    of = {True: kept, False: int(facts.listed.value or 0) - kept}
    looks = {
        False: {"color": "#82878f", "symbol": "x-thin", "size": 5, "line": {"color": "#82878f", "width": 1}},
        True: {"color": pick(PALETTE, order), "symbol": pick(SYMBOLS, order), "size": 6, "opacity": 0.8},
    }
    traces = []
    for good, look in looks.items():
        some = [index for index in rows if marks["kept"][index] == good]
        name = "Kept" if good else "Not kept"
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": f"{name}: {number(len(some), 'count')} of {number(of[good], 'count')}",
                "x": [marks["log2_odds_ratio"][index] for index in some],
                "y": [-marks["log10_p"][index] for index in some],
                "text": [_text(index, marks, name) for index in some],
                "customdata": [pages[marks["side"][index], marks["id"][index]] for index in some],
                "hovertemplate": "%{text}<extra></extra>",
                "marker": look,
            }
        )
    return Figure(
        id=f"volcano-{preset}-{order}",
        title=f"Pairs of latent and token: {facts.side}, {preset}",
        caption=_caption(facts, len(rows)),
        data=traces,
        layout={**layout, "shapes": _lines(facts)},
        columns=("Latent", "Token", "Odds ratio", "p", "q", "Kept"),
        rows=tuple(_row(index, marks, pages) for index in rows[:TABLE_ROWS]),
        note=_note(len(rows)),
        opens="associated",
    )


def _caption(facts: PairFacts, shown: int) -> str:
    listed = int(facts.listed.value or 0)
    some = f"All {plural(shown, 'pair')} with p at most {LISTED}"
    if shown < listed:
        some = (
            f"{number(shown, 'count')} of {number(listed, 'count')} pairs with p at most {LISTED}: the "
            f"{number(STRONGEST, 'count')} of smallest p, and an even sample of the others"
        )
    level = "" if facts.level.value is not None else f" No line of {facts.level_name}: {facts.level.reason}."
    return f"{some}. Right of the upright line the token is likelier with the latent.{level} A mark opens its latent."


def _note(shown: int) -> str:
    head = "" if shown <= TABLE_ROWS else f"The table has the {TABLE_ROWS} pairs of smallest p. "
    return f"{head}All marks are in tables/volcano.parquet."


def _lines(facts: PairFacts) -> list[dict[str, Any]]:
    """Odds ratio 1, and the level from which on pairs count, each named in the plot."""
    plain = {"type": "line", "line": {"width": 1, "dash": "dot"}}
    label = {"font": {"size": 11}, "padding": 3}
    lines = [
        {
            **plain,
            "x0": 0,
            "x1": 0,
            "yref": "paper",
            "y0": 0,
            "y1": 1,
            "label": {**label, "text": "odds ratio 1", "textposition": "end", "xanchor": "right"},
        }
    ]
    if facts.level.value is not None:
        height = -math.log10(facts.level.value)
        lines.append(
            {
                **plain,
                "xref": "paper",
                "x0": 0,
                "x1": 1,
                "y0": height,
                "y1": height,
                "label": {**label, "text": facts.level_name, "textposition": "end", "yanchor": "bottom"},
            }
        )
    return lines


def _text(index: int, marks: Columns, name: str) -> str:
    p, q = (number(marks[column][index], "p") for column in ("p_value", "q_value"))
    head = plain_text(visible(f"{marks['id'][index]} and {marks['token'][index]}"))
    return f"{head}<br>odds ratio {odds_text(marks, index)}<br>p {plain_text(p)}, q {plain_text(q)}<br>{name.lower()}"


def _row(index: int, marks: Columns, pages: Mapping[tuple[str, str], int]) -> tuple[str, ...]:
    page = pages[marks["side"][index], marks["id"][index]]
    button = Markup('<button class="link" type="button" data-associated="{}">{}</button>')
    return (
        button.format(page, visible(marks["id"][index])),
        marks["token"][index],
        odds_text(marks, index),
        *(number(marks[name][index], "p") for name in ("p_value", "q_value")),
        "yes" if marks["kept"][index] else "no",
    )
