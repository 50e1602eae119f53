"""The step that describes latents: what a reader sees beside explanations and examples.

It asks no language model. Memory stays within a constant plus some 30 bytes a token, since entries are sorted by
latent on disk and rows are written block by block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from saeinterp.artifacts import Artifact, ArtifactStore, Recipe, Ref, Workspace, write_json
from saeinterp.explain.explanation_table import read_latents
from saeinterp.explain.logit_lens import lens_logits, lens_of
from saeinterp.explain.profiles.firing import Occurrences, histogram, token_rates
from saeinterp.latents.cache import LatentCache
from saeinterp.latents.entries import SortedEntries, sort_entries
from saeinterp.latents.neighbours import Neighbours, nearest_by_chance
from saeinterp.progress import Progress, silent
from saeinterp.sae import TopKSae

VERSION = 1
KIND = "profiles"
NEIGHBOURS = 10
LOGITS = 10
"""Tokens at each end of the logit lens."""
LOGIT_BINS = 30

_LOGIT = pa.list_(pa.struct([("token", pa.string()), ("logit", pa.float32())]))
SCHEMA = pa.schema(
    [
        ("latent", pa.int32()),
        ("firings", pa.int64()),
        ("density", pa.float64()),
        ("peak", pa.float32()),
        ("histogram", pa.list_(pa.int64())),
        ("promoted", _LOGIT),
        ("suppressed", _LOGIT),
        ("logit_low", pa.float32()),
        ("logit_high", pa.float32()),
        ("logit_histogram", pa.list_(pa.int64())),
        ("neighbours", pa.list_(pa.struct([("latent", pa.int32()), ("cosine", pa.float64())]))),
        (
            "tokens",
            pa.list_(
                pa.struct(
                    [
                        ("token", pa.string()),
                        ("seen", pa.int64()),
                        ("fired", pa.int64()),
                        ("documents", pa.int64()),
                        ("low", pa.float64()),
                        ("high", pa.float64()),
                        ("share", pa.float64()),
                    ]
                )
            ),
        ),
        ("density_score", pa.float64()),
    ]
)


def describe_latents_recipe(latents: Ref, examples: Ref, subject: Ref, sae: Ref, *, hookpoint: str) -> Recipe:
    """The recipe of the profiles of an example set's latents."""
    config = {"hookpoint": hookpoint}
    return Recipe(kind=KIND, name=hookpoint, version=VERSION, config=config, inputs=(latents, examples, subject, sae))


def describe_latents(
    latents: Artifact,
    examples: Artifact,
    subject: Artifact,
    sae: Artifact,
    *,
    hookpoint: str,
    store: ArtifactStore,
    progress: Progress | None = None,
) -> Artifact:
    """Describe every latent of an example set, whatever its outcome.

    Payload: `profiles.parquet`, one row per latent, ascending: how often it fires (`firings`, `density`; the share of
    the score split's tokens alone in `density_score`), `peak` and a `histogram` of its activations; the tokens that
    its decoder direction raises and lowers most (`promoted`, `suppressed`) and a histogram of all logits between
    `logit_low` and `logit_high`; the `neighbours` nearest by decoder cosine; and `tokens`, chosen on the explain split
    and counted on the score split. `profiles.json` says how many tokens were counted, and which cosine the nearest
    neighbour stays below in 95% of random dictionaries.
    """
    report = progress or silent

    def write(space: Workspace) -> None:
        cache = LatentCache.open(latents)
        coder = TopKSae.load(sae.path)
        chosen: list[int] = read_latents(examples)["latent"].sort().to_list()
        weight, tokenizer = lens_of(subject)
        spelled = _speller(tokenizer)
        near = Neighbours(coder, count=NEIGHBOURS)
        everywhere = np.ones(cache.rows, bool)
        with (
            sort_entries(cache, everywhere, scratch=space.work, report=report) as entries,
            pq.ParquetWriter(space.out / "profiles.parquet", SCHEMA, compression="zstd") as writer,
        ):
            firing = _Firing(cache, entries, spelled)
            done = 0
            for block, logits in lens_logits(weight, sae, chosen):
                rows = [
                    {"latent": latent, **firing.of(latent), **lens, "neighbours": [item._asdict() for item in nearest]}
                    for latent, lens, nearest in zip(block, _lens(logits, spelled), near.nearest(block), strict=True)
                ]
                writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))
                done += len(block)
                report(done, len(chosen), "latents")
        facts = {
            "hookpoint": hookpoint,
            "latents": len(chosen),
            "num_latents": coder.num_latents,
            "d_in": coder.d_in,
            "tokens": {split: len(cache.split_rows(split)) for split in ("explain", "score")},
            "nearest_by_chance": nearest_by_chance(coder.num_latents, coder.d_in),
        }
        write_json(space.out / "profiles.json", facts)
        space.counts = {"latents": len(chosen)}

    recipe = describe_latents_recipe(latents, examples, subject, sae, hookpoint=hookpoint)
    return store.build(recipe, write)


class _Firing:
    """The columns of a latent that follow from where it fires."""

    def __init__(self, cache: LatentCache, entries: SortedEntries, spelled: Callable[[int], str]) -> None:
        self._entries, self._spelled, self._rows = entries, spelled, cache.rows
        self._tokens, self._documents = cache.column("token_id"), cache.column("doc_id")
        vocabulary = int(self._tokens.max(initial=0)) + 1
        self._explain, self._score = (
            Occurrences.of(self._tokens, cache.split_rows(split), vocabulary=vocabulary)
            for split in ("explain", "score")
        )

    def of(self, latent: int) -> dict[str, Any]:
        entries = self._entries.of(latent)
        peak, counts = histogram(entries.values)
        rates = token_rates(entries, self._tokens, self._documents, self._explain, self._score)
        late = int((entries.rows >= self._score.start).sum())
        unseen = self._score.stop - self._score.start
        return {
            "firings": len(entries.rows),
            "density": len(entries.rows) / self._rows if self._rows else None,
            "peak": peak,
            "histogram": counts,
            "tokens": [{**rate._asdict(), "token": self._spelled(rate.token)} for rate in rates],
            "density_score": late / unseen if unseen else None,
        }


def _lens(logits: Any, spelled: Callable[[int], str]) -> Iterator[dict[str, Any]]:
    """The columns of the logit lens, latent by latent."""
    count = min(LOGITS, logits.shape[1])
    ends = [logits.topk(count, largest=largest) for largest in (True, False)]
    for place, row in enumerate(logits.numpy()):
        top, bottom = (
            [
                {"token": spelled(token), "logit": value}
                for token, value in zip(end.indices[place].tolist(), end.values[place].tolist(), strict=True)
            ]
            for end in ends
        )
        counts, edges = np.histogram(row, bins=LOGIT_BINS)
        yield {
            "promoted": top,
            "suppressed": bottom,
            "logit_low": float(edges[0]),
            "logit_high": float(edges[-1]),
            "logit_histogram": counts.tolist(),
        }


def _speller(tokenizer: Any) -> Callable[[int], str]:
    """A token as text, each decoded once."""
    known: dict[int, str] = {}

    def spelled(token: int) -> str:
        if token not in known:
            known[token] = tokenizer.decode([token])
        return known[token]

    return spelled
