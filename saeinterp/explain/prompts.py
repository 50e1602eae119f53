"""Prompts as text files: a shared beginning, examples of the task, and a form to fill.

`prompts/<name>.txt` holds turns separated by lines `--- user` and `--- assistant`; the last turn is the form,
with `{placeholders}`. The hash of the file enters recipes. The surprising choice: what fills a form is never
searched for placeholders, so text of documents and replies of models cannot reach into the prompt.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

from saeinterp.explain.llm import Message

_TURN = re.compile(r"^--- (user|assistant)\n", re.MULTILINE)
_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_CONTROL_TOKEN = re.compile(r"<\|(?=[^|<>\n]{1,60}\|>)")


def prompt_hash(name: str) -> str:
    """SHA-256 of a prompt file."""
    return hashlib.sha256(_read(name).encode()).hexdigest()


def fill(name: str, values: Mapping[str, str]) -> tuple[Message, ...]:
    """The turns of a prompt with the form filled in; every placeholder needs a value.

    Control tokens of chat templates (`<|im_end|>`) in a value are broken up: servers would obey them.
    """
    *before, form = _turns(name)
    filled = _PLACEHOLDER.sub(lambda match: _CONTROL_TOKEN.sub("< |", values[match[1]]), form.content)
    return (*before, Message("user", filled))


@cache
def _turns(name: str) -> tuple[Message, ...]:
    parts = _TURN.split(_read(name))
    assert not parts[0].strip(), f"{name}.txt starts with no turn"
    turns = tuple(
        Message("assistant" if role == "assistant" else "user", content.strip("\n"))
        for role, content in zip(parts[1::2], parts[2::2], strict=True)
    )
    assert turns[-1].role == "user", f"{name}.txt ends with no form"
    return turns


@cache
def _read(name: str) -> str:
    return (files("saeinterp.explain") / "prompts" / f"{name}.txt").read_text(encoding="utf-8")
