"""Collect activations of a subject over a corpus into an activation cache (see `cache.py` for the format).

One forward pass serves every hookpoint and ends at the deepest. The surprising choice: the shards' contents
are planned from the context lengths before anything runs (see `shards.py`), so that a killed run resumes after its
last whole shard, and several processes share the work, and the bytes are the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from saeinterp.artifacts import Artifact, ArtifactStore, Recipe, Ref, Workspace, read_json, write_json
from saeinterp.config import SPLITS, CaptureConfig, Placement, Split, recipe_of
from saeinterp.errors import ConfigError, DataError
from saeinterp.progress import Progress, silent
from saeinterp.subject.cache import ActivationCache, open_shards, usable
from saeinterp.subject.capture_processes import CaptureJob, capture_in_processes
from saeinterp.subject.contexts import Contexts, read_contexts
from saeinterp.subject.models import load_subject, subject_info
from saeinterp.subject.placement import placed
from saeinterp.subject.shards import Layout, Shard, check_budget, missing_shards, plan_shards, write_shards

VERSION = 1


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
    device: str | Placement = "auto",
    visible: str | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Run the subject over the corpus and keep the activations of every hookpoint.

    With `config.processes` > 1 the subject is loaded by as many child processes, not by this one.

    Payload: `<hookpoint>/NNNNN.parquet` and `<hookpoint>/norms.safetensors`; `means.safetensors` (float32 mean
    over the usable rows of the train split, or of all rows where train is not collected); `cache.json`.
    `norm_limit` is `norm_multiple` × the exact median L2 norm over all collected rows at position > 0 that are
    no special tokens.

    Args:
        visible: The GPUs that child processes share out (`CUDA_VISIBLE_DEVICES`); None takes all that are seen.

    Raises:
        BudgetError: The cache would exceed `disk_budget_gb` or the free disk; raised before the model is loaded.
        ConfigError: A hookpoint does not exist; more processes than GPUs.
        DataError: NaN, infinite or (float16) overflowing activations, naming the hookpoint; no usable rows.
        CaptureError: A child process was killed; the next call does only the shards that are missing.
    """
    recipe = collect_activations_recipe(subject, corpus, config=config, splits=splits)
    ordered: list[Split] = recipe.config["splits"]
    report = progress or silent

    def write(space: Workspace) -> None:
        contexts = read_contexts(corpus, splits=ordered)
        special_ids = read_json(corpus.file("corpus.json"))["special_ids"]
        tokens = contexts.tokens
        expected = dict.fromkeys(config.hookpoints, subject_info(subject)["d_model"])
        check_budget(tokens, expected, budget_gb=config.disk_budget_gb, work=space.work)
        shards = plan_shards(contexts, batch_contexts=config.batch_contexts)
        missing = missing_shards(shards, space.work, config.hookpoints)
        kept = tokens - sum(shard.rows for shard in missing)

        def done(rows: int) -> None:
            report(kept + rows, tokens, "tokens")

        done(0)
        if config.processes > 1:
            job = CaptureJob(
                subject=subject,
                corpus=corpus,
                config=config,
                splits=tuple(ordered),
                placement=placed(device),
                shards=tuple(missing),
                work=space.work,
                threads=torch.get_num_threads(),
            )
            layout = capture_in_processes(job, processes=config.processes, visible=visible, report=done)
        else:
            layout = _capture_here(subject, contexts, missing, config=config, device=device, work=space.work, done=done)
        facts, means = {}, {}
        for name in config.hookpoints:
            facts[name], means[name] = summarise_rows(
                space.work / name,
                hookpoint=name,
                d_in=layout.widths[name],
                dtype=layout.dtype,
                special_ids=special_ids,
                norm_multiple=config.norm_multiple,
                train_rows=contexts.tokens_of("train"),
            )
        # Only now: what lies in `out` is lost when a run is killed.
        for name in config.hookpoints:
            os.rename(space.work / name, space.out / name)
        save_file(means, space.out / "means.safetensors")
        summary = {
            "hookpoints": facts,
            "special_ids": special_ids,
            "splits": {split: contexts.tokens_of(split) for split in ordered},
        }
        write_json(space.out / "cache.json", summary)
        space.counts = {"rows": tokens, "hookpoints": len(config.hookpoints)}

    return store.build(recipe, write)


def _capture_here(
    subject: Artifact,
    contexts: Contexts,
    shards: Sequence[Shard],
    *,
    config: CaptureConfig,
    device: str | Placement,
    work: Path,
    done: Callable[[int], None],
) -> Layout:
    """Load the subject into this process and write the shards."""
    loaded = load_subject(subject, device=device)
    layout = Layout.of(loaded, config)
    # Hookpoints inside a block may be wider than the residual stream.
    check_budget(contexts.tokens, layout.widths, budget_gb=config.disk_budget_gb, work=work)
    write_shards(loaded, contexts, shards, config=config, layout=layout, work=work, report=done)
    return layout


def summarise_rows(
    folder: Path,
    *,
    hookpoint: str,
    d_in: int,
    dtype: str,
    special_ids: Sequence[int],
    norm_multiple: float,
    train_rows: int,
) -> tuple[dict[str, Any], Tensor]:
    """Norms, their median and limit, and the mean vector, from the finished shards of one hookpoint.

    Args:
        folder: With the shards; `norms.safetensors` is written there.
        train_rows: The mean is over the usable ones among the first so many rows, or over all where none is.

    Returns:
        What `cache.json` says of the hookpoint, and the mean `[d_in]`, float32.

    Raises:
        DataError: No row is usable.
    """
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
