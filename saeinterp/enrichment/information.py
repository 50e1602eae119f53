"""How much of what a latent says about tokens is about one of them: conditional mutual information, step by step.

Tokens are selected on one half of the samples, and their information is measured on the other. The surprising choice:
the permutations stop as soon as they cannot reject any more, which decides the same as all of them (Besag and Clifford
1991) at a fifth of the cost.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from saeinterp.stats.intervals import Floats

Counts = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]

PERMUTATIONS = 199
ALPHA = 0.05
MOST_STEPS = 5
"""Tokens selected at most: five make 32 groups of samples."""
_BEYOND = int(ALPHA * (PERMUTATIONS + 1))  # so many permutations at or above the observed value make p > ALPHA
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
    when, of 199 permutations of the latent among samples alike in those, more than 5% have a token with as much.

    Args:
        active: `[n, latents]`.
        present: `[n, tokens]`.
        first_token: `[latents]`: the column that each begins with.
        selectable: The columns that may follow.
        selecting: `[n]`: the half that tokens are selected on; information is of the other.
        seed: Of the permutations; a latent's result does not depend on which others are given.
    """
    chosen, judged = (_Half(active, present, rows, selectable) for rows in (selecting, ~selecting))
    keys = np.random.default_rng(seed).random((PERMUTATIONS, len(chosen.active)))
    steps = [((int(token),), (value,)) for token, value in zip(first_token, judged.of_tokens(first_token), strict=True)]
    waiting = np.arange(len(steps))
    while len(waiting):
        groups: dict[tuple[int, ...], list[int]] = {}
        for latent in waiting.tolist():
            groups.setdefault(steps[latent][0], []).append(latent)
        going = []
        for tokens, members in groups.items():
            latents = np.array(members)
            best, significant = chosen.best(latents, tokens, keys)
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

    def __init__(self, active: Booleans, present: Booleans, rows: Booleans, selectable: Counts) -> None:
        self.active, self.present = active[rows], present[rows]
        self.selectable = selectable
        self.n = len(self.active)
        size = np.arange(self.n + 1, dtype=np.float64)
        self._x_log_x = size * np.log(np.maximum(size, 1.0))
        self._weights = self.present[:, selectable].astype(np.float32)

    def of_tokens(self, tokens: Counts) -> list[float]:
        """Corrected information of each latent about its own token."""
        return self.given(np.arange(len(tokens)), (), tokens).tolist()  # type: ignore[no-any-return]

    def given(self, latents: Counts, known: tuple[int, ...], tokens: Counts) -> Floats:
        """`[latents]`: corrected information about a token each, given others."""
        total, cells = np.zeros(len(latents)), np.zeros(len(latents))
        for rows in self._alike(known):
            fires, holds = self.active[np.ix_(rows, latents)], self.present[np.ix_(rows, tokens)]
            n, both = len(rows), (fires & holds).sum(axis=0)
            row, column = fires.sum(axis=0), holds.sum(axis=0)
            total += self._inner(both, row, column, n) - self._outer(row, column, n)
            table = (both, row - both, column - both, n - row - column + both)
            margins = (row, n - row, column, n - column)
            cells += sum((item > 0).astype(float) for item in margins) - sum((item > 0).astype(float) for item in table)
            cells -= 1  # a group of samples is never empty
        return (total + cells / 2) / max(self.n, 1)

    def best(self, latents: Counts, known: tuple[int, ...], keys: Floats) -> tuple[Counts, Booleans]:
        """The token that says most given others, and whether that is more than permuted latents have."""
        groups = self._alike(known)
        fires = [np.ascontiguousarray(self.active[np.ix_(rows, latents)].T, np.float32) for rows in groups]
        weights = [self._weights[rows] for rows in groups]
        margins = [
            (of.sum(axis=1).astype(int), of_tokens.sum(axis=0).astype(int))
            for of, of_tokens in zip(fires, weights, strict=True)
        ]
        outer = sum(
            self._outer(row[:, None], column[None], len(rows))
            for rows, (row, column) in zip(groups, margins, strict=True)
        )

        def information(permuted: list[npt.NDArray[np.float32]], some: Counts) -> Floats:
            """`[some, permutations, tokens]` from `[some, permutations, samples]` of each group."""
            total = -outer[some][:, None]
            for rows, of, of_tokens, (row, column) in zip(groups, permuted, weights, margins, strict=True):
                both = (of.reshape(-1, len(rows)) @ of_tokens).astype(np.int64).reshape(*of.shape[:2], -1)
                total = total + self._inner(both, row[some][:, None, None], column, len(rows))
            return total

        everyone = np.arange(len(latents))
        observed = information([of[:, None] for of in fires], everyone)[:, 0]
        observed[:, np.isin(self.selectable, known)] = -np.inf
        token = observed.argmax(axis=1)
        limit = observed[everyone, token] - 1e-9  # so that rounding decides nothing
        orders = [np.argsort(keys[:, rows], axis=1) for rows in groups]
        beyond, done = np.zeros(len(latents), np.int64), 0
        widest = max(self.n, len(self.selectable), 1)
        open_ = everyone
        while done < PERMUTATIONS and len(open_):
            most = max(_AT_ONCE // (len(open_) * widest), 1)
            count = min(max(20, 4000 // len(open_)), most, PERMUTATIONS - done)
            size = max(_AT_ONCE // (count * widest), 1)
            for start in range(0, len(open_), size):
                some = open_[start : start + size]
                permuted = [of[some][:, order[done : done + count]] for of, order in zip(fires, orders, strict=True)]
                found = information(permuted, some).max(axis=2)
                beyond[some] += (found >= limit[some, None]).sum(axis=1)
            done += count
            open_ = open_[beyond[open_] < _BEYOND]
        return self.selectable[token], beyond < _BEYOND

    def _alike(self, known: tuple[int, ...]) -> list[Counts]:
        """The samples that hold the same of these tokens, group by group."""
        if not known:
            return [np.arange(self.n)]
        code = self.present[:, list(known)] @ (1 << np.arange(len(known)))
        return [np.flatnonzero(code == value) for value in np.unique(code)]

    def _inner(self, both: Counts, row: Counts, column: Counts, n: int) -> Floats:
        """Σ x ln x over the cells of tables."""
        f = self._x_log_x
        return np.asarray(f[both] + f[row - both] + f[column - both] + f[n - row - column + both])

    def _outer(self, row: Counts, column: Counts, n: int) -> Floats:
        """Σ x ln x over their margins, less n ln n: n times the information is `_inner` less this."""
        f = self._x_log_x
        return np.asarray(f[row] + f[n - row] + f[column] + f[n - column] - f[n])
