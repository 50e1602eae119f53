"""The plot of rates by layer, beside chance.

The surprising choice: chance is drawn in the same plot as every rate, dashed in the rate's own colour, so that a line
that lies on its null is seen to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from saeinterp.ids import layer_of
from saeinterp.report.associations.results import PresetSection, RateRow
from saeinterp.report.format import number, visible
from saeinterp.report.pages.figures import PALETTE, SYMBOLS, Figure, axes, pick, plain_text

SHOWN = "interpretable"
"""The rate that is drawn by layer: it alone is over all latents under every preset and has a null at every layer."""


def layer_rates(preset: PresetSection) -> Figure | None:
    """Interpretable latents by layer, with what chance within strata gives; None with a single layer."""
    rows = [row for row in preset.rates if row.scope == "layer" and row.rate == SHOWN]
    sides = list(dict.fromkeys(row.side for row in rows))
    layers = sorted({row.where for row in rows}, key=lambda name: (layer_of(name), name))
    if len(layers) < 2:
        return None
    traces, table = [], []
    for order, side in enumerate(sides):
        mine = [row for row in rows if row.side == side and row.value.value is not None]
        colour, symbol = pick(PALETTE, order), pick(SYMBOLS, order)
        traces.append(_line(_shown(side), mine, [row.value.value for row in mine], colour, symbol, "solid"))
        known = [row for row in mine if row.strata.mean.value is not None]
        chance = [row.strata.mean.value for row in known]
        if known:
            traces.append(_line(f"{_shown(side)}, chance", known, chance, colour, symbol, "dash"))
        table += [
            (side, row.where, *(number(item.value, "share") for item in (row.value, row.strata.mean))) for row in mine
        ]
    return Figure(
        id=f"rates-{preset.preset}",
        title=f"Interpretable latents by layer: {preset.preset}",
        caption="Observed, and dashed what chance within strata gives.",
        data=traces,
        layout=axes(
            x="Layer",
            y="Interpretable",
            xaxis={"type": "category", "categoryorder": "array", "categoryarray": layers},
            yaxis={"tickformat": ".0%", "rangemode": "tozero"},
        ),
        columns=("Model", "Layer", "Observed", "Chance"),
        rows=tuple(table),
    )


def _shown(text: str) -> str:
    return plain_text(visible(text))


def _line(
    name: str, rows: Sequence[RateRow], values: Sequence[float | None], colour: str, symbol: str, dash: str
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "x": [row.where for row in rows],
        "y": list(values),
        "text": [f"{name}<br>{row.where}: {number(value, 'share')}" for row, value in zip(rows, values)],
        "hovertemplate": "%{text}<extra></extra>",
        "line": {"color": colour, "dash": dash, "width": 2},
        "marker": {"symbol": symbol, "size": 8 if dash == "solid" else 5},
    }
