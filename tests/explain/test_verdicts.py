"""Verdicts in the replies that language models write, and in what nobody would write."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saeinterp.errors import ConfigError
from saeinterp.explain import parse_verdicts

T, F, N = True, False, None


@pytest.mark.parametrize(
    ("reply", "verdicts"),
    [
        ("[1, 0, 1]", [T, F, T]),
        ("[true, False, TRUE]", [T, F, T]),
        ('["1", "false", \'True\']', [T, F, T]),
        ("[1.0, 0., +1]", [T, F, T]),
        ("```json\n[1, 0, 1]\n```", [T, F, T]),
        ("[\n  1,\n  0,\n  1,\n]", [T, F, T]),
        ('{"verdicts": [1, 0, 1]}', [T, F, T]),
        ('{"result": {"why": "two match", "verdicts": [1, 0, 1]}}', [T, F, T]),
        ("Sure! The answer is [1, 0, 1]. Don't hesitate to ask.", [T, F, T]),
        ("It's clear, isn't it? [1,0,1]", [T, F, T]),
        ("First I thought [0, 0, 0], but no: [1, 0, 1]", [T, F, T]),
        ("[1, 0, 1]\nThere are [3] examples and [1, 0] do not count.", [T, F, T]),
        ("[1, 0, 1]\n[1, 0, 1]", [T, F, T]),
        ("<think>maybe [0, 0, 0]</think>[1, 0, 1]", [T, F, T]),
        ("[1, 0, 1]<think>or [0, 0, 0]", [T, F, T]),
        ("<THINK>\n[0,0,0]\n</THINK>\n{'answer': [1, 0, 1,]}", [T, F, T]),
        ("{ I would say [1, 0, 1]", [T, F, T]),
        ("[see below: [1, 0, 1]", [T, F, T]),
        ("[[1, 0, 1]]", [T, F, T]),
        ("[1, maybe, 1]", [T, N, T]),
        ("[1, 2, 0.5]", [T, N, N]),
        ("[1, null, none]", [T, N, N]),
        ("[1, -1, 10]", [T, N, N]),
        ("[1,,0]", [T, N, F]),
        ("[１, yes, 真]", [N, N, N]),
        ('["a, b", 1, "[0, 0, 0]"]', [N, T, N]),
        ('[{"verdict": 1}, 0, [1]]', [N, F, N]),
        ("[1, 0]", [N, N, N]),
        ("[1, 0, 1, 1]", [N, N, N]),
        ("[1, 0, 1", [N, N, N]),
        ("1, 0, 1", [N, N, N]),
        ('{"a": [1, 0, 1], "b": [0, 0, 0]}', [N, N, N]),
        ('[1, 0, 1] {"a": [0, 0, 0], "b": [0, 0, 0]}', [T, F, T]),
        ('{"note": "[0, 0, 0]"} [1, 0, 1]', [T, F, T]),
        ("<think>[1, 0, 1]", [N, N, N]),
        ("", [N, N, N]),
        ("]}{[", [N, N, N]),
        ("[" * 20_000 + "1,0,1" + "]" * 20_000, [T, F, T]),
    ],
)  # fmt: skip
def test_replies(reply: str, verdicts: list[bool | None]) -> None:
    assert parse_verdicts(reply, num_examples=3) == verdicts


@pytest.mark.parametrize(("reply", "verdict"), [("[1]", T), ("[[0]]", F), ('{"match": ["true"]}', T), ("1", N)])
def test_one_example(reply: str, verdict: bool | None) -> None:
    assert parse_verdicts(reply, num_examples=1) == [verdict]


def test_no_example_needs_no_reply() -> None:
    assert parse_verdicts("whatever", num_examples=0) == []
    with pytest.raises(ConfigError, match="num_examples"):
        parse_verdicts("[]", num_examples=-1)


@settings(deadline=None)
@given(st.text(alphabet="[]{},:'\"\\01 \ntruefalsTF<>/hink", max_size=200), st.integers(0, 5))
def test_any_text_gives_as_many_verdicts_as_examples(reply: str, num_examples: int) -> None:
    assert len(parse_verdicts(reply, num_examples=num_examples)) == num_examples


@settings(deadline=None)
@given(
    st.lists(st.booleans(), min_size=1, max_size=8),
    st.sampled_from(["{}", "```json\n{}\n```", "<think>[1]</think>\n{}", 'I say: {{"verdicts": {}}}, sir.']),
    st.sampled_from([json.dumps, str, lambda v: json.dumps([int(x) for x in v]), lambda v: str([str(x) for x in v])]),
)  # fmt: skip
def test_a_written_list_is_read_back(verdicts: list[bool], around: str, write: object) -> None:
    assert parse_verdicts(around.format(write(verdicts)), num_examples=len(verdicts)) == verdicts  # type: ignore[operator]


def test_a_long_reply_takes_linear_time() -> None:
    reply = "{[" * 50_000 + "'" * 50_000 + "]" * 10 + "\n[1, 0]"
    assert parse_verdicts(reply, num_examples=2) == [True, False]
