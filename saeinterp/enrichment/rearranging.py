"""Other samples than those observed: permutations that break what goes with what, and halves of the problems.

The surprising choice: everything is drawn over the samples in the order of their ids, from the seed alone, never from
the data: draw i of two models, or of two trainings of one, is the same permutation and the same half of the problems.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from saeinterp.enrichment.contingency import Counts

Kind = Literal["observed", "free", "strata", "half"]
_STREAM = {"free": 1, "strata": 2, "half": 3}


class Arrangement(NamedTuple):
    """One arrangement of the samples.

    Attributes:
        kind: `free` and `strata` are permutations, anywhere or among samples of one stratum.
        number: From 0, within its kind.
        order: Of a half: its samples, ascending. Else `[n]`: the sample whose tokens each sample gets.
    """

    kind: Kind
    number: int
    order: Counts


def observed(samples: int) -> Arrangement:
    """The samples as they are."""
    return Arrangement("observed", 0, np.arange(samples))


def permuted(
    kind: Literal["free", "strata"], sample_ids: Sequence[str], strata: Counts, *, number: int, seed: int
) -> Iterator[Arrangement]:
    """Permutations of the rows of the token matrix: which latents go together, and which tokens, stays as it is.

    Args:
        sample_ids: `[n]`.
        strata: `[n]`: `strata` permutes among samples of equal value.
        number: How many.
    """
    by_id = np.argsort(np.asarray(sample_ids), kind="stable")
    groups = strata[by_id] if kind == "strata" else np.zeros(len(by_id), np.int64)
    places = by_id[np.argsort(groups, kind="stable")]
    for index in range(number):
        keys = np.random.default_rng([seed, _STREAM[kind], index]).random(len(by_id))
        order = np.empty(len(by_id), np.int64)
        order[places] = by_id[np.lexsort((keys, groups))]
        yield Arrangement(kind, index, order)


def halves(sample_ids: Sequence[str], *, number: int, seed: int) -> Iterator[Arrangement]:
    """Random halves of the samples, without replacement.

    Never samples drawn with replacement: a sample that comes twice makes a pair look significant where there is
    nothing.
    """
    by_id = np.argsort(np.asarray(sample_ids), kind="stable")
    for index in range(number):
        drawn = np.random.default_rng([seed, _STREAM["half"], index]).permutation(len(by_id))[: len(by_id) // 2]
        yield Arrangement("half", index, np.sort(by_id[drawn]))
