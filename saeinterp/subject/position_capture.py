"""Activations at chosen places of problems: one forward pass for all hookpoints, one cache per hookpoint and slot.

The cache has the format of `cache.py`, keyed by site (`layers.9@1`), so that SAEs are trained on it as on any other.
Hidden states are what a hook on the module sees: a block's output, for the last block *before* the final norm. The
surprising choice: where places are chosen, `position` is stored as the place plus one, because the mask of a cache
leaves out position 0, and a place that was asked for must count wherever it lies.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file
from torch import Tensor

from saeinterp.artifacts import Artifact, ArtifactStore, Recipe, Ref, Workspace, read_json, write_json
from saeinterp.config import CaptureConfig, Placement, PositionsConfig, recipe_of
from saeinterp.errors import ConfigError
from saeinterp.progress import Progress, silent
from saeinterp.subject.activations import summarise_rows
from saeinterp.subject.cache import ShardWriter
from saeinterp.subject.contexts import Context
from saeinterp.subject.forwarding import forward_window
from saeinterp.subject.models import load_subject, subject_info
from saeinterp.subject.position_plan import Plan, plan_positions
from saeinterp.subject.positions import parse_select
from saeinterp.subject.problems import read_problems
from saeinterp.subject.shards import (
    Layout,
    Shard,
    activation_bytes,
    check_bytes,
    is_whole,
    plan_shards,
    window_contexts,
)
from saeinterp.subject.thought_checkpoints import checkpoint_fingerprint, load_thinker
from saeinterp.subject.thoughts import think_window

VERSION = 1

Forward = Callable[[Sequence[Context]], Iterator[tuple[Context, dict[str, Tensor]]]]


def collect_positions_recipe(
    subject: Ref, problems: Ref, *, capture: CaptureConfig, positions: PositionsConfig
) -> Recipe:
    """The recipe of a cache of chosen places.

    Raises:
        ConfigError: A hookpoint is named twice, no such selector, or a way of capturing that chosen places do not take.
        SubjectError: The checkpoint of the thoughts does not exist or holds no safetensors.
    """
    if not capture.hookpoints or len(set(capture.hookpoints)) != len(capture.hookpoints):
        raise ConfigError("must name each entry once", field="capture.hookpoints", got=capture.hookpoints)
    if capture.source == "stream" or capture.processes > 1:
        field = "source" if capture.source == "stream" else "processes"
        raise ConfigError(
            "chosen places are few, and are kept as files by one process",
            field=f"capture.{field}",
            got=getattr(capture, field),
            next_step=f"leave capture.{field} out",
        )
    selector = parse_select(positions.select)
    chosen: dict[str, Any] = {"select": positions.select}
    if positions.thoughts is not None:
        # The checkpoint enters by its content, wherever it lies.
        thoughts = recipe_of(positions.thoughts)
        thoughts["checkpoint"] = checkpoint_fingerprint(positions.thoughts)
        del thoughts["revision"]
        chosen["thoughts"] = thoughts
    name = "-".join(str(part) for part in (selector.kind, selector.number or None, selector.part) if part is not None)
    return Recipe(
        kind="activations",
        name=f"{subject.name}-{name}",
        version=VERSION,
        config={**recipe_of(capture), "positions": chosen},
        inputs=(subject, problems),
    )


def collect_positions(
    subject: Artifact,
    problems: Artifact,
    *,
    capture: CaptureConfig,
    positions: PositionsConfig,
    store: ArtifactStore,
    device: str | Placement = "auto",
    progress: Progress | None = None,
) -> Artifact:
    """Run the subject over the problems and keep the activations at the chosen places.

    Payload: as of `collect_activations`, a folder per site instead of a hookpoint. `doc_id` is the sample, `token_id`
    the token there (-1 for a thought). A problem without a place has no row at its site. `cache.json` says more:
    `sites` (hookpoint, slot and title of each), `positions` (the selector, how many problems, and how many lack which
    slot) and `semantics`. With `all`, positions are as they are and special tokens are masked, as in any cache; chosen
    places are masked for their norm alone.

    Raises:
        DataError: A site has too few rows, or the model gives NaN, infinite or (float16) overflowing activations.
        BudgetError: The cache would exceed `disk_budget_gb` or the free disk; raised before the model is loaded.
        ConfigError: As `collect_positions_recipe`; a hookpoint does not exist; continuous thoughts without a question,
            or beyond the subject's longest text.
        SubjectError: The checkpoint of the thoughts does not fit.
    """
    recipe = collect_positions_recipe(subject, problems, capture=capture, positions=positions)
    report = progress or silent

    def write(space: Workspace) -> None:
        asked = read_problems(problems)
        plan = plan_positions(subject, asked, hookpoints=capture.hookpoints, positions=positions)
        plan.refuse_empty(positions.select)
        _check_budget(plan, dict.fromkeys(capture.hookpoints, subject_info(subject)["d_model"]), capture, space.work)
        layout, forward = _load(subject, plan, capture, positions, device=device)
        _check_budget(plan, layout.widths, capture, space.work)
        shards = plan_shards(plan.contexts, batch_contexts=capture.batch_contexts)
        _write_shards(plan, shards, layout, forward, capture=capture, work=space.work, report=report)
        special: list[int] = read_json(problems.file("problems.json"))["special_ids"] if plan.shift == 0 else []
        facts, means = {}, {}
        for site, (hookpoint, slot) in plan.sites.items():
            rows = plan.rows(slot)
            facts[site], means[site] = summarise_rows(
                space.work / site,
                hookpoint=site,
                d_in=layout.widths[hookpoint],
                dtype=layout.dtype,
                special_ids=special,
                norm_multiple=capture.norm_multiple,
                train_rows=rows["train"],
            )
            facts[site]["splits"] = rows
        # Only now: what lies in `out` is lost when a run is killed.
        for site in plan.sites:
            os.rename(space.work / site, space.out / site)
        save_file(means, space.out / "means.safetensors")
        titles = plan.titles
        summary = {
            "hookpoints": facts,
            "special_ids": special,
            "splits": plan.problems(),
            "sites": {
                site: {"hookpoint": hookpoint, "slot": slot, "title": titles[slot or 0]}
                for site, (hookpoint, slot) in plan.sites.items()
            },
            "positions": {
                "select": positions.select,
                "slots": plan.selector.slots,
                "titles": titles,
                "samples": plan.problems(),
                "missing": {str(slot): plan.missing(slot) for slot in range(len(titles))},
                "position_plus": plan.shift,
            },
            "semantics": "the output of the module, for a block before the final norm"
            + ("; what is fed back is the last hidden state after it" if positions.thoughts is not None else ""),
        }
        write_json(space.out / "cache.json", summary)
        space.counts = {
            "rows": sum(item["rows"] for item in facts.values()),
            "sites": len(plan.sites),
            "problems": len(plan.contexts),
        }

    return store.build(recipe, write)


def _check_budget(plan: Plan, widths: Mapping[str, int], capture: CaptureConfig, work: Path) -> None:
    rows = {site: sum(plan.rows(slot).values()) for site, (_, slot) in plan.sites.items()}
    shown = "/".join(str(width) for width in sorted(set(widths.values())))
    check_bytes(
        sum(activation_bytes(rows[site], widths[name], [site]) for site, (name, _) in plan.sites.items()),
        what=f"{sum(rows.values()):,} rows of {len(plan.sites)} sites with {shown} values",
        choices="take fewer problems (corpus.training), fewer places or fewer hookpoints",
        budget_gb=capture.disk_budget_gb,
        work=work,
    )


def _load(
    subject: Artifact,
    plan: Plan,
    capture: CaptureConfig,
    positions: PositionsConfig,
    *,
    device: str | Placement,
) -> tuple[Layout, Forward]:
    """Load the subject, and what runs it over some contexts: each with `{hookpoint: [rows, d]}`, in order."""
    if positions.thoughts is None:
        loaded = load_subject(subject, device=device)
        layout = Layout.of(loaded, capture)
        return layout, lambda some: forward_window(
            loaded, some, capture.hookpoints, dtype=layout.dtype, batch_contexts=capture.batch_contexts
        )
    thinker = load_thinker(subject, positions.thoughts, bot=plan.bot, device=device)
    layout = Layout.of(thinker.subject, capture)
    return layout, lambda some: think_window(
        thinker,
        some,
        capture.hookpoints,
        thoughts=plan.thoughts,
        dtype=layout.dtype,
        batch_contexts=capture.batch_contexts,
    )


def _write_shards(
    plan: Plan,
    shards: Sequence[Shard],
    layout: Layout,
    forward: Forward,
    *,
    capture: CaptureConfig,
    work: Path,
    report: Progress,
) -> None:
    """Write the shards that an earlier, killed run did not finish, the same problems in all sites' shards."""
    total = len(plan.contexts)
    window = window_contexts(plan.contexts, capture.batch_contexts)
    for site in plan.sites:
        (work / site).mkdir(exist_ok=True)
    for shard in shards:
        finals = {site: shard.path(work, site) for site in plan.sites}
        rows = plan.counts[:, shard.start : shard.stop].sum(1)
        if all(is_whole(finals[site], rows[slot or 0]) for site, (_, slot) in plan.sites.items()):
            report(shard.stop, total, "problems")
            continue
        partials = {site: path.with_suffix(".partial") for site, path in finals.items()}
        writers = {
            site: ShardWriter(partials[site], d_in=layout.widths[name], dtype=layout.dtype)
            for site, (name, _) in plan.sites.items()
        }
        for start in range(shard.start, shard.stop, window):
            stop = min(start + window, shard.stop)
            report(start, total, "problems")
            for number, (context, values) in enumerate(forward(plan.contexts[start:stop]), start):
                for site, (name, slot) in plan.sites.items():
                    kept = plan.kept[number][slot or 0]
                    if len(kept.row):
                        sample = np.full(len(kept.row), context.doc_ids[0], np.int32)
                        writers[site].write(np.stack([sample, kept.position, kept.token]), values[name][kept.row])
        for site, writer in writers.items():
            writer.close()
            # A rename is what marks a shard whole.
            os.replace(partials[site], finals[site])
    report(total, total, "problems")
