"""Texts through a subject and its SAEs: one pooled row per text, of activations and of latents.

One forward pass serves every hookpoint. The surprising choice: chunks of texts are kept in the work folder as they are
done, so that a killed run goes on behind its last whole chunk and gives the same bytes.

Shapes: N texts, T tokens, d width, M latents.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from scipy import sparse
from torch import Tensor

from saeinterp.health.tally import RowMask
from saeinterp.progress import Progress
from saeinterp.sae import TopKSae
from saeinterp.subject import Context, Subject
from saeinterp.subject.cache import usable
from saeinterp.subject.contexts import bos_prefix, encode
from saeinterp.subject.forwarding import forward_window

Pooling = Literal["mean", "max"]
_CHUNK = 256  # texts


class Site(NamedTuple):
    """A hookpoint: its mask, its storage type, and SAEs by name."""

    mask: RowMask
    dtype: str
    saes: Mapping[str, TopKSae]


class Pooled(NamedTuple):
    """One hookpoint's rows, `[N, d]` float32 and per SAE `[N, M]`; texts without an unmasked token are all zeros."""

    activations: NDArray[np.float32]
    latents: dict[str, sparse.csr_matrix]
    tokens: NDArray[np.int64]
    """`[N]` unmasked tokens."""


def contexts_of(tokenizer: Any, texts: Sequence[str], *, length: int) -> tuple[list[Context], int]:
    """One context per text, cut to `length` tokens; and how many were cut."""
    prefix = np.array(bos_prefix(tokenizer), np.int32)
    contexts, cut = [], 0
    for row, text in enumerate(texts):
        ids = np.concatenate([prefix, encode(tokenizer, text).token_ids]).astype(np.int32)
        cut += len(ids) > length
        # A text of no tokens still needs one to run on; position 0 is masked anyway.
        ids = ids[:length] if len(ids) else np.zeros(1, np.int32)
        blank = np.zeros(len(ids), np.int32)
        contexts.append(Context(row, "health", ids, np.full(len(ids), row, np.int32), blank, blank))
    return contexts, cut


def pool_texts(
    subject: Subject,
    contexts: Sequence[Context],
    sites: Mapping[str, Site],
    *,
    pooling: Pooling,
    batch_texts: int,
    work: Path,
    report: Progress,
) -> dict[str, Pooled]:
    """Run every text once and pool its unmasked tokens.

    Args:
        work: Where whole chunks are kept.

    Raises:
        DataError: NaN or infinite activations, naming the text as context.
        BudgetError: A batch does not fit into memory.
    """
    parts: dict[str, list[Pooled]] = {name: [] for name in sites}
    types = {site.dtype for site in sites.values()}
    assert len(types) == 1, types  # of one cache
    for start in range(0, len(contexts), _CHUNK):
        some = contexts[start : start + _CHUNK]
        paths = {name: work / f"{name}-{start:08d}.safetensors" for name in sites}
        if not all(path.exists() for path in paths.values()):
            rows: dict[str, list[dict[str, NDArray[np.float32]]]] = {name: [] for name in sites}
            for context, found in forward_window(
                subject, some, list(sites), dtype=next(iter(types)), batch_contexts=batch_texts
            ):
                for name, x in found.items():
                    rows[name].append(_pool(context, x, sites[name], pooling))
            for name, path in paths.items():
                _save(path, rows[name])
        for name, path in paths.items():
            parts[name].append(_load(path, sites[name]))
        report(start + len(some), len(contexts), "texts")
    return {name: _joined(pieces) for name, pieces in parts.items()}


def _pool(context: Context, x: Tensor, site: Site, pooling: Pooling) -> dict[str, NDArray[np.float32]]:
    """One text's pooled activations, and per SAE the latents that fired with their pooled values."""
    keep = torch.from_numpy(usable(np.arange(len(x)), context.token_ids, site.mask.special_ids))
    if site.mask.norm_limit is not None:
        keep &= torch.linalg.vector_norm(x.float(), dim=1) <= site.mask.norm_limit
    rows = x[keep].float()
    count = len(rows)
    values: dict[str, NDArray[np.float32]] = {"tokens": np.array([count], np.float32)}
    if count == 0:
        values["x"] = np.zeros(x.shape[1], np.float32)
    else:
        values["x"] = (rows.double().mean(0).float() if pooling == "mean" else rows.amax(0)).numpy()
    for name, sae in site.saes.items():
        dense = torch.zeros(0 if count == 0 else sae.num_latents, dtype=torch.float64)
        if count:
            code = sae.encode(rows.to(sae.W_dec.device))
            indices, amounts = code.indices.long().flatten().cpu(), code.values.double().flatten().cpu()
            if pooling == "mean":
                dense.index_add_(0, indices, amounts / count)
            else:
                # A silent latent counts as 0, also where signed values are all below.
                highest = torch.full_like(dense, -torch.inf).scatter_reduce_(0, indices, amounts, "amax")
                fired = torch.bincount(indices[amounts != 0], minlength=len(dense))
                dense = torch.where(fired < count, highest.clamp(min=0), highest)
        active = dense.nonzero()[:, 0]
        values[f"{name}/indices"] = active.numpy().astype(np.int32)
        values[f"{name}/values"] = dense[active].float().numpy()
    return values


def _save(path: Path, rows: Sequence[Mapping[str, NDArray[np.float32]]]) -> None:
    arrays: dict[str, NDArray[Any]] = {}
    for key in rows[0]:
        if key == "x":
            arrays[key] = np.stack([row[key] for row in rows])
        else:
            arrays[key] = np.concatenate([row[key] for row in rows])
            if key.endswith("/indices"):
                arrays[key.replace("indices", "offsets")] = np.cumsum([0, *(len(row[key]) for row in rows)])
    temporary = path.with_suffix(".partial")
    save_file(arrays, temporary)
    os.replace(temporary, path)


def _load(path: Path, site: Site) -> Pooled:
    arrays = load_file(path)
    latents = {}
    for name, sae in site.saes.items():
        parts = [arrays[f"{name}/{part}"] for part in ("values", "indices", "offsets")]
        latents[name] = sparse.csr_matrix(tuple(parts), shape=(len(parts[2]) - 1, sae.num_latents))
    return Pooled(arrays["x"], latents, arrays["tokens"].astype(np.int64))


def _joined(pieces: Sequence[Pooled]) -> Pooled:
    return Pooled(
        np.concatenate([piece.activations for piece in pieces]),
        {name: sparse.vstack([piece.latents[name] for piece in pieces], format="csr") for name in pieces[0].latents},
        np.concatenate([piece.tokens for piece in pieces]),
    )
