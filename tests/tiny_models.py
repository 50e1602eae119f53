"""Tiny random models with byte tokens, of both families whose positions work differently, and problems for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

FAMILIES = ("llama", "gpt2")
D_MODEL = 32
LAYERS = 3


def write_tiny_model(folder: Path, family: str, *, seed: int = 0, tied: bool = False) -> Path:
    """Write a model with large random weights, so that nothing it attends to is negligible; returns the folder."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<eos>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(folder)
    common: dict[str, Any] = {
        "vocab_size": len(vocabulary),
        "initializer_range": 0.05,
        "tie_word_embeddings": tied,
        "bos_token_id": None,
        "eos_token_id": 0,
    }
    torch.manual_seed(seed)
    if family == "llama":
        config = LlamaConfig(
            hidden_size=D_MODEL,
            intermediate_size=2 * D_MODEL,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=4096,
            **common,
        )
        model = LlamaForCausalLM(config)
    else:
        settings = GPT2Config(n_embd=D_MODEL, n_layer=LAYERS, n_head=4, n_positions=1024, **common)
        model = GPT2LMHeadModel(settings)
    model.float().save_pretrained(folder)
    return folder


def write_problems(path: Path, count: int = 60, **columns: Any) -> Path:
    """Write problems of different lengths as jsonl with `question` and `answer`; returns the path.

    Args:
        columns: More columns, each a function of the problem's number.
    """
    rows = []
    for index in range(count):
        steps = [f"Step {step} gives <<{index}+{step}={index + step}>>{index + step}." for step in range(index % 4)]
        question = f"What is {'very ' * (index % 5)}{index}?"
        row = {"question": question, "answer": "\n".join([f"It is {index}.", *steps])}
        rows.append({**row, **{name: value(index) for name, value in columns.items()}})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
