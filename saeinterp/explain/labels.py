"""Labels out of what models write.

Replies are untrusted text. The surprising choice: a reply that holds no word is no label, whatever else it
holds, and has a reason instead.
"""

from __future__ import annotations

import json
import re
import unicodedata
from typing import NamedTuple

LONGEST_LABEL = 200
"""Characters; a longer reply is cut at a word."""


class Label(NamedTuple):
    """What a reply says: the label, or why there is none."""

    text: str | None
    reason: str | None


def parse_label(reply: str) -> Label:
    """The label in a reply: JSON with an `explanation`, a line `Explanation: ...`, or the first line with a word.

    Reasoning in `<think>` tags, code fences, quotes and list marks around it are removed.
    """
    text = re.sub(r"<think>.*?</think>", "", reply, flags=re.DOTALL | re.IGNORECASE)
    if re.search(r"<think>", text, re.IGNORECASE):
        return Label(None, "the reply is reasoning without an end; raise llm.max_tokens")
    text = re.sub(r"^```\w*\s*$", "", text, flags=re.MULTILINE)
    found = _from_json(text)
    if found is None:
        tagged = re.search(r"\[?\bexplanation\]?\W*:\s*(.+)", text, re.IGNORECASE)
        found = tagged.group(1) if tagged else text
    for line in found.splitlines():
        label = _clean(line)
        if re.search(r"\w", label):
            return Label(label, None)
    return Label(None, "the reply is empty" if not reply.strip() else "the reply holds no word")


def one_line(text: str) -> str:
    """Whitespace collapsed; control, format (bidirectional marks), private and unassigned characters left out."""
    kept = (c if unicodedata.category(c)[0] != "C" else " " if c.isspace() else "" for c in text)
    return " ".join("".join(kept).split())


def _from_json(text: str) -> str | None:
    start, end = text.find("{"), text.rfind("}")
    if not 0 <= start < end:
        return None
    try:
        value = json.loads(text[start : end + 1])
    except ValueError:
        return None
    if not isinstance(value, dict):
        return None
    found = next((value[key] for key in ("explanation", "label", "answer") if isinstance(value.get(key), str)), None)
    return str(found) if found is not None else None


def _clean(line: str) -> str:
    """A line as a label: no markup around it, no control characters, not longer than a line."""
    text = re.sub(r"<<(.+?)>>|<<(?=\w)", r"\1", one_line(line))  # our own marks, copied
    text = re.sub(r"^(?:[-*•#>]+|\d+[.)])\s+", "", text)
    text = text.strip("*_` ").strip()
    for left, right in (('"', '"'), ("'", "'"), ("“", "”")):
        if len(text) > 1 and text.startswith(left) and text.endswith(right) and left not in text[1:-1]:
            text = text[1:-1].strip()
    if len(text) > LONGEST_LABEL:
        text = text[:LONGEST_LABEL].rsplit(" ", 1)[0] + " …"
    return text.removesuffix(".")
