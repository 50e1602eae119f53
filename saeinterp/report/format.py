"""How numbers and untrusted text are written: the only place that rounds, signs or escapes.

The surprising choice: a number carries its own style (`score`, `share`, `p` ...), so that Markdown, HTML,
plots and table cells cannot write the same number in two ways, and nothing rounds twice.
"""

from __future__ import annotations

import math
import re
import unicodedata
from typing import Literal

from saeinterp.stats.wording import DIFFERENCE_DIGITS, DIGITS

Style = Literal[
    "score",
    "difference",
    "fine-difference",
    "share",
    "points",
    "points-spread",
    "percent",
    "fine-points",
    "nat-difference",
    "count",
    "p",
    "rate",
    "plain",
]
"""score 0.264 · difference +0.024 · fine-difference +0.0235 (of means, as in the sentences) · share 12.5% ·
points +1.2 pp · points-spread 1.2 pp · percent 12.50% · fine-points +1.25 pp (of percent) ·
nat-difference +0.125 nat · count 1,152 · p 0.635 · rate 1.2e-04 · plain four digits."""

MISSING = "NA"
_SIGNED: tuple[Style, ...] = ("difference", "fine-difference", "points", "fine-points", "nat-difference")
_UNITS: dict[Style, str] = {
    "share": "%",
    "points": " pp",
    "points-spread": " pp",
    "percent": "%",
    "fine-points": " pp",
    "nat-difference": " nat",
}
_SHOWN_CONTROLS = {"\n": "↵", "\t": "⇥"}
# An underscore inside a word, and `<` or `&` that begin no tag or entity, mean nothing in Markdown.
_MARKDOWN = re.compile(r"([\\`*\[\]|~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")
_HASH = re.compile(r"[0-9a-f]{32,}")
_TAG = re.compile(r"<(?=[A-Za-z/!?])")
_ENTITY = re.compile(r"&(?=#?\w+;)")


def number(value: float | int | None, style: Style) -> str:
    """One number in one style; None is `NA`."""
    if value is None or not math.isfinite(value):
        return MISSING
    if style == "count":
        return f"{int(value):,}"
    if style == "p":
        return "< 0.001" if value < 0.001 else f"{value:.3f}"
    size = abs(value)
    if style in ("share", "points", "points-spread"):
        text = f"{size * 100:.1f}"
    elif style in ("percent", "fine-points"):
        text = f"{size * 100:.2f}"
    elif style == "rate":
        text = f"{size:.1e}" if 0 < size < 0.001 else f"{size:.4f}"
    elif style == "plain":
        text = f"{size:,.4g}"
    else:
        text = f"{size:.{DIFFERENCE_DIGITS if style == 'fine-difference' else DIGITS}f}"
    # A difference that rounds to zero has no direction to show.
    zero = not re.search(r"[1-9]", text)
    sign = "" if zero else "−" if value < 0 else "+" if style in _SIGNED else ""
    return f"{sign}{text}{_UNITS.get(style, '')}"


def with_interval(
    value: float | int | None, low: float | None, high: float | None, style: Style
) -> tuple[str, str | None]:
    """The number and, where there is one, its interval; a unit in letters is written once, after the interval."""
    text = number(value, style)
    if value is None or low is None or high is None:
        return text, None
    unit = _UNITS.get(style, "")
    bounds = f"[{number(low, style).removesuffix(unit)}, {number(high, style).removesuffix(unit)}]{unit}"
    return (text.removesuffix(unit) if unit.startswith(" ") else text), bounds


def power(exponent: float) -> str:
    """A share given by its power of ten: `32%`, `0.1%`, `1e-05`."""
    value = 10**exponent
    return f"{value:.0%}" if value >= 0.095 else f"{value:.1%}" if value >= 0.00095 else f"{value:.0e}"


def visible(text: str) -> str:
    """Text with every control, bidirectional and zero-width character replaced by a visible stand-in.

    Tokens, labels and replies come from models: a NUL, an escape sequence or a right-to-left override in
    them must be seen, not obeyed.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_visible(character) for character in text)


def _visible(character: str) -> str:
    if character in _SHOWN_CONTROLS:
        return _SHOWN_CONTROLS[character]
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "␡"
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
        return f"⟨U+{code:04X}⟩"
    return character


def markdown_text(text: str) -> str:
    """Untrusted text as one Markdown line: markup, HTML and table bars shown literally."""
    return _MARKDOWN.sub(r"\\\1", _TAG.sub("&lt;", _ENTITY.sub("&amp;", visible(text))))


def short(text: str) -> str:
    """A configuration value for reading: of a hash the first twelve digits."""
    return f"{text[:12]}…" if _HASH.fullmatch(text) else text


def plural(count: int, noun: str) -> str:
    """`1 layer`, `3 layers`, `1,152 latents`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def listing(items: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else ""
