"""The part of `results.json` that holds layer grades: per model a table of layers, then the models side by side."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from saeinterp.report.reasons import fold_reasons
from saeinterp.report.values import Model, Number, Setting


class GradeCell(Model):
    """One metric, and what the thresholds say of it."""

    metric: str
    """Key of the metric."""
    number: Number
    """The value."""
    outcome: Literal["pass", "borderline", "fail", "NA"]
    """What the thresholds say of it."""
    undecided: str | None = None
    """Which thresholds its interval crosses."""
    note: str | None = None
    """What else bears on it, such as an L0 set by k."""


class DatasetRow(Model):
    """One layer on one dataset."""

    dataset: str
    """The text it was measured on."""
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
    """The hookpoint, with the settings in which its SAEs differ where there are several."""
    rows: tuple[DatasetRow, ...]
    """One row per dataset."""
    passed: int
    """Metrics that pass."""
    applicable: int
    """Metrics that apply."""
    label: Literal["healthy", "incomplete", "partial", "unhealthy"]
    """The grade in a word."""
    undecided: bool
    """An interval crosses a threshold."""
    reasons: tuple[str, ...]
    """Why the grade is not full."""
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
    """Name of the model."""
    layers: tuple[GradedLayer, ...]
    """Every SAE with its grade."""
    findings: tuple[str, ...]
    """Generated sentences on the grades."""
    recommendations: tuple[str, ...]
    """What could be tried, each following from a metric that fails."""
    checks: int
    """Integrity checks that could be made on its rows."""
    failed: int
    """Of these checks, those that do not hold."""
    source: str
    """Id of the grades."""

    @property
    def control_reasons(self) -> list[str]:
        """Why absorption does not apply to random SAEs, each reason once."""
        controls = [layer.control for layer in self.layers if layer.control is not None]
        missing = [item.reason for item in controls if item.value is None and item.reason]
        return [reason for reason, _ in fold_reasons(dict.fromkeys(missing, ()))]


class DirectRow(Model):
    """One line of the direct comparison."""

    title: str
    """What is compared."""
    dataset: str
    """On which text; empty where it is of none."""
    a: Number
    """Value of the first model."""
    b: Number
    """Value of the second."""
    difference: Number
    """Second minus first."""


class DirectComparison(Model):
    """Two models' grades, on the layers and datasets that both have."""

    a: str
    """Name of the first model."""
    b: str
    """Name of the second."""
    rows: tuple[DirectRow, ...]
    """The compared numbers."""
    findings: tuple[str, ...]
    """Generated sentences on them."""


class TableProblem(Model):
    """A check that an outside table does not pass."""

    line: int
    """Of the file, or the row of the table."""
    model: str
    """The model it is about, empty where it is about none."""
    hookpoint: str
    """The layer it is about, empty where it is about none."""
    name: str
    """The rule that does not hold."""
    detail: str
    """The numbers that contradict it."""

    @property
    def where(self) -> str:
        """Model and layer, as far as the check is about one."""
        return ", ".join(part for part in (self.model, self.hookpoint) if part)


class OutsideTable(Model):
    """The file that the numbers were read from."""

    file: str
    """Name of the file."""
    unit: Literal["line", "row"]
    """What the numbers of problems count."""
    sha256: str
    """Of the file."""
    rows: int
    """Rows read."""
    checks: int
    """Rules that could be checked."""
    problems: tuple[TableProblem, ...]
    """Rules that do not hold."""
    notes: tuple[str, ...]
    """How something was read that could have been read otherwise."""
    source: str
    """Id of the artifact that holds the table."""


class GradeSection(Model):
    """Layer grades of every model of the report."""

    profile: str
    """Name of the set of thresholds."""
    thresholds: tuple[Setting, ...]
    """When a metric passes."""
    rule: str
    """Which dataset decides, and how ties are treated."""
    convention: str
    """Where the thresholds come from."""
    models: tuple[GradedModel, ...]
    """Every model with its layers."""
    direct: tuple[DirectComparison, ...]
    """Models side by side, where the grades are of an outside table."""
    table: OutsideTable | None
    """The outside table; empty where the health was measured here."""
