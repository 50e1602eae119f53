"""What the page's script is given from the start: the latent table's columns.

The surprising choice: every number goes twice, raw for sorting and as finished text for showing, and all
text has its control characters made visible here; the script neither rounds nor sanitises.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saeinterp.report.explainer_results import ExplainerSection
from saeinterp.report.format import Style, visible, with_interval

RAW = ("id", "hookpoint", "value_a", "value_b", "delta", "density", "status", "outcome")

Columns = Mapping[str, list[Any]]


def latent_payload(section: ExplainerSection, latents: Columns) -> dict[str, Any]:
    """The latent table: raw columns beside finished texts."""
    columns: dict[str, list[Any]] = {name: latents[name] for name in RAW}
    for side in ("a", "b"):
        columns[f"label_{side}"] = [None if text is None else visible(text) for text in latents[f"explanation_{side}"]]
        columns[f"value_{side}_text"] = texts(latents, f"value_{side}", "score")
    columns["delta_text"] = texts(latents, "delta", "difference")
    columns["density_text"] = texts(latents, "density", "rate")
    return {
        "metric": section.metric_title,
        "sides": [{"key": side.key, "title": visible(side.title)} for side in section.sides],
        "columns": columns,
    }


def texts(latents: Columns, column: str, style: Style) -> list[str]:
    """A column as text, with its interval where the table has one."""
    values, nothing = latents[column], [None] * len(latents[column])
    lows, highs = latents.get(f"{column}_low", nothing), latents.get(f"{column}_high", nothing)
    return [joined(*bounds, style=style) for bounds in zip(values, lows, highs)]


def joined(value: float | None, low: float | None, high: float | None, *, style: Style) -> str:
    """`0.684 [0.551, 0.846]`, which the script parts at the bracket."""
    text, bounds = with_interval(value, low, high, style)
    return f"{text} {bounds}" if bounds else text
