"""The tables behind associations: every labelled latent with its strongest token, and every rate in long form.

The surprising choice: an odds ratio stands beside every enrichment, since the enrichment of a pair is infinite where
the token never occurs without the latent, which is where an association is strongest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from saeinterp.compare.interpretability_sides import Associated
from saeinterp.report.format import number, visible
from saeinterp.report.pages.payload import joined

_EFFECTS = ["enrichment", "odds_ratio", "odds_ratio_low", "odds_ratio_high", "p_value", "log10_p", "q_value", "mcc"]
_LABELS = ["id", "layer", "position", "label", "kind", "category", "monosemantic"]
_MORE = {"reason": pl.String, "share": pl.Float64, "cmh_p": pl.Float64}
GRID_ROWS = 10_000
"""Latents in the page's table; all are in `tables/associated.parquet`, and the page says so."""

Columns = Mapping[str, list[Any]]


def associated_latents(sides: Mapping[str, Associated]) -> pl.DataFrame:
    """One row per model, set of rules and labelled latent, the largest odds ratios first.

    Columns: `side`, `preset`, `id`, `layer`, `position`, `label`, `kind`, `category`, `monosemantic`; of its first
    token `token`, the counts `a` to `d`, `enrichment` (null where infinite), `odds_ratio` with its 95% interval,
    `p_value`, `log10_p`, `q_value`, `mcc`, `replicated`; of the labels that have them `reason` (why it is not
    monosemantic), `share` (of the latent's information about tokens) and `cmh_p` (among problems of like length).
    """
    frames = [_of_preset(title, item, preset) for title, item in sides.items() for preset in item.presets]
    if not frames:
        return pl.DataFrame(schema={"side": pl.String, "preset": pl.String})
    return pl.concat(frames)


def rate_rows(sides: Mapping[str, Associated]) -> list[dict[str, Any]]:
    """Every rate of every scope, single SAEs included: observed, interval, both nulls."""
    rows = []
    for title, item in sides.items():
        for row in item.rates:
            flat = {"side": title, **{name: value for name, value in row.items() if name != "nulls"}}
            for kind, null in row["nulls"].items():
                flat |= {f"{kind}_{name}": null.get(name) for name in ("mean", "sd", "p", "excess", "permutations")}
            rows.append({**flat, "source": item.artifact.id})
    return rows


def grid_payload(columns: Columns, count: int) -> dict[str, Any]:
    """The first rows of the page's table: raw columns for sorting, finished texts for showing."""
    rows = range(count)
    shown: dict[str, list[Any]] = {
        name: [visible(str(columns[name][index])) for index in rows]
        for name in ("side", "preset", "id", "layer", "label", "token")
    }
    shown["position"] = [columns["position"][index] for index in rows]
    shown["replicated"] = ["yes" if columns["replicated"][index] else "no" for index in rows]
    for name in ("odds_ratio", "q_value", "mcc"):
        shown[name] = [columns[name][index] for index in rows]
    shown["odds_ratio_text"] = [odds_text(columns, index) for index in rows]
    shown["q_value_text"] = [number(columns["q_value"][index], "p") for index in rows]
    shown["mcc_text"] = [number(columns["mcc"][index], "score") for index in rows]
    return {"columns": shown}


def plain_rows(columns: Columns, limit: int) -> list[dict[str, Any]]:
    """The first rows with finished texts, for pages without scripts and for Markdown."""
    return [
        {
            **{name: columns[name][index] for name in ("side", "preset", "id", "label", "token", "layer", "position")},
            "odds_ratio": odds_text(columns, index),
            "q_value": number(columns["q_value"][index], "p"),
            "mcc": number(columns["mcc"][index], "score"),
            "replicated": "yes" if columns["replicated"][index] else "no",
        }
        for index in range(min(len(columns["id"]), limit))
    ]


def odds_text(columns: Columns, index: int) -> str:
    """The odds ratio of a row with its interval."""
    value, low, high = (columns[name][index] for name in ("odds_ratio", "odds_ratio_low", "odds_ratio_high"))
    return joined(value, low, high, style="plain")


def _of_preset(title: str, item: Associated, preset: str) -> pl.DataFrame:
    labels = pl.read_parquet(item.artifact.file(f"labels-{preset}.parquet"))
    kept = pl.scan_parquet(item.artifact.file(f"pairs-{preset}.parquet")).filter("kept")
    wanted = ["latent", "token", "text", "a", "b", "c", "d", *_EFFECTS, "replicated"]
    pairs = kept.select(wanted).collect().with_columns(pl.col("latent", "token").cast(pl.Int64))
    lacking = [pl.lit(None, kind).alias(name) for name, kind in _MORE.items() if name not in labels.columns]
    labels = labels.with_columns(lacking)
    first = ["token"] if "token" in labels.columns else []
    named = labels.select(*_LABELS, *_MORE, pl.col("latent").cast(pl.Int64), *first)
    if first:
        keys = ["latent", "token"]
        found = named.with_columns(pl.col("token").cast(pl.Int64)).join(pairs, on=keys, how="left")
    else:  # the published rules name a latent after its largest enrichment
        ranked = pairs.sort(["latent", "enrichment", "token"], descending=[False, True, False])
        found = named.join(ranked.group_by("latent", maintain_order=True).first(), on="latent", how="left")
    finite = pl.when(pl.col("enrichment").is_finite()).then("enrichment").alias("enrichment")
    head = [pl.lit(title).alias("side"), pl.lit(preset).alias("preset")]
    token = pl.col("text").alias("token")
    rest = [pl.col(name).cast(pl.Int64) for name in "abcd"]
    table = found.select(*head, *_LABELS, token, *rest, finite, *_EFFECTS[1:], "replicated", *_MORE)
    return table.sort(["odds_ratio", "id"], descending=[True, False], nulls_last=True)
