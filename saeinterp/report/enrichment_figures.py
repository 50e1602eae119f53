"""Plots of latents and tokens: rates by layer beside chance, and the strength of each latent's association over its p.

The surprising choice: chance is drawn in the same plot as every rate, dashed in the rate's own colour, so that a line
that lies on its null is seen to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from saeinterp.ids import layer_of
from saeinterp.report.enrichment_results import PresetSection, RateRow
from saeinterp.report.figures import PALETTE, SYMBOLS, Figure, axes, pick, plain_text
from saeinterp.report.format import number, visible

POINTS = 2000
"""Latents in the plot of strengths, per model and set of rules; the strongest come first."""
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


def strengths(preset: PresetSection, columns: Mapping[str, Sequence[Any]]) -> Figure | None:
    """Odds ratio and p of each labelled latent's first token; None without one.

    Args:
        columns: `tables/associated.parquet`.
    """
    traces = []
    mine = [
        index
        for index, name in enumerate(columns["preset"])
        if name == preset.preset and columns["odds_ratio"][index] is not None
    ]
    for order, side in enumerate(dict.fromkeys(columns["side"])):
        some = [index for index in mine if columns["side"][index] == side][:POINTS]
        if not some:
            continue
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": _shown(side),
                "x": [columns["odds_ratio"][index] for index in some],
                "y": [-columns["log10_p"][index] for index in some],
                "text": [
                    f"{columns['id'][index]}: {_shown(columns['label'][index])}"
                    f"<br>odds ratio {number(columns['odds_ratio'][index], 'plain')}"
                    for index in some
                ],
                "hovertemplate": "%{text}<extra></extra>",
                "marker": {"color": pick(PALETTE, order), "symbol": pick(SYMBOLS, order), "size": 7, "opacity": 0.6},
            }
        )
    if not traces:
        return None
    return Figure(
        id=f"strengths-{preset.preset}",
        title=f"Strength of associations: {preset.preset}",
        caption="One mark per labelled latent: the odds ratio of its first token, and how unlikely it is by chance.",
        data=traces,
        layout=axes(
            x="Odds ratio",
            y="−log₁₀ p",
            xaxis={"type": "log"},
            yaxis={"rangemode": "tozero"},
        ),
        note="The table behind this plot is that of latents and tokens.",
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
