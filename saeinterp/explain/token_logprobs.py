"""Probabilities of answers out of a server's lists of likeliest tokens.

An answer that is in no list has at most the probability of the last token that is, and gets that: a bound, never
zero. The surprising choice: a digit is looked for in the token that was written, so `[1`, ` 1` and `1,` count as
well as `1`; what stands before the digit must agree, spaces aside.
"""

from __future__ import annotations

import itertools
import math
import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from saeinterp.explain.verdicts import parse_verdicts

DIGITS = "0123456789"
_LIST = re.compile(r"\[([^\[\]]*)\]")


class Token(NamedTuple):
    """A token of a text, and the likeliest tokens at its place, itself among them."""

    text: str
    top: Sequence[tuple[str, float]]


def choice_logprobs(top: Iterable[tuple[str, float]], choices: tuple[str, str]) -> tuple[float, float] | None:
    """Log-probabilities of two answers from the likeliest tokens, over spellings and spaces.

    None when neither is in the list.
    """
    found: list[list[float]] = [[], []]
    least = 0.0
    for token, logprob in top:
        least = min(least, logprob)
        for index, choice in enumerate(choices):
            if token.strip().casefold() == choice.casefold():
                found[index].append(logprob)
    if not any(found):
        return None
    yes, no = (_log_sum(values) if values else least for values in found)
    return yes, no


def verdict_logprobs(
    text: str, tokens: Sequence[Token], *, num_examples: int
) -> tuple[tuple[float, float] | None, ...] | None:
    """Per entry of the verdict list in a reply, the log-probabilities of 0 and of 1.

    None for an entry that is no plain digit; None in whole where the list is not found, is not the one whose entries
    count as verdicts, or is not spelled by the tokens.
    """
    found: re.Match[str] | None = None
    for match in _LIST.finditer(text):
        if len(_entries(match[1])) == num_examples:
            found = match
    if found is None:
        return None
    entries = _entries(found[1])
    verdicts = parse_verdicts(text, num_examples=num_examples)
    plain = [entry.strip() in ("0", "1") for entry in entries]
    if any(is_plain and (entry.strip() == "1") is not said for entry, is_plain, said in zip(entries, plain, verdicts)):
        return None
    starts = [0, *itertools.accumulate(len(token.text) for token in tokens)]
    at = "".join(token.text for token in tokens).rfind(found[0]) + 1
    if not at:
        return None
    pairs: list[tuple[float, float] | None] = []
    for entry, is_plain in zip(entries, plain):
        place = at + len(entry) - len(entry.lstrip())
        index = bisect_right(starts, place) - 1
        token = tokens[index]
        pairs.append(_digit_pair(token.text[: place - starts[index]], token.top) if is_plain else None)
        at += len(entry) + 1
    return tuple(pairs)


def slot_logprobs(
    prompt: Sequence[Mapping[str, Mapping[str, Any]] | None], *, content: str, slot: str
) -> tuple[tuple[float, ...], ...] | None:
    """Log-probabilities of the ten digits where a slot text stands in the last turn.

    Args:
        prompt: vLLM's `prompt_logprobs`: per token of the prompt, tokens by id with `logprob` and `decoded_token`, the
            token that is there first; None for the first token.
        content: The last turn.
        slot: The text that stands for a digit.

    Returns:
        Per slot the log-probabilities of 0 to 9; None where the prompt's tokens do not spell the slots.
    """
    tokens = []
    for listed in prompt:
        top = [(str(item.get("decoded_token") or ""), float(item["logprob"])) for item in (listed or {}).values()]
        tokens.append(Token(top[0][0] if top else "", top))
    starts = [0, *itertools.accumulate(len(token.text) for token in tokens)]
    found = last_places("".join(token.text for token in tokens), slot, count=content.count(slot))
    if found is None:
        return None
    rows = []
    for place in found:
        index = bisect_right(starts, place) - 1
        token = tokens[index]
        before = token.text[: place - starts[index]]
        least = min(logprob for _, logprob in token.top)
        values: list[list[float]] = [[] for _ in DIGITS]
        for text, logprob in token.top:
            digit = digit_after(before, text)
            if digit is not None:
                values[digit].append(logprob)
        rows.append(tuple(_log_sum(some) if some else least for some in values))
    return tuple(rows)


def last_places(text: str, slot: str, *, count: int) -> list[int] | None:
    """Where the last `count` occurrences of a slot begin; None where there are fewer."""
    found = [match.start() for match in re.finditer(re.escape(slot), text)]
    return found[len(found) - count :] if len(found) >= count else None


def digit_after(before: str, token: str) -> int | None:
    """The digit that a token writes behind a given beginning, spaces aside: ` 3` and `3` behind nothing."""
    stem = before.strip()
    rest = token.strip().removeprefix(stem) if token.strip().startswith(stem) else ""
    return DIGITS.index(rest) if len(rest) == 1 and rest in DIGITS else None


def _digit_pair(before: str, top: Sequence[tuple[str, float]]) -> tuple[float, float]:
    """Log-probabilities of 0 and 1 behind a token's beginning; what follows the digit is any punctuation."""
    stem = re.escape(before.strip())
    found: dict[str, list[float]] = {"0": [], "1": []}
    for text, logprob in top:
        match = re.match(rf"\s*{stem}\s*([01])(?![\w.])", text)
        if match:
            found[match[1]].append(logprob)
    least = min(logprob for _, logprob in top)
    zero, one = (_log_sum(values) if values else least for values in found.values())
    return zero, one


def _entries(inside: str) -> list[str]:
    """What stands between the commas of a list, a trailing comma aside."""
    entries = inside.split(",")
    return entries if entries[-1].strip() else entries[:-1]


def _log_sum(values: Sequence[float]) -> float:
    top = max(values)
    return top + math.log(sum(math.exp(value - top) for value in values))
