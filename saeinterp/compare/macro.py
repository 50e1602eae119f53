"""Per-latent metrics averaged over latents: intervals, the paired test, worst cases of unusable verdicts.

The surprising choice: always-yes is treated as a control like any other, with a column of its own per
latent, so that "better than always-yes" is a tested statement and not a glance at two numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from saeinterp.compare.results import AlwaysYes, BoundsResult, ControlResult, IntervalResult, MacroResult, PairedResult
from saeinterp.compare.tables import METRICS, Side
from saeinterp.compare.wording import CONTROL_DESCRIPTIONS
from saeinterp.config import ComparisonConfig
from saeinterp.stats import (
    Interval,
    OfTotals,
    PairedComparison,
    always_yes,
    bootstrap_intervals,
    classification,
    compare_paired,
    holm,
    mean_interval,
)
from saeinterp.stats.intervals import Floats

ALWAYS_YES = "always-yes"


class Macro(NamedTuple):
    """A per-latent metric of both sides, on the latents where both have it.

    Attributes:
        rows: Which latents [n].
        interval_a: Interval of side a's mean.
        paired: The comparison of the two columns.
    """

    rows: NDArray[np.bool_]
    interval_a: Interval
    interval_b: Interval
    paired: PairedComparison


def macro_of(metric: str, a: Side, b: Side, *, config: ComparisonConfig) -> Macro | None:
    """Compare one metric latent by latent; None when no latent has it on both sides."""
    if metric not in a.metrics or metric not in b.metrics:
        return None
    first, second = a.metrics[metric], b.metrics[metric]
    rows = np.isfinite(first) & np.isfinite(second)
    if not rows.any():
        return None
    return Macro(
        rows=rows,
        interval_a=side_interval(metric, first[rows], config=config),
        interval_b=side_interval(metric, second[rows], config=config),
        paired=paired(first[rows], second[rows], config=config),
    )


def paired(a: Floats, b: Floats, *, config: ComparisonConfig) -> PairedComparison:
    """`compare_paired` at the configured level, margin and seed."""
    return compare_paired(a, b, seed=config.seed, alpha=config.alpha, margin=config.margin)


def macro_result(macro: Macro | None, *, scored: int, family: str, p_holm: float | None) -> MacroResult:
    """The stored form; `scored` is the number of latents in the analysis."""
    if macro is None:
        return MacroResult(
            n=0,
            undefined=scored,
            mean_a=None,
            mean_b=None,
            interval_a=None,
            interval_b=None,
            paired=None,
            reason="not defined per latent, or not in the tables",
        )
    return MacroResult(
        n=macro.paired.n,
        undefined=scored - macro.paired.n,
        mean_a=macro.paired.mean_a,
        mean_b=macro.paired.mean_b,
        interval_a=IntervalResult.of(macro.interval_a),
        interval_b=IntervalResult.of(macro.interval_b),
        paired=PairedResult.of(macro.paired, family=family, p_holm=p_holm),
        reason=None,
    )


def bounds_of(metric: str, a: Side, b: Side) -> BoundsResult:
    """Worst and best case of the unusable verdicts of each side, and of the difference jointly.

    The verdicts of the two sides are distinct, so the worst joint assignment is one side's worst with the
    other's best.
    """
    limits = [_worst_and_best(metric, side) for side in (a, b)]
    if limits[0] is None or limits[1] is None:
        return _no_bounds("the number of unusable verdicts on true and on false examples is not known")
    rows = np.logical_and.reduce([np.isfinite(column) for pair in limits if pair for column in pair])
    if not rows.any():
        return _no_bounds("the metric does not follow from verdicts")
    (low_a, high_a), (low_b, high_b) = ([float(column[rows].mean()) for column in pair] for pair in limits if pair)
    return BoundsResult(
        n=int(rows.sum()),
        low_a=low_a,
        high_a=high_a,
        low_b=low_b,
        high_b=high_b,
        difference_low=low_b - high_a,
        difference_high=high_b - low_a,
        reason=None,
    )


def always_yes_columns(side: Side) -> dict[str, Floats]:
    """Per metric, what always-yes scores on each latent's examples; empty when the examples are not known."""
    if side.counts is None:
        return dict(side.always_yes)
    counts = side.counts
    unusable = side.unusable if side.unusable is not None else np.zeros((len(counts), 2))
    positives = counts[:, 0] + counts[:, 3] + unusable[:, 0]
    negatives = counts[:, 1] + counts[:, 2] + unusable[:, 1]
    columns: dict[str, Floats] = dict(always_yes(positives, negatives)._asdict())
    both = (positives > 0) & (negatives > 0)
    columns["auroc"] = np.where(both, 0.5, np.nan)
    return columns


def always_yes_result(metric: str, side: Side, columns: Mapping[str, Floats], firings: Floats | None) -> AlwaysYes:
    """Always-yes averaged over latents and pooled."""
    macro = micro = None
    column = columns.get(metric)
    if column is not None and np.isfinite(column).any():
        macro = float(np.nanmean(column))
    if side.counts is not None and metric in METRICS:
        unusable = side.unusable if side.unusable is not None else np.zeros((len(side.counts), 2))
        tp, fp, tn, fn = side.counts.sum(axis=0)
        on_true, on_false = unusable.sum(axis=0)
        value = always_yes(tp + fn + on_true, fp + tn + on_false)._asdict().get(metric)
        micro = None if value is None or not np.isfinite(value) else float(value)
    if metric == "frequency_weighted_f1" and firings is not None and "f1" in columns:
        weight = np.where(np.isfinite(columns["f1"]), np.nan_to_num(firings), 0.0)
        if weight.sum() > 0:
            micro = float(np.nan_to_num(columns["f1"]) @ weight / weight.sum())
    if metric == "pooled_auroc":
        micro = 0.5
    reason = "the class balance of the examples is not known" if macro is None and micro is None else None
    return AlwaysYes(macro=macro, micro=micro, reason=reason)


def control_results(
    controls: Mapping[str, Mapping[str, Floats]], a: Side, b: Side, *, config: ComparisonConfig
) -> list[ControlResult]:
    """Every control's primary metric against both sides, p adjusted over all of these tests.

    Args:
        controls: Per control, per metric, one value per latent.
    """
    raw: list[tuple[str, Floats, PairedComparison, PairedComparison]] = []
    for name, columns in controls.items():
        column = columns.get(config.metric)
        if column is None:
            continue
        tests = []
        for side in (a, b):
            values = side.metrics[config.metric]
            rows = np.isfinite(column) & np.isfinite(values)
            if rows.any():
                tests.append(paired(column[rows], values[rows], config=config))
        if len(tests) == 2:
            raw.append((name, column[np.isfinite(column)], tests[0], tests[1]))
    adjusted = holm([test.p_value for _, _, *tests in raw for test in tests])
    results = []
    for index, (name, column, against_a, against_b) in enumerate(raw):
        means = {
            metric: float(np.nanmean(values)) if np.isfinite(values).any() else None
            for metric, values in controls[name].items()
            if metric in METRICS
        }
        results.append(
            ControlResult(
                name=name,
                title=name,
                description=CONTROL_DESCRIPTIONS.get(name, "a control"),
                n=len(column),
                mean=float(column.mean()),
                interval=IntervalResult.of(side_interval(config.metric, column, config=config)),
                against_a=PairedResult.of(against_a, family="controls", p_holm=adjusted[2 * index]),
                against_b=PairedResult.of(against_b, family="controls", p_holm=adjusted[2 * index + 1]),
                metrics=means,
            )
        )
    return results


def side_interval(metric: str, column: Floats, *, config: ComparisonConfig) -> Interval:
    """Interval of one side's mean: sign flips inverted; AUROC, itself a ratio over pairs, by bootstrap over latents."""
    if metric != "auroc":
        return mean_interval(column, alpha=config.alpha, seed=config.seed)
    mean = OfTotals(np.stack([column, np.ones_like(column)], axis=1), _mean)
    return bootstrap_intervals(
        mean,
        len(column),
        bounds=[(0.0, 1.0)],
        draws=config.bootstrap,
        alpha=config.alpha,
        seed=config.seed,
        unit="latents",
    )[0]


def _mean(totals: Floats) -> Floats:
    count = totals[..., 1]
    return np.divide(totals[..., 0], count, out=np.full(count.shape, np.nan), where=count > 0)[..., None]


def _worst_and_best(metric: str, side: Side) -> tuple[Floats, Floats] | None:
    if side.samples:
        limits = [found for part in side.samples if (found := _worst_and_best(metric, part)) is not None]
        if len(limits) < len(side.samples):
            return None
        return np.mean([low for low, _ in limits], axis=0), np.mean([high for _, high in limits], axis=0)
    if side.counts is None or side.unusable is None:
        return None
    tp, fp, tn, fn = side.counts.T
    on_true, on_false = side.unusable.T
    worst = classification(tp, fp + on_false, tn, fn + on_true)._asdict()
    best = classification(tp + on_true, fp, tn + on_false, fn)._asdict()
    if metric not in worst:
        # Not a function of verdicts (AUROC): bounded only where nothing is missing.
        complete = side.metrics.get(metric)
        return None if complete is None or side.unusable.any() else (complete, complete)
    return worst[metric], best[metric]


def _no_bounds(reason: str) -> BoundsResult:
    return BoundsResult(
        n=0,
        low_a=None,
        high_a=None,
        low_b=None,
        high_b=None,
        difference_low=None,
        difference_high=None,
        reason=reason,
    )
