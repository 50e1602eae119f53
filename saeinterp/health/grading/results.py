"""What `grades.json` holds: the schema that comparisons and reports read.

The surprising choice: every SAE keeps its grade on every dataset beside the one that counts, so that two models
can be compared on the datasets both have without grading again.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from saeinterp.config import Thresholds
from saeinterp.health.grading.rules import Label, Metric, Outcome

FORMAT = 1


class Record(BaseModel):
    """Base: frozen, unknown keys refused, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class Measured(Record):
    """A number with its 95% interval, or the reason why there is none."""

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str | None = None
    """Why value or interval are missing."""


class GradedMetric(Record):
    """One metric of one SAE on one dataset."""

    metric: Metric
    value: float | None
    low: float | None
    high: float | None
    reason: str | None
    """Why value or interval are missing."""
    outcome: Outcome
    undecided: str | None = None
    """Which thresholds the 95% interval crosses."""
    note: str | None = None
    """What else bears on the value, such as an L0 set by k."""


class CheckResult(Record):
    """One integrity check."""

    name: str
    passed: bool
    detail: str


class DatasetGrade(Record):
    """One SAE's grade on one dataset; absorption does not depend on it."""

    dataset: str
    source: str | None
    """The health artifact, or the line of an imported table; empty where the dataset is missing."""
    metrics: tuple[GradedMetric, ...]
    passed: int
    applicable: int
    label: Label
    undecided: bool
    """Some metric's interval crosses a threshold."""
    checks: tuple[CheckResult, ...]
    """Integrity checks of this row that could be made."""

    def metric(self, name: str) -> GradedMetric:
        """One of the four metrics."""
        return next(item for item in self.metrics if item.metric == name)


class NullValue(Record):
    """A value beside what a random dictionary of the same shape gives."""

    value: float
    null_value: float | None = None
    null_low: float | None = None
    null_high: float | None = None


class SaeGrade(Record):
    """One SAE's grade: that of the dataset which decides."""

    title: str
    """The hookpoint, with what tells its SAEs apart where there are several."""
    hookpoint: str
    layer: int | None
    sae: str | None
    """Id of the SAE artifact."""
    seed: int | None
    """Seed of its training."""
    num_latents: int | None
    k: int | None
    recipe: str
    """Its training settings but for the seed, as JSON."""
    passed: int
    applicable: int
    label: Label
    undecided: bool
    decided_by: str | None
    """The dataset that decides; empty where it does not matter, since there is one."""
    missing: tuple[str, ...]
    """Datasets that others of this model have and this SAE has not: NA, so it is not healthy."""
    datasets: tuple[DatasetGrade, ...]
    reasons: tuple[str, ...]
    """Why it is not healthy, one clause per metric that fails, is borderline or is NA."""
    absorption_source: str | None = None
    absorption_control: Measured | None = None
    """Absorption of a random SAE of the same shape."""
    decoder_top_cosine: NullValue | None = None

    def on(self, dataset: str) -> DatasetGrade | None:
        """The grade on one dataset, None where it was not evaluated on it."""
        return next((item for item in self.datasets if item.dataset == dataset and item.source is not None), None)


class Counts(Record):
    """How many SAEs ended with each label."""

    healthy: int
    incomplete: int
    partial: int
    unhealthy: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.healthy + self.incomplete + self.partial + self.unhealthy


class Best(Record):
    """The best SAE of a model, or those that tie."""

    titles: tuple[str, ...]
    passed: int
    applicable: int | None
    """Empty where tied SAEs differ in what was measured."""
    reason: str


class Mean(Record):
    """A metric averaged over layers on one dataset."""

    metric: Metric
    dataset: str
    layers: int
    value: float | None
    smallest: float | None
    largest: float | None
    reason: str | None = None


class Trend(Record):
    """Spearman's correlation of a metric with depth."""

    metric: Metric
    dataset: str
    layers: int
    rho: float | None
    p: float | None
    """Exact, by permutation; none below six layers."""
    direction: Literal["rises", "falls", "no detectable trend"] | None
    """Only from p; empty without it."""
    reason: str | None


class Recommendation(Record):
    """What a rule yields, with the numbers it rests on."""

    rule: str
    text: str


class LayerGrades(Record):
    """The grades of one model's layers."""

    format: int = FORMAT
    profile: str
    thresholds: Thresholds
    dataset: str
    """`worst-case`, or the dataset that decides."""
    ties: Literal["overlap", "value"]
    datasets: tuple[str, ...]
    saes: tuple[SaeGrade, ...]
    counts: Counts
    best: Best | None
    means: tuple[Mean, ...]
    trends: tuple[Trend, ...]
    sentences: tuple[str, ...]
    recommendations: tuple[Recommendation, ...]
