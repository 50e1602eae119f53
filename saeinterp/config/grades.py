"""How layers are graded: thresholds, the dataset that decides, and ties."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from pydantic import Field, model_validator

from saeinterp.config.base import Config

WORST_CASE = "worst-case"


class Thresholds(Config):
    """Where a metric passes, is borderline, or fails; limits belong to the better side."""

    loss_recovered_pass: float = 0.70
    """Loss recovered passes from here up."""
    loss_recovered_borderline: float = 0.60
    """Below `loss_recovered_pass` but from here up it is borderline."""
    l0_low: float = Field(20, ge=0)
    """Smallest mean L0 that passes."""
    l0_high: float = Field(200, ge=0)
    """Largest mean L0 that passes."""
    dead_fraction_pass: float = Field(0.10, ge=0, le=1)
    """The dead fraction passes up to here."""
    dead_fraction_borderline: float = Field(0.20, ge=0, le=1)
    """Above `dead_fraction_pass` but up to here it is borderline."""
    absorption_pass: float = Field(0.25, ge=0, le=1)
    """First-letter absorption passes up to here."""
    absorption_borderline: float = Field(0.35, ge=0, le=1)
    """Above `absorption_pass` but up to here it is borderline."""
    borderline_passes: bool = True
    """Borderline counts as a pass."""

    @model_validator(mode="after")
    def _ordered(self) -> Thresholds:
        pairs = (
            ("loss_recovered_borderline", "loss_recovered_pass"),
            ("l0_low", "l0_high"),
            ("dead_fraction_pass", "dead_fraction_borderline"),
            ("absorption_pass", "absorption_borderline"),
        )
        for low, high in pairs:
            if not getattr(self, low) <= getattr(self, high):
                raise ValueError(f"{low} = {getattr(self, low):g} exceeds {high} = {getattr(self, high):g}")
        return self


PROFILES: Mapping[str, Thresholds] = MappingProxyType(
    {
        "seed-lenient": Thresholds(),
        "seed-strict": Thresholds(borderline_passes=False),
        "stringent": Thresholds(loss_recovered_pass=0.90, loss_recovered_borderline=0.70, borderline_passes=False),
    }
)
"""Named thresholds. They are a convention of reports, not of SAEBench, which only recommends a range of L0."""


class GradingConfig(Config):
    """Layer grades: how many of loss recovered, L0, dead latents and absorption pass."""

    profile: str = "seed-lenient"
    """`seed-lenient` (borderline passes), `seed-strict`, `stringent`, or a name of your own for `thresholds`."""
    thresholds: Thresholds | None = None
    """Thresholds of your own, reported under `profile`, which then needs a name that is not one of ours."""
    dataset: str = WORST_CASE
    """The dataset whose metrics decide a layer's grade, or `worst-case`: the one with most failures."""
    ties: Literal["overlap", "value"] = "overlap"
    """Among layers with equal grades the best has the highest loss recovered; `overlap` names a tie where its
    interval overlaps another's, `value` only where the values are equal."""

    @model_validator(mode="after")
    def _named(self) -> GradingConfig:
        if self.thresholds is None and self.profile not in PROFILES:
            raise ValueError(f"no profile {self.profile!r}; known: {', '.join(PROFILES)}; or set thresholds")
        if self.thresholds is not None and self.profile in PROFILES:
            raise ValueError(f"profile {self.profile!r} has thresholds of its own; give yours another name")
        return self

    @property
    def limits(self) -> Thresholds:
        """The thresholds in force."""
        return self.thresholds or PROFILES[self.profile]
