"""What the page's script is given: the latent table's columns and the examples of each latent.

The surprising choice: every number goes twice, raw for sorting and as finished text for showing, and all
text has its control characters made visible here; the script neither rounds nor sanitises.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saeinterp.report.explainer_results import ExplainerSection
from saeinterp.report.format import Style, number, plural, visible, with_interval
from saeinterp.report.tables import MEASURES

DETAIL_LATENTS = 500
"""Examples of so many latents go into the page; the rest are in the tables, and the page says so."""
RAW = ("id", "hookpoint", "value_a", "value_b", "delta", "density", "status", "outcome")

Columns = Mapping[str, list[Any]]


def latent_payload(section: ExplainerSection, latents: Columns) -> dict[str, Any]:
    """The latent table: raw columns, texts, and what the drawer lists per side."""
    columns: dict[str, list[Any]] = {name: latents[name] for name in RAW}
    for side in ("a", "b"):
        texts = latents[f"explanation_{side}"]
        columns[f"label_{side}"] = [None if text is None else visible(text) for text in texts]
        columns[f"reason_{side}"] = [None if text is None else visible(text) for text in latents[f"reason_{side}"]]
        columns[f"value_{side}_text"] = _texts(latents, f"value_{side}", "score")
    columns["top_tokens"] = [
        None if tokens is None else "  ".join(visible(token) for token in tokens) for tokens in latents["top_tokens"]
    ]
    columns["delta_text"] = _texts(latents, "delta", "difference")
    columns["density_text"] = _texts(latents, "density", "rate")
    columns["firings_text"] = _texts(latents, "firings", "count")
    columns["status_text"] = [status.replace("_", " ") for status in latents["status"]]
    measures = [item for item in MEASURES if f"{item[0]}_a" in latents and f"{item[0]}_b" in latents]
    for side in ("a", "b"):
        for measure, _, style in measures:
            columns[f"{measure}_{side}_text"] = _texts(latents, f"{measure}_{side}", style)
        columns[f"counts_{side}_text"] = _counts(latents, side)
    return {
        "metric": section.metric_title,
        "sides": [{"key": side.key, "title": visible(side.title)} for side in section.sides],
        "measures": [[name, title] for name, title, _ in measures],
        "no_detail": "This latent has no examples in the page: it was not scored, or it is not among the "
        f"{plural(DETAIL_LATENTS, 'latent')} that differ most; see tables/examples.parquet.",
        "columns": columns,
    }


def latent_details(latents: Columns, examples: Columns | None) -> list[Any]:
    """Per latent: its scored examples with both verdicts, and those shown to the explainers."""
    details: list[Any] = [None] * len(latents["id"])
    if examples is None:
        return details
    # Those on which the two sides differ most are the ones a reader opens.
    ranked = sorted(range(len(details)), key=lambda index: (-abs(latents["delta"][index] or 0.0), index))
    place = {(latents["hookpoint"][index], latents["latent"][index]): index for index in ranked[:DETAIL_LATENTS]}
    for values in zip(*examples.values()):
        row = dict(zip(examples, values))
        index = place.get((row["hookpoint"], row["latent"]))
        if index is None:
            continue
        if details[index] is None:
            details[index] = {"score": [], "explain": []}
        details[index][row["role"]].append(_example(row))
    return details


def _example(row: Mapping[str, Any]) -> dict[str, Any]:
    activations = row["activations"]
    top = max(activations, default=0.0)
    example: dict[str, Any] = {
        "tokens": [visible(token) for token in row["tokens"]],
        # Ten steps, as the explainer was shown them.
        "levels": [max(1, round(10 * value / top)) if value > 0 else 0 for value in activations],
        "shown": [number(value, "plain") if value > 0 else "" for value in activations],
    }
    if row["role"] == "score":
        example |= {"truth": row["truth"], "band": row["band"], "a": _verdict(row, "a"), "b": _verdict(row, "b")}
    return example


def _verdict(row: Mapping[str, Any], side: str) -> dict[str, Any] | None:
    if row[f"status_{side}"] is None:
        return None
    reply = row[f"reply_{side}"]
    return {
        "verdict": row[f"verdict_{side}"],
        "status": row[f"status_{side}"],
        "p": None if row[f"probability_{side}"] is None else number(row[f"probability_{side}"], "score"),
        "reply": None if reply is None else visible(reply),
    }


def _texts(latents: Columns, column: str, style: Style) -> list[str]:
    """A column as text, with its interval where the table has one."""
    values, nothing = latents[column], [None] * len(latents[column])
    lows, highs = latents.get(f"{column}_low", nothing), latents.get(f"{column}_high", nothing)
    pairs = [with_interval(value, low, high, style) for value, low, high in zip(values, lows, highs)]
    return [f"{text} {bounds}" if bounds else text for text, bounds in pairs]


def _counts(latents: Columns, side: str) -> list[str]:
    """The confusion counts as one line."""
    names = [name for name in ("tp", "fp", "tn", "fn") if f"{name}_{side}" in latents]
    rows = zip(*(latents[f"{name}_{side}"] for name in names))
    lines = [" · ".join(f"{name.upper()} {number(count, 'count')}" for name, count in zip(names, row)) for row in rows]
    return lines or ["not counted"] * len(latents["id"])
