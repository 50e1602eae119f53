"""What `comparison.json` of two models holds: the schema that reports read and print.

Difference always means side b minus side a. The surprising choice: rows of the same shape serve two models and a
model against its control, so that a renderer needs one table for both.
"""

from __future__ import annotations

from saeinterp.compare.comparability import ComparabilityRow
from saeinterp.compare.direct import DirectComparison
from saeinterp.compare.frontiers import Frontier
from saeinterp.compare.layers import LayerSummary
from saeinterp.compare.model_sentences import ADJUSTMENT, LayerResult
from saeinterp.compare.results import Result, Sentence
from saeinterp.compare.sides import Side
from saeinterp.compare.trends import Trend

FORMAT = 2


class FailedCheck(Result):
    """An integrity check that failed on one side."""

    side: Side
    hookpoint: str
    dataset: str
    seed: int | None
    name: str
    detail: str


class SubjectDifference(Result):
    """A field in which the two sides' recipes differ: what is compared."""

    step: str
    field: str
    a: str
    b: str


class ControlComparison(Result):
    """One side's model against its own architecture with random weights, in the terms of `LayerResult.control`."""

    side: Side
    title: str
    layers: tuple[LayerResult, ...]
    """Side a is the model, side b its control."""
    summary: tuple[LayerSummary, ...]
    condition: str
    sentence: str


class ModelComparison(Result):
    """Everything a report prints of two models compared layer by layer."""

    format: int = FORMAT
    title_a: str
    title_b: str
    condition: str
    """What intervals and verdicts are conditional on, in words."""
    adjustment: str = ADJUSTMENT
    alpha: float
    bootstrap: int
    seed: int
    datasets: tuple[str, ...]
    interval_method: str | None
    control: Side | None
    """The side with random weights, where exactly one has them."""
    layers: tuple[LayerResult, ...]
    """One per hookpoint, dataset and SAE recipe."""
    summary: tuple[LayerSummary, ...]
    trends: tuple[Trend, ...]
    frontiers: tuple[Frontier, ...]
    """Where a side has several SAE recipes at a hookpoint."""
    direct: DirectComparison
    controls: tuple[ControlComparison, ...]
    sentence: str
    sentences: tuple[Sentence, ...]
    comparability: tuple[ComparabilityRow, ...]
    matched: bool
    """No hard row of `comparability` differs."""
    configuration: tuple[SubjectDifference, ...]
    failed_checks: tuple[FailedCheck, ...]
