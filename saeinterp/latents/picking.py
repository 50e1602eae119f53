"""Which windows become a latent's examples.

Positives are spread over activation quantiles; negatives are silent, of three kinds, and drawn without replacement.
The surprising choice: every draw of a latent comes from a generator seeded with that latent, so a latent's examples
do not depend on which others were selected.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from saeinterp.config import ExamplesConfig
from saeinterp.latents.windows import EXPLAIN, SCORE, Windows

NEAR_MISS, SIMILAR, RANDOM = "near-miss", "similar", "random"


class Pick(NamedTuple):
    """One chosen window of one latent."""

    window: int
    role: str
    kind: str
    quantile: int | None


class Activity(NamedTuple):
    """The windows that one latent fires in.

    Attributes:
        windows: int32 `[n]`, ascending.
        peaks: float32 `[n]`: the largest magnitude in each.
        split: How many of them belong to `explain`.
    """

    windows: np.ndarray
    peaks: np.ndarray
    split: int

    @classmethod
    def of(cls, owner: np.ndarray, values: np.ndarray, windows: Windows) -> Activity:
        """From a latent's entries: the window and the value of each, in row order."""
        first = np.flatnonzero(np.diff(owner, prepend=-1))
        peaks = np.maximum.reduceat(np.abs(values), first) if len(first) else values
        return cls(owner[first], peaks, int(np.searchsorted(owner[first], windows.explain)))

    @property
    def counts(self) -> np.ndarray:
        """`[2]` int64: active windows of `explain` and of `score`."""
        return np.array([self.split, len(self.windows) - self.split])

    def of_split(self, split: int) -> tuple[np.ndarray, np.ndarray]:
        """Windows and peaks of `EXPLAIN` or `SCORE`."""
        here = slice(0, self.split) if split == EXPLAIN else slice(self.split, None)
        return self.windows[here], self.peaks[here]


class Missing(NamedTuple):
    """Wanted windows that do not exist; missing `similar` and `near_miss` ones were replaced by random ones."""

    similar: int = 0
    near_miss: int = 0
    random: int = 0
    silent: int = 0


def pick(
    latent: int,
    activity: Activity,
    windows: Windows,
    *,
    holding: np.ndarray,
    rivals: np.ndarray,
    config: ExamplesConfig,
) -> tuple[list[Pick], Missing]:
    """Choose the windows of one latent.

    Args:
        holding: Windows that hold one of the latent's top tokens, in any order, repeated or not.
        rivals: Windows in which a latent with a near decoder direction fires, likewise.
    """
    rng = np.random.default_rng([config.seed, latent])
    picks = []
    for split, role, count in (
        (EXPLAIN, "explain", config.explain_activating),
        (SCORE, "score", config.score_activating),
    ):
        active, peaks = activity.of_split(split)
        chosen = _strata(peaks, count, config.quantiles, rng, top_half=split == EXPLAIN)
        picks += [Pick(int(active[place]), role, "activating", quantile) for place, quantile in chosen]

    score = _Silent(windows, SCORE, activity, {NEAR_MISS: holding, SIMILAR: rivals})
    lacking = {}
    for kind, wanted in ((NEAR_MISS, config.score_near_miss), (SIMILAR, config.score_similar)):
        drawn = score.draw(kind, wanted, rng)
        picks += [Pick(window, "score", kind, None) for window in drawn]
        lacking[kind] = wanted - len(drawn)
    wanted = config.score_random + sum(lacking.values())
    drawn = score.draw(RANDOM, wanted, rng)
    picks += [Pick(window, "score", RANDOM, None) for window in drawn]

    explain = _Silent(windows, EXPLAIN, activity, {NEAR_MISS: holding, SIMILAR: rivals})
    silent: list[int] = []
    for kind, ways in ((NEAR_MISS, 3), (SIMILAR, 2), (RANDOM, 1)):
        # An equal part of what is still wanted, rounded up: what one kind lacks the next ones make up for.
        silent += explain.draw(kind, -(-(config.explain_silent - len(silent)) // ways), rng)
    picks += [Pick(window, "explain", "silent", None) for window in silent]
    return picks, Missing(
        lacking[SIMILAR], lacking[NEAR_MISS], wanted - len(drawn), config.explain_silent - len(silent)
    )


class _Silent:
    """The windows of one split in which a latent is silent and that were not yet drawn."""

    def __init__(self, windows: Windows, split: int, activity: Activity, kinds: dict[str, np.ndarray]) -> None:
        here = windows.of_split(split)
        self._first, size = here.start, here.stop - here.start
        self._free = np.ones(size, bool)
        self._free[activity.of_split(split)[0] - self._first] = False
        self._kinds = {RANDOM: np.ones(size, bool)}
        for kind, members in kinds.items():
            self._kinds[kind] = np.zeros(size, bool)
            self._kinds[kind][members[(members >= here.start) & (members < here.stop)] - self._first] = True

    def draw(self, kind: str, count: int, rng: np.random.Generator) -> list[int]:
        """At most `count` windows of a kind, without replacement."""
        pool = np.flatnonzero(self._free & self._kinds[kind])
        if not len(pool):
            return []
        drawn = rng.choice(pool, size=min(count, len(pool)), replace=False)
        self._free[drawn] = False
        return [int(window) for window in drawn + self._first]


def _strata(
    peaks: np.ndarray, count: int, quantiles: int, rng: np.random.Generator, *, top_half: bool
) -> list[tuple[int, int]]:
    """`count` places spread over quantiles of the peaks (0 = weakest), as (place, quantile).

    With `top_half` the strongest come first and take half of the places.
    """
    order = np.argsort(peaks, kind="stable")
    quantile = (np.arange(len(order)) * quantiles) // max(len(order), 1)
    chosen: list[int] = []
    if top_half:
        chosen += range(len(order) - 1, max(len(order) - 1 - (count + 1) // 2, -1), -1)
    pools = [rng.permutation(np.flatnonzero(quantile == q)).tolist() for q in range(quantiles)]
    taken = set(chosen)
    while len(chosen) < min(count, len(order)):
        for pool in reversed(pools):
            while pool and pool[-1] in taken:
                pool.pop()
            if pool and len(chosen) < count:
                chosen.append(pool.pop())
                taken.add(chosen[-1])
    return [(int(order[position]), int(quantile[position])) for position in chosen[:count]]
