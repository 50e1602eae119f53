"""The subject run over contexts, and its activations as they are stored: 2-byte floats on the CPU.

Collecting and streaming both go through here, so that a row is cast and checked in one way. The surprising choice:
a batch holds contexts of similar length, whatever their order in the corpus, so that little is padded; a row's last
bits therefore depend on which contexts were near it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from saeinterp.errors import BudgetError, DataError
from saeinterp.subject.cache import DTYPES
from saeinterp.subject.contexts import Context, batches
from saeinterp.subject.hookpoints import capture
from saeinterp.subject.models import Subject


def storage_dtype(dtype: str, subject: Subject) -> str:
    """`bfloat16` or `float16`; `auto` is bfloat16 unless the subject computes in float16."""
    if dtype != "auto":
        return dtype
    return "float16" if subject.dtype == "float16" else "bfloat16"


def hookpoint_widths(subject: Subject, hookpoints: Sequence[str]) -> dict[str, int]:
    """Width of each hookpoint, from a pass over one token.

    Raises:
        ConfigError: A hookpoint does not exist or gives no rows.
    """
    one = torch.zeros(1, 1, dtype=torch.long, device=subject.device)
    return {name: values.shape[-1] for name, values in capture(subject.model, one, None, hookpoints).items()}


def batches_by_length(lengths: np.ndarray, size: int) -> list[np.ndarray]:
    """Indices of contexts in batches of at most `size`, longest contexts first, ties in order."""
    order = np.argsort(-lengths, kind="stable")
    return [order[start : start + size] for start in range(0, len(order), size)]


def forward_window(
    subject: Subject, contexts: Sequence[Context], hookpoints: Sequence[str], *, dtype: str, batch_contexts: int
) -> Iterator[tuple[Context, dict[str, Tensor]]]:
    """Each context, in order, with `{hookpoint: [T, d]}`; all of them are in memory at once.

    Raises:
        BudgetError, DataError: See `forward_batch`.
    """
    results: dict[int, dict[str, Tensor]] = {}
    lengths = np.array([len(context.token_ids) for context in contexts])
    for indices in batches_by_length(lengths, batch_contexts):
        some = [contexts[index] for index in indices]
        stored = forward_batch(subject, some, hookpoints, dtype=dtype, batch_contexts=batch_contexts)
        for row, index in enumerate(indices):
            results[int(index)] = {name: values[row, : lengths[index]] for name, values in stored.items()}
    for index, context in enumerate(contexts):
        yield context, results.pop(index)


def forward_batch(
    subject: Subject, contexts: Sequence[Context], hookpoints: Sequence[str], *, dtype: str, batch_contexts: int
) -> dict[str, Tensor]:
    """One early-stopped forward pass: `{hookpoint: [B, T, d]}` in the storage type, padding holding nonsense.

    Args:
        contexts: At most `batch_contexts`.
        batch_contexts: As configured; for the error.

    Raises:
        BudgetError: Out of memory, with what to lower.
        DataError: NaN, infinite or (float16) overflowing activations, naming hookpoint, context and document.
    """
    (batch,) = batches(contexts, len(contexts))
    try:
        captured = capture(
            subject.model, batch.input_ids.to(subject.device), batch.attention_mask.to(subject.device), hookpoints
        )
    except torch.OutOfMemoryError as error:
        raise BudgetError(
            f"a batch of {batch_contexts} contexts does not fit on {subject.device}",
            field="capture.batch_contexts",
            got=batch_contexts,
            next_step=f"set capture.batch_contexts to {max(1, batch_contexts // 2)}, or shorten corpus.context_length",
        ) from error
    mask = batch.attention_mask.bool()
    return {name: _to_storage(name, values, mask, contexts, dtype) for name, values in captured.items()}


def _to_storage(name: str, values: Tensor, mask: Tensor, contexts: Sequence[Context], dtype: str) -> Tensor:
    """Cast `[B, T, d]` to the storage type on the CPU; refuse what the cast or the model broke."""
    stored = values.to(DTYPES[dtype]).cpu()
    # Padding may hold anything, so a hit is looked at again without it.
    if not torch.isfinite(stored).all() and not torch.isfinite(stored[mask]).all():
        raw = values.cpu()
        bad = ~torch.isfinite(raw) & mask[..., None]
        if not bad.any():
            raise DataError(
                f"activations overflow {dtype}: the largest is {float(raw[mask].abs().max()):.3g}",
                field=name,
                got=dtype,
                expected=f"values up to {torch.finfo(DTYPES[dtype]).max:.3g}",
                next_step="set capture.dtype: bfloat16",
            )
        row, position = (int(index) for index in bad.any(-1).nonzero()[0])
        context = contexts[row]
        raise DataError(
            "the subject produced NaN or infinite activations",
            field=name,
            got=f"{int(bad.sum())} such values in one batch, the first at token {position} of context "
            f"{context.context_id}, document {int(context.doc_ids[position])}",
            next_step="run the subject in bfloat16 or float32 (subject.dtype), and check its weights",
        )
    return stored
