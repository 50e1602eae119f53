"""Tokens whose logits a latent's decoder direction raises and lowers most (the logit lens, nostalgebraist 2020)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from saeinterp.artifacts import Artifact
from saeinterp.explain.labels import one_line

if TYPE_CHECKING:
    from torch import Tensor

LENS_TOKENS = 8
"""Tokens shown at each end."""


class LensTokens(NamedTuple):
    """Words at both ends of a latent's logit lens, strongest first."""

    promoted: list[str]
    suppressed: list[str]


def lens_tokens(subject: Artifact, sae: Artifact, latents: Sequence[int]) -> dict[int, LensTokens]:
    """Per latent, the words at both ends of its decoder direction through the unembedding, without the final norm."""
    found: dict[int, LensTokens] = {}
    if not latents:
        return found
    weight, tokenizer = lens_of(subject)
    # Several spellings of a word and pieces without a letter leave fewer words than tokens.
    count = min(4 * LENS_TOKENS, len(weight))

    def words(tokens: Sequence[int]) -> list[str]:
        spelled = dict.fromkeys(one_line(tokenizer.decode([token])) for token in tokens)
        return [word for word in spelled if re.search(r"\w", word)][:LENS_TOKENS]

    for chosen, logits in lens_logits(weight, sae, latents):
        ends = [logits.topk(count, largest=largest).indices.tolist() for largest in (True, False)]
        for latent, top, bottom in zip(chosen, *ends, strict=True):
            found[latent] = LensTokens(words(top), words(bottom))
    return found


def lens_of(subject: Artifact) -> tuple[Tensor, Any]:
    """The unembedding `[vocabulary, d]` in float32 and the tokenizer."""
    from saeinterp.explain.in_process import unembedding

    weight, tokenizer = unembedding(subject)
    return weight.float(), tokenizer


def lens_logits(weight: Tensor, sae: Artifact, latents: Sequence[int]) -> Iterator[tuple[list[int], Tensor]]:
    """Blocks of latents with their logits `[block, vocabulary]`, less what the mean decoder direction gives."""
    from saeinterp.sae import TopKSae

    directions = TopKSae.load(sae.path).W_dec.float()
    # A token that the mean direction raises says nothing about one latent.
    mean = directions.mean(0)
    for start in range(0, len(latents), _AT_ONCE):
        chosen = list(latents[start : start + _AT_ONCE])
        yield chosen, (directions[chosen] - mean) @ weight.T


_AT_ONCE = 256  # latents whose logits over a vocabulary of 150,000 take 150 MiB
