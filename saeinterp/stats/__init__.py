"""Statistics as pure functions over arrays: intervals, paired comparisons, power, classification metrics."""

from saeinterp.stats.classification import Classification, always_yes, auroc, classification
from saeinterp.stats.components import Component, component_interval, mean_component
from saeinterp.stats.crossed import VarianceSplit, split_variance
from saeinterp.stats.intervals import Interval, as_column, clustered_share, wilson_interval
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
from saeinterp.stats.ranks import RankCorrelation, spearman
from saeinterp.stats.resampling import (
    OfTotals,
    PooledAuroc,
    Statistic,
    bootstrap_intervals,
    jackknife_errors,
    swap_p_values,
)
from saeinterp.stats.wording import interval_text, number, p_text, paired_sentence, signed, verdict_words

__all__ = [
    "MIN_PAIRS",
    "Classification",
    "Component",
    "Interval",
    "OfTotals",
    "PairedComparison",
    "PooledAuroc",
    "RankCorrelation",
    "SignFlips",
    "Statistic",
    "VarianceSplit",
    "Verdict",
    "always_yes",
    "as_column",
    "auroc",
    "bootstrap_intervals",
    "classification",
    "clustered_share",
    "compare_paired",
    "component_interval",
    "correlation",
    "holm",
    "interval_text",
    "jackknife_errors",
    "mcnemar_exact",
    "mean_component",
    "mean_interval",
    "min_detectable",
    "number",
    "p_text",
    "paired_power",
    "paired_sentence",
    "pairs_needed",
    "signed",
    "spearman",
    "split_variance",
    "swap_p_values",
    "verdict_words",
    "wilson_interval",
]
