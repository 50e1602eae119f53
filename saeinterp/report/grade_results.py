"""The part of `results.json` that holds layer grades: per model a table of layers, then the models side by side."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from saeinterp.report.reasons import fold_reasons
from saeinterp.report.values import Model, Number, Setting


class GradeCell(Model):
    """One metric, and what the thresholds say of it."""

    metric: str
    number: Number
    outcome: Literal["pass", "borderline", "fail", "NA"]
    undecided: str | None = None
    """Which thresholds its interval crosses."""
    note: str | None = None
    """What else bears on it, such as an L0 set by k."""


class DatasetRow(Model):
    """One layer on one dataset."""

    dataset: str
    loss_recovered: GradeCell = Field(
        title="Loss recovered", description="(CE zeroed − CE spliced) / (CE zeroed − CE clean)"
    )
    l0: GradeCell = Field(title="L0", description="Mean latents active per token in the code used")
    dead_fraction: GradeCell = Field(title="Dead", description="Share of latents that never fired")
    absorption: GradeCell = Field(title="Absorption", description="First-letter absorption")
    grade: str = Field(title="Grade", description="Metrics that pass, of those that apply")
    decides: bool
    """Its grade is the layer's."""
    failed_checks: tuple[str, ...] = ()
    """Integrity checks that this row does not pass."""

    @property
    def cells(self) -> tuple[GradeCell, GradeCell, GradeCell, GradeCell]:
        """The four metrics in the order of the table."""
        return self.loss_recovered, self.l0, self.dead_fraction, self.absorption


class GradedLayer(Model):
    """One SAE with its grade."""

    title: str
    rows: tuple[DatasetRow, ...]
    passed: int
    applicable: int
    label: Literal["healthy", "incomplete", "partial", "unhealthy"]
    undecided: bool
    reasons: tuple[str, ...]
    control: Number | None = None
    """Absorption of a random SAE of the same shape."""
    cosine: Number | None = None
    """Mean of the highest off-diagonal decoder cosines."""
    cosine_null: Number | None = None
    """The same of a random dictionary of that shape."""

    @property
    def grade(self) -> str:
        """`3/4 partial`."""
        return f"{self.passed}/{self.applicable} {self.label}"


class GradedModel(Model):
    """One model's layers."""

    title: str
    layers: tuple[GradedLayer, ...]
    findings: tuple[str, ...]
    recommendations: tuple[str, ...]
    checks: int
    """Integrity checks that could be made on its rows."""
    failed: int
    source: str

    @property
    def control_reasons(self) -> list[str]:
        """Why absorption does not apply to random SAEs, each reason once."""
        controls = [layer.control for layer in self.layers if layer.control is not None]
        missing = [item.reason for item in controls if item.value is None and item.reason]
        return [reason for reason, _ in fold_reasons(dict.fromkeys(missing, ()))]


class DirectRow(Model):
    """One line of the direct comparison."""

    title: str
    dataset: str
    a: Number
    b: Number
    difference: Number


class DirectComparison(Model):
    """Two models' grades, on the layers and datasets that both have."""

    a: str
    b: str
    rows: tuple[DirectRow, ...]
    findings: tuple[str, ...]


class TableProblem(Model):
    """A check that an outside table does not pass."""

    line: int
    model: str
    hookpoint: str
    name: str
    detail: str

    @property
    def where(self) -> str:
        """Model and layer, as far as the check is about one."""
        return ", ".join(part for part in (self.model, self.hookpoint) if part)


class OutsideTable(Model):
    """The file that the numbers were read from."""

    file: str
    unit: Literal["line", "row"]
    """What the numbers of problems count."""
    sha256: str
    rows: int
    checks: int
    problems: tuple[TableProblem, ...]
    notes: tuple[str, ...]
    """How something was read that could have been read otherwise."""
    source: str


class GradeSection(Model):
    """Layer grades of every model of the report."""

    profile: str
    thresholds: tuple[Setting, ...]
    rule: str
    """Which dataset decides, and how ties are treated."""
    convention: str
    models: tuple[GradedModel, ...]
    direct: tuple[DirectComparison, ...]
    table: OutsideTable | None
