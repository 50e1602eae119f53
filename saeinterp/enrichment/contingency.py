"""2×2 tables of every latent with every token: how many samples have both.

Samples are split in two halves once, and both are counted in the same pass: a half replicates what the other found.
Dense matrices are multiplied in float32 (exact: counts are below 2²⁴), sparse ones as they are, block by block of
latents, so that memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse

from saeinterp.errors import DataError

Counts = npt.NDArray[np.int64]
Matrix = Any
"""A boolean array, or any scipy sparse matrix or array, of shape `[samples, columns]`."""

BLOCK_PAIRS = 4_000_000
_MOST_SAMPLES = 2**24


class Pairs(NamedTuple):
    """Pairs of a latent and a token; parallel arrays, ordered by latent, then token."""

    latent: Counts
    token: Counts
    both: Counts
    """Samples with both."""
    both_first: Counts
    """Of those, in the first half."""

    def where(self, which: npt.NDArray[np.bool_] | Counts) -> Pairs:
        """Some of them, by a mask or by their numbers."""
        return Pairs(*(column[which] for column in self))

    @classmethod
    def concatenate(cls, parts: Sequence[Pairs]) -> Pairs:
        """Several blocks as one."""
        nothing = np.zeros(0, np.int64)
        return cls(*(np.concatenate([nothing, *(part[index] for part in parts)]) for index in range(4)))


class Limits(NamedTuple):
    """Which pairs are wanted of a set of samples: those with many, or with few, samples in common.

    Attributes:
        above: `[R, C]`: at least so many, per distinct margin of latents and of tokens.
        below: `[R, C]`: or at most so many (-1: never); None where few are not wanted.
        row: `[latents]`: each latent's row of the tables.
        column: `[tokens]`: each token's column.
    """

    above: Counts
    below: Counts | None
    row: Counts
    column: Counts

    @classmethod
    def of(
        cls,
        firing: Counts,
        holding: Counts,
        samples: int,
        critical: Callable[[Counts, Counts, int], tuple[Counts, Counts | None]],
    ) -> Limits:
        """From margins, and a function of distinct margins."""
        rows, row = np.unique(firing, return_inverse=True)
        columns, column = np.unique(holding, return_inverse=True)
        above, below = critical(rows, columns, samples)
        return cls(np.maximum(above, 1), below, row, column)

    def reached(self, pairs: Pairs, counts: Counts) -> npt.NDArray[np.bool_]:
        """Which pairs have many samples in common; `counts` are theirs in these samples."""
        return np.asarray(counts >= self.above[self.row[pairs.latent], self.column[pairs.token]])


@dataclass(frozen=True, eq=False)
class Incidence:
    """Which samples activate which latents, and which hold which tokens.

    Attributes:
        active: `[samples, latents]`.
        present: `[samples, tokens]`.
        first: `[samples]` bool: the first half.
        firing: `[3, latents]`: samples in which a latent is active: of all, of the first half, of the second.
        holding: `[3, tokens]`: samples that hold a token, likewise.
        samples: `[3]`.
    """

    active: Matrix
    present: Matrix
    first: npt.NDArray[np.bool_]
    firing: Counts
    holding: Counts
    samples: tuple[int, int, int]

    @classmethod
    def of(cls, active: Matrix, present: Matrix, *, seed: int) -> Incidence:
        """Check two matrices and draw the halves.

        Raises:
            DataError: They are no matrices of the same samples, or hold no sample.
        """
        active, present = _checked(active, "active"), _checked(present, "present")
        if active.shape[0] != present.shape[0]:
            raise DataError(
                "are not of the same samples",
                field="active, present",
                got=f"{active.shape[0]} and {present.shape[0]} rows",
                expected="one row per sample in both",
            )
        samples = active.shape[0]
        if not 2 <= samples < _MOST_SAMPLES:
            raise DataError("too few or too many samples", field="active", got=samples, expected="2 to 16,777,215")
        first = np.zeros(samples, np.bool_)
        first[np.random.default_rng(seed).permutation(samples)[: (samples + 1) // 2]] = True
        firing, holding = (_totals(matrix, first) for matrix in (active, present))
        return cls(active, present, first, firing, holding, (samples, int(first.sum()), int((~first).sum())))

    def blocks(self, limits: Sequence[Limits]) -> Iterator[Pairs]:
        """The pairs that reach a limit, a block of latents at a time.

        Args:
            limits: For all samples, and where wanted for the first and the second half.
        """
        latents, tokens = self.active.shape[1], self.present.shape[1]
        size = max(1, BLOCK_PAIRS // max(tokens, 1))
        halves = [np.flatnonzero(self.first), np.flatnonzero(~self.first)]
        as_sparse = sparse.issparse(self.active)
        present = [_operand(self.present, rows, as_sparse=as_sparse) for rows in halves]
        by_column = self.active.tocsc() if as_sparse else self.active
        for start in range(0, latents, size):
            columns = by_column[:, start : start + size]
            found = [_product(columns, rows, other) for rows, other in zip(halves, present, strict=True)]
            yield (_wanted_sparse if as_sparse else _wanted)(found, start, limits)


def _checked(matrix: Matrix, name: str) -> Matrix:
    if sparse.issparse(matrix):
        if matrix.ndim != 2:
            raise DataError("is no matrix", field=name, got=f"{matrix.ndim} dimensions", expected="[samples, columns]")
        clean = sparse.csr_array(matrix != 0)
        clean.eliminate_zeros()
        return clean
    array = np.asarray(matrix)
    if array.ndim != 2:
        raise DataError("is no matrix", field=name, got=f"shape {array.shape}", expected="[samples, columns]")
    if array.dtype == np.bool_:
        return array
    if array.dtype.kind not in "biuf" or (array.dtype.kind == "f" and not np.isfinite(array).all()):
        raise DataError(
            "is not boolean", field=name, got=str(array.dtype), expected="booleans, or finite numbers (0 is false)"
        )
    return array != 0


def _totals(matrix: Matrix, first: npt.NDArray[np.bool_]) -> Counts:
    of_all, of_first = (np.asarray(part.sum(axis=0), np.int64).ravel() for part in (matrix, matrix[first]))
    return np.stack([of_all, of_first, of_all - of_first])


def _operand(matrix: Matrix, rows: Counts, *, as_sparse: bool) -> Matrix:
    part = matrix[rows]
    if as_sparse:
        return sparse.csr_array(part, dtype=np.int32)
    return np.asarray(part.toarray() if sparse.issparse(part) else part, np.float32)


def _product(columns: Matrix, rows: Counts, present: Matrix) -> Matrix:
    """`[latents, tokens]`: samples of one half with both."""
    if sparse.issparse(columns):
        return sparse.csr_array(columns.tocsr()[rows].T.astype(np.int32) @ present)
    return columns[rows].T.astype(np.float32) @ present


def _wanted(halves: list[npt.NDArray[np.float32]], start: int, limits: Sequence[Limits]) -> Pairs:
    first, second = halves
    both = first + second
    here = slice(start, start + len(both))
    mask = np.zeros(both.shape, np.bool_)
    for counts, limit in zip((both, first, second), limits, strict=False):
        mask |= counts >= limit.above.astype(np.float32)[limit.row[here]][:, limit.column]
        if limit.below is not None:
            mask |= counts <= limit.below.astype(np.float32)[limit.row[here]][:, limit.column]
    latent, token = np.nonzero(mask)
    return Pairs(latent + start, token, *(item[latent, token].astype(np.int64) for item in (both, first)))


def _wanted_sparse(halves: list[Matrix], start: int, limits: Sequence[Limits]) -> Pairs:
    first, second = (half.tocoo() for half in halves)
    width = first.shape[1]
    keys = np.concatenate([half.row.astype(np.int64) * width + half.col for half in (first, second)])
    counts = np.concatenate([first.data, second.data]).astype(np.int64)
    of_first = np.concatenate([first.data, np.zeros_like(second.data)]).astype(np.int64)
    order = np.argsort(keys, kind="stable")
    places, begin = np.unique(keys[order], return_index=True)
    both, both_first = (np.add.reduceat(x[order], begin) if len(begin) else x for x in (counts, of_first))
    latent, token = np.divmod(places, width)
    mask = np.zeros(len(places), np.bool_)
    silent = np.zeros((first.shape[0], width), np.bool_)
    for values, limit in zip((both, both_first, both - both_first), limits, strict=False):
        row = limit.row[latent + start]
        mask |= values >= limit.above[row, limit.column[token]]
        if limit.below is not None:
            mask |= values <= limit.below[row, limit.column[token]]
            silent |= limit.below[limit.row[start : start + len(silent)]][:, limit.column] >= 0
    found = Pairs(latent + start, token, both, both_first).where(mask)
    if not silent.any():
        return found
    # Pairs with no sample in common are nowhere in a sparse product.
    silent.ravel()[places] = False
    latent, token = np.nonzero(silent)
    none = np.zeros(len(latent), np.int64)
    merged = Pairs.concatenate([found, Pairs(latent + start, token, none, none)])
    return merged.where(np.lexsort((merged.token, merged.latent)))
