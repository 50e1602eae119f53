"""Continuous thoughts: the last hidden state is fed back as the next input, n times, with no token in between.

What is fed back is the last hidden state as transformers gives it, after the final norm (`hidden_states[-1]`): both
CODI and Coconut do so, CODI through a projection, Coconut as it is. The surprising choice: attention mask and positions
are passed at every step, the prompt's too. CODI's own loop leaves them out, and there a prompt that shares its batch
with a longer one has other thoughts than alone.

Shapes: B prompts, T tokens, n thoughts, d width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saeinterp.config import ThoughtsConfig
from saeinterp.errors import BudgetError, ConfigError, DataError
from saeinterp.subject.cache import DTYPES
from saeinterp.subject.contexts import Context, bos_prefix, encode
from saeinterp.subject.forwarding import batches_by_length
from saeinterp.subject.generation import left_padded
from saeinterp.subject.hookpoints import recorded
from saeinterp.subject.models import Subject


@dataclass(frozen=True)
class Thinker:
    """A subject that reasons in continuous thoughts.

    Attributes:
        subject: With the vocabulary and weights of its checkpoint, where it has one.
        feed: Makes the next input `[..., d]` of the last hidden state `[..., d]`.
    """

    subject: Subject
    feed: Callable[[Tensor], Tensor]


def identity(hidden: Tensor) -> Tensor:
    """Coconut's feedback: the hidden state as it is."""
    return hidden


def thought_prompts(
    tokenizer: Any, questions: Sequence[str], *, config: ThoughtsConfig, bot: int | None
) -> list[np.ndarray]:
    """What is read before the first thought: token ids, int32 `[T]` each.

    `codi`: the question, an end token unless `remove_eos`, and `bot`. `coconut`: the question, a line end, and `bot`.
    Each after the tokens that the tokenizer puts before any text.

    Raises:
        ConfigError: The tokenizer has no end token; there are no questions.
    """
    if not all(questions):
        raise ConfigError(
            "continuous thoughts follow a question, and these problems have none",
            field="corpus.question_column",
            got=None,
            next_step="name the column with the questions, or choose tokens of the text with positions.select",
        )
    end: list[int] = []
    if config.format == "codi" and not config.remove_eos:
        if tokenizer.eos_token_id is None:
            raise ConfigError(
                "the tokenizer has no end token to put between question and thoughts",
                field="positions.thoughts.remove_eos",
                got=False,
                next_step="set remove_eos: true",
            )
        end = [tokenizer.eos_token_id]
    tail = np.array([*end, *([] if bot is None else [bot])], np.int32)
    prefix = np.array(bos_prefix(tokenizer), np.int32)
    # Both as their own code writes a question.
    texts = [f"{text}\n" if config.format == "coconut" else text.strip().replace("  ", " ") for text in questions]
    return [np.concatenate([prefix, encode(tokenizer, text).token_ids, tail]) for text in texts]


def think(
    thinker: Thinker, prompts: Sequence[np.ndarray], *, thoughts: int, hookpoints: Sequence[str]
) -> dict[str, Tensor]:
    """Read a batch of prompts and think n times.

    Args:
        prompts: Token ids `[T]` each; together they are padded on the left.
        thoughts: n.

    Returns:
        `{hookpoint: [B, 1 + n, d]}` in the model's dtype: at the last token of the prompt, and at each thought.

    Raises:
        ConfigError: A hookpoint does not exist or gives no `[B, T, d]`.
    """
    device = thinker.subject.device
    base = thinker.subject.model.base_model
    input_ids, mask = (tensor.to(device) for tensor in left_padded(prompts))
    one = mask.new_ones(len(prompts), 1)
    found: dict[str, list[Tensor]] = {name: [] for name in hookpoints}
    with torch.inference_mode(), recorded(thinker.subject.model, hookpoints) as outputs:
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        state = base(input_ids=input_ids, attention_mask=mask, position_ids=positions, use_cache=True)
        for step in range(thoughts + 1):
            if step:
                mask = torch.cat([mask, one], 1)
                state = base(
                    inputs_embeds=thinker.feed(state.last_hidden_state[:, -1:]).to(device),
                    attention_mask=mask,
                    position_ids=mask.sum(1, keepdim=True) - 1,
                    past_key_values=state.past_key_values,
                    use_cache=True,
                )
            for name in hookpoints:
                found[name].append(outputs[name][:, -1])
    return {name: torch.stack(values, 1) for name, values in found.items()}


def think_window(
    thinker: Thinker,
    prompts: Sequence[Context],
    hookpoints: Sequence[str],
    *,
    thoughts: int,
    dtype: str,
    batch_contexts: int,
) -> Iterator[tuple[Context, dict[str, Tensor]]]:
    """Each prompt, in order, with `{hookpoint: [1 + n, d]}` in the storage type on the CPU.

    Raises:
        BudgetError: Out of memory, with what to lower.
        DataError: NaN, infinite or (float16) overflowing activations, naming the hookpoint.
    """
    results: dict[int, dict[str, Tensor]] = {}
    lengths = np.array([len(prompt.token_ids) for prompt in prompts])
    for indices in batches_by_length(lengths, batch_contexts):
        some = [prompts[index].token_ids for index in indices]
        try:
            found = think(thinker, some, thoughts=thoughts, hookpoints=hookpoints)
        except torch.OutOfMemoryError as error:
            raise BudgetError(
                f"a batch of {batch_contexts} problems does not fit on {thinker.subject.device}",
                field="capture.batch_contexts",
                got=batch_contexts,
                next_step=f"set capture.batch_contexts to {max(1, batch_contexts // 2)}",
            ) from error
        stored = {name: _to_storage(name, values, dtype) for name, values in found.items()}
        for row, index in enumerate(indices):
            results[int(index)] = {name: values[row] for name, values in stored.items()}
    for index, prompt in enumerate(prompts):
        yield prompt, results.pop(index)


def _to_storage(name: str, values: Tensor, dtype: str) -> Tensor:
    stored = values.to(DTYPES[dtype]).cpu()
    if not torch.isfinite(stored).all():
        broken = not torch.isfinite(values).all()
        raise DataError(
            "the thoughts are NaN or infinite"
            if broken
            else f"activations overflow {dtype}: the largest is {float(values.abs().max()):.3g}",
            field=name,
            got=str(values.dtype).removeprefix("torch.") if broken else dtype,
            next_step="run the subject in bfloat16 or float32 (subject.dtype), and check its weights"
            if broken
            else "set capture.dtype: bfloat16",
        )
    return stored
