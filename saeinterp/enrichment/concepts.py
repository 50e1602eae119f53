"""Tokens of an annotated answer: the numbers and operators of its `<<…>>` calculations.

The surprising choice: two grammars. `seed` is the rule of a published analysis, kept to the letter, in which `.5` reads
`5`, and `10` and `10.00` are two tokens; `canonical` writes every number in one way.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Literal, get_args

from saeinterp.errors import ConfigError, DataError

Grammar = Literal["seed", "canonical"]

OPERATORS = frozenset("+-*/=()%")

_ANNOTATION = re.compile(r"<<(.*?)>>", re.DOTALL)
_SEED = re.compile(r"\d+\.?\d*|[+\-*/=()]")
_CANONICAL = re.compile(r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d*)?|\.\d+|[+\-*/=()%]", re.ASCII)
_SPELLINGS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-"})
_LONGEST_NUMBER = 28
"""Characters; longer ones stay as they are, since `Decimal` rounds to so many digits."""


def parse_annotation_tokens(answer: str, *, grammar: Grammar) -> list[str]:
    """The tokens of all annotations of an answer, in order, repeats included.

    Args:
        answer: Text with calculations such as `<<48/2=24>>`; nothing outside of them counts.
        grammar: `seed`: `\\d+\\.?\\d*` and the characters `+-*/=()`. `canonical`: numbers without thousands separators,
            leading or trailing zeros (`1,000` → `1000`, `.5` → `0.5`, `10.00` → `10`), `%` too, and `×`, `÷` and
            typographic minus signs as `*`, `/` and `-`.

    Raises:
        ConfigError: Another grammar.
        DataError: The answer is no text.
    """
    if not isinstance(answer, str):
        raise DataError("is no text", field="answer", got=type(answer).__name__, expected="a string")
    annotations = _ANNOTATION.findall(answer)
    if grammar == "seed":
        return [token for text in annotations for token in _SEED.findall(text)]
    if grammar == "canonical":
        return [_canonical(token) for text in annotations for token in _CANONICAL.findall(text.translate(_SPELLINGS))]
    raise ConfigError("unknown", field="grammar", got=grammar, expected=" or ".join(get_args(Grammar)))


def category(token: str) -> Literal["number", "operator"]:
    """What kind of token it is."""
    return "operator" if token in OPERATORS else "number"


def _canonical(token: str) -> str:
    if token in OPERATORS or len(token) > _LONGEST_NUMBER:
        return token
    return format(Decimal(token.replace(",", "")).normalize(), "f")
