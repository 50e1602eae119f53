"""A subject that knows the first letters of words, and SAEs that absorb one of them in a known way.

Every word's activation is 4 × its letter's direction, plus 4 × a family's direction for words of three small families
in A, plus a little noise of its own. Blocks add nothing, so that holds at every hookpoint.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from saeinterp.health.letters.words import LETTERS
from saeinterp.sae import TopKSae

D_MODEL = 64
SCALE = 4.0
FAMILIES = 3
"""Absorbed families; their directions follow those of the letters. Each is so small that its own latent adds less
than 0.03 to the F1 of A's latent, and so counts as an absorber and not as a second main latent."""


def planted_words(letters: str = LETTERS) -> list[str]:
    """400 words in A, 40 in each other letter, such as `mxc`; none is another's spelling in other case."""
    tails = [f"x{chr(97 + index // 26)}{chr(97 + index % 26)}" for index in range(400)]
    return [f"{letter.lower()}{tail}" for letter in letters for tail in tails[: 400 if letter == "A" else 40]]


def family_of(word: str) -> int | None:
    """The absorbed family of a word: each holds every fortieth word in A."""
    if not word.startswith("a"):
        return None
    return {0: 0, 13: 1, 26: 2}.get(planted_words("A").index(word) % 40)


def directions() -> torch.Tensor:
    """`[D_MODEL, D_MODEL]` orthonormal rows: letters, families, the rest."""
    return torch.linalg.qr(torch.randn(D_MODEL, D_MODEL, generator=torch.Generator().manual_seed(1))).Q


def write_letter_subject(
    folder: Path, *, letters: str = LETTERS, positions: int = 256, noise: float = 0.05, planted: bool = True
) -> Path:
    """Write model and tokenizer as a Hugging Face folder; with `planted=False` words have random directions."""
    words = ["<unk>", "<bos>", "<eos>", *planted_words(letters)]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<bos>", eos_token="<eos>", pad_token="<eos>"
    )
    fast.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=D_MODEL,
        intermediate_size=D_MODEL,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=positions,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).float()
    rows = directions()
    embedding = noise * torch.randn(len(words), D_MODEL)
    for index, word in enumerate(words[3:], start=3):
        if planted:
            embedding[index] += SCALE * rows[LETTERS.index(word[0].upper())]
            if (family := family_of(word)) is not None:
                embedding[index] += SCALE * rows[len(LETTERS) + family]
        else:
            embedding[index] += torch.randn(D_MODEL) * SCALE / D_MODEL**0.5
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(embedding)
        for block in model.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
    model.save_pretrained(folder)
    return folder


def absorbing_sae() -> TopKSae:
    """One latent per letter, but A's is silent on the families, where a latent of theirs stands for letter and family.

    Nothing fires below 1. On a word of A that is in no family, x = 4 L: latent A fires with 4 - 1 = 3. On one of a
    family with direction u, x = 4 L + 4 u: latent A gets (L - u) · x - 1 = -1, and the family's latent fires with
    u · x - 1 = 3, which its decoder (L + u) / √2 turns into 2.12 (L + u).
    """
    sae, rows = letter_sae(), directions()
    families = rows[len(LETTERS) : len(LETTERS) + FAMILIES]
    encoder, decoder = sae.W_enc.clone(), sae.W_dec.clone()
    encoder[0] = rows[0] - families.sum(0)
    decoder[len(LETTERS) :] = (rows[0] + families) / 2**0.5
    return TopKSae(encoder, sae.b_enc, decoder, sae.b_dec, k=2)


def letter_sae() -> TopKSae:
    """One latent per letter and one per family, none of which absorbs."""
    rows = directions()[: len(LETTERS) + FAMILIES]
    return TopKSae(rows.clone(), torch.full((len(rows),), -1.0), rows.clone(), torch.zeros(D_MODEL), k=2)
