"""How much of what a latent says about tokens is about one of them: conditional mutual information, step by step.

Tokens are selected on one half of the samples, and their information is measured on the other. The surprising choice:
the permutations stop as soon as they cannot reject any more, which decides the same as all of them (Besag and Clifford
1991) at a fraction of the cost.
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
_AT_ONCE = 20_000_000  # numbers in an array, about


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
        return self._part(self.information[0])

    @property
    def next_share(self) -> float:
        """The largest share of another token; 0 where none is selected, NaN where there is no information."""
        return self._part(max(self.information[1:], default=0.0))

    def _part(self, information: float) -> float:
        total = sum(self.information)
        return information / total if total > 0 else float("nan")


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
            for latents in chosen.in_pieces(np.array(members), tokens):
                best, significant = chosen.best(latents, tokens)
                further, best = latents[significant], best[significant]
                added = judged.given(further, tokens, best)
                for latent, token, value in zip(further.tolist(), best.tolist(), added.tolist(), strict=True):
                    steps[latent] = ((*tokens, token), (*steps[latent][1], value))
                    if len(tokens) + 1 < MOST_STEPS:
                        going.append(latent)
        waiting = np.array(going, np.int64)
    return [Steps(*step) for step in steps]


class _Half:
    """Half of the samples."""

    def __init__(self, active: Booleans, present: Booleans, rows: Booleans, selectable: Counts, seed: int) -> None:
        self._active, self._present = active[rows], present[rows]
        self._selectable = selectable
        self._n = len(self._active)
        size = np.arange(self._n + 1, dtype=np.float64)
        self._x_log_x = size * np.log(np.maximum(size, 1.0))
        self._by_sample = sparse.csr_array(self._present[:, selectable], dtype=np.int32)
        self._owner = np.repeat(np.arange(self._n), np.diff(self._by_sample.indptr))
        self._orders = np.argsort(np.random.default_rng(seed).random((PERMUTATIONS, self._n)), axis=1)

    def given(self, latents: Counts, known: tuple[int, ...], tokens: Counts) -> Floats:
        """`[latents]`: corrected information about a token each, given others."""
        group, groups = self._alike(known)
        place = group[:, None] + groups * np.arange(len(latents))
        cell = 4 * place + 2 * self._active[:, latents] + self._present[:, tokens]
        table = np.bincount(cell.ravel(), minlength=4 * groups * len(latents)).reshape(len(latents), groups, 2, 2)
        of_latent, of_token, of_group = table.sum(axis=3), table.sum(axis=2), table.sum(axis=(2, 3))
        f = self._x_log_x
        total, cells = np.zeros(len(latents)), np.zeros(len(latents))
        for counts, sign in ((table, 1), (of_latent, -1), (of_token, -1), (of_group, 1)):
            axes = tuple(range(1, counts.ndim))
            total += sign * f[counts].sum(axis=axes)
            cells -= sign * (counts > 0).sum(axis=axes)
        return (total + cells / 2) / max(self._n, 1)

    def in_pieces(self, latents: Counts, known: tuple[int, ...]) -> list[Counts]:
        """Latents that fit into memory together."""
        size = max(_AT_ONCE // (2 ** len(known) * max(self._n, len(self._selectable))), 1)
        return [latents[start : start + size] for start in range(0, len(latents), size)]

    def best(self, latents: Counts, known: tuple[int, ...]) -> tuple[Counts, Booleans]:
        """The token that says most given others, and whether that is more than permuted latents have."""
        fires = self._active[:, latents].astype(np.int32)
        tables = _Tables(self, fires, *self._alike(known))
        everyone = np.arange(len(latents))
        observed = tables.information(fires[:, None], everyone)[:, 0]
        token = observed.argmax(axis=0)
        limit = observed[token, everyone] - 1e-9  # so that rounding decides nothing
        beyond, done = np.zeros(len(latents), np.int64), 0
        left = everyone
        for stop in (_FEW, PERMUTATIONS):
            order = tables.within(self._orders[done:stop])
            size = max(_AT_ONCE // (order.size + tables.cells * (stop - done)), 1)
            for start in range(0, len(left), size):
                some = left[start : start + size]
                found = tables.information(fires[:, some][order], some)
                beyond[some] += (found.max(axis=0) >= limit[some]).sum(axis=0)
            done, left = stop, left[beyond[left] < _BEYOND]
            if not len(left):
                break
        return self._selectable[token], beyond < _BEYOND

    def _alike(self, known: tuple[int, ...]) -> tuple[Counts, int]:
        """`[n]`: groups of samples that hold the same of these tokens; and their number."""
        code = self._present[:, list(known)] @ (1 << np.arange(len(known)))
        values, group = np.unique(code, return_inverse=True)
        return group, len(values)


class _Tables:
    """Tables of some latents with all tokens, in groups of samples that are alike.

    Attributes:
        cells: Of them, for one latent.
    """

    def __init__(self, half: _Half, fires: npt.NDArray[np.int32], group: Counts, groups: int) -> None:
        n, tokens = half._by_sample.shape
        f = half._x_log_x
        self.cells = groups * tokens
        self._group = group.astype(np.int16)
        self._shape = (groups, tokens)
        # Each group has tokens of its own, so that one product counts in all groups at once. Sparse, since a sample
        # holds few tokens, and since the threads of many small dense products wait for each other.
        place = half._by_sample.indices + tokens * group[half._owner]
        self._tokens = sparse.csc_array((half._by_sample.data, place, half._by_sample.indptr), shape=(self.cells, n))
        column = np.bincount(place, minlength=self.cells).reshape(groups, tokens)
        samples = np.bincount(group, minlength=groups)[:, None]
        row = np.stack([fires[group == number].sum(axis=0) for number in range(groups)])
        # n times the information is the sum of x ln x over the cells, less that over the margins. With the margins of a
        # latent given, cells follow from one count, and two short tables serve: of its own samples, and of the others.
        self._margins = (
            (f[samples] - f[column] - f[samples - column]).sum(axis=0),
            (f[row] + f[samples - row]).sum(axis=0),
        )
        self._column = column[:, :, None, None]
        pairs, start = np.unique(
            np.stack([row, np.broadcast_to(samples - row, row.shape)]).reshape(2, -1), axis=1, return_inverse=True
        )
        x = np.arange(n + 1)
        self._own, self._other = (f[x] + f[np.maximum(total[:, None] - x, 0)] for total in pairs)
        self._start = start.reshape(row.shape) * (n + 1)

    def within(self, orders: Counts) -> Counts:
        """`[samples, permutations]`: samples in the place of others of their group, by orders of all."""
        inside = np.take_along_axis(orders, np.argsort(self._group[orders], axis=1, kind="stable"), axis=1)
        result = np.empty_like(inside)
        result[:, np.argsort(self._group, kind="stable")] = inside
        return np.ascontiguousarray(result.T)

    def information(self, fires: npt.NDArray[np.int32], some: Counts) -> Floats:
        """`[tokens, permutations, some]`: n times the information, of latents `[samples, permutations, some]`."""
        both = (self._tokens @ fires.reshape(len(fires), -1)).reshape(*self._shape, *fires.shape[1:])
        start = self._start[:, None, None, some]
        of_tokens, of_latents = self._margins
        total = self._own.take(both + start)
        total += self._other.take(start + self._column - both)
        return np.asarray(total.sum(axis=0) + of_tokens[:, None, None] - of_latents[some])
