"""Which latents write in nearly the same direction: where `similar` negatives come from.

The surprising choice: a product of matrices finds the candidates, and each candidate's cosine is then taken again on
its own in float64, because the last bit of a product depends on how many rows are in it, and a latent's examples must
not depend on which latents are studied beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from saeinterp.sae import TopKSae

NEIGHBOURS = 5
"""Latents with the nearest decoder directions, whose windows are `similar` negatives."""
_SLACK = 1e-5  # more than float32 products of unit vectors are off by
_ROWS = 1024  # candidates compared at once


class Neighbours:
    """Decoder directions of one SAE; holds one float32 copy of the decoder."""

    def __init__(self, sae: TopKSae) -> None:
        directions = sae.W_dec.float()
        self._unit = directions / directions.norm(dim=1, keepdim=True).clamp_min(1e-12)
        self._count = min(NEIGHBOURS, sae.num_latents - 1)

    def nearest(self, latents: Sequence[int]) -> list[list[int]]:
        """Per latent those with the largest decoder cosine, nearest first, ties by index, itself left out."""
        if not self._count:
            return [[] for _ in latents]
        own = torch.tensor(latents)
        cosines = self._unit[own] @ self._unit.T
        cosines[torch.arange(len(own)), own] = -torch.inf
        limits = cosines.topk(self._count, dim=1).values[:, -1:] - _SLACK
        candidates = [torch.nonzero(near).numpy()[:, 0] for near in cosines >= limits]
        return [self._ordered(latent, found) for latent, found in zip(latents, candidates, strict=True)]

    def _ordered(self, latent: int, candidates: np.ndarray) -> list[int]:
        unit = self._unit.numpy()
        own = unit[latent].astype(np.float64)
        cosines = np.concatenate(
            [(unit[candidates[start : start + _ROWS]] * own).sum(axis=1) for start in range(0, len(candidates), _ROWS)]
        )
        return candidates[np.argsort(-cosines, kind="stable")[: self._count]].tolist()
