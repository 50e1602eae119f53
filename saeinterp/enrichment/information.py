"""How much of what a latent says about tokens is about one of them: conditional mutual information, step by step.

Tokens are selected on one half of the samples, and their information is measured on the other. The surprising choice:
the permutations stop as soon as they cannot reject any more, which decides the same as all of them (Besag and Clifford
1991) at a fifth of the cost.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse

from saeinterp.stats.intervals import Floats

Counts = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]

PERMUTATIONS = 99
ALPHA = 0.05
MOST_STEPS = 5
"""Tokens selected at most: five make 32 groups of samples."""
_BEYOND = int(ALPHA * (PERMUTATIONS + 1))  # so many permutations at or above the observed value make p > ALPHA
_FEW = 24  # permutations after which most latents that say nothing more are done
_AT_ONCE = 20_000_000  # numbers in an array of permuted latents


class Steps(NamedTuple):
    """What one latent says about tokens.

    Attributes:
        tokens: Those selected, the given one first.
        information: Nats that each adds to the ones before it, Miller–Madow-corrected, in the half that selected none.
    """

    tokens: tuple[int, ...]
    information: tuple[float, ...]

    @property
    def share(self) -> float:
        """The first token's share of all information; NaN where there is none."""
        total = sum(self.information)
        return self.information[0] / total if total > 0 else float("nan")


def stepwise_information(
    active: Booleans, present: Booleans, first_token: Counts, *, selectable: Counts, selecting: Booleans, seed: int = 0
) -> list[Steps]:
    """Select tokens for each latent, from a given one on, and measure what each adds.

    A step takes the token with the largest information about the latent given those before it, and is the last one
    when, of 99 permutations of the latent among samples alike in those, more than 5% have a token with as much.

    Args:
        active: `[n, latents]`.
        present: `[n, tokens]`.
        first_token: `[latents]`: the column that each begins with.
        selectable: The columns that may follow.
        selecting: `[n]`: the half that tokens are selected on; information is of the other.
        seed: Of the permutations; a latent's result does not depend on which others are given.
    """
    chosen, judged = (_Half(active, present, rows, selectable, seed) for rows in (selecting, ~selecting))
    start = judged.given(np.arange(len(first_token)), (), first_token)
    steps = [((token,), (value,)) for token, value in zip(first_token.tolist(), start.tolist(), strict=True)]
    waiting = np.arange(len(steps))
    while len(waiting):
        groups: dict[tuple[int, ...], list[int]] = {}
        for latent in waiting.tolist():
            groups.setdefault(steps[latent][0], []).append(latent)
        going = []
        for tokens, members in groups.items():
            latents = np.array(members)
            best, significant = chosen.best(latents, tokens)
            latents, best = latents[significant], best[significant]
            added = judged.given(latents, tokens, best)
            for latent, token, value in zip(latents.tolist(), best.tolist(), added.tolist(), strict=True):
                steps[latent] = ((*tokens, token), (*steps[latent][1], value))
                if len(tokens) + 1 < MOST_STEPS:
                    going.append(latent)
        waiting = np.array(going, np.int64)
    return [Steps(*step) for step in steps]


class _Half:
    """Half of the samples."""

    def __init__(self, active: Booleans, present: Booleans, rows: Booleans, selectable: Counts, seed: int) -> None:
        self.active, self.present = active[rows], present[rows]
        self.selectable = selectable
        self.n = len(self.active)
        size = np.arange(self.n + 1, dtype=np.float64)
        self._x_log_x = size * np.log(np.maximum(size, 1.0))
        # Sparse, since a sample holds few tokens, and since threads of many small dense products wait for each other.
        self._by_sample = sparse.csr_array(self.present[:, selectable], dtype=np.int32)
        self._orders = np.argsort(np.random.default_rng(seed).random((PERMUTATIONS, self.n)), axis=1)

    def given(self, latents: Counts, known: tuple[int, ...], tokens: Counts) -> Floats:
        """`[latents]`: corrected information about a token each, given others."""
        total, cells = np.zeros(len(latents)), np.zeros(len(latents))
        f = self._x_log_x
        for rows in self._alike(known):
            fires, holds = self.active[np.ix_(rows, latents)], self.present[np.ix_(rows, tokens)]
            n, both = len(rows), (fires & holds).sum(axis=0)
            row, column = fires.sum(axis=0), holds.sum(axis=0)
            table = np.stack([both, row - both, column - both, n - row - column + both])
            margins = np.stack([row, n - row, column, n - column])
            total += f[table].sum(axis=0) - f[margins].sum(axis=0) + f[n]
            cells += (margins > 0).sum(axis=0) - (table > 0).sum(axis=0) - 1.0
        return (total + cells / 2) / max(self.n, 1)

    def best(self, latents: Counts, known: tuple[int, ...]) -> tuple[Counts, Booleans]:
        """The token that says most given others, and whether that is more than permuted latents have."""
        parts = [_Part(self, rows, latents) for rows in self._alike(known)]
        everyone = np.arange(len(latents))
        observed = np.sum([part.information(part.fires[:, None], everyone) for part in parts], axis=0)[:, 0]
        observed[np.isin(self.selectable, known)] = -np.inf
        token = observed.argmax(axis=0)
        limit = observed[token, everyone] - 1e-9  # so that rounding decides nothing
        orders = [part.within(self._orders) for part in parts]
        beyond, done = np.zeros(len(latents), np.int64), 0
        left = everyone
        for stop in (_FEW, PERMUTATIONS):
            size = max(_AT_ONCE // ((stop - done) * max(self.n, len(self.selectable))), 1)
            for start in range(0, len(left), size):
                some = left[start : start + size]
                found = np.zeros((len(self.selectable), stop - done, len(some)))
                for part, order in zip(parts, orders, strict=True):
                    found += part.information(part.fires[:, some][order[:, done:stop]], some)
                beyond[some] += (found.max(axis=0) >= limit[some]).sum(axis=0)
            done, left = stop, left[beyond[left] < _BEYOND]
        return self.selectable[token], beyond < _BEYOND

    def _alike(self, known: tuple[int, ...]) -> list[Counts]:
        """The samples that hold the same of these tokens, group by group."""
        if not known:
            return [np.arange(self.n)]
        code = self.present[:, list(known)] @ (1 << np.arange(len(known)))
        return [np.flatnonzero(code == value) for value in np.unique(code)]


class _Part:
    """Samples of a half that are alike in the tokens selected so far.

    Attributes:
        fires: `[samples, latents]` int32.
    """

    def __init__(self, half: _Half, rows: Counts, latents: Counts) -> None:
        self.fires = half.active[np.ix_(rows, latents)].astype(np.int32)
        by_sample = half._by_sample[rows]
        self._by_token = by_sample.T.tocsr()
        self._of_half = np.full(half.n, -1)
        self._of_half[rows] = np.arange(len(rows))
        n, f = len(rows), half._x_log_x
        column = by_sample.sum(axis=0)
        # n times the information is the sum of x ln x over the cells, less that over the margins. With the margins of a
        # latent given, cells follow from one count, and two short tables serve: of its own samples, and of the others.
        firing, self._row = np.unique(self.fires.sum(axis=0), return_inverse=True)
        x = np.arange(n + 1)
        self._firing, self._silent = (
            f[x] + np.where(x <= total, f[np.maximum(total - x, 0)], 0.0)
            for total in (firing[:, None], n - firing[:, None])
        )
        self._column = column[:, None, None]
        self._tokens = (f[n] - f[column] - f[n - column])[:, None, None]
        self._latents = f[firing] + f[n - firing]
        self._n = n

    def within(self, orders: Counts) -> Counts:
        """`[samples, permutations]`: orders of these samples, from those of the half."""
        place = self._of_half[orders]
        return np.asarray(place[place >= 0].reshape(len(orders), -1).T)

    def information(self, fires: npt.NDArray[np.int32], some: Counts) -> Floats:
        """`[tokens, permutations, some]`: n times the information, of latents `[samples, permutations, some]`."""
        both = (self._by_token @ fires.reshape(self._n, -1)).reshape(-1, *fires.shape[1:])
        row = self._row[some]
        start = row * (self._n + 1)
        total: Floats = self._firing.take(both + start)
        total += self._silent.take(start + self._column - both)
        total += self._tokens
        total -= self._latents[row]
        return total
