"""Grades: how many of four metrics pass, and what that makes a layer.

The surprising choice: a grade is n of *m applicable*. A metric that could not be measured is neither passed nor
failed, and a layer with no failure but a missing metric is `incomplete`, never `healthy`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from types import MappingProxyType
from typing import Literal, NamedTuple, get_args

from saeinterp.config import PROFILES, GradingConfig, Thresholds
from saeinterp.errors import ConfigError, DataError

Metric = Literal["loss_recovered", "l0", "dead_fraction", "absorption"]
Outcome = Literal["pass", "borderline", "fail", "NA"]
Label = Literal["healthy", "incomplete", "partial", "unhealthy"]
GRADED: tuple[Metric, ...] = get_args(Metric)
LABELS: tuple[Label, ...] = get_args(Label)
TITLES: Mapping[str, str] = MappingProxyType(
    {
        "loss_recovered": "loss recovered",
        "l0": "L0",
        "dead_fraction": "dead fraction",
        "absorption": "absorption",
    }
)
"""Metric -> its name in sentences."""
PERCENT = ("loss_recovered", "dead_fraction")
"""Metrics that are written as percentages."""


class Grade(NamedTuple):
    """One layer's grade.

    Attributes:
        passed: Metrics that pass; borderline counts where the profile says so.
        applicable: Metrics that were measured.
        label: healthy (no failure, all four measured), incomplete (no failure, some not measured), partial (one
            failure), unhealthy (more).
        loss_recovered, l0, dead_fraction, absorption: Outcome of each metric.
        profile: Name of the thresholds.
    """

    passed: int
    applicable: int
    label: Label
    loss_recovered: Outcome
    l0: Outcome
    dead_fraction: Outcome
    absorption: Outcome
    profile: str

    @property
    def failed(self) -> int:
        """Metrics that were measured and do not pass."""
        return self.applicable - self.passed

    def __str__(self) -> str:
        return f"{self.passed}/{self.applicable} {self.label}"


def grade_layer(
    *,
    loss_recovered: float | None,
    l0: float | None,
    dead_fraction: float | None,
    absorption: float | None,
    profile: str | GradingConfig = "seed-lenient",
) -> Grade:
    """Grade one layer; None is a metric that does not apply.

    Args:
        loss_recovered: A fraction, not percent; may lie outside 0 to 1 and is never clamped.
        l0: Mean active latents per token.
        dead_fraction: From 0 to 1.
        absorption: From 0 to 1.
        profile: A known profile's name, or a configuration with thresholds of its own.

    Raises:
        ConfigError: There is no such profile.
        DataError: A value is not finite or impossible; the metric is named.
    """
    if isinstance(profile, GradingConfig):
        name, limits = profile.profile, profile.limits
    elif profile in PROFILES:
        name, limits = profile, PROFILES[profile]
    else:
        raise ConfigError("no such profile", field="profile", got=profile, expected=", ".join(PROFILES))
    values = {"loss_recovered": loss_recovered, "l0": l0, "dead_fraction": dead_fraction, "absorption": absorption}
    outcomes = {metric: outcome(metric, value, limits) for metric, value in values.items()}
    counted = ("pass", "borderline") if limits.borderline_passes else ("pass",)
    passed = sum(found in counted for found in outcomes.values())
    applicable = sum(found != "NA" for found in outcomes.values())
    return Grade(passed, applicable, label(passed, applicable), **outcomes, profile=name)


def label(passed: int, applicable: int) -> Label:
    """The word for n of m: by the number of failures, then by what was not measured."""
    failed = applicable - passed
    if failed == 0:
        return "healthy" if applicable == len(GRADED) else "incomplete"
    return "partial" if failed == 1 else "unhealthy"


def outcome(metric: str, value: float | None, limits: Thresholds) -> Outcome:
    """What the thresholds say of one value.

    Raises:
        DataError: The value is not finite or impossible.
    """
    if value is None:
        return "NA"
    _require_possible(metric, value)
    if metric == "l0":
        return "pass" if limits.l0_low <= value <= limits.l0_high else "fail"
    if metric == "loss_recovered":
        passes, borderline = limits.loss_recovered_pass, limits.loss_recovered_borderline
        return "pass" if value >= passes else "borderline" if value >= borderline else "fail"
    passes, borderline = getattr(limits, f"{metric}_pass"), getattr(limits, f"{metric}_borderline")
    return "pass" if value <= passes else "borderline" if value <= borderline else "fail"


def crossed(metric: str, low: float, high: float, limits: Thresholds) -> tuple[float, ...]:
    """The thresholds inside an interval: on their two sides the metric has different outcomes."""
    at_least: tuple[float, ...] = ()
    at_most: tuple[float, ...] = ()
    if metric == "l0":
        at_least, at_most = (limits.l0_low,), (limits.l0_high,)
    elif metric == "loss_recovered":
        at_least = (limits.loss_recovered_pass, limits.loss_recovered_borderline)
    else:
        at_most = (getattr(limits, f"{metric}_pass"), getattr(limits, f"{metric}_borderline"))
    found = [limit for limit in at_least if low < limit <= high]
    found += [limit for limit in at_most if low <= limit < high]
    return tuple(dict.fromkeys(found))


def rule_text(metric: str, limits: Thresholds) -> str:
    """The thresholds of one metric in words, such as `pass ≥ 70%, borderline ≥ 60%`."""
    if metric == "l0":
        return f"pass {limits.l0_low:g} to {limits.l0_high:g}"
    sign = "≥" if metric == "loss_recovered" else "≤"
    ends = [getattr(limits, f"{metric}_{name}") for name in ("pass", "borderline")]
    passes, borderline = (f"{100 * end:g}%" if metric in PERCENT else f"{end:g}" for end in ends)
    return f"pass {sign} {passes}, borderline {sign} {borderline}"


def _require_possible(metric: str, value: float) -> None:
    expected = {
        "loss_recovered": "a finite number (a fraction, not percent)",
        "l0": "a finite number of latents, 0 or more",
        "dead_fraction": "a number from 0 to 1 (a fraction, not percent)",
        "absorption": "a number from 0 to 1",
    }[metric]
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not math.isfinite(value):
        problem = "is not a finite number"
    elif metric == "l0" and value < 0:
        problem = "is negative"
    elif metric in ("dead_fraction", "absorption") and not 0 <= value <= 1:
        problem = "lies outside 0 to 1"
    else:
        return
    raise DataError(
        problem, field=metric, got=value, expected=expected, next_step="give None where it could not be measured"
    )
