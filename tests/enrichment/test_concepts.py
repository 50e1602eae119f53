"""Tokens of annotated answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saeinterp.enrichment import parse_annotation_tokens
from saeinterp.errors import ConfigError, DataError

GSM8K = Path(__file__).parents[3] / "shared" / "data" / "gsm8k-train.jsonl"


def test_the_published_grammar_to_the_letter() -> None:
    answer = "She sold 48/2 = <<48/2=24>>24 clips, paid <<20*.5=10.00>>10."
    assert parse_annotation_tokens(answer, grammar="seed") == ["48", "/", "2", "=", "24", "20", "*", "5", "=", "10.00"]


@pytest.mark.parametrize(
    ("annotation", "tokens"),
    [
        ("20*.5=10.00", "20 * 0.5 = 10"),
        ("1,000+12,345.60=13,345.6", "1000 + 12345.6 = 13345.6"),
        ("007-0.50=6.5", "7 - 0.5 = 6.5"),
        ("3×4÷2−1=5", "3 * 4 / 2 - 1 = 5"),
        ("(5%*200)=10.", "( 5 % * 200 ) = 10"),
        ("0.00=00", "0 = 0"),
        ("100000=1e5", "100000 = 1 5"),
        ("", ""),
    ],
)
def test_canonical_numbers_have_one_spelling(annotation: str, tokens: str) -> None:
    assert parse_annotation_tokens(f"a 7 <<{annotation}>> 8", grammar="canonical") == tokens.split()


def test_what_is_outside_of_annotations_does_not_count() -> None:
    assert parse_annotation_tokens("2+2=4 and << 1 > 0", grammar="canonical") == []
    assert parse_annotation_tokens("<<1+\n1=2>> <<3>>", grammar="seed") == ["1", "+", "1", "=", "2", "3"]


@given(st.text(alphabet="0123456789.,+-*/=()<>% ×é٣", max_size=60))
def test_canonical_tokens_are_their_own_canonical_form(text: str) -> None:
    tokens = parse_annotation_tokens(f"<<{text}>>", grammar="canonical")
    again = [parse_annotation_tokens(f"<<{token}>>", grammar="canonical") for token in tokens]
    assert again == [[token] for token in tokens]


def test_bad_input_is_named() -> None:
    with pytest.raises(ConfigError, match="grammar"):
        parse_annotation_tokens("<<1>>", grammar="latex")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="answer"):
        parse_annotation_tokens(None, grammar="seed")  # type: ignore[arg-type]


def test_the_published_vocabulary_of_gsm8k() -> None:
    if not GSM8K.exists():
        pytest.skip("GSM8K is not on this machine")
    answers = [json.loads(line)["answer"] for line in GSM8K.read_text(encoding="utf-8").splitlines()]
    first = sorted(range(len(answers)), key=lambda index: f"train_{index}")[:1000]
    found = [parse_annotation_tokens(answers[index], grammar="seed") for index in first]
    assert len(set().union(*found)) == 628
    assert sum(map(len, found)) == 16_913
    assert sum(len(set(tokens)) for tokens in found) == 9_778
