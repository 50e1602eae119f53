"""Frozen example sets: what every explainer is shown and every scorer judges.

Explainer and scorer examples come from different documents, because the splits do. Negatives are drawn
without replacement and verified silent. The surprising choice: every draw of a latent comes from a
generator seeded with that latent, so a latent's examples do not depend on which others were selected.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl

from saeinterp.artifacts import Artifact, ArtifactStore, Recipe, Ref, Workspace, write_json
from saeinterp.config import ExamplesConfig, recipe_of
from saeinterp.errors import DataError
from saeinterp.latents.cache import EXAMPLE_SPLITS, LatentCache
from saeinterp.latents.selection import select_latents
from saeinterp.latents.windows import Windows, collect_entries, count_activity, cut_windows
from saeinterp.progress import Progress, silent
from saeinterp.sae import TopKSae
from saeinterp.subject import Contexts, documents, read_contexts

VERSION = 1
KIND = "examples"
EXPLAIN, SCORE = 0, 1
NEIGHBOURS = 5
"""Latents with the nearest decoder directions, whose windows are `similar` negatives."""
TOP_TOKENS = 8
"""Tokens kept as a latent's top tokens, by summed activation on the explain split."""
NEAR_MISS_TOKENS = 3
"""Of those, so many make a silent window a `near-miss`."""

Status = Literal["ok", "dead", "too_rare", "too_dense"]

SCHEMA: dict[str, Any] = {
    "latent": pl.Int32,
    "example_id": pl.Int32,
    "role": pl.String,
    "kind": pl.String,
    "quantile": pl.Int8,
    "doc_id": pl.Int32,
    "context_id": pl.Int32,
    "start": pl.Int32,
    "end": pl.Int32,
    "text": pl.String,
    "token_ids": pl.List(pl.Int32),
    "tokens": pl.List(pl.String),
    "activations": pl.List(pl.Float32),
}
LATENT_SCHEMA: dict[str, Any] = {
    "latent": pl.Int32,
    "status": pl.String,
    "firings": pl.Int64,
    "density": pl.Float64,
    "windows_explain": pl.Int32,
    "windows_score": pl.Int32,
    "top_tokens": pl.List(pl.String),
    "missing_similar": pl.Int32,
    "missing_near_miss": pl.Int32,
}


class Pick(NamedTuple):
    """One chosen window of one latent."""

    window: int
    role: str
    kind: str
    quantile: int | None


@dataclass(frozen=True, eq=False)
class _Text:
    contexts: Contexts
    documents: dict[int, str]
    windows: Windows
    tokens: np.ndarray  # [rows]


def build_examples_recipe(latents: Ref, corpus: Ref, sae: Ref, *, hookpoint: str, config: ExamplesConfig) -> Recipe:
    """The recipe of an example set."""
    return Recipe(
        kind=KIND,
        name=hookpoint,
        version=VERSION,
        config={"hookpoint": hookpoint, **recipe_of(config)},
        inputs=(latents, corpus, sae),
    )


def build_examples(
    latents: Artifact,
    corpus: Artifact,
    sae: Artifact,
    *,
    hookpoint: str,
    config: ExamplesConfig,
    store: ArtifactStore,
    progress: Progress | None = None,
) -> Artifact:
    """Choose latents and freeze their examples.

    Payload: `examples.parquet` (one row per example), `latents.parquet` (one row per selected latent, with its
    outcome: `ok`, `dead`, `too_rare` or `too_dense`) and `examples.json` with the content hash of both.

    Raises:
        ConfigError: `config.latents` is malformed or names a latent outside the dictionary.
        DataError: The explain or score split has no window.
    """
    report = progress or silent

    def write(space: Workspace) -> None:
        cache = LatentCache.open(latents)
        contexts = read_contexts(corpus, splits=EXAMPLE_SPLITS)
        if contexts.tokens != cache.rows:
            raise AssertionError(f"latent cache has {cache.rows} rows, its corpus {contexts.tokens} tokens")
        windows = cut_windows(contexts, size=config.window)
        totals = np.bincount(windows.split, minlength=2)
        for split, count in zip(EXAMPLE_SPLITS, totals, strict=True):
            if not count:
                raise DataError(
                    f"the {split} split has no window of {config.window} tokens",
                    field="corpus",
                    next_step="give it more text, a larger fraction, or lower examples.window",
                )
        activity = count_activity(cache, windows)
        chosen = select_latents(config.latents, alive=activity.firings[EXPLAIN] > 0, seed=config.seed)
        near = _neighbours(TopKSae.load(sae.path), chosen)
        entries = collect_entries(cache, windows, sorted({*chosen, *(n for group in near.values() for n in group)}))
        text = _Text(contexts, documents(corpus), windows, cache.tokens)
        owner = windows.of_rows(cache.rows)

        rows: list[dict[str, Any]] = []
        outcomes: list[dict[str, Any]] = []
        for number, latent in enumerate(chosen):
            at, values = entries[latent]
            peak = _peaks(owner[at], values, len(windows.row))
            top_ids = _top_tokens(text.tokens[at], values, windows.split[owner[at]])
            seen = activity.active_windows[:, latent]
            status = _status(seen, totals, config)
            missing = {"similar": 0, "near-miss": 0}
            if status == "ok":
                rivals = [_peaks(owner[entries[n][0]], entries[n][1], len(windows.row)) for n in near[latent]]
                picks, missing = _pick(latent, peak, windows, text.tokens, top_ids, rivals, config)
                rows += _render(latent, picks, at, values, text)
            outcomes.append(
                {
                    "latent": latent,
                    "status": status,
                    "firings": int(activity.firings[:, latent].sum()),
                    "density": float(activity.firings[:, latent].sum() / cache.rows),
                    "windows_explain": int(seen[EXPLAIN]),
                    "windows_score": int(seen[SCORE]),
                    "top_tokens": _spelled(top_ids, at, text),
                    "missing_similar": missing["similar"],
                    "missing_near_miss": missing["near-miss"],
                }
            )
            report(number + 1, len(chosen), "latents")
        pl.DataFrame(rows, schema=SCHEMA).write_parquet(space.out / "examples.parquet")
        pl.DataFrame(outcomes, schema=LATENT_SCHEMA).write_parquet(space.out / "latents.parquet")
        statuses = [item["status"] for item in outcomes]
        facts: dict[str, Any] = {
            "content_hash": _content_hash(space.out),
            "hookpoint": hookpoint,
            "latents": len(chosen),
            "windows": {split: int(count) for split, count in zip(EXAMPLE_SPLITS, totals, strict=True)},
            "statuses": {status: statuses.count(status) for status in sorted(set(statuses))},
        }
        write_json(space.out / "examples.json", facts)
        space.counts = {"examples": len(rows), "latents": len(chosen), **facts["statuses"]}

    return store.build(build_examples_recipe(latents, corpus, sae, hookpoint=hookpoint, config=config), write)


def _status(active: np.ndarray, totals: np.ndarray, config: ExamplesConfig) -> Status:
    if not active.sum():
        return "dead"
    if (active < config.min_windows).any():
        return "too_rare"
    if (active > config.max_share * totals).any():
        return "too_dense"
    return "ok"


def _neighbours(sae: TopKSae, chosen: Sequence[int]) -> dict[int, list[int]]:
    """Per chosen latent the latents with the largest decoder cosine, itself left out."""
    unit = sae.W_dec.float()
    unit = unit / unit.norm(dim=1, keepdim=True).clamp_min(1e-12)
    count = min(NEIGHBOURS, sae.num_latents - 1)
    found = {}
    for latent in chosen:
        cosines = (unit @ unit[latent]).numpy().copy()
        cosines[latent] = -np.inf
        found[latent] = [int(n) for n in np.argsort(-cosines, kind="stable")[:count]]
    return found


def _peaks(window: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    """`[W]` float32: the largest magnitude of a latent in each window, 0 where it is silent."""
    peak = np.zeros(count, np.float32)
    np.maximum.at(peak, window, np.abs(values))
    return peak


def _top_tokens(tokens: np.ndarray, values: np.ndarray, split: np.ndarray) -> np.ndarray:
    """Token ids with the largest summed magnitude on the explain split; ties by id."""
    here = split == EXPLAIN
    ids, inverse = np.unique(tokens[here], return_inverse=True)
    sums = np.bincount(inverse, weights=np.abs(values[here]).astype(np.float64), minlength=len(ids))
    return ids[np.argsort(-sums, kind="stable")[:TOP_TOKENS]]


def _pick(
    latent: int,
    peak: np.ndarray,
    windows: Windows,
    tokens: np.ndarray,
    top_ids: np.ndarray,
    rivals: Iterable[np.ndarray],
    config: ExamplesConfig,
) -> tuple[list[Pick], dict[str, int]]:
    """Choose the windows of one latent; also says how many of a wanted kind of negative did not exist."""
    rng = np.random.default_rng([config.seed, latent])
    explain = np.flatnonzero((windows.split == EXPLAIN) & (peak > 0))
    score = np.flatnonzero((windows.split == SCORE) & (peak > 0))
    picks = [
        Pick(int(w), "explain", "activating", q)
        for w, q in _strata(explain, peak, config.explain_activating, config.quantiles, rng, top_half=True)
    ]
    picks += [
        Pick(int(w), "score", "activating", q)
        for w, q in _strata(score, peak, config.score_activating, config.quantiles, rng)
    ]

    free = np.flatnonzero((windows.split == SCORE) & (peak == 0))
    marked = np.isin(tokens, top_ids[:NEAR_MISS_TOKENS])
    before = np.concatenate([[0], np.cumsum(marked)])
    holds = before[windows.row + windows.end - windows.start] > before[windows.row]
    rival = np.max(np.stack([np.zeros_like(peak), *rivals]), axis=0)
    missing = {}
    for kind, wanted, pool in (
        ("near-miss", config.score_near_miss, free[holds[free]]),
        ("similar", config.score_similar, free[rival[free] > 0]),
    ):
        drawn = _draw(np.setdiff1d(pool, [pick.window for pick in picks]), wanted, rng)
        picks += [Pick(int(w), "score", kind, None) for w in drawn]
        missing[kind] = wanted - len(drawn)
    rest = np.setdiff1d(free, [pick.window for pick in picks])
    picks += [
        Pick(int(w), "score", "random", None) for w in _draw(rest, config.score_random + sum(missing.values()), rng)
    ]
    assert not any(peak[pick.window] for pick in picks if pick.kind != "activating")
    return picks, missing


def _strata(
    active: np.ndarray,
    peak: np.ndarray,
    count: int,
    quantiles: int,
    rng: np.random.Generator,
    *,
    top_half: bool = False,
) -> list[tuple[int, int]]:
    """`count` windows spread over activation quantiles (0 = weakest), as (window, quantile).

    With `top_half` the strongest windows come first and take half of the places.
    """
    order = active[np.argsort(peak[active], kind="stable")]
    quantile = (np.arange(len(order)) * quantiles) // max(len(order), 1)
    chosen: list[int] = []
    if top_half:
        chosen += range(len(order) - 1, max(len(order) - 1 - (count + 1) // 2, -1), -1)
    pools = [rng.permutation(np.flatnonzero(quantile == q)).tolist() for q in range(quantiles)]
    taken = set(chosen)
    while len(chosen) < min(count, len(order)):
        for pool in reversed(pools):
            while pool and pool[-1] in taken:
                pool.pop()
            if pool and len(chosen) < count:
                chosen.append(pool.pop())
                taken.add(chosen[-1])
    return [(int(order[position]), int(quantile[position])) for position in chosen[:count]]


def _draw(pool: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    return rng.choice(pool, size=min(count, len(pool)), replace=False) if len(pool) else pool


def _render(
    latent: int, picks: Sequence[Pick], at: np.ndarray, values: np.ndarray, text: _Text
) -> list[dict[str, Any]]:
    windows = text.windows
    rows = []
    for number, pick in enumerate(picks):
        start, end = int(windows.start[pick.window]), int(windows.end[pick.window])
        first = int(windows.row[pick.window])
        context = text.contexts[int(windows.context[pick.window])]
        pieces = context.pieces(start, end, text.documents)
        activations = np.zeros(end - start, np.float32)
        low, high = np.searchsorted(at, [first, first + end - start])
        activations[at[low:high] - first] = values[low:high]
        rows.append(
            {
                "latent": latent,
                "example_id": number,
                "role": pick.role,
                "kind": pick.kind,
                "quantile": pick.quantile,
                "doc_id": int(windows.doc_id[pick.window]),
                "context_id": context.context_id,
                "start": start,
                "end": end,
                "text": "".join(pieces),
                "token_ids": context.token_ids[start:end].tolist(),
                "tokens": pieces,
                "activations": activations.tolist(),
            }
        )
    return rows


def _spelled(top_ids: np.ndarray, at: np.ndarray, text: _Text) -> list[str]:
    """The top tokens as they stand in the text, from their first firing."""
    owner = text.windows
    spelled = []
    for token in top_ids:
        row = int(at[np.flatnonzero(text.tokens[at] == token)[0]])
        window = int(np.searchsorted(owner.row, row, side="right") - 1)
        offset = int(owner.start[window]) + row - int(owner.row[window])
        context = text.contexts[int(owner.context[window])]
        spelled.append(context.text(offset, offset + 1, text.documents))
    return spelled


def _content_hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in ("examples.parquet", "latents.parquet"):
        # Of the values, not of the file: another Parquet writer must not change it.
        frame = pl.read_parquet(folder / name)
        digest.update(frame.write_ndjson().encode())
    return digest.hexdigest()
