"""Point metrics of the verdicts on one latent, or on several pooled.

Definitions are those of `saeinterp.stats`. The surprising choice: an unusable verdict is neither false nor
dropped: it lowers coverage, the metrics say what the usable ones give, and `f1_low`/`f1_high` bound what all
could have given (every unusable one wrong, or right).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple, TypeVar

from saeinterp.stats import always_yes, auroc, classification

K = TypeVar("K", bound=Hashable)


class VerdictMetrics(NamedTuple):
    """Metrics of `n` verdicts; None where the examples leave a metric undefined (see `saeinterp.stats`).

    Attributes:
        n: Examples.
        usable: Of those, with a verdict.
        coverage: usable / n.
        auroc: Of P(match) over usable verdicts; None unless all of them have one.
        f1_always_yes: F1 of answering "match" to every example, which depends on the class balance alone.
        f1_low: F1 if every unusable verdict were wrong.
        f1_high: F1 if every unusable verdict were right.
    """

    n: int
    usable: int
    coverage: float | None
    tp: int
    fp: int
    tn: int
    fn: int
    precision: float | None
    recall: float | None
    f1: float | None
    accuracy: float | None
    balanced_accuracy: float | None
    mcc: float | None
    auroc: float | None
    f1_always_yes: float | None
    f1_low: float | None
    f1_high: float | None


class Rate(NamedTuple):
    """How often examples of one sort were said to match: the recall of positives, the false positives of others."""

    n: int
    usable: int
    matched: int
    rate: float | None


def verdict_metrics(
    truth: Sequence[bool], verdict: Sequence[bool | None], probability: Sequence[float | None]
) -> VerdictMetrics:
    """Metrics of parallel sequences.

    Args:
        truth: Whether the latent fires in the example.
        verdict: What the scorer said; None where it said nothing usable.
        probability: P(match), where known.
    """
    pairs = list(zip(truth, verdict, strict=True))
    tp, fp, tn, fn = (pairs.count(kind) for kind in ((True, True), (False, True), (False, False), (True, False)))
    lost_positives, lost_negatives = pairs.count((True, None)), pairs.count((False, None))
    n, usable = len(pairs), tp + fp + tn + fn
    found = classification(tp, fp, tn, fn)
    said = [(label, p) for label, v, p in zip(truth, verdict, probability, strict=True) if v is not None]
    scored = [(label, p) for label, p in said if p is not None]
    return VerdictMetrics(
        n=n,
        usable=usable,
        coverage=usable / n if n else None,
        tp=tp,
        fp=fp,
        tn=tn,
        fn=fn,
        **{name: _number(value) for name, value in found._asdict().items()},
        # Of some verdicts only it would be an AUROC of another set than the other metrics.
        auroc=auroc([label for label, _ in scored], [p for _, p in scored]) if len(scored) == len(said) else None,
        f1_always_yes=_number(always_yes(tp + fn + lost_positives, fp + tn + lost_negatives).f1),
        f1_low=_number(classification(tp, fp + lost_negatives, tn, fn + lost_positives).f1),
        f1_high=_number(classification(tp + lost_positives, fp, tn + lost_negatives, fn).f1),
    )


def match_rates(group: Sequence[K], verdict: Sequence[bool | None]) -> dict[K, Rate]:
    """The rate of "match" per group (kind of example, quantile), groups in order of first mention."""
    answers: dict[K, list[bool | None]] = {}
    for key, said in zip(group, verdict, strict=True):
        answers.setdefault(key, []).append(said)
    rates = {}
    for key, given in answers.items():
        usable, matched = len(given) - given.count(None), given.count(True)
        rates[key] = Rate(len(given), usable, matched, matched / usable if usable else None)
    return rates


def natural_precision(recall: float | None, false_positives: float | None, share: float | None) -> float | None:
    """Precision if examples came as windows do in text: `share r / (share r + (1 - share) f)`.

    Args:
        recall: Of activating windows, those said to match (r).
        false_positives: Of silent windows drawn at random, those said to match (f).
        share: Of all windows, the activating ones.

    Returns:
        The precision, 0 where nothing is said to match; None where one of them is not known.
    """
    if recall is None or false_positives is None or share is None:
        return None
    right, wrong = share * recall, (1 - share) * false_positives
    return right / (right + wrong) if right + wrong else 0.0


def _number(value: Any) -> float | None:
    number = float(value)
    return None if math.isnan(number) else number
