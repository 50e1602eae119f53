"""Probabilities out of lists of likeliest tokens, worked by hand."""

from __future__ import annotations

import math

import pytest

from saeinterp.explain.token_logprobs import Token, choice_logprobs, digit_after, slot_logprobs, verdict_logprobs


def token(text: str, others: dict[str, float] | None = None) -> Token:
    """A token of probability 1/2, and others with theirs."""
    return Token(text, [(name, math.log(chance)) for name, chance in {text: 0.5, **(others or {})}.items()])


def chances(pairs: tuple[tuple[float, float] | None, ...] | None) -> list[tuple[float, float] | None] | None:
    if pairs is None:
        return None
    return [pair and (round(math.exp(pair[0]), 6), round(math.exp(pair[1]), 6)) for pair in pairs]


def test_choices_are_summed_over_spellings_and_bounded_where_missing() -> None:
    pair = choice_logprobs([("Yes", -1.0), (" yes", -1.0), ("Maybe", -3.0)], ("Yes", "No"))
    assert pair == pytest.approx((-1.0 + math.log(2), -3.0))
    assert choice_logprobs([("Maybe", -0.1)], ("Yes", "No")) is None


def test_every_entry_has_the_probabilities_of_its_own_token() -> None:
    tokens = [
        token('{"v'),
        token('":'),
        token("["),
        token("1", {"0": 0.25}),
        token(","),
        token(" "),
        token("0", {"1": 0.125}),
    ]
    tokens.append(token("]}"))
    found = verdict_logprobs('{"v":[1, 0]}', tokens, num_examples=2)
    assert chances(found) == [(0.25, 0.5), (0.5, 0.125)]


def test_a_digit_glued_to_its_neighbours_is_compared_with_what_begins_alike() -> None:
    glued = Token("[1", [("[1", math.log(0.5)), ("[0", math.log(0.25)), ("0", math.log(0.125)), ("[", math.log(0.1))])
    behind = Token(" 0,", [(" 0,", math.log(0.5)), ("0", math.log(0.2)), (" 1,", math.log(0.1)), ("10", -9.0)])
    tokens = [glued, Token(",", [(",", 0.0)]), behind, token("1", {"0": 0.25}), token("]")]
    found = verdict_logprobs("[1, 0,1]", tokens, num_examples=3)
    assert chances(found) == [(0.25, 0.5), (0.7, 0.1), (0.25, 0.5)]


def test_an_unlisted_digit_has_at_most_the_probability_of_the_last_one_listed() -> None:
    found = verdict_logprobs("[1]", [token("["), token("1", {"x": 0.25, "y": 0.0625}), token("]")], num_examples=1)
    assert chances(found) == [(0.0625, 0.5)]


def test_an_entry_that_is_no_digit_has_none() -> None:
    tokens = [token(text) for text in ("[", "true", ", ", "1", ", ", "?", ",", '"0"', "]")]
    found = verdict_logprobs('[true, 1, ?,"0"]', tokens, num_examples=4)
    assert [pair is None for pair in found or ()] == [True, False, True, True]


def test_the_list_that_counts_is_the_one_that_is_parsed() -> None:
    tokens = [token(text) for text in ("[", "0", "]", " no: ", "[", "1", "]")]
    tokens[5] = token("1", {"0": 0.03125})
    assert chances(verdict_logprobs("[0] no: [1]", tokens, num_examples=1)) == [(0.03125, 0.5)]
    # Two lists in an object give no verdict, so that there is none whose probability could be told.
    both = '{"a":[0],"b":[1]}'
    assert verdict_logprobs(both, [token(char) for char in both], num_examples=1) is None
    assert verdict_logprobs("[1, 0]", [token(char) for char in "[1, 0]"], num_examples=3) is None


def test_tokens_of_reasoning_before_the_reply_do_not_shift_the_entries() -> None:
    tokens = [token("perhaps [0] or"), token("</think>"), token("["), token("1", {"0": 0.25}), token("]")]
    assert chances(verdict_logprobs("[1]", tokens, num_examples=1)) == [(0.25, 0.5)]
    assert verdict_logprobs("[1]", [token("something else")], num_examples=1) is None


def entry(*listed: tuple[str, float]) -> dict[str, dict[str, object]]:
    """One place of vLLM's `prompt_logprobs`; the token that is there comes first."""
    return {str(index): {"logprob": value, "decoded_token": text} for index, (text, value) in enumerate(listed)}


def test_slots_give_ten_digits_each_and_only_those_of_the_last_turn() -> None:
    prompt = [
        None,
        entry(("an example: <?>", -1.0)),
        entry(("cat\t", -1.0)),
        entry(("<?", -8.0), ("3", -0.5), (" 3", -0.5), ("4", -2.0), ("x", -3.0), ("33", -0.1)),
        entry((">", -0.1)),
        entry(("\n\t<", -8.0), ("\n\t7", -0.25), ("7", -6.0), ("\n", -0.125)),
        entry(("?>", -1.0)),
        entry(("<|end|>", -1.0)),
    ]
    found = slot_logprobs(prompt, content="cat\t<?>\n\t<?>", slot="<?>")
    assert found is not None
    first, second = found
    assert first[3] == pytest.approx(-0.5 + math.log(2))
    assert first[4] == -2.0
    assert {first[digit] for digit in (0, 1, 2, 5, 6, 7, 8, 9)} == {-8.0}
    # Behind "\n\t" a bare 7 reads alike, spaces aside.
    assert second[7] == pytest.approx(math.log(math.exp(-0.25) + math.exp(-6.0)))


def test_slots_that_the_tokens_do_not_spell_are_not_guessed() -> None:
    assert slot_logprobs([None, entry(("other", -1.0))], content="a <?>", slot="<?>") is None
    assert slot_logprobs([None, entry(("other", -1.0))], content="no slot", slot="<?>") == ()


@pytest.mark.parametrize(
    ("before", "text", "digit"),
    [
        ("", "3", 3),
        ("", " 3\n", 3),
        (" ", "3", 3),
        ("\t<", "\t<9", 9),
        ("<", "3", None),
        ("", "33", None),
        ("", "", None),
        ("", "٣", None),
        ("", "three", None),
    ],
)
def test_a_digit_behind_the_beginning_of_a_token(before: str, text: str, digit: int | None) -> None:
    assert digit_after(before, text) == digit
