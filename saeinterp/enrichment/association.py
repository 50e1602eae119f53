"""Which latents go with which tokens: a test of every pair, adjusted over all of them.

Everything but replication follows from four counts, and few distinct tables occur, so each is computed once per
distinct table. The surprising choice: only pairs with p <= 0.05 are listed (all would be gigabytes); the adjustment
counts the others too, so that q is exact up to 0.05.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import polars as pl

from saeinterp.enrichment.contingency import Incidence, Limits, Matrix, Pairs
from saeinterp.enrichment.published import PublishedRules, published_limits
from saeinterp.enrichment.robust import RobustRules, robust_limits
from saeinterp.enrichment.tables import describe
from saeinterp.enrichment.tallies import Tables
from saeinterp.errors import ConfigError

Preset = Literal["robust", "seed-gsm8k-chi2"]


class Associations(pl.DataFrame):
    """The frame of `associate`.

    Attributes:
        family: How many pairs q is adjusted over.
    """

    family: int


def associate(
    active: Matrix, present: Matrix, *, preset: Preset = "robust", seed: int = 0, any_dependence: bool = False
) -> Associations:
    """Test every latent against every token.

    `robust`: one-sided Fisher exact tests of tokens that at least 5 samples hold, Benjamini–Hochberg over the pairs
    that could be rejected at all (Gilbert 2005), kept where an odds ratio above 2 is shown at the same rate.
    `seed-gsm8k-chi2`: the rules of a published analysis (chi-square with Yates' correction at p < 0.01, enrichment of 2
    or more, the 20 largest a latent), for comparison: they keep many pairs where there is nothing.

    Args:
        active: `[samples, latents]`: booleans, or a scipy sparse matrix; nonzero is active.
        present: `[samples, tokens]` of the same samples.
        seed: Of the split into halves, by which `replicated` is judged.
        any_dependence: Adjust `robust` by Benjamini and Yekutieli (2001), which holds whatever depends on what and
            keeps less.

    Returns:
        The pairs with p <= 0.05, by latent and token (column indices); its attribute `family` is the number of pairs
        that q is adjusted over. `a` to `d`: samples with both, latent alone, token alone, neither; `a_first` to
        `d_first`: the same of the first half. `p_value`, `log10_p`, `mid_p` (robust); `q_value` (null outside of the
        family, an upper bound above 0.05); `latent_q` (robust: Simes over the latent's tokens, then over latents);
        `p_effect`, `q_effect` of an odds ratio above 2, where q <= 0.05; effect sizes as in
        `saeinterp.enrichment.tables.describe`. `kept`: by the preset. `replicated`: significant by the preset's rule in
        one half of the samples and p <= 0.05 in the other.

    Raises:
        ConfigError: Another preset.
        DataError: The matrices are not of the same samples, or not boolean.
    """
    incidence = Incidence.of(active, present, seed=seed)
    rules, limits = _rules(incidence, preset, any_dependence=any_dependence)
    block = Pairs.concatenate(list(incidence.blocks(list(enumerate(limits)))))
    verdicts = rules(incidence, limits, [block])
    found = _frame(verdicts, verdicts.listed(block), limits[0], incidence)
    found.family = verdicts.family
    return found


def associate_to(
    path: Path,
    active: Matrix,
    present: Matrix,
    *,
    preset: Preset = "robust",
    seed: int = 0,
    any_dependence: bool = False,
) -> int:
    """`associate`, written to a Parquet file block by block of latents: for more pairs than fit into memory.

    Pairs are counted twice, since every adjusted p depends on all of them. Args as of `associate`.

    Returns:
        How many pairs q is adjusted over.
    """
    import pyarrow.parquet as pq

    incidence = Incidence.of(active, present, seed=seed)
    rules, limits = _rules(incidence, preset, any_dependence=any_dependence)
    verdicts = rules(incidence, limits, incidence.blocks(list(enumerate(limits))))
    nothing = _frame(verdicts, Pairs.concatenate([]), limits[0], incidence).to_arrow()
    with pq.ParquetWriter(path, nothing.schema, compression="zstd") as writer:
        for block in incidence.blocks([(0, limits[0])]):
            writer.write_table(_frame(verdicts, block, limits[0], incidence).to_arrow())
    return verdicts.family


def associate_some(
    incidence: Incidence, latents: npt.NDArray[np.int64], *, any_dependence: bool = False
) -> Associations:
    """The rows of `associate` (`robust`) of some latents, adjusted over all; nothing is held of the others."""
    rules, limits = _rules(incidence, "robust", any_dependence=any_dependence)
    verdicts = rules(incidence, limits, incidence.blocks(list(enumerate(limits))))
    blocks = incidence.blocks([(0, limits[0])])
    some = Pairs.concatenate([block.where(np.isin(block.latent, latents)) for block in blocks])
    found = _frame(verdicts, some, limits[0], incidence)
    found.family = verdicts.family
    return found


def _rules(
    incidence: Incidence, preset: str, *, any_dependence: bool
) -> tuple[Callable[[Incidence, list[Limits], Iterable[Pairs]], RobustRules | PublishedRules], list[Limits]]:
    if preset == "robust":
        return partial(RobustRules, any_dependence=any_dependence), robust_limits(incidence)
    if preset == "seed-gsm8k-chi2":
        return PublishedRules, published_limits(incidence)
    raise ConfigError("unknown", field="preset", got=preset, expected=" or ".join(get_args(Preset)))


def _frame(verdicts: RobustRules | PublishedRules, pairs: Pairs, limits: Limits, incidence: Incidence) -> Associations:
    samples = limits.margins.samples
    tables = Tables.of(pairs, limits.margins)
    log_p, of_table, of_pair = verdicts.columns(pairs, tables)
    b, c = tables.firing - tables.both, tables.holding - tables.both
    counts = {"a": tables.both, "b": b, "c": c, "d": samples - tables.firing - c}
    values = {
        **{name: item.astype(np.int32) for name, item in counts.items()},
        "p_value": np.exp(log_p),
        "log10_p": log_p / np.log(10.0),
        **of_table,
        **describe(tables.both, tables.firing, tables.holding, samples),
    }
    firing, holding = incidence.firing[1][pairs.latent], incidence.holding[1][pairs.token]
    b_first, c_first = firing - pairs.both_first, holding - pairs.both_first
    first = {"a": pairs.both_first, "b": b_first, "c": c_first, "d": incidence.samples[1] - firing - c_first}
    return Associations(
        {
            "latent": pairs.latent.astype(np.int32),
            "token": pairs.token.astype(np.int32),
            **{name: item[tables.of_pair] for name, item in values.items()},
            **of_pair,
            **{f"{name}_first": item.astype(np.int32) for name, item in first.items()},
        },
        nan_to_null=True,
    )
