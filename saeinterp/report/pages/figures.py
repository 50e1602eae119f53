"""The plots, as plain plotly JSON with finished texts, and the table that stands behind each.

The surprising choice: plotly is not imported; a figure is a dictionary of at most a few kilobytes, its
colours for light and dark are taken from the page's style sheet in the browser, and hover texts are made
here by the same formatter as every other number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from saeinterp.report.explainer_results import ExplainerSection
from saeinterp.report.format import Style, number, power

# Okabe & Ito (2008), without yellow and black, which vanish on one of the two backgrounds.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "x")
DASHES = ("solid", "dash", "dot")
MARKS = 2000
"""Latents marked in the plot of B over A."""
CELLS = 40
"""Of its shading, each way."""
TABLE_STEPS = 12
"""Checkpoints per layer in the table behind a curve; the whole curve is in `tables/curves.parquet`."""


@dataclass(frozen=True)
class Figure:
    """One plot.

    Attributes:
        id: Part of the element id.
        title: Heading.
        caption: What to read from it.
        data: plotly traces.
        layout: plotly layout without colours.
        columns: Header of the table behind it.
        rows: Its finished cells.
        linked: Marks are rows of the latent table, named by `customdata`; they take their place and text from there,
            and open their latent.
        opens: Whose pages its marks open, named by `customdata`; empty where none.
    """

    id: str
    title: str
    caption: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    linked: bool = False
    note: str = field(default="")
    opens: str = ""

    def payload(self) -> dict[str, Any]:
        """What the page's script needs."""
        return {"id": self.id, "data": self.data, "layout": self.layout, "linked": self.linked, "opens": self.opens}


def scatter(section: ExplainerSection, latents: Mapping[str, Sequence[Any]]) -> Figure | None:
    """Score of B over score of A, one mark per latent, with the diagonal; None without a scored pair.

    The marks' places and texts are those of the latent table, which the page has already. Beyond `MARKS` latents those
    that differ most are marked, over a shading of all.

    Args:
        section: The comparison.
        latents: Columns of `tables/latents.parquet`.
    """
    pairs = zip(latents["value_a"], latents["value_b"])
    places = [index for index, (a, b) in enumerate(pairs) if a is not None and b is not None]
    if not places:
        return None
    low = min(0.0, *(latents[name][index] for name in ("value_a", "value_b") for index in places))
    span = [low - 0.03, 1.03]
    marked, traces = places, []
    caption = "One mark per latent; above the diagonal B scores higher."
    if len(places) > MARKS:
        marked = sorted(places, key=lambda index: (-abs(latents["delta"][index]), index))[:MARKS]
        traces.append(_shading([(latents["value_a"][index], latents["value_b"][index]) for index in places], low))
        caption = (
            f"Shaded: all {number(len(places), 'count')} latents, on a logarithmic scale. Marks: the "
            f"{number(MARKS, 'count')} that differ most; above the diagonal B scores higher."
        )
    for order, hookpoint in enumerate(_unique(latents["hookpoint"])):
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": plain_text(hookpoint),
                "customdata": [index for index in marked if latents["hookpoint"][index] == hookpoint],
                "hovertemplate": "%{text}<extra></extra>",
                "marker": {
                    "color": pick(PALETTE, order),
                    "symbol": pick(SYMBOLS, order),
                    "size": 10 if len(marked) < 200 else 6,
                    "opacity": 0.8,
                    "line": {"width": 1, "color": "rgba(255,255,255,0.7)"},
                },
                "unselected": {"marker": {"opacity": 0.12}},
            }
        )
    diagonal = {"type": "line", "x0": low, "y0": low, "x1": 1, "y1": 1, "layer": "below"}
    return Figure(
        id="scatter",
        title=f"{section.metric_title}: B over A",
        caption=f"{caption} Click one to read its examples.",
        data=[trace for trace in traces if trace.get("customdata") != []],
        layout=axes(
            x=f"{section.metric_title}, A",
            y=f"{section.metric_title}, B",
            xaxis={"range": span, "constrain": "domain"},
            yaxis={"range": span, "scaleanchor": "x", "constrain": "domain"},
            shapes=[{**diagonal, "line": {"dash": "dot", "width": 1}}],
        ),
        linked=True,
        note="The table behind this plot is the latent table above.",
    )


def _shading(points: Sequence[tuple[float, float]], low: float) -> dict[str, Any]:
    """How many latents lie where, in `CELLS` cells each way."""
    step = (1 - low) / CELLS
    edges = [number(low + step * place, "score") for place in range(CELLS + 1)]
    counts = [[0] * CELLS for _ in range(CELLS)]
    for a, b in points:
        column, row = (min(CELLS - 1, int((value - low) / step)) for value in (a, b))
        counts[row][column] += 1
    return {
        "type": "heatmap",
        "x0": low + step / 2,
        "dx": step,
        "y0": low + step / 2,
        "dy": step,
        "z": [[math.log10(count) if count else None for count in row] for row in counts],
        "text": [
            [
                f"A {edges[column]} to {edges[column + 1]}<br>B {edges[row]} to {edges[row + 1]}<br>"
                f"{number(count, 'count')} latents"
                for column, count in enumerate(line)
            ]
            for row, line in enumerate(counts)
        ],
        "hovertemplate": "%{text}<extra></extra>",
        "showscale": False,
    }


def curves(rows: Sequence[Mapping[str, Any]], *, value: str, title: str, caption: str, label: str) -> Figure | None:
    """A training curve per layer and model over rows seen.

    Args:
        rows: Rows of `tables/curves.parquet`: side, title, step, rows_seen and the value.
        value: The column to draw.
        title: Heading.
        caption: What to read from it.
        label: Label of the vertical axis.
    """
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row[value] is not None:
            groups.setdefault((row["side"], row["title"]), []).append(row)
    if not groups:
        return None
    sides = _unique([side for side, _ in groups])
    hookpoints = _unique([hookpoint for _, hookpoint in groups])
    style: Style = "count" if value == "dead" else "score"
    traces, table = [], []
    for (side, hookpoint), points in groups.items():
        name = hookpoint if len(sides) == 1 else f"{hookpoint} · {side}"
        traces.append(
            {
                "type": "scatter",
                "mode": "lines" if len(points) > 1 else "markers",
                "name": plain_text(name),
                "x": [point["rows_seen"] for point in points],
                "y": [point[value] for point in points],
                "text": [
                    f"{plain_text(name)}<br>{number(point['rows_seen'], 'count')} rows"
                    f"<br>{label} {number(point[value], style)}"
                    for point in points
                ],
                "hovertemplate": "%{text}<extra></extra>",
                "line": {
                    "color": pick(PALETTE, hookpoints.index(hookpoint)),
                    "dash": pick(DASHES, sides.index(side)),
                    "width": 2,
                },
            }
        )
        for point in _thin(points, TABLE_STEPS):
            table.append((side, hookpoint, number(point["rows_seen"], "count"), number(point[value], style)))
    return Figure(
        id=value.replace("_", "-"),
        title=title,
        caption=caption,
        data=traces,
        layout=axes(x="Rows seen", y=label, xaxis={"tickformat": "~s"}, yaxis={"rangemode": "tozero"}),
        columns=("Model", "Layer", "Rows seen", label),
        rows=tuple(table),
        note=""
        if len(table) == (drawn := sum(map(len, groups.values())))
        else f"The table has {number(len(table), 'count')} of the {number(drawn, 'count')} points drawn; all are in "
        "tables/curves.parquet.",
    )


def densities(rows: Sequence[Mapping[str, Any]]) -> Figure | None:
    """How often latents fire: histograms over log10 of the share of tokens, per layer and model.

    Args:
        rows: Rows of `tables/density.parquet`: side, title, low, high, latents; bins in order.
    """
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["side"], row["title"]), []).append(row)
    filled = [row["low"] for row in rows if row["latents"]]
    if not filled:
        return None
    sides = _unique([side for side, _ in groups])
    hookpoints = _unique([hookpoint for _, hookpoint in groups])
    traces, table = [], []
    for (side, hookpoint), every in groups.items():
        bins = [row for row in every if row["low"] >= min(filled)]
        name = plain_text(hookpoint if len(sides) == 1 else f"{hookpoint} · {side}")
        spans = [f"{power(row['low'])} to {power(row['high'])}" for row in bins]
        counts = [row["latents"] for row in bins]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": name,
                "x": [row["low"] for row in bins] + [bins[-1]["high"]],
                "y": [*counts, 0],
                "text": [f"{name}<br>{span}: {number(count, 'count')} latents" for span, count in zip(spans, counts)],
                "hovertemplate": "%{text}<extra></extra>",
                "line": {
                    "color": pick(PALETTE, hookpoints.index(hookpoint)),
                    "dash": pick(DASHES, sides.index(side)),
                    "width": 2,
                    "shape": "hv",
                },
            }
        )
        table += [(side, hookpoint, span, number(count, "count")) for span, count in zip(spans, counts) if count]
    ticks = list(range(math.floor(min(filled)), 1))
    return Figure(
        id="density",
        title="Activation density",
        caption="Latents by the share of tokens they fire on; dead latents are counted in the health table.",
        data=traces,
        layout=axes(
            x="Share of tokens",
            y="Latents",
            xaxis={"tickvals": ticks, "ticktext": [power(tick) for tick in ticks]},
            yaxis={"rangemode": "tozero"},
        ),
        columns=("Model", "Layer", "Share of tokens", "Latents"),
        rows=tuple(table),
    )


def axes(*, x: str, y: str, xaxis: dict[str, Any], yaxis: dict[str, Any], **extra: Any) -> dict[str, Any]:
    """A layout with two titled axes and the legend below."""
    return {
        "xaxis": {"title": {"text": x, "standoff": 8}, "automargin": True, "zeroline": False, **xaxis},
        "yaxis": {"title": {"text": y, "standoff": 8}, "automargin": True, "zeroline": False, **yaxis},
        "margin": {"l": 12, "r": 12, "t": 12, "b": 12},
        "legend": {"orientation": "h", "y": -0.24, "yanchor": "top", "x": 0, "font": {"size": 11}},
        "hovermode": "closest",
        **extra,
    }


def plain_text(text: str) -> str:
    """Text that plotly shows as it is."""
    # plotly reads a small set of HTML tags in texts.
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _thin(points: Sequence[Mapping[str, Any]], count: int) -> list[Mapping[str, Any]]:
    if len(points) <= count:
        return list(points)
    return [points[round(step * (len(points) - 1) / (count - 1))] for step in range(count)]


def _unique(items: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(items))


def pick(items: Sequence[str], index: int) -> str:
    """An item of a palette, from the start again after the last."""
    return items[index % len(items)]
