"""Classification metrics from confusion counts, elementwise over arrays.

The surprising choice: a side that never says "match" has precision 0, not "undefined" (and MCC 0), as in
scikit-learn and delphi, so that no latent leaves a mean for being answered badly; only what the truth
leaves undefined (no examples, one class absent) is NaN.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from saeinterp.errors import DataError
from saeinterp.stats.intervals import Floats, as_column


class Classification(NamedTuple):
    """Metrics of one or many classifiers, each an array of the counts' shape; NaN where undefined."""

    precision: Floats
    recall: Floats
    f1: Floats
    accuracy: Floats
    balanced_accuracy: Floats
    mcc: Floats


def classification(tp: ArrayLike, fp: ArrayLike, tn: ArrayLike, fn: ArrayLike) -> Classification:
    """Metrics of confusion counts (arrays of one shape).

    balanced accuracy = (TPR + TNR) / 2; F1 = 2 TP / (2 TP + FP + FN); MCC as Matthews 1975.
    """
    t, f, u, m = (np.asarray(count, dtype=np.float64) for count in (tp, fp, tn, fn))
    if min(float(np.min(count, initial=0)) for count in (t, f, u, m)) < 0:
        raise DataError("counts are negative", field="confusion counts")
    positives, negatives, said = t + m, f + u, t + f
    total = positives + negatives
    silent = u + m
    product = said * positives * negatives * silent
    return Classification(
        precision=np.where(total > 0, _ratio(t, said, empty=0.0), np.nan),
        recall=_ratio(t, positives),
        f1=_ratio(2 * t, 2 * t + f + m),
        accuracy=_ratio(t + u, total),
        balanced_accuracy=(_ratio(t, positives) + _ratio(u, negatives)) / 2,
        mcc=np.where(total > 0, _ratio(t * u - f * m, np.sqrt(product), empty=0.0), np.nan),
    )


def always_yes(positives: ArrayLike, negatives: ArrayLike) -> Classification:
    """The metrics of answering "match" to every example: what a metric is worth without any skill."""
    zeros = np.zeros_like(np.asarray(positives, dtype=np.float64))
    return classification(positives, negatives, zeros, zeros)


def auroc(truth: Iterable[bool], score: Iterable[float]) -> float | None:
    """Area under the ROC curve: P(score of a true example > score of a false one), ties half (Mann-Whitney).

    Args:
        truth: True or false per example [n].
        score: Higher means "match" [n].

    Returns:
        The area; None when one class is absent.
    """
    labels = np.asarray(list(truth), dtype=bool)
    values = list(score)
    if len(labels) != len(values):
        raise DataError("differ in length", field="truth and score", got=(len(labels), len(values)))
    positives = int(labels.sum())
    negatives = len(labels) - positives
    if not positives or not negatives:
        return None
    scores = as_column(values, name="score")
    rank_sum = float(stats.rankdata(scores)[labels].sum())
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)


def _ratio(top: Floats, bottom: Floats, *, empty: float = float("nan")) -> Floats:
    return np.divide(top, bottom, out=np.full(np.broadcast(top, bottom).shape, empty), where=bottom > 0)
