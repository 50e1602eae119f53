"""Tokens of a text: numbers and operators of its `<<…>>` calculations, matches of a pattern, or words.

The surprising choice: two grammars for calculations. `seed` is the rule of a published analysis, kept to the letter, in
which `.5` reads `5`, and `10` and `10.00` are two tokens; `canonical` writes every number in one way.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from decimal import Decimal
from typing import Literal, NamedTuple, get_args

from saeinterp.config.enrichment import ConceptsConfig
from saeinterp.errors import ConfigError, DataError

Grammar = Literal["seed", "canonical"]
ANNOTATED: tuple[Grammar, ...] = get_args(Grammar)
"""Grammars that read annotations, and nothing else."""

OPERATORS = frozenset("+-*/=()%")

_ANNOTATION = re.compile(r"<<(.*?)>>", re.DOTALL)
_SEED = re.compile(r"\d+\.?\d*|[+\-*/=()]")
_CANONICAL = re.compile(r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d*)?|\.\d+|[+\-*/=()%]", re.ASCII)
_SPELLINGS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-"})
_LONGEST_NUMBER = 28
"""Characters; longer ones stay as they are, since `Decimal` rounds to so many digits."""


class Token(NamedTuple):
    """What a latent may be associated with: a text of a category."""

    text: str
    category: str


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


def count_annotations(answer: str) -> int:
    """How many calculations an answer holds: its number of steps."""
    return len(_ANNOTATION.findall(answer))


def text_grammar(config: ConceptsConfig) -> Callable[[str], list[Token]]:
    """What finds the tokens of a text, in order, repeats included.

    `canonical` and `seed`: `parse_annotation_tokens`, categories `number` and `operator`. `regex`: matches that are not
    empty, of the category that the named group that matched says (else `match`); how long a pattern may take is its
    author's business. `words`: between white space, lower-case, without punctuation (Unicode's) at their ends.

    Raises:
        AssertionError: The grammar reads no text (`tokens`, `column`).
    """
    if config.grammar == "canonical" or config.grammar == "seed":
        grammar: Grammar = config.grammar
        return lambda text: [Token(token, category(token)) for token in parse_annotation_tokens(text, grammar=grammar)]
    if config.grammar == "regex":
        assert config.pattern is not None
        pattern = re.compile(config.pattern)
        return lambda text: [
            Token(match.group(), match.lastgroup or "match") for match in pattern.finditer(text) if match.group()
        ]
    assert config.grammar == "words", config.grammar
    return lambda text: [Token(word, "word") for word in map(_bare, text.lower().split()) if word]


def category(token: str) -> Literal["number", "operator"]:
    """What kind of token it is."""
    return "operator" if token in OPERATORS else "number"


def _canonical(token: str) -> str:
    if token in OPERATORS or len(token) > _LONGEST_NUMBER:
        return token
    return format(Decimal(token.replace(",", "")).normalize(), "f")


def _bare(word: str) -> str:
    start, stop = 0, len(word)
    while start < stop and _is_punctuation(word[start]):
        start += 1
    while start < stop and _is_punctuation(word[stop - 1]):
        stop -= 1
    return word[start:stop]


def _is_punctuation(character: str) -> bool:
    return unicodedata.category(character).startswith("P")
