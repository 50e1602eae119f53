"""k-sparse probes for one class against the rest: chosen, fitted and tested beside their null.

The k features are those whose means over positive and other training rows differ most (Gurnee et al. 2023, as SAEBench
chooses them), scaled by their training spread, under a balanced logistic regression. The surprising choice: the null is
made by the same road, from the choice of latents on, with permuted labels: choosing the best of thousands of
latents finds something in any labels, and only a null that also chooses says how much.

Shapes: N rows, F features, P permutations.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from saeinterp.health.letters.logistic import SURE, fit_logistic
from saeinterp.stats import auroc, classification

Matrix = Any  # a scipy sparse matrix or a NumPy array


class Fit(NamedTuple):
    """A probe and its scores on test rows."""

    features: list[int]
    """Chosen, strongest first."""
    weights: list[float]
    """Per feature, in units of its training spread; the sign says which way."""
    scores: NDArray[np.float64]
    """`[N]` logits of the test rows."""


class Quality(NamedTuple):
    """What scores are worth against the truth; AUROC None where one class is absent."""

    accuracy: float
    f1: float
    auroc: float | None


def choose(x: Matrix, truth: NDArray[np.bool_], count: int) -> NDArray[np.int64]:
    """Features `[count]` by |mean of true rows − mean of others|, largest first, ties by index."""
    positive, negative = (np.asarray(x[rows].mean(axis=0), np.float64).ravel() for rows in (truth, ~truth))
    return np.argsort(-np.abs(positive - negative), kind="stable")[:count].astype(np.int64)


def fit_k_sparse(x: Matrix, truth: NDArray[np.bool_], test: NDArray[np.bool_], ks: tuple[int, ...]) -> dict[int, Fit]:
    """One probe per k, chosen and fitted on the rows outside `test`.

    Args:
        x: `[N, F]`.
        truth: `[N]`, whether a row is of the class.
        test: `[N]`.
    """
    train, count = x[~test], min(max(ks), x.shape[1])
    features = choose(train, truth[~test], count)
    chosen = x[:, features]
    dense = np.asarray(chosen.todense() if sparse.issparse(chosen) else chosen, np.float64)
    dense = _scaled(dense, ~test)
    fits = {}
    for k in ks:
        some = dense[:, :k]
        beta = fit_logistic(some[None, ~test], truth[None, ~test])[0]
        fits[k] = Fit(features[:k].tolist(), beta[:-1].tolist(), some[test] @ beta[:-1] + beta[-1])
    return fits


def fit_dense(x: NDArray[np.float32], truth: NDArray[np.bool_], test: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Scores `[n]` of the test rows by the same regression on all features at once.

    It is solved in the span of the training rows, where the penalised solution lies, so width costs nothing.
    """
    scaled = _scaled(x.astype(np.float64), ~test)
    # An orthogonal basis of the training rows: rotating the features leaves penalty and predictions as they are.
    _, _, basis = np.linalg.svd(scaled[~test], full_matrices=False)
    rotated = scaled @ basis.T
    beta = fit_logistic(rotated[None, ~test], truth[None, ~test])[0]
    scores: NDArray[np.float64] = rotated[test] @ beta[:-1] + beta[-1]
    return scores


def quality(scores: NDArray[np.float64], truth: NDArray[np.bool_]) -> Quality:
    """Accuracy and F1 at even odds, and AUROC."""
    said = scores > SURE
    found = classification((said & truth).sum(), (said & ~truth).sum(), (~said & ~truth).sum(), (~said & truth).sum())
    return Quality(float(found.accuracy), float(found.f1), auroc(truth, scores))


def permuted(
    truth: NDArray[np.bool_], test: NDArray[np.bool_], groups: NDArray[np.int64], generator: np.random.Generator
) -> NDArray[np.bool_]:
    """The labels dealt anew within the training and within the test rows, so that both keep their counts of rows.

    Groups whose rows share a label are dealt as wholes (counts are then those of groups). Test labels move too:
    against the true ones a probe of permuted labels that hit upon the right latent by chance would be right.

    Args:
        groups: `[N]`, the group of each row; on one side of the split each.
    """
    dealt = truth.copy()
    for side in (~test, test):
        rows = np.flatnonzero(side)
        ids, index = np.unique(groups[rows], return_inverse=True)
        positive = np.bincount(index, weights=truth[rows])
        whole = bool(((positive == 0) | (positive == np.bincount(index))).all())
        if whole:
            dealt[rows] = (positive > 0)[generator.permutation(len(ids))][index]
        else:
            dealt[rows] = truth[rows][generator.permutation(len(rows))]
    return dealt


def _scaled(x: NDArray[np.float64], train: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Centred and divided by the spread of the training rows; features without spread become 0."""
    centre, spread = x[train].mean(axis=0), x[train].std(axis=0)
    scaled: NDArray[np.float64] = np.divide(x - centre, spread, out=np.zeros_like(x), where=spread > 1e-12)
    return scaled
