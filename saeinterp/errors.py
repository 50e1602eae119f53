"""Typed errors that name the field, what it got, what it expected and what to do next.

Every error a user can cause derives from `SaeinterpError`; the command line prints its text without a
traceback. Broken invariants of our own stay `AssertionError`.
"""

from __future__ import annotations


class SaeinterpError(Exception):
    """An error with a next step.

    Args:
        problem: What is wrong, in one clause.
        field: The configuration field, file or command at fault.
        got: The offending value, shown with `repr` and shortened.
        expected: What would have been accepted.
        next_step: What the user can do now.
    """

    def __init__(
        self,
        problem: str,
        *,
        field: str | None = None,
        got: object = None,
        expected: str | None = None,
        next_step: str | None = None,
    ) -> None:
        self.problem = problem
        self.field = field
        self.got = got
        self.expected = expected
        self.next_step = next_step
        super().__init__(str(self))

    def __str__(self) -> str:
        text = f"{self.field}: {self.problem}" if self.field else self.problem
        if self.got is not None:
            shown = repr(self.got)
            text += f" (got {shown if len(shown) <= 200 else shown[:197] + '...'})"
        text = text.rstrip(".") + "."
        if self.expected:
            text += f" Expected {self.expected.rstrip('.')}."
        if self.next_step:
            text += f" Next: {self.next_step.rstrip('.')}."
        return text

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions cross process boundaries; the default protocol loses keyword-only arguments.
        return _rebuild, (type(self), self.problem, self.field, self.got, self.expected, self.next_step)


def _rebuild(
    cls: type[SaeinterpError],
    problem: str,
    field: str | None,
    got: object,
    expected: str | None,
    next_step: str | None,
) -> SaeinterpError:
    return cls(problem, field=field, got=got, expected=expected, next_step=next_step)


class ConfigError(SaeinterpError, ValueError):
    """A configuration value is unknown, malformed or contradicts another."""


class DataError(SaeinterpError, ValueError):
    """Input data (corpus, activations, tables) is missing, empty, malformed or too small."""


class SubjectError(SaeinterpError):
    """The model under study cannot be found or loaded."""


class BudgetError(SaeinterpError):
    """A step would take more disk or memory than allowed."""


class ArtifactError(SaeinterpError):
    """An artifact is missing, damaged or cannot be written."""


class DamagedArtifactError(ArtifactError):
    """An artifact's files do not match its manifest."""


class CaptureError(SaeinterpError):
    """A process that collects activations ended before its time."""


class TrainingError(SaeinterpError):
    """SAE training failed or diverged."""


class LLMError(SaeinterpError):
    """An LLM endpoint is unreachable, refuses, or answers nothing usable."""


class ComparabilityError(SaeinterpError):
    """The two sides of a comparison differ in something that makes the comparison meaningless."""


class MissingDependencyError(SaeinterpError, ImportError):
    """An optional package is not installed."""
