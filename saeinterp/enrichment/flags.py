"""Which latents the rules of a preset flag, from the few pairs that reach a critical count: for many draws in a row.

The surprising choice: the margins of a draw are all that its rules need, so one object serves all permutations, and
labels of `robust` are made only for latents whose first token could carry one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from saeinterp.enrichment.association import associate_some
from saeinterp.enrichment.contingency import Counts, Incidence, Margins, Pairs
from saeinterp.enrichment.labels import ALIKE, STRONG
from saeinterp.enrichment.monosemantic import MIN_MCC, monosemantic_latents
from saeinterp.enrichment.published import keeping_limits, ranked, worth_keeping
from saeinterp.enrichment.robust import (
    RATE,
    Adjustment,
    Verdicts,
    possible_pairs,
    robust_family,
    tested_limits,
)
from saeinterp.enrichment.tables import describe
from saeinterp.enrichment.tallies import Tables
from saeinterp.stats.discoveries import benjamini_hochberg, simes
from saeinterp.stats.intervals import Floats


class Flagged(NamedTuple):
    """What the rules say in one draw.

    Attributes:
        latent: Interpretable latents, ascending.
        first: The first token of each.
        monosemantic: `[latent]` bool; None where labels were not made.
        kept: The latents of kept pairs.
        enrichment: Of each kept pair.
    """

    latent: Counts
    first: Counts
    monosemantic: npt.NDArray[np.bool_] | None
    kept: Counts
    enrichment: Floats


class Draw(NamedTuple):
    """What labels are made of.

    Attributes:
        incidence: Of the samples drawn.
        strata: `[n]`: theirs.
        seed: Of the labels' own permutations; None: labels of `robust`, which take long, are not made.
    """

    incidence: Incidence
    strata: Counts
    seed: int | None


class PublishedFlags:
    """The rules of `seed-gsm8k-chi2`.

    Args:
        margins: Of the samples.
        categories: `[tokens]`.

    Attributes:
        limits: Pairs below are not looked at.
        testable: `[tokens]` bool: some latent could be flagged by it.
    """

    def __init__(self, margins: Margins, categories: npt.NDArray[np.str_]) -> None:
        self.limits = keeping_limits(margins)
        largest = np.minimum(margins.rows[:, None], margins.columns[None]) - 1  # no cell is empty
        self.testable = np.logical_or.reduce(self.limits.above <= largest, axis=0)[margins.column]
        self._margins, self._categories = margins, categories

    def flagged(self, pairs: Pairs, draw: Draw) -> Flagged:
        """Of pairs that reach the limits; labels as of `saeinterp.enrichment.labels.published_labels`."""
        tables = Tables.of(pairs, self._margins)
        good, enrichment = worth_keeping(tables.both, tables.firing, tables.holding, self._margins.samples)
        pairs, enrichment = pairs.where(good[tables.of_pair]), enrichment[tables.of_pair][good[tables.of_pair]]
        index, rank = ranked(pairs.latent, enrichment, np.arange(len(enrichment)))
        start = np.flatnonzero(rank == 0)
        found = np.diff([*start, len(index)])
        category = self._categories[pairs.token[index]]
        # Of a latent with fewer pairs the next latent's stand in; `found` says that they do not count.
        one, two, three = (category[np.minimum(start + offset, len(index) - 1)] for offset in range(ALIKE))
        alike = (found >= ALIKE) & (one == two) & (two == three)
        mixed = ((one == "number") & (two == "operator")) | ((one == "operator") & (two == "number"))
        monosemantic = (enrichment[index[start]] >= STRONG) | alike | ((found > 1) & mixed)
        first = index[start]
        return Flagged(pairs.latent[first], pairs.token[first], monosemantic, pairs.latent, enrichment)


class RobustFlags:
    """The rules of `robust`.

    A latent is interpretable where its own adjusted p (Simes over tokens, then over latents) is at most 0.05. Its first
    token is that of the label: of its kept pairs (where it has none, of all tested ones) the one with the largest lower
    limit of the odds ratio.

    Args:
        margins: Of the samples.
        any_dependence: Adjust by Benjamini and Yekutieli.

    Attributes:
        limits: Pairs below are not looked at.
        testable: `[tokens]` bool: some latent could be flagged by it.
    """

    def __init__(self, margins: Margins, *, any_dependence: bool = False) -> None:
        family = robust_family(margins, margins.columns[margins.column])
        self._margins, self._adjustment = margins, Adjustment(family, any_dependence)
        self._tests = self._adjustment.of_latents(margins)
        self.limits = tested_limits(margins, family)
        self.testable = np.logical_or.reduce(possible_pairs(margins, family), axis=0)[margins.column]

    def flagged(self, pairs: Pairs, draw: Draw) -> Flagged:
        """Of pairs that reach the limits."""
        tables = Tables.of(pairs, self._margins)
        verdicts = Verdicts.of(tables, self._margins.samples, self._adjustment)
        sizes = describe(tables.both, tables.firing, tables.holding, self._margins.samples)
        latents, p = simes(np.exp(verdicts.log_p)[tables.of_pair], pairs.latent, self._tests)
        flagged = latents[benjamini_hochberg(p, family=self._adjustment.over(int((self._tests > 0).sum()))) <= RATE]
        kept = verdicts.kept[tables.of_pair]
        of_flagged = np.flatnonzero(np.isin(pairs.latent, flagged))
        low = sizes["odds_ratio_low"][tables.of_pair]
        keys = (pairs.token, -pairs.both, -low, ~kept, pairs.latent)
        order = of_flagged[np.lexsort(tuple(key[of_flagged] for key in keys))]
        _, start = np.unique(pairs.latent[order], return_index=True)
        first = order[start]
        candidates = flagged[kept[first] & (sizes["mcc"][tables.of_pair][first] >= MIN_MCC)]
        monosemantic = (
            None
            if draw.seed is None
            else np.isin(
                flagged, _labelled(candidates, draw, draw.seed, any_dependence=self._adjustment.any_dependence)
            )
        )
        enrichment = sizes["enrichment"][tables.of_pair][kept]
        return Flagged(flagged, pairs.token[first], monosemantic, pairs.latent[kept], enrichment)


def _labelled(candidates: Counts, draw: Draw, seed: int, *, any_dependence: bool) -> Counts:
    if not len(candidates):
        return candidates
    pairs = associate_some(draw.incidence, candidates, any_dependence=any_dependence)
    found = monosemantic_latents(pairs, draw.incidence, strata=draw.strata, seed=seed)
    return found["latent"].to_numpy().astype(np.int64)
