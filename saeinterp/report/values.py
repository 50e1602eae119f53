"""What every part of a report is made of: numbers, settings, the sides of a comparison and how they differ.

The surprising choice: a number that could not be measured is still a `Number`, with the reason in place of the value,
so that no renderer can confuse "not measured" with zero.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, model_validator

from saeinterp.report.format import Style


class Model(BaseModel):
    """Base of the report's models: frozen, unknown keys refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        field_title_generator=lambda name, _: name.replace("_", " ").capitalize(),
    )


class Number(Model):
    """One number and what it takes to judge it."""

    value: float | int | None
    """Unrounded; empty when it could not be measured."""
    style: Style = "score"
    """How it is written."""
    low: float | int | None = None
    """Lower end of the interval."""
    high: float | int | None = None
    """Upper end of the interval."""
    interval: str | None = None
    """What the interval is, such as `95% CI` or `worst case of unusable verdicts`."""
    no_interval: str | None = None
    """Why there is no interval where one belongs."""
    n: int | None = None
    """How many units the number rests on."""
    of: str | None = None
    """The units that `n` counts."""
    source: str | None = None
    """Id of the artifact it was read from."""
    reason: str | None = None
    """Why there is no value."""

    @model_validator(mode="after")
    def _explained(self) -> Number:
        if self.value is None and not self.reason:
            raise ValueError("a missing number needs a reason")
        return self


class Fact(Model):
    """A labelled number."""

    title: str
    """What is counted or measured."""
    number: Number
    """The number."""


class Setting(Model):
    """One configuration value."""

    field: str
    """Name of the setting."""
    value: str
    """Its value as text."""


class Side(Model):
    """One side of a comparison."""

    key: Literal["a", "b"]
    """`a` or `b`; a difference is always b minus a."""
    title: str
    """Name in tables."""


class Difference(Model):
    """A configuration field in which the two sides differ."""

    field: str
    """Name of the setting."""
    a: str
    """Its value on side A."""
    b: str
    """Its value on side B."""


class Check(Model):
    """One line of the comparability check."""

    field: str
    """What is compared."""
    a: str
    """Its value on side A."""
    b: str
    """Its value on side B."""
    severity: Literal["hard", "soft"]
    """`hard` mismatches make a comparison meaningless; `soft` ones are named."""
    ok: bool
    """Both sides are alike in it."""
    note: str = ""
    """What follows where they are not."""
