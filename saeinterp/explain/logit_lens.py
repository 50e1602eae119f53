"""Tokens whose logits a latent's decoder direction raises and lowers most (the logit lens, nostalgebraist 2020)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from saeinterp.artifacts import Artifact
from saeinterp.explain.labels import one_line

LENS_TOKENS = 8
"""Tokens shown at each end."""


class LensTokens(NamedTuple):
    """Words at both ends of a latent's logit lens, strongest first."""

    promoted: list[str]
    suppressed: list[str]


def lens_tokens(subject: Artifact, sae: Artifact, latents: Sequence[int]) -> dict[int, LensTokens]:
    """Per latent, the words at both ends of its decoder direction through the unembedding, without the final norm."""
    from saeinterp.explain.in_process import unembedding
    from saeinterp.sae import TopKSae

    if not latents:
        return {}
    weight, tokenizer = unembedding(subject)
    weight = weight.float()
    directions = TopKSae.load(sae.path).W_dec.float()
    mean = directions.mean(0)
    # Several spellings of a word and pieces without a letter leave fewer words than tokens.
    count = min(4 * LENS_TOKENS, len(weight))

    def words(tokens: Sequence[int]) -> list[str]:
        spelled = dict.fromkeys(one_line(tokenizer.decode([token])) for token in tokens)
        return [word for word in spelled if re.search(r"\w", word)][:LENS_TOKENS]

    found = {}
    for start in range(0, len(latents), _AT_ONCE):
        chosen = list(latents[start : start + _AT_ONCE])
        # A token that the mean direction raises says nothing about one latent.
        logits = (directions[chosen] - mean) @ weight.T
        ends = [logits.topk(count, largest=largest).indices.tolist() for largest in (True, False)]
        for latent, top, bottom in zip(chosen, *ends, strict=True):
            found[latent] = LensTokens(words(top), words(bottom))
    return found


_AT_ONCE = 256  # latents whose logits over a vocabulary of 150,000 take 150 MiB
