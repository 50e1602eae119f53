"""Reasons of missing numbers, those that differ in their figures alone written once.

The surprising choice: figures that differ become a range ("−0.151 to −0.003"), so that thirty layers take one line and
no figure is hidden.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")

_FIGURE = re.compile(r"(?<![\w.])[−+-]?\d[\d,]*(?:\.\d+)?(?![\w])")


def fold_reasons(found: Mapping[str, Iterable[T]]) -> list[tuple[str, list[T]]]:
    """Reasons in order of first mention, each with everything it holds for; equal words are one reason."""
    groups: dict[str, tuple[list[str], list[T]]] = {}
    for reason, items in found.items():
        reasons, held = groups.setdefault(_FIGURE.sub("#", reason), ([], []))
        reasons.append(reason)
        held += items
    return [(_merged(reasons), held) for reasons, held in groups.values()]


def _merged(reasons: list[str]) -> str:
    """One text; a figure that differs is shown from smallest to largest."""
    columns = zip(*(_FIGURE.findall(reason) for reason in reasons), strict=True)
    shown = iter([_range(column) for column in columns])
    return _FIGURE.sub(lambda _: next(shown), reasons[0])


def _range(figures: tuple[str, ...]) -> str:
    low, high = (pick(figures, key=_value) for pick in (min, max))
    return low if _value(low) == _value(high) else f"{low} to {high}"


def _value(figure: str) -> float:
    return float(figure.replace("−", "-").replace(",", ""))
