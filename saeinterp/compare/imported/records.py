"""What an outside table of scores becomes: a row per explainer and latent, and what its file claims about them."""

from __future__ import annotations

from typing import Literal

from saeinterp.compare.results import Result
from saeinterp.health.imported.checks import TableCheck


class ScoreFile(Result):
    """A file that scores were read from."""

    file: str
    sha256: str
    unit: Literal["line", "row"] = "line"
    """What places in it count: rows where the format keeps no lines."""


class ScoreRow(Result):
    """One latent of one explainer, as printed."""

    file: str
    line: int
    hookpoint: str
    latent: int
    explanation: str | None = None
    values: dict[str, float | None]
    """By metric; null where the cell is empty."""
    half_steps: dict[str, float]
    """Half a unit of the last printed digit, by metric."""
    counts: dict[str, float]
    """tp, fp, tn, fn, positives, negatives, firings, where the table has them."""

    @property
    def key(self) -> tuple[str, int]:
        """Hookpoint and latent."""
        return self.hookpoint, self.latent


class ImportedExplainer(Result):
    """One explainer of the table."""

    title: str
    name: str
    """How the file calls it; claims are found by this name."""
    rows: tuple[ScoreRow, ...]


class ScoreClaim(Result):
    """A statement of the file about its own table, to be checked against it."""

    line: int
    subject: Literal["mean", "sd", "range", "correlation", "difference", "overall", "higher"]
    name: str
    """The explainer it is about, as the file calls it; empty where it is about both."""
    other: str = ""
    """The explainer that it is compared with."""
    what: str = ""
    """Of an overall value: its metric. Of a difference: the latent's line."""
    values: tuple[float, ...] = ()
    half_step: float = 0.0
    text: str


class ImportedScores(Result):
    """Outside scores, read."""

    files: tuple[ScoreFile, ...]
    metric: str
    """The metric that the values are compared as."""
    heading: str
    """What the file calls it."""
    explainers: tuple[ImportedExplainer, ...]
    claims: tuple[ScoreClaim, ...]
    notes: tuple[str, ...]
    """How something was read that could have been read otherwise."""


class ScoreReview(Result):
    """What the checks of an outside table of scores found."""

    checks: tuple[TableCheck, ...]
    notes: tuple[str, ...]
    """What follows from its numbers, without being wrong."""

    @property
    def problems(self) -> tuple[TableCheck, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if not check.passed)
