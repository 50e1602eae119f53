"""The pairs behind a report of associations: each latent's tokens with their counts, by chance and in each half.

The surprising choice: replication is shown as two tables of counts, not as one word. A pair that "replicates" with 3
samples in a half is another thing than one with 30.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import polars as pl

from saeinterp.compare.interpretability_sides import Associated
from saeinterp.enrichment.contingency import Counts
from saeinterp.enrichment.tables import describe, log_corrected_chi2
from saeinterp.report.associations.volcano import marked_pairs
from saeinterp.stats.hypergeometric import log_upper_tail
from saeinterp.stats.intervals import Floats

TESTS: dict[str, Callable[[Counts, Counts, Counts, int], Floats]] = {
    "robust": log_upper_tail,
    "seed-gsm8k-chi2": log_corrected_chi2,
}
"""Preset to ln p of a table."""
_COUNTS = ("a", "b", "c", "d")
_FIRST = tuple(f"{name}_first" for name in _COUNTS)
_EFFECTS = ("odds_ratio", "odds_ratio_low", "odds_ratio_high", "p_value", "log10_p", "q_value", "mcc")


def associated_pairs(sides: Mapping[str, Associated]) -> pl.DataFrame:
    """`tables/pairs.parquet`: every kept pair, and the others that the volcano plot marks.

    Columns: `side`, `preset`, `id`, `layer`, `position`, `place` (title of the position), `token`, `category`, `kept`,
    `a` to `d`, `expected` (samples with both if latent and token had nothing to do with each other), `enrichment` (null
    where infinite), `odds_ratio` with its interval, `p_value`, `log10_p`, `q_value`, `mcc`, `replicated`; `a_first` to
    `d_first`, and per half `odds_ratio_first`, `p_first`, `odds_ratio_second`, `p_second`; `mark`: place in the
    volcano plot, null outside of it. Per model and preset by latent, its kept and strongest tokens first.
    """
    frames = [_of_preset(title, item, preset) for title, item in sides.items() for preset in item.presets]
    return pl.concat(frames) if frames else pl.DataFrame()


def _of_preset(title: str, item: Associated, preset: str) -> pl.DataFrame:
    marked = marked_pairs(item, preset)
    places = pl.DataFrame({"row": marked, "mark": np.arange(marked.len(), dtype=np.int32)}).lazy()
    scan = pl.scan_parquet(item.artifact.file(f"pairs-{preset}.parquet")).with_row_index("row")
    found = scan.join(places, on="row", how="left", maintain_order="left").filter(
        pl.col("kept") | pl.col("mark").is_not_null()
    )
    pairs = found.rename({"text": "token", "token": "column"}).collect()
    # By the lower limit of the odds ratio the robust rules choose a latent's first token, by enrichment the others.
    order = "odds_ratio_low" if preset == "robust" else "enrichment"
    pairs = pairs.sort(["latent", "kept", order, "column"], descending=[False, True, True, False], nulls_last=True)
    sites = _sites(item, pairs["latent"].to_numpy())
    firing, holding = pl.col("a") + pl.col("b"), pl.col("a") + pl.col("c")
    total = pl.sum_horizontal(_COUNTS)
    return pl.concat([pairs, sites, _halves(pairs, TESTS[preset])], how="horizontal").select(
        pl.lit(title).alias("side"),
        pl.lit(preset).alias("preset"),
        "id",
        "layer",
        "position",
        "place",
        "token",
        "category",
        "kept",
        *_COUNTS,
        (firing.cast(pl.Float64) * holding / total).alias("expected"),
        pl.when(pl.col("enrichment").is_finite()).then("enrichment").alias("enrichment"),
        *_EFFECTS,
        "replicated",
        *_FIRST,
        *(f"{name}_{half}" for half in ("first", "second") for name in ("odds_ratio", "p")),
        "mark",
    )


def _sites(item: Associated, latents: Counts) -> pl.DataFrame:
    """Layer, position and its title of each of some latents."""
    starts = np.cumsum([0, *(site.latents for site in item.sites)])
    found = [item.sites[index] for index in np.searchsorted(starts, latents, side="right") - 1]
    return pl.DataFrame(
        {
            "layer": pl.Series([site.hookpoint for site in found], dtype=pl.String),
            "position": pl.Series([site.position for site in found], dtype=pl.Int32),
            "place": pl.Series([site.title for site in found], dtype=pl.String),
        }
    )


def _halves(pairs: pl.DataFrame, test: Callable[[Counts, Counts, Counts, int], Floats]) -> pl.DataFrame:
    """Odds ratio and p in each half, of every pair."""
    counts = pairs.select(*_COUNTS, *_FIRST)
    distinct = counts.unique(maintain_order=True)
    whole, first = (distinct.select(names).to_numpy().astype(np.int64).T for names in (_COUNTS, _FIRST))
    sizes = {}
    for half, (a, b, c, d) in (("first", first), ("second", whole - first)):
        n = int((a + b + c + d).max(initial=0))  # the same for all
        table = (a, a + b, a + c, n)
        sizes[f"odds_ratio_{half}"] = describe(*table)["odds_ratio"]
        sizes[f"p_{half}"] = np.exp(test(*table)) if n else np.zeros(0)
    found = counts.join(distinct.with_columns(**sizes), on=counts.columns, how="left", maintain_order="left")
    return found.select(*sizes)
