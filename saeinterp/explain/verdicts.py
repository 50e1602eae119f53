"""Verdicts out of what a scorer writes: one true, false or nothing per example.

Replies are untrusted text. The surprising choice: nothing is guessed. A list of the wrong length, two lists in
one object, a word that is neither true nor false give no verdict, which lowers coverage and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from saeinterp.errors import ConfigError

_THINKING = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL | re.IGNORECASE)
_WORDS = {"true": True, "false": False}
_NUMBER = re.compile(r"\+?([01])(?:\.0*)?", re.ASCII)
_OPEN, _CLOSE = {"[": "]", "{": "}"}, {"]": "[", "}": "{"}
_QUOTES = "\"'"


@dataclass
class _Bracket:
    """A list or an object being read: its entries so far, and the entry that has begun."""

    kind: str
    entries: list[str | _Bracket] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    inner: list[_Bracket] = field(default_factory=list)

    def end_entry(self, *, last: bool = False) -> None:
        text = "".join(self.text).strip()
        if self.inner:
            self.entries.append(self.inner[-1])
        elif text or not last:
            self.entries.append(text)
        self.text, self.inner = [], []


def parse_verdicts(reply: str, *, num_examples: int) -> list[bool | None]:
    """The verdicts in a reply, `num_examples` of them; None where there is none.

    Reasoning in `<think>` tags is left out, one without an end to the end of the reply. Then the last list of exactly
    `num_examples` entries counts, bare or as the only list in an object; without one, no verdict is known. An entry is
    a verdict if it is 0, 1, true or false, as a number, a word or a string.

    Raises:
        ConfigError: `num_examples` is negative.
    """
    if num_examples < 0:
        raise ConfigError("cannot be negative", field="num_examples", got=num_examples, expected="0 or more")
    entries: list[str | _Bracket] | None = None
    for bracket in _brackets(_THINKING.sub(" ", reply)):
        if len(bracket.entries) == num_examples:
            entries = bracket.entries
    return [None] * num_examples if entries is None else [_verdict(entry) for entry in entries]


def _verdict(entry: str | _Bracket) -> bool | None:
    if isinstance(entry, _Bracket):
        return None
    if len(entry) > 1 and entry[0] in _QUOTES and entry[-1] == entry[0]:
        entry = entry[1:-1].strip()
    if entry.lower() in _WORDS:
        return _WORDS[entry.lower()]
    number = _NUMBER.fullmatch(entry)
    return number.group(1) == "1" if number else None


def _brackets(text: str) -> Iterator[_Bracket]:
    """Lists that may hold the verdicts, in the order in which they are written."""
    pending = [(node, False) for node in reversed(_parsed(text))]
    while pending:
        node, inside = pending.pop()
        children = [entry for entry in node.entries if isinstance(entry, _Bracket)]
        if node.kind == "[" and not inside:
            yield node
        if node.kind == "{" and not inside:
            lists = list(_lists(node))
            if len(lists) == 1:
                yield lists[0]
            inside = True
        pending += [(child, inside) for child in reversed(children)]


def _lists(node: _Bracket) -> Iterator[_Bracket]:
    """Every list inside an object, at any depth."""
    pending: list[str | _Bracket] = list(node.entries)
    while pending:
        found = pending.pop()
        if isinstance(found, _Bracket):
            if found.kind == "[":
                yield found
            pending += found.entries


def _parsed(text: str) -> list[_Bracket]:
    """The outermost brackets of a text that is hardly ever clean JSON.

    A bracket without its end does not exist: what was complete inside it moves out.
    """
    top = _Bracket("")
    stack = [top]

    def unwrap() -> None:
        lost = stack.pop()
        lost.end_entry(last=True)
        kept = [entry for entry in lost.entries if isinstance(entry, _Bracket)]
        if stack[-1] is top:
            top.entries += kept
        else:
            stack[-1].inner += kept

    at = 0
    while at < len(text):
        char, node = text[at], stack[-1]
        if char in _OPEN:
            stack.append(_Bracket(char))
        elif char in _CLOSE:
            if any(open_.kind == _CLOSE[char] for open_ in stack[-_DEPTH:]):
                while stack[-1].kind != _CLOSE[char]:
                    unwrap()
                closed = stack.pop()
                closed.end_entry(last=True)
                if stack[-1] is top:
                    top.entries.append(closed)
                else:
                    stack[-1].inner.append(closed)
        elif node is not top:
            if char in ",:" and (char == "," or node.kind == "{"):
                node.end_entry()
            elif char in _QUOTES and not "".join(node.text[-1:]).strip() and (end := _string_end(text, at)):
                node.text.append(text[at:end])
                at = end
                continue
            else:
                node.text.append(char)
        at += 1
    while len(stack) > 1:
        unwrap()
    return [entry for entry in top.entries if isinstance(entry, _Bracket)]


_DEPTH = 100  # a closing bracket looks no further for its opening one


def _string_end(text: str, start: int) -> int | None:
    """Where a string that starts at a quote ends, on the same line; None if it does not."""
    at = start + 1
    while at < len(text) and text[at] != "\n":
        if text[at] == "\\":
            at += 1
        elif text[at] == text[start]:
            return at + 1
        at += 1
    return None
