"""Reasoning that the model writes itself: greedy continuations of many prompts.

The surprising choice: the checkpoint's own generation settings (sampling, penalties) are set aside, so that the text
depends on the weights alone; only its end tokens are kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from saeinterp.artifacts import read_json, write_atomic
from saeinterp.errors import BudgetError
from saeinterp.subject.autoclasses import auto_classes
from saeinterp.subject.forwarding import batches_by_length
from saeinterp.subject.models import Subject

_BATCH = 16


def generate(
    subject: Subject,
    prompts: Sequence[np.ndarray],
    *,
    max_new_tokens: int,
    work: Path,
    report: Callable[[int], None],
) -> list[np.ndarray]:
    """Continue every prompt greedily until an end token.

    Args:
        prompts: Token ids, int32 `[T]` each.
        max_new_tokens: Longest continuation.
        work: A folder that keeps finished batches; a call with the same arguments goes on from there.
        report: Called with the prompts done.

    Returns:
        The continuations, int32, without the end token.

    Raises:
        BudgetError: A batch does not fit on the device.
    """
    results: dict[int, np.ndarray] = {}
    lengths = np.array([len(prompt) for prompt in prompts])
    for number, indices in enumerate(batches_by_length(lengths, _BATCH)):
        path = work / f"generated-{number:05d}.json"
        if not path.exists():
            found = _continue(subject, [prompts[index] for index in indices], max_new_tokens)
            write_atomic(path, json.dumps([ids.tolist() for ids in found]).encode())
        for index, ids in zip(indices, read_json(path), strict=True):
            results[int(index)] = np.array(ids, np.int32)
        report(len(results))
    return [results[index] for index in range(len(prompts))]


def left_padded(prompts: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """`input_ids` `[B, T]`, padded with zeros on the left, and `attention_mask` `[B, T]`, 1 on tokens; int64."""
    longest = max(len(prompt) for prompt in prompts)
    input_ids = np.zeros((len(prompts), longest), np.int64)
    mask = np.zeros((len(prompts), longest), np.int64)
    for row, prompt in enumerate(prompts):
        input_ids[row, longest - len(prompt) :] = prompt
        mask[row, longest - len(prompt) :] = 1
    return torch.from_numpy(input_ids), torch.from_numpy(mask)


def _continue(subject: Subject, prompts: Sequence[np.ndarray], max_new_tokens: int) -> list[np.ndarray]:
    ends = _end_ids(subject)
    settings = auto_classes().generation(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=ends or None,
        pad_token_id=ends[0] if ends else 0,
    )
    input_ids, mask = (tensor.to(subject.device) for tensor in left_padded(prompts))
    # What a call leaves open, transformers takes from the model's own settings.
    own, subject.model.generation_config = subject.model.generation_config, settings
    try:
        with torch.inference_mode():
            found = subject.model.generate(input_ids, attention_mask=mask)
    except torch.OutOfMemoryError as error:
        raise BudgetError(
            f"generating for {len(prompts)} problems at once does not fit on {subject.device}",
            field="corpus.max_new_tokens",
            got=max_new_tokens,
            next_step="lower corpus.max_new_tokens, or use a smaller subject.dtype",
        ) from error
    finally:
        subject.model.generation_config = own
    rows = found[:, input_ids.shape[1] :].cpu().numpy()
    return [_until_end(row, ends) for row in rows]


def _until_end(ids: np.ndarray, ends: Sequence[int]) -> np.ndarray:
    stops = np.flatnonzero(np.isin(ids, ends))
    return ids[: stops[0]].astype(np.int32) if len(stops) else ids.astype(np.int32)


def _end_ids(subject: Subject) -> list[int]:
    """The tokens that end a text, by the checkpoint, else by the tokenizer."""
    own = getattr(subject.model.generation_config, "eos_token_id", None)
    own = subject.tokenizer.eos_token_id if own is None else own
    return [] if own is None else [own] if isinstance(own, int) else list(own)
