"""Examples as prompts show them: texts with marks, marked words with strengths.

The surprising choice: explainers and scorers mark differently. An explainer is shown the tokens that fire most, which
say what a latent is for; a scorer must be right about every token on which it fires.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from saeinterp.explain.labels import one_line

SHOWN_WORDS = 10
"""Marked words that are listed with their strengths, strongest first."""
MARKED_SHARE = 0.5
"""Tokens with at least this share of their window's largest activation are marked for explainers."""


class Shown(NamedTuple):
    """One example as an explainer sees it: the text with `<<marks>>`, and each marked word's strength."""

    text: str
    words: list[tuple[str, int]]


def render_example(tokens: Sequence[str], activations: Sequence[float], *, largest: float) -> Shown:
    """Mark the tokens of an example that fire most.

    Neighbouring marked tokens share one pair of marks; a strength is the activation on a scale from 0 to 10,
    where 10 is `largest` and 0 is silent, so that a word that fires at all has at least 1.
    """
    values = np.abs(np.asarray(activations, dtype=np.float64))
    marked = (values > 0) & (values >= MARKED_SHARE * values.max(initial=0.0))
    text = ""
    words: list[tuple[str, int]] = []
    for mark, group in itertools.groupby(zip(marked, tokens, values, strict=True), key=lambda item: bool(item[0])):
        items = list(group)
        piece = "".join(token for _, token, _ in items)
        word = piece.strip()
        if mark and word:
            strength = max(1, round(10 * max(value for _, _, value in items) / largest))
            words.append((one_line(word), strength))
            piece = piece.replace(word, f"<<{word}>>", 1)
        text += piece
    return Shown(one_line(text), words)


def form_values(
    examples: Sequence[Shown],
    *,
    promoted: Sequence[str] = (),
    suppressed: Sequence[str] = (),
    others: Sequence[str] = (),
) -> dict[str, str]:
    """What fills the form of an explainer's prompt.

    Args:
        examples: Texts in which the latent fires.
        promoted: Words that the latent's decoder direction promotes most.
        suppressed: Those it suppresses most.
        others: Texts in which the latent is silent.
    """
    strength: dict[str, int] = {}
    for example in examples:
        for word, value in example.words:
            strength[word] = max(value, strength.get(word, 0))
    strongest = sorted(strength.items(), key=lambda item: -item[1])[:SHOWN_WORDS]
    lens = {"Often followed by": promoted, "Hardly ever followed by": suppressed}
    return {
        "examples": "\n".join(f"Text: {example.text}" for example in examples),
        "others": "\n".join(f"Other text: {one_line(text)}" for text in others),
        "words": ", ".join(f"{word} ({value})" for word, value in strongest),
        "lens": "".join(f"{title}: {', '.join(words)}\n" for title, words in lens.items() if words),
    }


def marked_text(tokens: Sequence[str], marked: NDArray[np.bool_]) -> str:
    """A text with all marked tokens `<<like this>>`, blank ones too; marks that the text holds itself are broken up."""
    text = ""
    for mark, group in itertools.groupby(zip(marked, tokens, strict=True), key=lambda item: bool(item[0])):
        piece = "".join(token for _, token in group).replace("<<", "< <").replace(">>", "> >")
        if mark:
            word = piece.strip()
            piece = piece.replace(word, f"<<{word}>>", 1) if word else f"<<{piece}>>"
        text += piece
    return one_line(text)


def visible(token: str) -> str:
    """A token as printed: without the spaces around it, unless it is nothing else."""
    return token.strip() or repr(token)[1:-1].replace(" ", "·")
