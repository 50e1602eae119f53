"""`latents.parquet`: one row per selected latent with everything a table or a row detail shows.

The surprising choice: latents that were not scored are in it too, with empty numbers and their status,
so that the table lists what was asked for and not only what worked.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl

from saeinterp.compare.macro import ALWAYS_YES
from saeinterp.compare.pooled import McNemar, document_intervals
from saeinterp.compare.tables import KEY, METRICS, ScoreTable, Side, with_status
from saeinterp.config import ComparisonConfig
from saeinterp.errors import ConfigError
from saeinterp.ids import LatentId, layer_of
from saeinterp.progress import Progress
from saeinterp.stats import classification
from saeinterp.stats.intervals import Floats

_OF_EXAMPLES = ("firings", "density")
"""Columns of a latent itself, equal on both sides."""


def latent_name(hookpoint: str, latent: int) -> str:
    """`L5_F12`; a hookpoint that names no block keeps its name: `embed_F12`."""
    try:
        return str(LatentId(layer_of(hookpoint), None, latent))
    except ConfigError:
        return f"{hookpoint}_F{latent}"


def latent_names(keys: pl.DataFrame) -> list[str]:
    """Ids of the rows of `keys` (hookpoint, latent)."""
    return [latent_name(hookpoint, latent) for hookpoint, latent in keys.select(KEY).iter_rows()]


def latent_table(
    selected: pl.DataFrame,
    keys: pl.DataFrame,
    *,
    tables: tuple[ScoreTable, ScoreTable],
    sides: tuple[Side, Side],
    controls: Mapping[str, Mapping[str, Floats]],
    mcnemar: McNemar | None,
    mcnemar_holm: list[float],
    config: ComparisonConfig,
    progress: Progress,
) -> pl.DataFrame:
    """The table of all latents in `selected`; `keys` are those that were scored, in the order of the sides' columns.

    Columns: hookpoint, latent, id, firings, density; per side status, explanation, n, usable, coverage, every metric,
    the limits of the primary metric and F1 over documents (`f1_a_low`), the worst cases of F1 (`f1_a_worst`);
    `difference` of the primary metric; McNemar; the primary metric and F1 of each control (`f1_permuted`).
    """
    shown = tuple(dict.fromkeys(["f1", config.metric]))
    columns: dict[str, Floats | list[float] | np.ndarray] = {}
    for name in METRICS:
        for letter, side in zip("ab", sides):
            if name in side.metrics:
                columns[f"{name}_{letter}"] = side.metrics[name]
    if all(config.metric in side.metrics for side in sides):
        columns["difference"] = sides[1].metrics[config.metric] - sides[0].metrics[config.metric]
    for letter, side, one in zip("ab", sides, tables):
        columns |= _side_extras(letter, side)
        if one.verdicts is not None and one.samples is None:
            limits = document_intervals(
                one.verdicts,
                keys,
                tuple(name for name in shown if name != "auroc"),
                draws=config.bootstrap,
                alpha=config.alpha,
                seed=config.seed,
                progress=progress,
                what=f"latents, intervals of {one.title}",
            )
            for name, (low, high) in limits.items():
                columns |= {f"{name}_{letter}_low": low, f"{name}_{letter}_high": high}
    for control, values in controls.items():
        suffix = control.replace("-", "_") if control == ALWAYS_YES else control
        columns |= {f"{name}_{suffix}": values[name] for name in shown if name in values}
    if mcnemar is not None:
        columns |= {
            "mcnemar_examples": mcnemar.examples,
            "mcnemar_only_a": mcnemar.only_a,
            "mcnemar_only_b": mcnemar.only_b,
            "mcnemar_p": mcnemar.p,
            "mcnemar_p_holm": np.array(mcnemar_holm),
        }
    numbers = keys.select(KEY).with_columns(pl.Series(name, values) for name, values in columns.items())
    table = selected.select(KEY)
    for letter, one in zip("ab", tables):
        found = with_status(one.scores)
        if "explanation" not in found.columns:
            found = found.with_columns(explanation=pl.lit(None, dtype=pl.String))
        named = {name: f"{name}_{letter}" for name in ("status", "explanation")}
        table = table.join(found.select(*KEY, *named).rename(named), on=KEY, how="left", maintain_order="left")
    of_examples = [name for name in _OF_EXAMPLES if name in tables[0].scores.columns]
    table = table.join(tables[0].scores.select(*KEY, *of_examples), on=KEY, how="left", maintain_order="left")
    table = table.join(numbers, on=KEY, how="left", maintain_order="left")
    floats = [name for name, kind in table.schema.items() if kind.is_float()]
    table = table.with_columns(pl.col(floats).fill_nan(None), pl.Series("id", latent_names(table)))
    return table.select(*KEY, "id", pl.exclude(*KEY, "id"))


def _side_extras(letter: str, side: Side) -> dict[str, Floats]:
    extras: dict[str, Floats] = {}
    if side.counts is not None and not side.samples:
        for name, column in zip(("tp", "fp", "tn", "fn"), side.counts.T):
            extras[f"{name}_{letter}"] = column.astype(np.int64)
    if side.usable is not None and side.examples is not None:
        extras[f"n_{letter}"] = side.examples.astype(np.int64)
        extras[f"usable_{letter}"] = side.usable.astype(np.int64)
        with np.errstate(invalid="ignore", divide="ignore"):
            extras[f"coverage_{letter}"] = side.usable / side.examples
    if side.counts is not None and side.unusable is not None and not side.samples:
        tp, fp, tn, fn = side.counts.T
        on_true, on_false = side.unusable.T
        extras[f"f1_{letter}_worst"] = classification(tp, fp + on_false, tn, fn + on_true).f1
        extras[f"f1_{letter}_best"] = classification(tp + on_true, fp, tn + on_false, fn).f1
    return extras
