"""Statistics as pure functions over arrays: intervals, paired comparisons, power, classification metrics."""

from saeinterp.stats.classification import Classification, always_yes, auroc, classification
from saeinterp.stats.intervals import Interval, as_column, wilson_interval
from saeinterp.stats.paired import (
    MIN_PAIRS,
    PairedComparison,
    SignFlips,
    Verdict,
    compare_paired,
    correlation,
    holm,
    mcnemar_exact,
    mean_interval,
)
from saeinterp.stats.power import min_detectable, paired_power, pairs_needed
from saeinterp.stats.resampling import OfTotals, PooledAuroc, Statistic, bootstrap_intervals, swap_p_values
from saeinterp.stats.wording import interval_text, number, p_text, paired_sentence, signed, verdict_words

__all__ = [
    "MIN_PAIRS",
    "Classification",
    "Interval",
    "OfTotals",
    "PairedComparison",
    "PooledAuroc",
    "SignFlips",
    "Statistic",
    "Verdict",
    "always_yes",
    "as_column",
    "auroc",
    "bootstrap_intervals",
    "classification",
    "compare_paired",
    "correlation",
    "holm",
    "interval_text",
    "mcnemar_exact",
    "mean_interval",
    "min_detectable",
    "number",
    "p_text",
    "paired_power",
    "paired_sentence",
    "pairs_needed",
    "signed",
    "swap_p_values",
    "verdict_words",
    "wilson_interval",
]
