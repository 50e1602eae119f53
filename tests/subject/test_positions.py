"""Which tokens of a problem a selector chooses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saeinterp.errors import ConfigError
from saeinterp.subject.positions import parse_select, places

TOKENS = np.array([7, 5, 5, 9, 5, 8, 6, 5, 4, 3], np.int32)
COT = range(3, 10)


def chosen(select: str, *, tokens: np.ndarray = TOKENS, cot: range = COT) -> list[list[int]]:
    return [index.tolist() for index in places(parse_select(select), tokens, cot=cot)]


def test_even_takes_the_middles_of_equal_parts_of_the_reasoning() -> None:
    # 7 tokens from index 3: 3 + floor((j + 1/2) * 7 / 3) = 3 + (1, 3, 5).
    assert chosen("even:3@cot") == [[4], [6], [8]]
    assert chosen("even:7@cot") == [[3], [4], [5], [6], [7], [8], [9]]
    assert chosen("even:1@cot") == [[6]]


def test_reasoning_with_fewer_tokens_than_places_has_none_of_them() -> None:
    assert chosen("even:8@cot") == [[]] * 8
    assert chosen("even:2@cot", cot=range(10, 10)) == [[], []]


def test_last_counts_from_the_end() -> None:
    assert chosen("last:3") == [[7], [8], [9]]
    assert chosen("last:3@cot", cot=range(2, 6)) == [[3], [4], [5]]


def test_places_before_the_start_are_never_moved_to_another_token() -> None:
    assert chosen("last:4", tokens=TOKENS[:3]) == [[], [0], [1], [2]]
    assert chosen("last:4@cot", cot=range(8, 10)) == [[], [], [8], [9]]


def test_token_is_its_last_occurrence() -> None:
    assert chosen("token:5") == [[7]]
    assert chosen("token:2") == [[]]
    assert chosen("token:0", tokens=np.array([0, 1], np.int32)) == [[0]]


def test_all_is_one_slot_with_every_token() -> None:
    assert chosen("all") == [list(range(10))]
    assert chosen("all@cot") == [list(range(3, 10))]


@given(st.integers(0, 400), st.integers(1, 30), st.integers(0, 50))
def test_even_places_ascend_within_the_reasoning(length: int, count: int, start: int) -> None:
    found = chosen(f"even:{count}@cot", tokens=np.zeros(start + length, np.int32), cot=range(start, start + length))
    flat = [index for slot in found for index in slot]
    assert len(flat) == (count if length >= count else 0)
    assert flat == sorted(set(flat))
    assert all(start <= index < start + length for index in flat)


@pytest.mark.parametrize(
    "select",
    [
        "",
        "alle",
        "last",
        "last:0",
        "even:6",
        "even:6@bot",
        "token",
        "token:x",
        "all:3",
        "all@bot",
        "latent:6@cot",
        "latent:0",
        "last:-1",
        "token:5@cot",
    ],
)
def test_other_selectors_are_refused_with_those_that_exist(select: str) -> None:
    with pytest.raises(ConfigError, match=r"positions\.select: no such selector.*even:n@cot"):
        parse_select(select)


def test_titles_say_where_a_slot_is() -> None:
    assert parse_select("even:2@cot").titles == ["reasoning 1/2", "reasoning 2/2"]
    assert parse_select("last:3").titles == ["token 3 from the end", "token 2 from the end", "last token"]
    assert parse_select("latent:3").titles == ["thought 1", "thought 2", "thought 3"]
    assert parse_select("latent:3@bot").titles == ["BOT", "thought 1", "thought 2"]
    assert parse_select("all").titles == ["every token"]
    assert parse_select("last:1@cot").titles == ["last token of the reasoning"]
