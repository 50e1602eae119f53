"""2×2 tables of every latent with every token: how many samples have both.

Samples are split in two halves once, and both are counted in the same pass: a half replicates what the other found.
The surprising choice: tokens are always a sparse operand, even of a dense product, since a sample holds few of them:
adding up rows of 16-bit integers takes less time than a matrix product of floats. Latents go block by block, so that
memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse

from saeinterp.errors import DataError

Counts = npt.NDArray[np.int64]
Matrix = Any
"""A boolean array, or any scipy sparse matrix or array, of shape `[samples, columns]`."""

BLOCK_PAIRS = 4_000_000
DENSE_FROM = 1 / 16
"""A sparse matrix with a larger share of its entries set is counted as a dense one."""
_MOST_SAMPLES = 2**24


class Pairs(NamedTuple):
    """Pairs of a latent and a token; parallel arrays, ordered by latent, then token."""

    latent: Counts
    token: Counts
    both: Counts
    """Samples with both."""
    both_first: Counts
    """Of those, in the first half (0 where halves were not counted)."""

    def where(self, which: npt.NDArray[np.bool_] | Counts) -> Pairs:
        """Some of them, by a mask or by their numbers."""
        return Pairs(*(column[which] for column in self))

    @classmethod
    def concatenate(cls, parts: Sequence[Pairs]) -> Pairs:
        """Several blocks as one."""
        nothing = np.zeros(0, np.int64)
        return cls(*(np.concatenate([nothing, *(part[index] for part in parts)]) for index in range(4)))


class Margins(NamedTuple):
    """How often latents are active and tokens held, as the few values that occur.

    Attributes:
        rows: `[R]`: the distinct numbers of samples in which a latent is active.
        columns: `[C]`: the distinct numbers of samples that hold a token.
        row: `[latents]`: each latent's index into `rows`.
        column: `[tokens]`: each token's into `columns`.
        samples: All of them.
    """

    rows: Counts
    columns: Counts
    row: Counts
    column: Counts
    samples: int

    @classmethod
    def of(cls, firing: Counts, holding: Counts, samples: int) -> Margins:
        """From the margins of every latent and token."""
        rows, row = np.unique(firing, return_inverse=True)
        columns, column = np.unique(holding, return_inverse=True)
        return cls(rows, columns, row, column, samples)

    def keys(self, latent: Counts, token: Counts, both: Counts) -> Counts:
        """One number per pair, the same for equal tables."""
        return (self.row[latent] * len(self.columns) + self.column[token]) * (self.samples + 1) + both

    def tables(self, keys: Counts) -> tuple[Counts, Counts, Counts]:
        """Of keys: samples with both, and the margins of latent and token."""
        rest, both = np.divmod(keys, self.samples + 1)
        row, column = np.divmod(rest, max(len(self.columns), 1))
        return both, self.rows[row], self.columns[column]


class Limits(NamedTuple):
    """Which pairs are wanted of a set of samples: those with many, or with few, samples in common.

    Attributes:
        above: `[R, C]`: at least so many, per distinct margin of latents and of tokens.
        below: `[R, C]`: or at most so many (-1: never); None where few are not wanted.
        margins: Whose they are.
    """

    above: Counts
    below: Counts | None
    margins: Margins

    @classmethod
    def of(cls, margins: Margins, critical: Callable[[Counts, Counts, int], tuple[Counts, Counts | None]]) -> Limits:
        """From margins, and a function of distinct margins."""
        above, below = critical(margins.rows, margins.columns, margins.samples)
        return cls(np.maximum(above, 1), below, margins)

    def reached(self, pairs: Pairs, counts: Counts) -> npt.NDArray[np.bool_]:
        """Which pairs have many samples in common; `counts` are theirs in these samples."""
        return np.asarray(counts >= self.above[self.margins.row[pairs.latent], self.margins.column[pairs.token]])


@dataclass(frozen=True, eq=False)
class Incidence:
    """Which samples activate which latents, and which hold which tokens.

    Attributes:
        active: `[samples, latents]`: a boolean array, or a csr array where few entries are set.
        present: `[samples, tokens]`, likewise.
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

    def permuted(self, order: Counts) -> Incidence:
        """The tokens of sample `order[i]` with the latents of sample i; the halves are those of the latents."""
        present = self.present[order]
        return replace(self, present=present, holding=_totals(present, self.first))

    def of_samples(self, rows: Counts, *, seed: int) -> Incidence:
        """Some of the samples, with halves of their own."""
        return Incidence.of(self.active[rows], self.present[rows], seed=seed)

    def margins(self, part: int = 0) -> Margins:
        """Of all samples (0), of the first half (1) or of the second (2)."""
        return Margins.of(self.firing[part], self.holding[part], self.samples[part])

    def blocks(self, limits: Sequence[tuple[int, Limits]], *, halves: bool = True) -> Iterator[Pairs]:
        """The pairs that reach a limit, a block of latents at a time.

        Args:
            limits: Each with the samples it is of: all (0), the first half (1) or the second (2).
            halves: Count the halves too; only all samples have limits otherwise.
        """
        tokens = _reachable(limits)
        latents, held = self.active.shape[1], self.present[:, tokens]
        size = max(1, BLOCK_PAIRS // max(len(tokens), 1, 0 if sparse.issparse(self.active) else self.samples[0]))
        if sparse.issparse(self.active):
            # Both counts in one product: that of the first half in the upper bits.
            weight = (1 + (self.first.astype(np.int64) << 32)) if halves else np.ones(self.samples[0], np.int64)
            by_sample = _by_sample(held, weight)
            by_latent = self.active.tocsc().astype(np.int64).T
            for start in range(0, latents, size):
                product = sparse.csr_array(by_latent[start : start + size] @ by_sample)
                yield _wanted_sparse(product, start, tokens, limits)
            return
        kind = _integers(self.samples[0])
        weights = [np.ones(self.samples[0], kind), self.first.astype(kind)][: 2 if halves else 1]
        by_token = [_by_sample(held, weight).T.tocsr() for weight in weights]
        for start in range(0, latents, size):
            columns = self.active[:, start : start + size].astype(kind)
            yield _wanted([operand @ columns for operand in by_token], start, tokens, limits)


def _reachable(limits: Sequence[tuple[int, Limits]]) -> Counts:
    """The tokens that some latent can have enough, or few enough, samples in common with."""
    reachable = np.zeros(len(limits[0][1].margins.column), np.bool_)
    for _, limit in limits:
        margins = limit.margins
        possible = limit.above <= np.minimum(margins.rows[:, None], margins.columns)
        if limit.below is not None:
            possible |= limit.below >= 0
        reachable |= np.logical_or.reduce(possible, axis=0)[margins.column]
    return np.flatnonzero(reachable)


def _checked(matrix: Matrix, name: str) -> Matrix:
    if sparse.issparse(matrix):
        if matrix.ndim != 2:
            raise DataError("is no matrix", field=name, got=f"{matrix.ndim} dimensions", expected="[samples, columns]")
        clean = sparse.csr_array(matrix != 0)
        clean.eliminate_zeros()
        return clean.toarray() if clean.nnz > DENSE_FROM * np.prod(clean.shape) else clean
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


def _integers(samples: int) -> type[np.signedinteger[Any]]:
    return np.int16 if samples < 2**15 - 1 else np.int32


def _totals(matrix: Matrix, first: npt.NDArray[np.bool_]) -> Counts:
    kind = _integers(len(first))
    samples = sparse.csr_array(np.stack([np.ones(len(first), kind), first.astype(kind)]))
    if sparse.issparse(matrix):
        counted = (samples.astype(np.int64) @ matrix.astype(np.int64)).toarray()
    else:
        size = max(1, BLOCK_PAIRS // len(first))
        starts = range(0, matrix.shape[1], size)
        parts = [samples @ matrix[:, start : start + size].astype(kind) for start in starts]
        counted = np.concatenate([np.zeros((2, 0), np.int64), *parts], axis=1)
    of_all, of_first = counted.astype(np.int64)
    return np.stack([of_all, of_first, of_all - of_first])


def _by_sample(present: Matrix, weight: npt.NDArray[np.signedinteger[Any]]) -> Matrix:
    """`[samples, tokens]`: sparse, each sample's tokens with its weight."""
    held = sparse.csr_array(present).astype(weight.dtype)
    held.data = np.repeat(weight, np.diff(held.indptr))
    held.eliminate_zeros()
    return held


def _parts(both: Any, first: Any | None) -> list[Any]:
    return [both] if first is None else [both, first, both - first]


def _wanted(
    products: list[npt.NDArray[np.signedinteger[Any]]],
    start: int,
    tokens: Counts,
    limits: Sequence[tuple[int, Limits]],
) -> Pairs:
    """From `[tokens, latents]`: samples with both, of all and of the first half."""
    both, first = products[0], products[1] if len(products) > 1 else None
    here = slice(start, start + both.shape[1])
    parts = _parts(both, first)
    mask = np.zeros(both.shape, np.bool_)
    for part, limit in limits:
        row, column = limit.margins.row[here], limit.margins.column[tokens]
        mask |= parts[part] >= np.take(limit.above.T.astype(both.dtype)[column], row, axis=1)
        if limit.below is not None:
            mask |= parts[part] <= np.take(limit.below.T.astype(both.dtype)[column], row, axis=1)
    # Two steps, since `nonzero` of two dimensions takes several times as long.
    latent, token = np.divmod(np.flatnonzero(np.ascontiguousarray(mask.T)), max(len(tokens), 1))
    of_first = np.zeros(len(latent), np.int64) if first is None else first[token, latent].astype(np.int64)
    return Pairs(latent + start, tokens[token], both[token, latent].astype(np.int64), of_first)


def _wanted_sparse(product: Matrix, start: int, tokens: Counts, limits: Sequence[tuple[int, Limits]]) -> Pairs:
    """From `[latents, tokens]`: samples with both, those of the first half in the upper bits."""
    product.sort_indices()
    latent = np.repeat(np.arange(product.shape[0]), np.diff(product.indptr))
    token, both, first = product.indices.astype(np.int64), product.data & 0xFFFFFFFF, product.data >> 32
    mask = np.zeros(len(latent), np.bool_)
    silent: npt.NDArray[np.bool_] | None = None
    parts = _parts(both, first)
    for part, limit in limits:
        rows, column = limit.margins.row[start : start + product.shape[0]], limit.margins.column[tokens]
        row = rows[latent]
        mask |= parts[part] >= limit.above[row, column[token]]
        if limit.below is not None:
            mask |= parts[part] <= limit.below[row, column[token]]
            if (limit.below[np.unique(rows)] >= 0).any():
                few = (limit.below >= 0)[rows][:, column]
                silent = few if silent is None else silent | few
    found = Pairs(latent + start, tokens[token], both, first).where(mask)
    if silent is None:
        return found
    # Pairs with no sample in common are nowhere in a sparse product.
    silent[latent, token] = False
    latent, token = np.nonzero(silent)
    none = np.zeros(len(latent), np.int64)
    merged = Pairs.concatenate([found, Pairs(latent + start, tokens[token], none, none)])
    return merged.where(np.lexsort((merged.token, merged.latent)))
