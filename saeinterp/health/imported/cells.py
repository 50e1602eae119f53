"""One cell of an outside table: what people write there, as numbers with their rounding.

`98.42% (WikiText)<br>98.51% (SQuAD)`, `61.37-63.35`, `⚠️ 3/4 Healthy`, `NA`. The surprising choice: what a cell may
mean in two ways is refused with its place, never guessed: a dead fraction of 28.25 without `%`, a comma.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Literal, NamedTuple, NoReturn

from saeinterp.errors import DataError

NUMBER = r"[-−–+]?\d+(?:\.\d+)?(?:[eE][-+]?\d{1,3})?"
_ONE = re.compile(rf"(?P<value>{NUMBER})\s*(?P<percent>%)?")
_RANGE = re.compile(
    rf"(?P<first>{NUMBER})\s*(?P<p>%)?\s*(?:-|–|—|to|\.\.)\s*(?P<second>\+?\d+(?:\.\d+)?)\s*(?P<percent>%)?"
)
_LABELLED = re.compile(r"(?P<body>.*?)\s*\((?P<label>[^()]*)\)\s*$")
_BREAK = re.compile(r"<br\s*/?>|\n", re.IGNORECASE)
_NOTHING = {"", "-", "–", "—", "na", "n/a", "null", "none", "not measured", "not applicable"}
_GRADE = re.compile(r"(?<![\d/])(\d+)\s*/\s*(\d+)(?![\d/])")
_MARKUP = re.compile(r"\*\*|__|`")

SYNONYMS: dict[str, tuple[str, ...]] = {
    "model": ("model", "side"),
    "layer": ("layer", "layers", "hookpoint"),
    "dataset": ("dataset", "data", "corpus"),
    "loss_recovered": ("lossrecovered", "lossrecovery", "celossscore"),
    "l0": ("l0", "l0mean", "meanl0", "l0sparsity"),
    "dead_fraction": ("dead", "deadfraction", "deadfeatures", "deadlatents", "deadneurons"),
    "absorption": ("absorption", "featureabsorption", "meanabsorption", "absorptionscore"),
    "status": ("healthstatus", "health", "status", "grade"),
    "k": ("k",),
    "num_latents": ("latents", "numlatents", "dictionarysize"),
    "alive": ("alive", "alivelatents"),
    "l0_max": ("l0max", "maxl0"),
}
"""Column -> headings that mean it, in lower case without anything but letters and digits."""
METRIC_COLUMNS = ("loss_recovered", "l0", "dead_fraction", "absorption")
COUNT_COLUMNS = ("k", "num_latents", "alive")
_EXPECTED = {
    "loss_recovered": "a fraction such as 0.9842, or a percentage such as 98.42%",
    "l0": "a number of latents such as 31.5",
    "l0_max": "a number of latents such as 32",
    "dead_fraction": "a fraction from 0 to 1, or a percentage such as 28.25%",
    "absorption": "a fraction from 0 to 1, such as 0.269",
    "k": "a whole number",
    "num_latents": "a whole number",
    "alive": "a whole number",
}
MOST_RECOVERED = 2.0
"""A bare loss recovered beyond this was meant as a percentage; CE is not negative, so a true one stays near 1."""


class Place(NamedTuple):
    """Where a value stands."""

    file: str
    line: int
    column: str
    unit: Literal["line", "row"] = "line"

    def refuse(self, problem: str, got: object, *, expected: str, next_step: str | None = None) -> NoReturn:
        """Raise `DataError` with file, line, column, value and expectation."""
        raise DataError(
            f"column {self.column!r}: {problem}",
            field=f"{self.file}, {self.unit} {self.line}",
            got=got,
            expected=expected,
            next_step=next_step,
        )


class Quantity(NamedTuple):
    """A number as printed.

    Attributes:
        value: A fraction where a percentage was written.
        half_step: Half a unit of its last printed digit, in the same unit as `value`.
        dataset: Its label, such as `WikiText`; None where it has none.
    """

    value: float
    half_step: float
    dataset: str | None = None


def column_of(heading: str) -> tuple[str | None, bool]:
    """The column that a heading means, and whether it says that its numbers are percentages."""
    plain = _MARKUP.sub("", heading)
    percent = "%" in plain
    for end in ("_low", "_high"):
        if plain.strip().lower().endswith(end):
            name, _ = column_of(plain.strip()[: -len(end)])
            return (f"{name}{end}" if name in METRIC_COLUMNS else None), percent
    key = re.sub(r"[^a-z0-9]", "", plain.lower())
    return next((name for name, words in SYNONYMS.items() if key in words), None), percent


def quantities(text: str, metric: str, place: Place, *, percent: bool = False) -> list[Quantity]:
    """The numbers of one cell, in order; none for an empty or NA cell. A range gives both its ends.

    Args:
        metric: The column's name, by which values are judged.
        percent: The heading says that numbers are percentages.

    Raises:
        DataError: Something is no number, or impossible for this metric.
    """
    found: list[Quantity] = []
    for part in _BREAK.split(plain_text(text)):
        body, label = part.strip(), None
        if labelled := _LABELLED.fullmatch(body):
            body, label = labelled["body"].strip(), labelled["label"].strip() or None
        if body.lower() in _NOTHING:
            continue
        if match := _ONE.fullmatch(body):
            numbers, share = [match["value"]], bool(match["percent"]) or percent
        elif match := _RANGE.fullmatch(body):
            numbers, share = [match["first"], match["second"]], bool(match["percent"] or match["p"]) or percent
        else:
            place.refuse("is not a number", text, expected=_EXPECTED.get(metric, "a number"))
        found += [_quantity(number, share, label, metric, place) for number in numbers]
    return found


def number_of(value: object, metric: str, place: Place) -> Quantity | None:
    """One number of a JSON file; a string is read as a cell.

    Raises:
        DataError: It is no single number, or impossible for this metric.
    """
    if value is None:
        return None
    if isinstance(value, str):
        found = quantities(value, metric, place)
        if len(found) > 1:
            place.refuse("holds several numbers", value, expected="one number; give each dataset a row of its own")
        return found[0] if found else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        place.refuse("is not a number", value, expected=_EXPECTED.get(metric, "a number"))
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    _check(number, metric, place, value)
    return Quantity(number, 0.0)


def printed_grade(text: str) -> tuple[int, int] | None:
    """The `3/4` of a status cell; None where it holds no such fraction."""
    match = _GRADE.search(plain_text(text))
    return (int(match[1]), int(match[2])) if match else None


def plain_text(text: str) -> str:
    """A cell without Markdown's bold and code marks."""
    return _MARKUP.sub("", text).strip()


def _quantity(text: str, percent: bool, label: str | None, metric: str, place: Place) -> Quantity:
    exact = Decimal(text.replace("−", "-").replace("–", "-"))
    digits = -int(exact.as_tuple().exponent)
    unit = Decimal("0.01") if percent else Decimal(1)
    value = float(exact * unit)
    _check(value, metric, place, f"{text}%" if percent else text)
    return Quantity(value, float(Decimal(5).scaleb(-digits - 1) * unit), label)


def _check(value: float, metric: str, place: Place, got: object) -> None:
    expected = _EXPECTED.get(metric, "a number")
    name = metric.removesuffix("_low").removesuffix("_high")
    if not math.isfinite(value):
        place.refuse("is not finite", got, expected=expected)
    if name in ("dead_fraction", "absorption") and not 0 <= value <= 1:
        hint = "write percentages with %" if 1 < value <= 100 and "%" not in str(got) else None
        place.refuse("lies outside 0 to 1", got, expected=expected, next_step=hint)
    if name == "loss_recovered" and value > MOST_RECOVERED:
        place.refuse("is too large for a fraction", got, expected=expected, next_step="write percentages with %")
    if name in ("l0", "l0_max", *COUNT_COLUMNS) and value < 0:
        place.refuse("is negative", got, expected=expected)
    if name in COUNT_COLUMNS and value != int(value):
        place.refuse("is not a whole number", got, expected=expected)
