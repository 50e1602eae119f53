"""Which latents of an SAE stand for which letter: k-sparse probes on its code, and the main latents that follow.

Per letter an L1 probe ranks the latents; for k = 1 ... `max_k` a balanced logistic regression is fitted to the k with
the largest signed weights and judged by F1 on the test words. The surprising choice: the ranking is signed and not
by magnitude, since a latent that fires on other letters says nothing that absorption could take away.

Shapes: N rows, k active latents a row, M latents, C letters.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from saeinterp.config import AbsorptionConfig
from saeinterp.health.letters.logistic import Schedule, f1_scores, fit_logistic, fit_sparse, says_yes
from saeinterp.health.letters.words import LETTERS
from saeinterp.sae import TopKCode


class SparseProbes(NamedTuple):
    """What k-sparse probing found."""

    ranked: np.ndarray
    """`[C, max_k]` int64: latents by falling L1 weight."""
    f1: np.ndarray
    """`[C, max_k]`: F1 of the probe on the first k of them, NaN where the letter is missing from a split."""

    def main_latents(self, letter: int, *, gain: float) -> list[int]:
        """The first latent, and each further one as long as it adds more than `gain` to F1."""
        scores, count = self.f1[letter], 1
        while count < len(scores) and scores[count] > scores[count - 1] + gain:
            count += 1
        return [int(latent) for latent in self.ranked[letter, :count]]


def probe_code(
    train: TopKCode,
    train_labels: np.ndarray,
    test: TopKCode,
    test_labels: np.ndarray,
    *,
    num_latents: int,
    config: AbsorptionConfig,
) -> SparseProbes:
    """K-sparse probes of every letter on the codes of training words, judged on those of test words.

    Args:
        train_labels: `[N]` letters of the training words, 0 to 25.
        test_labels: Of the test words.
    """
    count = min(config.max_k, num_latents)
    schedule = Schedule(config.epochs, config.sparse_batch, config.lr, config.lr_end, config.seed)
    probe = fit_sparse(
        train,
        torch.from_numpy(train_labels),
        num_latents=num_latents,
        classes=len(LETTERS),
        schedule=schedule,
        weight_decay=config.sparse_weight_decay,
        l1=config.sparse_l1,
    )
    # A stable sort: equal weights (latents that never fire) are taken in their order.
    ranked = probe.weight.sort(dim=1, descending=True, stable=True).indices[:, :count].numpy()
    present = np.isin(np.arange(len(LETTERS)), train_labels) & np.isin(np.arange(len(LETTERS)), test_labels)
    present &= np.bincount(train_labels, minlength=len(LETTERS)) < len(train_labels)
    f1 = np.full((len(LETTERS), count), np.nan)
    letters = np.flatnonzero(present)
    if len(letters):
        x, x_test = (columns(code, ranked[letters]) for code in (train, test))
        truth, truth_test = (letters[:, None] == labels for labels in (train_labels, test_labels))
        for k in range(1, count + 1):
            beta = fit_logistic(x[..., :k], truth)
            f1[letters, k - 1] = f1_scores(says_yes(x_test[..., :k], beta), truth_test)
    return SparseProbes(ranked, f1)


def columns(code: TopKCode, latents: np.ndarray) -> np.ndarray:
    """Activations `[C, N, F]` of chosen latents `[C, F]`, 0 where they are silent; float64."""
    values, indices = code.values.double().cpu().numpy(), code.indices.cpu().numpy()
    found = np.zeros((len(latents), len(values), latents.shape[1]))
    for slot in range(values.shape[1]):
        # A row's slots hold different latents but for empty ones, which add 0.
        hit = indices[:, slot][None, :, None] == latents[:, None, :]
        found += hit * values[:, slot][None, :, None]
    return found
