"""The rules of `robust`: exact tests, adjusted over the pairs that could be rejected at all.

The surprising choice: rules are made from all pairs once and then applied to any of them, block by block, so that the
pairs need not fit into memory. Only pairs with p <= 0.05 are ever seen; what is adjusted counts the others too, so that
q is exact up to 0.05.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from saeinterp.enrichment.contingency import Counts, Incidence, Limits, Margins, Pairs
from saeinterp.enrichment.tallies import Tables, Tally
from saeinterp.stats.discoveries import (
    Family,
    attainable_family,
    benjamini_hochberg,
    dependence_penalty,
    largest_rejected,
    simes,
)
from saeinterp.stats.hypergeometric import (
    critical_counts,
    log_point,
    log_smallest,
    log_upper_tail,
    log_upper_tail_at,
)
from saeinterp.stats.intervals import Floats

LISTED = 0.05
"""Pairs with a larger p are not listed."""
RATE = 0.05
"""False discovery rate."""
ODDS = 2.0
"""Pairs are kept whose odds ratio is shown to exceed this."""
MIN_HOLDING = 5
"""Samples that must hold a token to test it."""


class Adjustment(NamedTuple):
    """What p values are adjusted over.

    Attributes:
        family: The pairs tested.
        any_dependence: By Benjamini and Yekutieli instead of Benjamini and Hochberg.
    """

    family: Family
    any_dependence: bool

    def over(self, tests: int) -> float:
        """The number to adjust for, of a number of tests."""
        return float(tests * dependence_penalty(tests)) if self.any_dependence else tests

    def of_latents(self, margins: Margins) -> Floats:
        """`[latents]`: the number to adjust for, of the tokens each is tested against."""
        tests = latent_tests(margins, self.family)
        return tests * dependence_penalty(tests) if self.any_dependence else tests.astype(np.float64)


class Verdicts(NamedTuple):
    """What the tests say of distinct tables, all adjusted over one family.

    Attributes:
        log_p: ln of the one-sided p of Fisher's exact test.
        q: Adjusted; NaN outside of the family.
        p_effect: That the odds ratio is at most 2; NaN where q is above 0.05.
        q_effect: Adjusted.
        kept: Both adjusted p are at most 0.05.
    """

    log_p: Floats
    q: Floats
    p_effect: Floats
    q_effect: Floats
    kept: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, tables: Tables, samples: int, adjustment: Adjustment) -> Verdicts:
        """Of all listed tables of a family."""
        log_p = log_upper_tail(tables.both, tables.firing, tables.holding, samples)
        p = np.exp(log_p)
        q, p_effect, q_effect = (np.full(len(p), np.nan) for _ in range(3))
        tested = in_family(tables, samples, adjustment.family)
        over = adjustment.over(adjustment.family.tests)
        q[tested] = benjamini_hochberg(p[tested], tables.pairs[tested], family=over)
        sure = q <= RATE
        margins = (tables.both[sure], tables.firing[sure], tables.holding[sure])
        p_effect[sure] = np.exp(log_upper_tail_at(*margins, samples, odds=ODDS))
        q_effect[sure] = benjamini_hochberg(p_effect[sure], tables.pairs[sure], family=over)
        return cls(log_p, q, p_effect, q_effect, sure & (q_effect <= RATE))


class RobustRules:
    """The verdict on every listed pair of an incidence.

    Args:
        limits: Of `robust_limits`.
        blocks: All pairs that reach one of them; read once.
        any_dependence: Adjust by Benjamini and Yekutieli.

    Attributes:
        family: How many pairs q is adjusted over.
    """

    def __init__(
        self, incidence: Incidence, limits: list[Limits], blocks: Iterable[Pairs], *, any_dependence: bool = False
    ) -> None:
        self._limits, self._margins = limits, limits[0].margins
        family = robust_family(self._margins, incidence.holding[0])
        adjustment = Adjustment(family, any_dependence)
        self.family = family.tests
        frequent = incidence.holding[0] >= MIN_HOLDING
        everything, halves = Tally(self._margins), [Tally(limit.margins) for limit in limits[1:]]
        tests = adjustment.of_latents(self._margins)
        combined = np.full(incidence.active.shape[1], np.nan)
        for block in blocks:
            tested = block.where(frequent[block.token])
            for half, limit, both in zip(halves, limits[1:], _halves(tested), strict=True):
                reached = limit.reached(tested, both)
                half.add(limit.margins.keys(tested.latent[reached], tested.token[reached], both[reached]))
            listed = self.listed(block)
            tables = Tables.of(listed, self._margins)
            everything.add(tables.keys, tables.pairs)
            p = np.exp(log_upper_tail(tables.both, tables.firing, tables.holding, self._margins.samples))
            of_family = in_family(tables, self._margins.samples, family)[tables.of_pair]
            latents, p = simes(p[tables.of_pair][of_family], listed.latent[of_family], tests)
            combined[latents] = p
        self._tables = everything.tables()
        self._verdicts = Verdicts.of(self._tables, self._margins.samples, adjustment)
        self._latent_q = np.full(len(combined), np.nan)
        some = np.isfinite(combined)
        self._latent_q[some] = benjamini_hochberg(combined[some], family=adjustment.over(int((tests > 0).sum())))
        self._strict = [
            _rejected(limit.margins, incidence.holding[0], half.tables(), any_dependence=any_dependence)
            for limit, half in zip(limits[1:], halves, strict=True)
        ]

    def listed(self, block: Pairs) -> Pairs:
        """The pairs of a block with p <= 0.05."""
        return block.where(self._limits[0].reached(block, block.both))

    def columns(
        self, pairs: Pairs, tables: Tables
    ) -> tuple[Floats, dict[str, Floats], dict[str, npt.NDArray[np.generic]]]:
        """ln p and other columns per distinct table of listed pairs, and columns per pair."""
        place = np.searchsorted(self._tables.keys, tables.keys)
        verdicts, log_p = self._verdicts, self._verdicts.log_p[place]
        point = log_point(tables.both, tables.firing, tables.holding, self._margins.samples)
        of_table = {
            "mid_p": np.exp(log_p) - np.exp(point) / 2,
            "q_value": verdicts.q[place],
            "p_effect": verdicts.p_effect[place],
            "q_effect": verdicts.q_effect[place],
        }
        of_pair: dict[str, npt.NDArray[np.generic]] = {
            "latent_q": self._latent_q[pairs.latent],
            "kept": verdicts.kept[place][tables.of_pair],
            "replicated": replicated(pairs, self._strict, self._limits[1:]),
        }
        return log_p, of_table, of_pair


def robust_limits(incidence: Incidence) -> list[Limits]:
    """The counts from which on a pair has p <= 0.05, in all samples and in each half."""
    return [Limits.of(incidence.margins(part), listed_counts) for part in range(3)]


def listed_counts(rows: Counts, columns: Counts, samples: int) -> tuple[Counts, None]:
    """Per pair of margins the smallest count with p <= 0.05."""
    return critical_counts(rows, columns, samples, alpha=LISTED), None


def robust_family(margins: Margins, holding: Counts) -> Family:
    """The pairs of frequent tokens whose margins allow a small p.

    Args:
        holding: `[tokens]`: samples that hold a token, of all samples: a half tests the same tokens.
    """
    latents = np.bincount(margins.row, minlength=len(margins.rows))
    tokens = np.bincount(margins.column[holding >= MIN_HOLDING], minlength=len(margins.columns))
    some = tokens > 0
    smallest = log_smallest(margins.rows[:, None], margins.columns[None, some], margins.samples)
    return attainable_family(smallest, latents[:, None] * tokens[None, some], alpha=RATE)


def in_family(tables: Tables, samples: int, family: Family) -> npt.NDArray[np.bool_]:
    """Which tables are tested."""
    possible = log_smallest(tables.firing, tables.holding, samples) <= family.limit
    return np.asarray(possible & (tables.holding >= MIN_HOLDING))


def possible_pairs(margins: Margins, family: Family) -> npt.NDArray[np.bool_]:
    """`[R, C]`: pairs of margins that the family holds."""
    smallest = log_smallest(margins.rows[:, None], margins.columns[None], margins.samples)
    return np.asarray((smallest <= family.limit) & (margins.columns >= MIN_HOLDING))


def latent_tests(margins: Margins, family: Family) -> Counts:
    """`[latents]`: how many tokens of the family each latent is tested against."""
    tokens = np.bincount(margins.column, minlength=len(margins.columns))
    return np.asarray((possible_pairs(margins, family) @ tokens)[margins.row], np.int64)


def tested_limits(margins: Margins, family: Family) -> Limits:
    """The counts from which on a pair of the family has p <= 0.05."""
    possible = possible_pairs(margins, family)

    def critical(rows: Counts, columns: Counts, samples: int) -> tuple[Counts, None]:
        return np.where(possible, listed_counts(rows, columns, samples)[0], samples + 1), None

    return Limits.of(margins, critical)


def replicated(pairs: Pairs, strict: list[Limits], listed: list[Limits]) -> npt.NDArray[np.bool_]:
    """Significant by the strict limit in one half and listed in the other, in either order."""
    first, second = _halves(pairs)
    one = strict[0].reached(pairs, first) & listed[1].reached(pairs, second)
    return one | (strict[1].reached(pairs, second) & listed[0].reached(pairs, first))


def _halves(pairs: Pairs) -> tuple[Counts, Counts]:
    return pairs.both_first, pairs.both - pairs.both_first


def _rejected(margins: Margins, holding: Counts, tables: Tables, *, any_dependence: bool) -> Limits:
    """The counts from which on a half alone rejects, at the same rate."""
    family = robust_family(margins, holding)
    tested = log_smallest(tables.firing, tables.holding, margins.samples) <= family.limit
    p = np.exp(log_upper_tail(tables.both[tested], tables.firing[tested], tables.holding[tested], margins.samples))
    over = Adjustment(family, any_dependence).over(family.tests)
    largest = largest_rejected(p, tables.pairs[tested], family=over, alpha=RATE)
    # A token that is rare in all samples may be as frequent in a half as one that is not.
    frequent = margins._replace(
        columns=np.append(margins.columns, 0),
        column=np.where(holding >= MIN_HOLDING, margins.column, len(margins.columns)),
    )

    def critical(rows: Counts, columns: Counts, samples: int) -> tuple[Counts, None]:
        nowhere = np.full((len(rows), len(columns)), samples + 1)
        if largest < 0:
            return nowhere, None
        # Between two attainable values, so that rounding decides nothing.
        counts = critical_counts(rows, columns, samples, alpha=min(largest * (1 + 1e-9), RATE))
        possible = log_smallest(rows[:, None], columns[None], samples) <= family.limit
        return np.where(possible, counts, nowhere), None

    return Limits.of(frequent, critical)
