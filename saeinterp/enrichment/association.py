"""Which latents go with which tokens: a test of every pair, adjusted over all of them.

Everything but replication follows from four counts, and few distinct tables occur, so each is computed once per
distinct table. The surprising choice: only pairs with p <= 0.05 are listed (all would be gigabytes); the adjustment
counts the others too, so that q is exact up to 0.05.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import polars as pl

from saeinterp.enrichment.contingency import Counts, Incidence, Limits, Matrix, Pairs
from saeinterp.enrichment.tables import critical_chi2, describe, log_corrected_chi2
from saeinterp.errors import ConfigError
from saeinterp.stats.discoveries import Family, attainable_family, benjamini_hochberg, largest_rejected, simes
from saeinterp.stats.hypergeometric import (
    critical_counts,
    log_point,
    log_smallest,
    log_upper_tail,
    log_upper_tail_at,
)
from saeinterp.stats.intervals import Floats

Preset = Literal["robust", "seed-gsm8k-chi2"]
LISTED = 0.05
"""Pairs with a larger p are not listed."""
RATE = 0.05
"""False discovery rate of `robust`."""
ODDS = 2.0
"""`robust` keeps pairs whose odds ratio is shown to exceed this."""
MIN_HOLDING = 5
"""Samples that must hold a token for `robust` to test it."""
SEED_FIRING, SEED_TOTAL, SEED_P, SEED_ENRICHMENT, SEED_KEPT = 20, 10, 0.01, 2.0, 20
"""The published rules: fewest firing samples, smallest table, p, enrichment, most pairs a latent."""


class Associations(pl.DataFrame):
    """The frame of `associate`.

    Attributes:
        family: How many pairs q is adjusted over.
    """

    family: int


class _Tables(NamedTuple):
    """Distinct tables, and which of them each pair has."""

    both: Counts
    firing: Counts
    holding: Counts
    of_pair: Counts
    pairs: Counts
    """How many pairs have each."""


def associate(active: Matrix, present: Matrix, *, preset: Preset = "robust", seed: int = 0) -> Associations:
    """Test every latent against every token.

    `robust`: one-sided Fisher exact tests of tokens that at least 5 samples hold, Benjamini–Hochberg over the pairs
    that could be rejected at all (Gilbert 2005), kept where an odds ratio above 2 is shown at the same rate.
    `seed-gsm8k-chi2`: the rules of a published analysis (chi-square with Yates' correction at p < 0.01, enrichment of 2
    or more, the 20 largest a latent), for comparison: they keep many pairs where there is nothing.

    Args:
        active: `[samples, latents]`: booleans, or a scipy sparse matrix; nonzero is active.
        present: `[samples, tokens]` of the same samples.
        seed: Of the split into halves, by which `replicated` is judged.

    Returns:
        The pairs with p <= 0.05, by latent and token (column indices); its attribute `family` is the number of pairs
        that q is adjusted over. `a` to `d`: samples with both, latent alone, token alone, neither. `p_value`,
        `log10_p`, `mid_p` (robust); `q_value` (null outside of the family, an upper bound above 0.05); `latent_q`
        (robust: Simes over the latent's tokens, then over latents); `p_effect`, `q_effect` of an odds ratio above 2,
        where q <= 0.05; effect sizes as in `saeinterp.enrichment.tables.describe`. `kept`: by the preset. `replicated`:
        significant by the preset's rule in one half of the samples and p <= 0.05 in the other.

    Raises:
        ConfigError: Another preset.
        DataError: The matrices are not of the same samples, or not boolean.
    """
    if preset not in get_args(Preset):
        raise ConfigError("unknown", field="preset", got=preset, expected=" or ".join(get_args(Preset)))
    incidence = Incidence.of(active, present, seed=seed)
    return (_robust if preset == "robust" else _published)(incidence)


def _robust(incidence: Incidence) -> Associations:
    limits = [Limits.of(*_margins(incidence, part), _critical(LISTED)) for part in range(3)]
    tallies = [_Tally(incidence, half, limits[half]) for half in (1, 2)]
    found = []
    for block in incidence.blocks(limits):
        tested = block.where(incidence.holding[0][block.token] >= MIN_HOLDING)
        tallies[0].add(tested, tested.both_first)
        tallies[1].add(tested, tested.both - tested.both_first)
        found.append(block.where(limits[0].reached(block, block.both)))
    pairs = Pairs.concatenate(found)
    n = incidence.samples[0]
    tables = _distinct(pairs, incidence)
    log_p = log_upper_tail(tables.both, tables.firing, tables.holding, n)
    p = np.exp(log_p)
    family = _family(incidence, 0)
    in_family = (tables.holding >= MIN_HOLDING) & (log_smallest(tables.firing, tables.holding, n) <= family.limit)
    q, p_effect, q_effect = (np.full(len(p), np.nan) for _ in range(3))
    q[in_family] = benjamini_hochberg(p[in_family], tables.pairs[in_family], family=family.tests)
    sure = q <= RATE
    margins = (tables.both[sure], tables.firing[sure], tables.holding[sure])
    p_effect[sure] = np.exp(log_upper_tail_at(*margins, n, odds=ODDS))
    q_effect[sure] = benjamini_hochberg(p_effect[sure], tables.pairs[sure], family=family.tests)
    strict = [_rejected(incidence, half + 1, tallies[half]) for half in (0, 1)]
    return _frame(
        pairs,
        tables,
        n,
        log_p=log_p,
        of_table={
            "mid_p": p - np.exp(log_point(tables.both, tables.firing, tables.holding, n)) / 2,
            "q_value": q,
            "p_effect": p_effect,
            "q_effect": q_effect,
        },
        of_pair={
            "latent_q": _latent_q(pairs, p[tables.of_pair], in_family[tables.of_pair], incidence, family.limit),
            "kept": (sure & (q_effect <= RATE))[tables.of_pair],
            "replicated": _replicated(pairs, strict, limits[1:]),
        },
        family=family.tests,
    )


def _published(incidence: Incidence) -> Associations:
    limits = [Limits.of(*_margins(incidence, part), partial(critical_chi2, alpha=LISTED)) for part in range(3)]
    strict = [Limits.of(*_margins(incidence, part), partial(critical_chi2, alpha=SEED_P)) for part in (1, 2)]
    n = incidence.samples[0]
    pairs = Pairs.concatenate(list(incidence.blocks(limits[:1])))
    tables = _distinct(pairs, incidence)
    log_p = log_corrected_chi2(tables.both, tables.firing, tables.holding, n)
    p = np.exp(log_p)
    in_family = (tables.firing >= SEED_FIRING) & (n >= SEED_TOTAL)
    firing, holding = incidence.firing[0], incidence.holding[0]
    family = int(((firing >= SEED_FIRING) & (firing < n)).sum() * ((holding > 0) & (holding < n)).sum())
    q = np.full(len(p), np.nan)
    q[in_family] = benjamini_hochberg(p[in_family], tables.pairs[in_family], family=family)
    b, c = tables.firing - tables.both, tables.holding - tables.both
    full = np.minimum(np.minimum(tables.both, b), np.minimum(c, n - tables.firing - c)) > 0
    enrichment = describe(tables.both, tables.firing, tables.holding, n)["enrichment"]
    good = in_family & full & (p < SEED_P) & (enrichment >= SEED_ENRICHMENT)
    return _frame(
        pairs,
        tables,
        n,
        log_p=log_p,
        of_table={"q_value": q},
        of_pair={
            "kept": _largest(pairs.latent, enrichment[tables.of_pair], good[tables.of_pair]),
            "replicated": _replicated(pairs, strict, limits[1:]),
        },
        family=family,
    )


class _Tally:
    """Distinct tables of one half among the listed pairs, with how many pairs have each."""

    def __init__(self, incidence: Incidence, half: int, limits: Limits) -> None:
        self.firing, self.holding = incidence.firing[half], incidence.holding[half]
        self.limits = limits
        self._counts: dict[tuple[int, int, int], int] = {}

    def add(self, pairs: Pairs, both: Counts) -> None:
        """Count the pairs of a block that reach the limit in this half."""
        some = self.limits.reached(pairs, both)
        columns = (both[some], self.firing[pairs.latent[some]], self.holding[pairs.token[some]])
        found, count = np.unique(np.stack(columns), axis=1, return_counts=True)
        for key, number in zip(map(tuple, found.T.tolist()), count.tolist(), strict=True):
            self._counts[key] = self._counts.get(key, 0) + number

    def tables(self) -> tuple[Counts, Counts, Counts, Counts]:
        """Samples with both, margins, and the number of pairs, per distinct table."""
        keys = np.array(list(self._counts), np.int64).reshape(-1, 3)
        return keys[:, 0], keys[:, 1], keys[:, 2], np.array(list(self._counts.values()), np.int64)


def _critical(alpha: float) -> Callable[[Counts, Counts, int], tuple[Counts, None]]:
    return lambda rows, columns, n: (critical_counts(rows, columns, n, alpha=alpha), None)


def _margins(incidence: Incidence, part: int) -> tuple[Counts, Counts, int]:
    return incidence.firing[part], incidence.holding[part], incidence.samples[part]


def _family(incidence: Incidence, part: int) -> Family:
    """The pairs of frequent tokens whose margins allow a small p."""
    firing, holding, n = _margins(incidence, part)
    rows, latents = np.unique(firing, return_counts=True)
    columns, tokens = np.unique(holding[incidence.holding[0] >= MIN_HOLDING], return_counts=True)
    smallest = log_smallest(rows[:, None], columns[None], n)
    return attainable_family(smallest, latents[:, None] * tokens[None], alpha=RATE)


def _rejected(incidence: Incidence, half: int, tally: _Tally) -> Limits:
    """The counts from which on a half alone rejects, at the same rate."""
    firing, holding, n = _margins(incidence, half)
    family = _family(incidence, half)
    both, row, column, pairs = tally.tables()
    tested = log_smallest(row, column, n) <= family.limit
    p = np.exp(log_upper_tail(both[tested], row[tested], column[tested], n))
    largest = largest_rejected(p, pairs[tested], family=family.tests, alpha=RATE)

    def critical(rows: Counts, columns: Counts, n: int) -> tuple[Counts, None]:
        nowhere = np.full((len(rows), len(columns)), n + 1)
        if largest < 0:
            return nowhere, None
        # Between two attainable values, so that rounding decides nothing.
        counts = critical_counts(rows, columns, n, alpha=min(largest * (1 + 1e-9), RATE))
        possible = log_smallest(rows[:, None], columns[None], n) <= family.limit
        return np.where(possible, counts, nowhere), None

    return Limits.of(firing, np.where(incidence.holding[0] >= MIN_HOLDING, holding, 0), n, critical)


def _replicated(pairs: Pairs, strict: list[Limits], listed: list[Limits]) -> npt.NDArray[np.bool_]:
    """Significant by the strict limit in one half and listed in the other, in either order."""
    first, second = pairs.both_first, pairs.both - pairs.both_first
    one = strict[0].reached(pairs, first) & listed[1].reached(pairs, second)
    return one | (strict[1].reached(pairs, second) & listed[0].reached(pairs, first))


def _distinct(pairs: Pairs, incidence: Incidence) -> _Tables:
    firing, holding = incidence.firing[0][pairs.latent], incidence.holding[0][pairs.token]
    base = incidence.samples[0] + 1
    keys, of_pair, count = np.unique(
        (firing * base + holding) * base + pairs.both, return_inverse=True, return_counts=True
    )
    rest, both = np.divmod(keys, base)
    return _Tables(both, *np.divmod(rest, base), of_pair, count)


def _latent_q(pairs: Pairs, p: Floats, tested: npt.NDArray[np.bool_], incidence: Incidence, limit: float) -> Floats:
    """Per pair, its latent's adjusted p: Simes over the tokens that could be rejected, then over latents."""
    firing, holding, n = _margins(incidence, 0)
    rows, row = np.unique(firing, return_inverse=True)
    columns, tokens = np.unique(holding[holding >= MIN_HOLDING], return_counts=True)
    possible = log_smallest(rows[:, None], columns[None], n) <= limit
    tests = (possible * tokens[None]).sum(axis=1)[row]
    latents, combined = simes(p[tested], pairs.latent[tested], tests)
    adjusted = np.full(len(firing), np.nan)
    adjusted[latents] = benjamini_hochberg(combined, family=int((tests > 0).sum()))
    return adjusted[pairs.latent]


def _largest(latent: Counts, enrichment: Floats, good: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The good pairs with the largest enrichments of each latent; of equal ones those of the first tokens."""
    kept = np.zeros(len(latent), np.bool_)
    index = np.flatnonzero(good)
    index = index[np.lexsort((-enrichment[index], latent[index]))]
    start = np.flatnonzero(np.diff(latent[index], prepend=-1))
    rank = np.arange(len(index)) - np.repeat(start, np.diff([*start, len(index)]))
    kept[index[rank < SEED_KEPT]] = True
    return kept


def _frame(
    pairs: Pairs,
    tables: _Tables,
    n: int,
    *,
    log_p: Floats,
    of_table: dict[str, Floats],
    of_pair: dict[str, npt.NDArray[np.generic]],
    family: int,
) -> Associations:
    b, c = tables.firing - tables.both, tables.holding - tables.both
    counts = {"a": tables.both, "b": b, "c": c, "d": n - tables.firing - c}
    values = {
        **{name: item.astype(np.int32) for name, item in counts.items()},
        "p_value": np.exp(log_p),
        "log10_p": log_p / np.log(10.0),
        **of_table,
        **describe(tables.both, tables.firing, tables.holding, n),
    }
    found = Associations(
        {
            "latent": pairs.latent.astype(np.int32),
            "token": pairs.token.astype(np.int32),
            **{name: item[tables.of_pair] for name, item in values.items()},
            **of_pair,
        },
        nan_to_null=True,
    )
    found.family = family
    return found
