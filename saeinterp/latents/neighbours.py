"""Which latents write in nearly the same direction: where `similar` negatives come from, and neighbours on a page.

The surprising choice: a product of matrices finds the candidates, and each candidate's cosine is then taken again on
its own in float64, because the last bit of a product depends on how many rows are in it, and a latent's examples must
not depend on which latents are studied beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats

from saeinterp.sae import TopKSae

NEIGHBOURS = 5
"""Latents with the nearest decoder directions, whose windows are `similar` negatives."""
_SLACK = 1e-5  # more than float32 products of unit vectors are off by
_ROWS = 1024  # candidates compared at once


class Neighbour(NamedTuple):
    """A latent and the cosine of its decoder direction with another's."""

    latent: int
    cosine: float


class Neighbours:
    """Decoder directions of one SAE; holds one float32 copy of the decoder.

    Args:
        count: Neighbours of each latent; all others where there are fewer.
    """

    def __init__(self, sae: TopKSae, *, count: int = NEIGHBOURS) -> None:
        directions = sae.W_dec.float()
        self._unit = directions / directions.norm(dim=1, keepdim=True).clamp_min(1e-12)
        self._count = min(count, sae.num_latents - 1)

    def nearest(self, latents: Sequence[int]) -> list[list[Neighbour]]:
        """Per latent those with the largest decoder cosine, nearest first, ties by index, itself left out."""
        if not self._count:
            return [[] for _ in latents]
        own = torch.tensor(latents)
        cosines = self._unit[own] @ self._unit.T
        cosines[torch.arange(len(own)), own] = -torch.inf
        limits = cosines.topk(self._count, dim=1).values[:, -1:] - _SLACK
        candidates = [torch.nonzero(near).numpy()[:, 0] for near in cosines >= limits]
        return [self._ordered(latent, found) for latent, found in zip(latents, candidates, strict=True)]

    def _ordered(self, latent: int, candidates: np.ndarray) -> list[Neighbour]:
        unit = self._unit.numpy()
        own = unit[latent].astype(np.float64)
        cosines = np.concatenate(
            [(unit[candidates[start : start + _ROWS]] * own).sum(axis=1) for start in range(0, len(candidates), _ROWS)]
        )
        order = np.argsort(-cosines, kind="stable")[: self._count]
        return [Neighbour(*pair) for pair in zip(candidates[order].tolist(), cosines[order].tolist(), strict=True)]


def nearest_by_chance(num_latents: int, d_in: int, *, quantile: float = 0.95) -> float | None:
    """The cosine that a latent's nearest neighbour stays below in this share of random dictionaries of that shape.

    A cosine c of two random directions has (1 + c) / 2 ~ Beta((d − 1) / 2, (d − 1) / 2), and those with one direction
    are independent. None where there is no neighbour, or one dimension alone.
    """
    if num_latents < 2 or d_in < 2:
        return None
    tail = -math.expm1(math.log(quantile) / (num_latents - 1))
    return float(2 * stats.beta.isf(tail, (d_in - 1) / 2, (d_in - 1) / 2) - 1)
