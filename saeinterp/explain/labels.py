"""Labels out of what models write.

Replies are untrusted text: a label is one line, without control characters, of bounded length. The surprising choice: a
reply that holds no label has a reason instead, and nothing is guessed where the model was asked to reason first: what
it thinks aloud is no label.
"""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any, NamedTuple

from saeinterp.explain.llm import Reply

LONGEST_LABEL = 200
"""Characters; a longer reply is cut at a word."""


class Label(NamedTuple):
    """What a reply says: the label, or why there is none."""

    text: str | None
    reason: str | None


def explanation_schema(*, reasoning: bool, max_tokens: int) -> str:
    """JSON schema of an explanation, as JSON text; lengths are such that English in them fits into `max_tokens`."""
    longest = 3 * max_tokens
    properties: dict[str, Any] = {"explanation": {"type": "string", "maxLength": min(LONGEST_LABEL, longest)}}
    if reasoning:
        before = max(LONGEST_LABEL, longest - LONGEST_LABEL)
        properties = {"reasoning": {"type": "string", "maxLength": before}, **properties}
    schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return json.dumps(schema)


def label_of(reply: Reply, *, reasoned: bool = False) -> Label:
    """The label in a model's reply, or why there is none; one that ends where the reply was cut loses its last word.

    Args:
        reply: What came back.
        reasoned: The model was asked to reason first.
    """
    if reply.status != "ok":
        return Label(None, reply.error)
    if reply.cut and reply.text.lstrip().startswith("{") and _from_json(reply.text) is None:
        return _CUT
    label = parse_label(reply.text, reasoned=reasoned)
    if not reply.cut:
        return label
    if label.text is None:
        return _CUT
    unfinished = reply.text.rstrip().endswith(label.text)
    return label._replace(text=f"{label.text.rsplit(' ', 1)[0]} …") if unfinished else label


def parse_label(reply: str, *, reasoned: bool = False) -> Label:
    """The label in a reply: JSON with an `explanation`, what follows `Explanation:`, or the first line with a word.

    Reasoning in `<think>` tags, code fences, quotes and list marks around it are removed. With `reasoned` the text
    before the last `Explanation:` is reasoning, and without one there is no label.
    """
    text = re.sub(r"<think>.*?</think>", "", reply, flags=re.DOTALL | re.IGNORECASE)
    if re.search(r"<think>", text, re.IGNORECASE):
        return Label(None, "the reply is reasoning without an end; raise llm.max_tokens")
    text = re.sub(r"^```\w*\s*$", "", text, flags=re.MULTILINE)
    found = _from_json(text)
    if found is None:
        tagged = list(re.finditer(r"\[?\bexplanation\]?[^\w\n]*:\s*", text, re.IGNORECASE))
        if reasoned and not tagged and re.search(r"\w", text):
            return Label(None, "the reply has no explanation after its reasoning")
        found = text[tagged[-1 if reasoned else 0].end() :] if tagged else text
    for line in found.splitlines():
        label = _clean(line)
        if re.search(r"\w", label):
            return Label(label, None)
    return Label(None, "the reply is empty" if not reply.strip() else "the reply holds no word")


_CUT = Label(None, "the reply ends at max_tokens, before its label does; raise llm.max_tokens")


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
