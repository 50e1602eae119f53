"""A tiny subject whose features are known: every word belongs to a class, every class has a direction.

A real Llama with random embeddings replaced by `class direction + noise` and blocks that add nothing, so
the residual stream at every block is the planted dictionary. Its tokenizer splits on spaces; word
`metal3` is the third word of class `metal`; `w17` is filler, of one of a few groups with directions of
their own, which fire in nearly every window. What a latent should mean, which explanation is right and
which windows match it are therefore all decidable by code.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CLASSES = ("metal", "fruit", "river", "planet", "colour", "tool", "bird", "city")
WORDS_PER_CLASS = 6
FILLERS = 80
FILLER_GROUPS = 8
D_MODEL = 64
LAYERS = 3


def vocabulary() -> list[str]:
    """Special tokens, then class words, then fillers."""
    words = [f"{name}{index}" for name in CLASSES for index in range(WORDS_PER_CLASS)]
    return ["<unk>", "<bos>", "<eos>", *words, *(f"w{index}" for index in range(FILLERS))]


def class_of(word: str) -> str | None:
    """The planted class of a word, or None for filler."""
    name = word.strip().rstrip("0123456789")
    return name if name in CLASSES else None


def write_planted_subject(folder: Path, *, seed: int = 0) -> Path:
    """Write model and tokenizer as a Hugging Face folder; returns the folder."""
    words = vocabulary()
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<bos>", eos_token="<eos>", pad_token="<eos>"
    )
    fast.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    fast.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=D_MODEL,
        intermediate_size=D_MODEL,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config).float()
    directions = torch.linalg.qr(torch.randn(D_MODEL, D_MODEL, generator=generator)).Q
    with torch.no_grad():
        embedding = 0.03 * torch.randn(len(words), D_MODEL, generator=generator)
        for index, word in enumerate(words):
            if (name := class_of(word)) is not None:
                embedding[index] += 4 * directions[CLASSES.index(name)]
            elif word.startswith("w"):
                group = int(word[1:]) % FILLER_GROUPS
                embedding[index] += 4 * directions[len(CLASSES) + group]
        model.model.embed_tokens.weight.copy_(embedding)
        # The head reads the planted directions back, so splicing and zeroing have an effect on the loss.
        model.lm_head.weight.copy_(embedding / embedding.norm(dim=1, keepdim=True) * 0.5)
        for block in model.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
    model.save_pretrained(folder)
    return folder


def planted_documents(count: int = 240, *, words: int = 120, seed: int = 0) -> list[str]:
    """Documents of fillers with runs of two classes each; half the windows of a document hold no class word."""
    source = random.Random(seed)
    documents = []
    for _ in range(count):
        chosen = source.sample(CLASSES, 2)
        text = []
        for position in range(words):
            if (position // 16) % 2 and source.random() < 0.4:
                text.append(f"{source.choice(chosen)}{source.randrange(WORDS_PER_CLASS)}")
            else:
                text.append(f"w{source.randrange(FILLERS)}")
        documents.append(" ".join(text))
    return documents


def write_planted_corpus(path: Path, **options: int) -> Path:
    """Write the documents as jsonl with a `text` column; returns the path."""
    import json

    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in planted_documents(**options)))
    return path
