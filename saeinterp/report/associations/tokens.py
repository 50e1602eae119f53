"""Each token with every latent that goes with it, for the filter of the table of latents and tokens.

The surprising choice: many pairs have the same table of counts, so each distinct row of numbers is written once, and a
pair names it.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import polars as pl

from saeinterp.report.associations.tables import odds_text
from saeinterp.report.format import number, plural, visible

MOST_PAIRS = 1_000_000
"""Pairs by token in a page; the first latents of the table count, and the page says how many."""
_NUMBERS = ["odds_ratio", "odds_ratio_low", "odds_ratio_high", "q_value", "mcc", "replicated"]


def token_parts(pairs: pl.LazyFrame, rows: pl.DataFrame) -> dict[str, Any]:
    """Tokens with the rows of the table that they are kept in.

    Args:
        pairs: `tables/pairs.parquet`.
        rows: Model, set of rules and id of every row of the table, in order.

    Returns:
        `tokens`: texts, those of the most latents first; `counts`: how many, finished. Per token `rows`: differences of
        ascending numbers, and `numbers`: place of each pair's numbers in `columns`. `note`: what was left out.
    """
    keys = ["side", "preset", "id"]
    found = (
        pairs.filter("kept")
        .join(rows.with_row_index("row").lazy(), on=keys, how="inner")
        .select("row", "token", *keys[:1], "id", *_NUMBERS)
        .sort("row", maintain_order=True)
        .collect()
    )
    note = None
    if found.height > MOST_PAIRS:
        last = found["row"][MOST_PAIRS]
        found = found.filter(pl.col("row") < last)
        note = f"Tokens can be chosen among the first {plural(last, 'row')}; all pairs are in tables/pairs.parquet."
    distinct = found.select(_NUMBERS).unique(maintain_order=True).with_row_index("number")
    found = found.join(distinct, on=_NUMBERS, how="left", nulls_equal=True, maintain_order="left")
    found = found.with_columns(latent=pl.struct("side", "id"))
    tokens = (
        found.group_by("token", maintain_order=True)
        .agg("row", "number", latents=pl.col("latent").n_unique())
        .sort(["latents", "token"], descending=[True, False])
    )
    columns = distinct.to_dict(as_series=False)
    count = range(distinct.height)
    return {
        "tokens": _told_apart([visible(text) for text in tokens["token"]]),
        "counts": [plural(latents, "latent") for latents in tokens["latents"]],
        "rows": [[rows[0], *(b - a for a, b in pairwise(rows))] for rows in tokens["row"].to_list()],
        "numbers": tokens["number"].to_list(),
        "columns": {
            "odds_ratio": columns["odds_ratio"],
            "odds_ratio_text": [odds_text(columns, index) for index in count],
            "q_value": columns["q_value"],
            "q_value_text": [number(value, "p") for value in columns["q_value"]],
            "mcc": columns["mcc"],
            "mcc_text": [number(value, "score") for value in columns["mcc"]],
            "replicated": ["yes" if value else "no" for value in columns["replicated"]],
        },
        "note": note,
    }


def _told_apart(texts: list[str]) -> list[str]:
    """Texts that are shown alike though they are not get a number."""
    seen: dict[str, int] = {}
    shown = []
    for text in texts:
        seen[text] = seen.get(text, 0) + 1
        shown.append(text if seen[text] == 1 else f"{text} ({seen[text]})")
    return shown
