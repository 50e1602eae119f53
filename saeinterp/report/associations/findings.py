"""What is said of one model's associations: a sentence per rate, each with its null.

The surprising choice: a rate that chance also gives is said to be not distinguishable from chance before anything else
is said of it, the largest enrichment included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from saeinterp.compare.interpretability_draws import MAXIMUM
from saeinterp.compare.interpretability_words import NULL_WORDS, is_category, rate_title
from saeinterp.report.format import number
from saeinterp.stats import p_text

LEVEL = 0.05
"""Above it a rate is not distinguishable from its null."""
LARGEST = 10


def side_findings(title: str, preset: str, rows: Sequence[Mapping[str, Any]], latents: pl.DataFrame) -> list[str]:
    """Sentences on one model under one set of rules.

    Args:
        rows: Its rates.
        latents: Its labelled latents.
    """
    said = []
    for row in rows:
        if row["scope"] != "model" or row["value"] is None:
            continue
        if row["rate"] == MAXIMUM:
            said.append(_largest(title, preset, row, latents))
        elif (category := is_category(row["rate"])) is not None:
            said.append(_category(title, preset, row, category))
        else:
            said.append(_rate(title, preset, row))
    return [text for text in said if text]


def _rate(title: str, preset: str, row: Mapping[str, Any]) -> str:
    head = f"{title} ({preset}): {rate_title(row['rate'])} {_value(row)}"
    kind, null = _null(row)
    if null is None or null.get("p") is None:
        return f"{head}; {_no_null(row)}."
    chance = f"chance {NULL_WORDS[kind]} gives {_mean(null)} ({p_text(null['p'])})"
    if null["p"] > LEVEL:
        return f"{head}: not distinguishable from chance; {chance}."
    excess = "" if null.get("excess") is None else f", excess {number(null['excess'], 'share')}"
    return f"{head}: above chance; {chance}{excess}."


def _category(title: str, preset: str, row: Mapping[str, Any], category: str) -> str:
    share, ratio = row.get("vocabulary_share"), row.get("over_vocabulary")
    if share is None or ratio is None:
        return ""
    text = (
        f"{title} ({preset}): {category} latents are {_value(row)} of interpretable ones; {category} tokens are "
        f"{number(share, 'share')} of the testable vocabulary, so the share is {number(ratio, 'score')} times that"
    )
    kind, null = _null(row)
    if null is not None and null.get("mean") is not None:
        text += f"; chance {NULL_WORDS[kind]} gives {_mean(null)}"
    return f"{text}."


def _largest(title: str, preset: str, row: Mapping[str, Any], latents: pl.DataFrame) -> str:
    text = f"{title} ({preset}): the largest enrichment is {number(row['value'], 'plain')}×"
    kind, null = _null(row)
    if null is not None and null.get("p") is not None:
        mean = "" if null.get("mean") is None else f" {number(null['mean'], 'plain')}× on average"
        found = "not distinguishable from chance" if null["p"] > LEVEL else "above chance"
        text += f": {found}, which {NULL_WORDS[kind]} gives{mean} ({p_text(null['p'])})"
    top = latents.filter(pl.col("enrichment").is_not_null()).sort("enrichment", descending=True).head(LARGEST)
    once = int((top["c"] == 1).sum())
    return (
        f"{text}. Of the {top.height} latents with the largest, {once} have a token that one problem holds without the "
        "latent (c = 1): one more such problem would halve the number."
    )


def _value(row: Mapping[str, Any]) -> str:
    counted = f"{number(row['count'], 'count')} of {number(row['of'], 'count')}"
    text = f"{number(row['value'], 'share')} ({counted}"
    if row["low"] is not None:
        text += f"; 95% CI {number(row['low'], 'share')} to {number(row['high'], 'share')}"
    return f"{text})"


def _mean(null: Mapping[str, Any]) -> str:
    if null.get("mean") is None:
        return "no mean"
    sd = "" if null.get("sd") is None else f" ± {number(null['sd'], 'share')}"
    return f"{number(null['mean'], 'share')}{sd}"


def _null(row: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any] | None]:
    """The null within strata, or where there is none the free one."""
    for kind in NULL_WORDS:
        null = row["nulls"].get(kind)
        if null and null.get("permutations"):
            return kind, null
    return "strata", None


def _no_null(row: Mapping[str, Any]) -> str:
    reasons = [null.get("reason") for null in row["nulls"].values() if null.get("reason")]
    return f"no null stands beside it ({reasons[0]})" if reasons else "no null was computed"
