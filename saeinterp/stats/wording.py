"""The words of a comparison: numbers rounded once, and one sentence that follows from the stored numbers.

The surprising choice: no caller passes a phrase. The verdict, n, interval and smallest detectable
difference go in; "outperforms" cannot come out.
"""

from __future__ import annotations

from typing import Protocol

from saeinterp.stats.paired import Verdict

DIGITS = 3
DIFFERENCE_DIGITS = 4  # finer than the means, so that a difference never seems to contradict them
MINUS = "\N{MINUS SIGN}"


class Compared(Protocol):
    """What a sentence needs of a comparison; `PairedComparison` and its stored form both have it."""

    @property
    def n(self) -> int: ...
    @property
    def mean_a(self) -> float: ...
    @property
    def mean_b(self) -> float: ...
    @property
    def difference(self) -> float: ...
    @property
    def ci_low(self) -> float | None: ...
    @property
    def ci_high(self) -> float | None: ...
    @property
    def p_value(self) -> float: ...
    @property
    def min_detectable(self) -> float | None: ...
    @property
    def equivalence_p(self) -> float: ...
    @property
    def verdict(self) -> Verdict: ...
    @property
    def alpha(self) -> float: ...
    @property
    def margin(self) -> float: ...


def number(value: float | None, *, digits: int = DIGITS) -> str:
    """A value to `digits` decimals with a true minus sign; `n/a` for None."""
    if value is None:
        return "n/a"
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        return text.lstrip("-")
    return text.replace("-", MINUS)


def signed(value: float | None, *, digits: int = DIGITS) -> str:
    """Like `number`, with a plus sign before positive values."""
    text = number(value, digits=digits)
    return f"+{text}" if value is not None and value > 0 and float(text) != 0 else text


def p_text(p: float | None) -> str:
    """`p = 0.635`, `p < 0.001`, or `p not available`."""
    if p is None:
        return "p not available"
    return f"p < {10**-DIGITS:g}" if p < 10**-DIGITS else f"p = {p:.{DIGITS}f}"


def interval_text(low: float | None, high: float | None, *, alpha: float = 0.05, digits: int = DIGITS) -> str:
    """`95% CI 0.100 to 0.200`, or that there is none."""
    level = f"{100 * (1 - alpha):g}% CI"
    if low is None or high is None:
        return f"no {level}"
    return f"{level} {number(low, digits=digits)} to {number(high, digits=digits)}"


def verdict_words(verdict: Verdict, *, margin: float) -> str:
    """The words that reports use for a verdict."""
    if verdict == "equivalent":
        return f"equivalent within ±{margin:g}"
    return "different" if verdict == "different" else "no detectable difference"


def paired_sentence(result: Compared, *, title_a: str, title_b: str, metric: str, unit: str = "latents") -> str:
    """The one sentence on a paired comparison, from its numbers.

    Args:
        metric: The metric's full name, such as `per-latent F1, averaged over latents`.
        unit: What is paired.
    """
    interval = interval_text(result.ci_low, result.ci_high, alpha=result.alpha, digits=DIFFERENCE_DIGITS)
    parts = [
        f"{metric}: {number(result.mean_a)} ({title_a}) and {number(result.mean_b)} ({title_b})",
        f"difference {signed(result.difference, digits=DIFFERENCE_DIGITS)} ({interval})",
        f"sign-flip {p_text(result.p_value)}",
        f"n = {result.n}" if unit == "latents" else f"n = {result.n} {unit}",
    ]
    if result.min_detectable is not None:
        parts.append(f"smallest detectable {number(result.min_detectable)}")
    numbers = ", ".join(parts)
    if result.verdict == "different":
        higher, lower = (title_b, title_a) if result.difference > 0 else (title_a, title_b)
        head = f"{higher} is higher than {lower}"
    else:
        verb = "are" if result.verdict == "equivalent" else "show"
        head = f"{title_a} and {title_b} {verb} {verdict_words(result.verdict, margin=result.margin)}"
    tail = ""
    if result.verdict == "different" and result.equivalence_p < result.alpha:
        tail = f" The difference lies within the margin of ±{result.margin:g}."
    elif result.ci_low is None:
        tail = f" With n = {result.n} no difference, however large, can reach p < {result.alpha:g}."
    return f"{head}: {numbers}.{tail}"
