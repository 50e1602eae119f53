"""Frozen example sets: what every explainer is shown and every scorer judges.

Explainer and scorer examples come from different documents, because the splits do. Memory stays within a constant
(the budget, the SAE and about 0.2 GB) plus less than 200 bytes a token, however many latents are selected: entries are
sorted by latent on disk, and rows are written while latents are gone through. The surprising choice: a row group holds
a fixed number of latents, so that the file has the same bytes whatever the budget.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from saeinterp.artifacts import Artifact, ArtifactStore, Recipe, Ref, Workspace, write_json
from saeinterp.config import ExamplesConfig, recipe_of
from saeinterp.errors import DataError
from saeinterp.latents.cache import EXAMPLE_SPLITS, LatentCache
from saeinterp.latents.entries import BUDGET, Entries, SortedEntries, sort_entries
from saeinterp.latents.neighbours import Neighbours
from saeinterp.latents.picking import Activity, Missing, pick
from saeinterp.latents.rendering import SCHEMA, Shown, Text
from saeinterp.latents.selection import select_latents
from saeinterp.latents.windows import TokenIndex, Windows, cut_windows
from saeinterp.progress import Progress, silent
from saeinterp.sae import TopKSae
from saeinterp.subject import documents, read_contexts

VERSION = 3
KIND = "examples"
TOP_TOKENS = 8
"""Tokens kept as a latent's top tokens, by summed activation on the explain split."""
NEAR_MISS_TOKENS = 3
"""Of those, so many make a silent window a `near-miss`."""
_TOGETHER = 128  # latents in a row group

Status = Literal["ok", "dead", "too_rare", "too_dense"]

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
    "missing_random": pl.Int32,
    "missing_silent": pl.Int32,
}


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
    budget: int = BUDGET,
) -> Artifact:
    """Choose latents and freeze their examples.

    Payload: `examples.parquet` (one row per example), `latents.parquet` (one row per selected latent, with its
    outcome: `ok`, `dead`, `too_rare` or `too_dense`) and `examples.json` with the content hash of both.

    Args:
        budget: Bytes of latent cache in memory while it is sorted; results do not depend on it.

    Raises:
        ConfigError: `config.latents` is malformed, selects nothing or names a latent outside the dictionary.
        DataError: The explain or score split has no window, or a sample is wanted where no latent is alive.
    """
    report = progress or silent

    def write(space: Workspace) -> None:
        cache = LatentCache.open(latents)
        contexts = read_contexts(corpus, splits=EXAMPLE_SPLITS)
        if contexts.tokens != cache.rows:
            raise AssertionError(f"latent cache has {cache.rows} rows, its corpus {contexts.tokens} tokens")
        windows = cut_windows(contexts, size=config.window)
        for split, count in zip(EXAMPLE_SPLITS, windows.totals, strict=True):
            if not count:
                raise DataError(
                    f"the {split} split has no window of {config.window} tokens",
                    field="corpus",
                    next_step="give it more text, a larger fraction, or lower examples.window",
                )
        owner = windows.of_rows(cache.rows)
        text = Text(contexts, documents(corpus, splits=EXAMPLE_SPLITS), windows)
        with sort_entries(cache, owner >= 0, scratch=space.work, report=report, budget=budget) as entries:
            alive = entries.first_rows < cache.split_rows("explain").stop
            chosen = select_latents(config.latents, alive=alive, seed=config.seed)
            maker = _Maker(entries, owner, windows, text, Neighbours(TopKSae.load(sae.path)), config)
            digest = hashlib.sha256()
            outcomes: list[dict[str, Any]] = []
            examples = 0
            with pq.ParquetWriter(space.out / "examples.parquet", SCHEMA, compression="zstd") as writer:
                for start in range(0, len(chosen), _TOGETHER):
                    shown: list[Shown] = []
                    for outcome, found in maker.make(chosen[start : start + _TOGETHER]):
                        outcomes.append(outcome)
                        shown += found
                        report(len(outcomes), len(chosen), "latents")
                    table = text.table(shown)
                    writer.write_table(table)
                    _update(digest, table)
                    examples += table.num_rows
        frame = pl.DataFrame(outcomes, schema=LATENT_SCHEMA)
        frame.write_parquet(space.out / "latents.parquet")
        _update(digest, frame.to_arrow())
        statuses = [item["status"] for item in outcomes]
        facts: dict[str, Any] = {
            "content_hash": digest.hexdigest(),
            "hookpoint": hookpoint,
            "latents": len(chosen),
            "windows": {split: int(count) for split, count in zip(EXAMPLE_SPLITS, windows.totals, strict=True)},
            "statuses": {status: statuses.count(status) for status in sorted(set(statuses))},
        }
        write_json(space.out / "examples.json", facts)
        space.counts = {"examples": examples, "latents": len(chosen), **facts["statuses"]}

    return store.build(build_examples_recipe(latents, corpus, sae, hookpoint=hookpoint, config=config), write)


class _Maker:
    """Makes outcomes and examples of latents from what all of them share."""

    def __init__(
        self,
        entries: SortedEntries,
        owner: np.ndarray,
        windows: Windows,
        text: Text,
        neighbours: Neighbours,
        config: ExamplesConfig,
    ) -> None:
        self._entries, self._owner, self._windows, self._text = entries, owner, windows, text
        self._neighbours, self._config = neighbours, config
        self._index = TokenIndex(text.tokens, owner)

    def make(self, latents: Sequence[int]) -> Iterator[tuple[dict[str, Any], list[Shown]]]:
        """Per latent its row of `latents.parquet` and, where it is `ok`, its examples."""
        for latent, near in zip(latents, self._neighbours.nearest(latents), strict=True):
            entries = self._entries.of(latent)
            activity = Activity.of(self._owner[entries.rows], entries.values, self._windows)
            firings = int(self._entries.firings[latent])
            status = _status(activity.counts, self._windows.totals, self._config) if firings else "dead"
            tokens = self._text.tokens[entries.rows]
            top_ids = _top_tokens(tokens, entries.values, self._early(entries))
            missing = Missing()
            shown = []
            if status == "ok":
                picks, missing = pick(
                    latent,
                    activity,
                    self._windows,
                    holding=_joined([self._index.windows(token) for token in top_ids[:NEAR_MISS_TOKENS]]),
                    rivals=_joined([_runs(self._owner[self._entries.rows(rival.latent)]) for rival in near]),
                    config=self._config,
                )
                shown = [self._text.shown(latent, picks, entries)]
            firsts = [int(entries.rows[np.argmax(tokens == token)]) for token in top_ids]
            outcome = {
                "latent": latent,
                "status": status,
                "firings": firings,
                "density": firings / len(self._owner),
                "windows_explain": int(activity.counts[0]),
                "windows_score": int(activity.counts[1]),
                "top_tokens": [self._text.spelled(row) for row in firsts],
                **{f"missing_{kind}": count for kind, count in missing._asdict().items()},
            }
            yield outcome, shown

    def _early(self, entries: Entries) -> int:
        """How many of a latent's entries lie on the explain split."""
        return int(np.searchsorted(entries.rows, self._windows.row[self._windows.explain]))


def _status(active: np.ndarray, totals: np.ndarray, config: ExamplesConfig) -> Status:
    if (active < config.min_windows).any():
        return "too_rare"
    if (active > config.max_share * totals).any():
        return "too_dense"
    return "ok"


def _top_tokens(tokens: np.ndarray, values: np.ndarray, early: int) -> np.ndarray:
    """Token ids with the largest summed magnitude over the first `early` entries; ties by id."""
    sums = np.bincount(tokens[:early], weights=np.abs(values[:early]))
    ids = np.flatnonzero(sums)
    return ids[np.argsort(-sums[ids], kind="stable")[:TOP_TOKENS]]


def _runs(windows: np.ndarray) -> np.ndarray:
    """Ascending windows, each once."""
    return windows[np.diff(windows, prepend=-1) > 0]


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int32), *parts])


def _update(digest: Any, table: pa.Table) -> None:
    # Of the values, not of the file: another Parquet writer or other row groups must not change it.
    digest.update(pl.DataFrame(table).write_ndjson().encode())
