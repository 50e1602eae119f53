"""How many latents the rules flag: as observed, where nothing goes together, and in halves of the problems.

The surprising choice: all presets read one count of the pairs of a draw, and permutations, which leave the margins as
they are, share one table of critical counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from saeinterp.enrichment.association import Preset
from saeinterp.enrichment.contingency import Counts, Incidence, Margins, Matrix, Pairs
from saeinterp.enrichment.flags import Draw, Flagged, PublishedFlags, RobustFlags
from saeinterp.enrichment.rearranging import Arrangement, halves, observed, permuted
from saeinterp.errors import DataError
from saeinterp.progress import Progress, silent

LABELLED_HALVES = 50
"""Half-samples in which the labels of `robust` are made anew: each takes as long as labelling all samples."""


class Draws(NamedTuple):
    """The counts of all draws under one preset.

    Attributes:
        counts: One row per draw and site: `draw` ("observed", "free", "strata", "half"), `number`, `site`; `latents`;
            `alive` (active in at least one sample), `interpretable`, `monosemantic` (null where labels were not made
            anew); `max_enrichment` (of kept pairs; null where none); and per category `category_<name>`: interpretable
            latents whose first token is of it.
        vocabulary: Per category, its share of the tokens by which a latent could be flagged at all; empty where there
            is none.
    """

    counts: pl.DataFrame
    vocabulary: dict[str, float]


def draw_rates(
    active: Matrix,
    present: Matrix,
    *,
    presets: Sequence[Preset],
    sites: npt.ArrayLike,
    categories: Sequence[str],
    sample_ids: Sequence[str],
    strata: Counts,
    permutations: int = 200,
    half_samples: int = 200,
    seed: int = 0,
    any_dependence: bool = False,
    progress: Progress | None = None,
) -> dict[Preset, Draws]:
    """Count flagged latents as observed, under both nulls and in half-samples.

    Args:
        active: `[samples, latents]` of all sites: q is adjusted over the whole model.
        present: `[samples, tokens]`.
        sites: `[latents]`: the site of each, numbered from 0.
        categories: `[tokens]`.
        sample_ids: `[samples]`, each once: draws are made of them, so that those of several models go together.
        strata: `[samples]`: of `saeinterp.enrichment.strata.strata_of`.
        permutations: Of each null.
        half_samples: How many.
        any_dependence: As of `associate`.

    Raises:
        DataError: The matrices are not of the same samples, an argument has another length, or an id comes twice.
    """
    whole = Incidence.of(active, present, seed=seed)
    counter = _Counter(np.asarray(sites, np.int64), np.asarray(categories, np.str_))
    _check(whole, counter, sample_ids, strata)
    report = progress or silent
    rules = _rules(presets, whole.margins(), counter.categories, any_dependence)
    found: dict[Preset, list[pl.DataFrame]] = {preset: [] for preset in presets}
    total = 1 + 2 * permutations + half_samples
    arrangements = _arrangements(sample_ids, strata, permutations, half_samples, seed)
    for done, arrangement in enumerate(arrangements, start=1):
        half = arrangement.kind == "half"
        rows = arrangement.order
        incidence = whole.of_samples(rows, seed=seed) if half else whole.permuted(rows)
        here = _rules(presets, incidence.margins(), counter.categories, any_dependence) if half else rules
        block = Pairs.concatenate(list(incidence.blocks([(0, rule.limits) for rule in here.values()], halves=False)))
        labels = not half or arrangement.number < LABELLED_HALVES
        draw = Draw(incidence, strata[rows], seed if labels else None)
        for preset, rule in here.items():
            flagged = rule.flagged(block.where(rule.limits.reached(block, block.both)), draw)
            found[preset].append(counter.count(arrangement, incidence, flagged))
        report(done, total, "draws")
    return {preset: Draws(pl.concat(found[preset]), counter.shares(rules[preset].testable)) for preset in presets}


class _Counter:
    """Counts latents per site."""

    def __init__(self, sites: Counts, categories: npt.NDArray[np.str_]) -> None:
        self.sites, self.categories = sites, categories
        self._names = np.unique(categories)
        self._total = int(sites.max(initial=-1)) + 1

    def count(self, arrangement: Arrangement, incidence: Incidence, flagged: Flagged) -> pl.DataFrame:
        """The rows of one draw."""
        first = self.categories[flagged.first]
        largest = np.full(self._total, -np.inf)
        np.maximum.at(largest, self.sites[flagged.kept], flagged.enrichment)
        labelled = flagged.monosemantic
        columns: dict[str, npt.NDArray[np.int32] | None] = {
            "site": np.arange(self._total, dtype=np.int32),
            "latents": self._per_site(np.arange(len(self.sites))),
            "alive": self._per_site(np.flatnonzero(incidence.firing[0])),
            "interpretable": self._per_site(flagged.latent),
            "monosemantic": None if labelled is None else self._per_site(flagged.latent[labelled]),
        }
        names = {f"category_{name}": self._per_site(flagged.latent[first == name]) for name in self._names.tolist()}
        return pl.DataFrame(
            {
                "draw": pl.Series([arrangement.kind] * self._total, dtype=pl.String),
                "number": np.full(self._total, arrangement.number, np.int32),
                **{
                    name: pl.Series([None] * self._total if item is None else item, dtype=pl.Int32)
                    for name, item in columns.items()
                },
                "max_enrichment": pl.Series(np.where(np.isneginf(largest), np.nan, largest), nan_to_null=True),
                **names,
            }
        )

    def shares(self, testable: npt.NDArray[np.bool_]) -> dict[str, float]:
        """Each category's share of some tokens."""
        some = self.categories[testable]
        return {name: float((some == name).mean()) for name in self._names.tolist()} if len(some) else {}

    def _per_site(self, latents: Counts) -> npt.NDArray[np.int32]:
        return np.bincount(self.sites[latents], minlength=self._total).astype(np.int32)


def _rules(
    presets: Sequence[Preset], margins: Margins, categories: npt.NDArray[np.str_], any_dependence: bool
) -> dict[Preset, PublishedFlags | RobustFlags]:
    return {
        preset: RobustFlags(margins, any_dependence=any_dependence)
        if preset == "robust"
        else PublishedFlags(margins, categories)
        for preset in presets
    }


def _arrangements(
    sample_ids: Sequence[str], strata: Counts, permutations: int, half_samples: int, seed: int
) -> Iterator[Arrangement]:
    yield observed(len(sample_ids))
    yield from permuted("free", sample_ids, strata, number=permutations, seed=seed)
    yield from permuted("strata", sample_ids, strata, number=permutations, seed=seed)
    yield from halves(sample_ids, number=half_samples, seed=seed)


def _check(whole: Incidence, counter: _Counter, sample_ids: Sequence[str], strata: Counts) -> None:
    samples = whole.samples[0]
    for name, length, expected in (
        ("sites", len(counter.sites), whole.active.shape[1]),
        ("categories", len(counter.categories), whole.present.shape[1]),
        ("sample_ids", len(sample_ids), samples),
        ("strata", len(strata), samples),
    ):
        if length != expected:
            raise DataError("has another length than the matrices", field=name, got=length, expected=str(expected))
    if len(set(sample_ids)) < samples:
        repeated = samples - len(set(sample_ids))
        raise DataError("an id comes twice", field="sample_ids", got=f"{repeated} repeated", expected="each id once")
