"""The mean of the largest cosines between decoder rows, and what a random dictionary of that shape would have.

The surprising choice: the null draws no dictionaries. Cosines of random directions are pairwise independent with a
known law, and the few largest of many such pairs behave as if all were independent, so their order statistics are
drawn directly: the null of 65,536 latents costs as little as that of 400.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from saeinterp.errors import DataError

TOP = 50
_BLOCK_ELEMENTS = 2**24  # cosines held at once: 64 MB in float32
NULL_DRAWS = 1000


class TopCosine(NamedTuple):
    """`decoder_top_cosine` of a dictionary beside its null."""

    value: float | None
    """Mean of the largest cosines."""
    null_value: float | None
    """Its mean over random dictionaries of as many rows in as many dimensions."""
    null_low: float | None
    """2.5% quantile over random dictionaries."""
    null_high: float | None
    """97.5% quantile."""
    pairs: int
    """Pairs that the mean is over."""
    reason: str | None
    """Why there is no value."""


def decoder_top_cosine(decoder: Tensor, *, top: int = TOP) -> float:
    """Mean of the `top` largest cosines between different rows of a decoder `[M, d]`, each pair once.

    Rows without length have no direction and are left out; with fewer pairs than `top` it is the mean of all.
    Memory is bounded for any M.

    Raises:
        DataError: Fewer than two rows with a direction.
    """
    rows = _directions(decoder)
    count = len(rows)
    if count < 2:
        raise DataError("needs two rows with a direction", field="decoder", got=count, expected="at least 2")
    best = torch.full((min(top, count * (count - 1) // 2),), -2.0, device=rows.device)
    size = max(1, _BLOCK_ELEMENTS // count)
    for start in range(0, count, size):
        block = rows[start : start + size]
        cosines = block @ rows[start:].T
        # Above the diagonal: every pair once, no row with itself.
        later = torch.ones_like(cosines, dtype=torch.bool).triu_(1)
        candidates = cosines[later & (cosines > best.min())]
        best = torch.cat([best, candidates]).topk(len(best)).values
    return float(best.double().mean())


def random_top_cosines(
    num_latents: int, d: int, *, top: int = TOP, draws: int = NULL_DRAWS, seed: int = 0
) -> np.ndarray:
    """`decoder_top_cosine` of random dictionaries `[draws]`: unit rows, uniform over directions in `d` > 1 dimensions.

    A cosine c of two such rows has (1 + c) / 2 ~ Beta((d − 1) / 2, (d − 1) / 2). The i-th smallest of n independent
    uniforms is G_i / G_{n+1} with G a sum of i unit exponentials; the i-th largest cosine is the upper quantile there.
    """
    pairs = num_latents * (num_latents - 1) // 2
    taken = min(top, pairs)
    rng = np.random.default_rng(seed)
    sums = np.cumsum(rng.standard_exponential((draws, taken)), axis=1)
    rest = rng.standard_gamma(pairs + 1 - taken, size=(draws, 1))
    tails = sums / (sums[:, -1:] + rest)
    shape = (d - 1) / 2
    mean: np.ndarray = (2 * stats.beta.isf(tails, shape, shape) - 1).mean(axis=1)
    return mean


def top_cosine(decoder: Tensor, *, top: int = TOP, draws: int = NULL_DRAWS, seed: int = 0) -> TopCosine:
    """`decoder_top_cosine` with mean and 95% range of its random-dictionary null; no value where there is no pair."""
    num_latents, d = len(_directions(decoder)), decoder.shape[1]
    pairs = min(top, num_latents * (num_latents - 1) // 2)
    if not pairs:
        return TopCosine(None, None, None, None, 0, "fewer than two decoder rows have a direction")
    value = decoder_top_cosine(decoder, top=top)
    if d < 2:
        return TopCosine(value, None, None, None, pairs, None)
    null = random_top_cosines(num_latents, d, top=top, draws=draws, seed=seed)
    low, high = np.quantile(null, [0.025, 0.975])
    return TopCosine(value, float(null.mean()), float(low), float(high), pairs, None)


def _directions(decoder: Tensor) -> Tensor:
    """Rows with a length, scaled to 1, float32."""
    rows = decoder.detach().float()
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return (rows / norms.clamp(min=torch.finfo(torch.float32).tiny))[norms[:, 0] > 0]
