"""The part of `results.json` that holds two models side by side, layer by layer.

The surprising choice: a row may hold two intervals of one difference, of these SAEs and of the models, and says in its
own words what separates the SAEs of one side.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from saeinterp.report.grade_results import DirectComparison
from saeinterp.report.values import Check, Difference, Model, Number, Side


class LayerDifference(Model):
    """One metric of one layer in both models; without a layer, the mean difference over layers."""

    hookpoint: str | None
    """The layer; empty for a mean over layers."""
    where: str
    """The layer, with dataset and SAE settings where there are several."""
    metric: str
    """Key of the metric."""
    title: str
    """Name of the metric."""
    a: Number | None
    """Value of side A; empty for a mean over layers."""
    b: Number | None
    """Value of side B; empty for a mean over layers."""
    difference: Number = Field(title="B − A")
    """Side B minus side A."""
    verdict: Literal["different", "inconclusive"] | None = None
    """`different` where the interval excludes 0; empty without an interval."""
    models: Number | None = Field(
        None, title="B − A, models", description="Training seeds of the SAEs are in the interval"
    )
    spread: str | None = None
    """How the SAEs of one side differ, where there are several."""
    flag: str | None = None
    """What a reader must know before comparing the values."""
    sentence: str | None = None
    """Generated from the difference and its interval."""


class FrontierPoint(Model):
    """One SAE recipe of one side."""

    side: Literal["a", "b"]
    """The model."""
    recipe: str
    """Settings in which the SAEs differ."""
    l0: Number = Field(title="L0")
    """Mean latents active per token."""
    fvu: Number = Field(title="FVU")
    """Fraction of variance unexplained."""
    on_frontier: bool
    """No other recipe of this side has both a lower or equal L0 and a lower or equal FVU."""


class FrontierRow(Model):
    """Both sides' SAE recipes at one layer on one dataset."""

    where: str
    """The layer, with its dataset where there are several."""
    points: tuple[FrontierPoint, ...]
    """Every SAE recipe of both sides."""
    difference: Number
    """Mean of B − A in FVU over the L0 that both frontiers cover."""
    sentence: str
    """Generated from the difference and its interval."""


class ModelSection(Model):
    """Layer health of two models, layer by layer."""

    sides: tuple[Side, Side]
    """Side A and side B."""
    sentence: str
    """Generated: what the layers say."""
    notes: tuple[str, ...]
    """What every number here is conditional on."""
    findings: tuple[str, ...]
    """Generated sentences on trends and means."""
    layers: tuple[LayerDifference, ...]
    """Every metric of every layer on both sides."""
    summary: tuple[LayerDifference, ...]
    """Mean differences over layers."""
    direct: DirectComparison | None = None
    """Means, gaps and healthy layers on what both sides have."""
    controls: tuple[str, ...] = ()
    """Each side against its own architecture with random weights."""
    frontiers: tuple[FrontierRow, ...] = ()
    """SAE recipes compared at equal L0."""
    checks: tuple[Check, ...]
    """What must be equal for the comparison to mean something."""
    matched: bool
    """Every hard check holds."""
    differences: tuple[Difference, ...]
    """Settings in which the models differ."""
    source: str
    """Id of the comparison."""

    @property
    def marks(self) -> list[str]:
        """Notes on rows, each once with the rows it is about."""
        notes: dict[str, list[str]] = {}
        for row in self.layers:
            for note in (row.spread, row.flag):
                if note is not None:
                    notes.setdefault(note, []).append(f"{row.title}, {row.where}")
        return [f"{'; '.join(where)}: {note}" for note, where in notes.items()]

    @property
    def by_metric(self) -> list[tuple[str, list[LayerDifference]]]:
        """Layers, then the mean over them, metric by metric; metrics that no layer has on both sides come last."""
        rows = [*self.layers, *self.summary]
        titles = dict.fromkeys(row.title for row in rows)
        groups = [(title, [row for row in rows if row.title == title]) for title in titles]
        return sorted(groups, key=lambda group: all(row.difference.value is None for row in group[1]))
