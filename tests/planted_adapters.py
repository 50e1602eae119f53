"""Adapters of the planted subject, made with peft as a user makes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM


def write_adapter(folder: Path, base: Path, *, seed: int = 0, zero: bool = False, **settings: Any) -> Path:
    """A LoRA with random factors (`zero`: without effect, as before training), saved by peft; returns the folder."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    options = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "o_proj", "down_proj"]}
    config = LoraConfig(task_type="CAUSAL_LM", init_lora_weights=zero, **{**options, **settings})
    get_peft_model(model, config).save_pretrained(folder)
    return folder


@torch.inference_mode()
def adapted_logits(base: Path, adapter: Path, ids: torch.Tensor) -> torch.Tensor:
    """Logits of base and adapter side by side, unmerged, in float32."""
    from peft import PeftModel

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    logits: torch.Tensor = PeftModel.from_pretrained(model, str(adapter)).eval()(input_ids=ids).logits
    return logits


def fine_tune(folder: Path, base: Path, texts: list[str], *, steps: int, seed: int = 0) -> list[float]:
    """Train a LoRA of a real model's later layers on texts and save it with peft; returns the loss of every step.

    The first ten layers stay as they are, so that gradients end there: a third of the time.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer

    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.config._name_or_path = str(base)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=8,
        lora_alpha=16,
        target_modules=["q_proj", "v_proj", "down_proj"],
        layers_to_transform=list(range(10, model.config.num_hidden_layers)),
    )
    tuned = get_peft_model(model, config)
    optimizer = torch.optim.AdamW((p for p in tuned.parameters() if p.requires_grad), lr=2e-3)
    ids = tokenizer("\n\n".join(texts)).input_ids
    batch, length = 4, 32
    losses = []
    for step in range(steps):
        start = step * batch * length
        rows = torch.tensor(ids[start : start + batch * length]).view(batch, length)
        loss = tuned(input_ids=rows, labels=rows).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    tuned.save_pretrained(folder)
    return losses
