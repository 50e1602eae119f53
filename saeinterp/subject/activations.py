"""Collect activations of a subject over a corpus into an activation cache (see `cache.py` for the format).

One forward pass serves every hookpoint and ends at the deepest. The surprising choice: the shards' contents
are planned from the context lengths before anything runs, so that a killed run resumes after its last whole
shard and still gives the same bytes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file
from torch import Tensor

from saeinterp.artifacts import Artifact, ArtifactStore, Recipe, Ref, Workspace, read_json, write_json
from saeinterp.config import SPLITS, CaptureConfig, Split, recipe_of
from saeinterp.errors import BudgetError, ConfigError, DataError
from saeinterp.progress import Progress, silent
from saeinterp.subject.cache import ActivationCache, ShardWriter, open_shards, usable
from saeinterp.subject.contexts import Contexts, read_contexts
from saeinterp.subject.forwarding import forward_window, hookpoint_widths, storage_dtype
from saeinterp.subject.models import Subject, load_subject, subject_info

VERSION = 1
SHARD_ROWS = 131_072
_ROW_OVERHEAD = 12 + 4  # three ids and the norm
_WINDOW_BATCHES = 8  # contexts are sorted by length within so many batches, to pad little
_WINDOW_TOKENS = 16_384  # ... but never keep more than this and one batch in memory


def activation_bytes(tokens: int, d_in: int, hookpoints: Sequence[str]) -> int:
    """Bytes of an activation cache: two per value, and 16 per row for ids and norm."""
    return tokens * len(hookpoints) * (2 * d_in + _ROW_OVERHEAD)


def _check_budget(tokens: int, widths: Mapping[str, int], *, budget_gb: float, folder: Path) -> None:
    """Compare the bytes a cache would take with the budget and with the free disk below `folder`.

    Raises:
        BudgetError: Saying what is needed, what is allowed, and the choices.
    """
    needed = sum(activation_bytes(tokens, width, [name]) for name, width in widths.items())
    shown = "/".join(str(width) for width in sorted(set(widths.values())))
    what = (
        f"{tokens:,} tokens × {len(widths)} hookpoints × {shown} values take {needed / 1e9:,.2f} GB ({needed:,} bytes)"
    )
    choices = "cap corpus.max_tokens, take a slice of the corpus (split: 'train[:5%]' or limit), name fewer hookpoints"
    if needed > budget_gb * 1e9:
        raise BudgetError(
            f"{what}, more than the budget of {budget_gb:g} GB",
            field="capture.disk_budget_gb",
            got=budget_gb,
            expected=f"at least {needed / 1e9:.2f}",
            next_step=f"{choices}, or raise capture.disk_budget_gb",
        )
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise BudgetError(
            f"{what}, but {folder} has {free / 1e9:,.2f} GB free",
            field="SAEINTERP_ROOT",
            got=str(folder),
            next_step=f"{choices}, free some space, or set SAEINTERP_ROOT to a larger disk",
        )


def collect_activations_recipe(
    subject: Ref, corpus: Ref, *, config: CaptureConfig, splits: Sequence[Split] = SPLITS
) -> Recipe:
    """The recipe of an activation cache.

    Raises:
        ConfigError: A hookpoint is named twice, or a split is unknown or named twice.
    """
    for field, values in (("capture.hookpoints", config.hookpoints), ("splits", tuple(splits))):
        if not values or len(set(values)) != len(values):
            raise ConfigError("must name each entry once", field=field, got=values)
    # One order, so that naming the same splits differently gives the same cache.
    ordered = [split for split in SPLITS if split in splits]
    if len(ordered) != len(splits):
        raise ConfigError("unknown split", field="splits", got=tuple(splits), expected=", ".join(SPLITS))
    name = config.hookpoints[0] if len(config.hookpoints) == 1 else f"{len(config.hookpoints)}-hookpoints"
    return Recipe(
        kind="activations",
        name=f"{subject.name}-{name}",
        version=VERSION,
        config={**recipe_of(config), "splits": ordered},
        inputs=(subject, corpus),
    )


def collect_activations(
    subject: Artifact,
    corpus: Artifact,
    *,
    config: CaptureConfig,
    store: ArtifactStore,
    splits: Sequence[Split] = SPLITS,
    device: str = "auto",
    progress: Progress | None = None,
) -> Artifact:
    """Run the subject over the corpus and keep the activations of every hookpoint.

    Payload: `<hookpoint>/NNNNN.parquet` and `<hookpoint>/norms.safetensors`; `means.safetensors` (float32 mean
    over the usable rows of the train split, or of all rows where train is not collected); `cache.json`.
    `norm_limit` is `norm_multiple` × the exact median L2 norm over all collected rows at position > 0 that are
    no special tokens.

    Raises:
        BudgetError: The cache would exceed `disk_budget_gb` or the free disk; raised before the model is loaded.
        ConfigError: A hookpoint does not exist.
        DataError: NaN, infinite or (float16) overflowing activations, naming the hookpoint; no usable rows.
    """
    recipe = collect_activations_recipe(subject, corpus, config=config, splits=splits)
    ordered: list[Split] = recipe.config["splits"]
    report = progress or silent

    def write(space: Workspace) -> None:
        contexts = read_contexts(corpus, splits=ordered)
        special_ids = read_json(corpus.file("corpus.json"))["special_ids"]
        tokens = contexts.tokens
        budget = config.disk_budget_gb
        expected = dict.fromkeys(config.hookpoints, subject_info(subject)["d_model"])
        _check_budget(tokens, expected, budget_gb=budget, folder=store.root)
        loaded = load_subject(subject, device=device)
        dtype = storage_dtype(config.dtype, loaded)
        widths = hookpoint_widths(loaded, config.hookpoints)
        # Hookpoints inside a block may be wider than the residual stream.
        _check_budget(tokens, widths, budget_gb=budget, folder=store.root)
        _run(loaded, contexts, config=config, dtype=dtype, widths=widths, work=space.work, report=report)
        facts, means = {}, {}
        for name in config.hookpoints:
            os.rename(space.work / name, space.out / name)
            facts[name], means[name] = _summarise(
                space.out / name,
                hookpoint=name,
                d_in=widths[name],
                dtype=dtype,
                special_ids=special_ids,
                norm_multiple=config.norm_multiple,
                train_rows=contexts.tokens_of("train"),
            )
        save_file(means, space.out / "means.safetensors")
        summary = {
            "hookpoints": facts,
            "special_ids": special_ids,
            "splits": {split: contexts.tokens_of(split) for split in ordered},
        }
        write_json(space.out / "cache.json", summary)
        space.counts = {"rows": tokens, "hookpoints": len(config.hookpoints)}

    return store.build(recipe, write)


class _Piece(NamedTuple):
    """Contexts `[start, stop)` of the corpus that make one shard."""

    start: int
    stop: int
    rows: int


def _plan(contexts: Contexts, *, window: int) -> list[_Piece]:
    """Cut the contexts into shards at multiples of `window`, so that batches never straddle two shards."""
    pieces: list[_Piece] = []
    start = rows = 0
    lengths = contexts.lengths
    for stop in [*range(window, len(contexts), window), len(contexts)]:
        rows = int(lengths[start:stop].sum())
        if rows >= SHARD_ROWS or stop == len(contexts):
            pieces.append(_Piece(start, stop, rows))
            start = stop
    return pieces


def _run(
    subject: Subject,
    contexts: Contexts,
    *,
    config: CaptureConfig,
    dtype: str,
    widths: dict[str, int],
    work: Path,
    report: Progress,
) -> None:
    """Write every shard that is not yet in `work`."""
    longest = int(contexts.lengths.max(initial=1))
    batches_held = max(1, min(_WINDOW_BATCHES, _WINDOW_TOKENS // (config.batch_contexts * longest)))
    window = config.batch_contexts * batches_held
    done = 0
    for name in widths:
        (work / name).mkdir(exist_ok=True)
    for number, piece in enumerate(_plan(contexts, window=window)):
        finals = {name: work / name / f"{number:05d}.parquet" for name in widths}
        if not all(_is_whole(path, piece.rows) for path in finals.values()):
            partials = {name: path.with_suffix(".partial") for name, path in finals.items()}
            writers = {name: ShardWriter(partials[name], d_in=widths[name], dtype=dtype) for name in widths}
            for start in range(piece.start, piece.stop, window):
                some = contexts[start : min(start + window, piece.stop)]
                captured = forward_window(
                    subject, some, config.hookpoints, dtype=dtype, batch_contexts=config.batch_contexts
                )
                for context, rows in captured:
                    length = len(context.token_ids)
                    ids = np.stack([context.doc_ids, np.arange(length, dtype=np.int32), context.token_ids])
                    for name, values in rows.items():
                        writers[name].write(ids, values)
                done += sum(len(context.token_ids) for context in some)
                report(done, contexts.tokens, "tokens")
            for name, writer in writers.items():
                writer.close()
                # A rename is what marks a shard whole.
                os.replace(partials[name], finals[name])
        else:
            done += piece.rows
            report(done, contexts.tokens, "tokens")


def _is_whole(path: Path, rows: int) -> bool:
    """Whether a shard of an earlier, killed run can be kept."""
    try:
        return bool(pq.read_metadata(path).num_rows == rows)
    except (FileNotFoundError, pa.ArrowException):  # never written, or cut short by a power failure
        return False


def _summarise(
    folder: Path,
    *,
    hookpoint: str,
    d_in: int,
    dtype: str,
    special_ids: Sequence[int],
    norm_multiple: float,
    train_rows: int,
) -> tuple[dict[str, Any], Tensor]:
    """Norms, their median and limit, and the mean vector, from the finished shards."""
    shards = open_shards(folder, d_in=d_in, dtype=dtype)
    cache = ActivationCache(
        folder=folder.parent,
        hookpoint=hookpoint,
        rows=shards.rows,
        d_in=d_in,
        dtype=dtype,
        median_norm=0.0,
        norm_limit=0.0,
        special_ids=tuple(special_ids),
        _splits={},
        _maps=shards.maps,
        _groups=shards.groups,
    )
    norms = np.empty(cache.rows, np.float32)
    for rows, values in cache.batches(range(cache.rows)):
        norms[rows.start : rows.stop] = torch.linalg.vector_norm(values.float(), dim=1).numpy()
    keep = usable(cache.positions, cache.token_ids, special_ids)
    if not keep.any():
        raise DataError(
            "no usable rows: every token is special or at position 0",
            field=hookpoint,
            got=f"{cache.rows} rows",
            next_step="check the corpus: contexts need at least two ordinary tokens",
        )
    median = float(np.median(norms[keep]))
    limit = norm_multiple * median
    keep &= norms <= limit
    if keep[:train_rows].any():
        keep[train_rows:] = False
    total = torch.zeros(d_in, dtype=torch.float64)
    for rows, values in cache.batches(range(cache.rows)):
        chosen = torch.from_numpy(keep[rows.start : rows.stop])
        total += values[chosen].to(torch.float64).sum(0)
    save_file({"norms": torch.from_numpy(norms)}, folder / "norms.safetensors")
    facts = {
        "rows": cache.rows,
        "d_in": d_in,
        "dtype": dtype,
        "median_norm": median,
        "norm_limit": limit,
        "mean_rows": int(keep.sum()),
    }
    return facts, (total / int(keep.sum())).float()
