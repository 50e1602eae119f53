"""The rows of a comparison of layers: which metrics, a side's value, a difference, its summary over layers.

The surprising choice: a row holds two intervals of one difference. `low` and `high` are conditional on the SAEs
at hand; `models` counts their training seeds in, where there are enough of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from saeinterp.compare.joint import BITS
from saeinterp.compare.results import Result
from saeinterp.compare.seeds import SeedDifference
from saeinterp.compare.sides import DATASET, Side

DEAD = "dead_fraction"
DELTA_CE = "delta_ce"
MISSING = "this layer is missing"
CENSUS = "a count over the whole dictionary on these tokens: no interval, no test"
PER_TOKEN = "the sides tokenise differently, so losses per token are not comparable: see bits per byte"
OTHER_TOKENS = "the sides tokenise differently: a ratio over other tokens of the same text"


class Metric(NamedTuple):
    """A compared metric: its name in sentences and its unit."""

    title: str
    unit: str


RESAMPLED: Mapping[str, Metric] = {
    "loss_recovered": Metric("loss recovered", ""),
    "loss_recovered_mean_ablation": Metric("loss recovered against mean ablation", ""),
    DELTA_CE: Metric("ΔCE", " nat"),
    "fvu": Metric("FVU", ""),
}
METRICS: Mapping[str, Metric] = {
    **RESAMPLED,
    DEAD: Metric("dead fraction", ""),
    BITS: Metric("ΔCE in bits per byte", " bit/byte"),
}
"""The last only where the sides tokenise differently."""


class SideValue(Result):
    """One side's value of a metric: its SAE's, or the mean over its SAEs."""

    value: float | None
    low: float | None = None
    """Lower end of its own 95% interval over documents."""
    high: float | None = None
    reason: str | None = None
    """Why value or interval are missing."""
    values: tuple[float, ...] = ()
    """Of each SAE, by training seed, where there are several."""
    sd: float | None = None
    """Standard deviation (n - 1) over SAEs, where there are several."""


class MetricDifference(Result):
    """One metric at one place on both sides."""

    hookpoint: str
    dataset: str = DATASET
    recipe: str = ""
    """Settings of the SAEs, where a side has several recipes at this hookpoint."""
    metric: str
    title: str
    a: SideValue
    b: SideValue
    difference: float | None
    """b - a."""
    low: float | None = None
    """Lower end of the joint bootstrap interval of the difference, conditional on these SAEs."""
    high: float | None = None
    method: str | None = None
    """How that interval was made."""
    n_documents: int
    verdict: Literal["different", "inconclusive"] | None = None
    """`different` where the interval excludes 0; null where there is no interval."""
    lower: Side | None = None
    """The side with the lower value, where the verdict is `different`."""
    reason: str | None = None
    """Why difference, interval or verdict are missing."""
    flag: str | None = None
    """What a reader must know before comparing the values."""
    models: SeedDifference | None = None
    """The difference of the models; null below three SAE training seeds on a side."""
    sentence: str


class LayerSummary(Result):
    """One metric over the layers on which both sides have it; descriptive, layers of one model are no sample."""

    dataset: str = DATASET
    recipe: str = ""
    metric: str
    title: str
    layers: int
    missing: int
    """Layers on which a side does not have it."""
    mean_difference: float | None
    low: float | None = None
    """Joint bootstrap interval over documents, for these layers."""
    high: float | None = None
    smallest: float | None = None
    largest: float | None = None
    reason: str | None = None
