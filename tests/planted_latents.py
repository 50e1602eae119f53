"""A latent cache of any size, written as its format says, with no model and no SAE run behind it.

Tokens follow a Zipf law. Every token has latents of its own, which fire on it most of the time, and the rest of its
slots go to latents of very different density; some never fire. The text spells every token in so many characters, and
one token in fifty takes several bytes a character.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from saeinterp.artifacts import Artifact, ArtifactStore, Recipe, Workspace, write_json
from saeinterp.sae import TopKSae
from saeinterp.subject.contexts import CONTEXTS_SCHEMA
from saeinterp.subject.corpora import DOCUMENTS_SCHEMA

HOOKPOINT = "layers.0"
DOCUMENT, CONTEXT = 300, 128
_DOCUMENTS_A_PIECE = 64


class PlantedLatents(NamedTuple):
    """The artifacts that example sets are made from."""

    corpus: Artifact
    latents: Artifact
    sae: Artifact


def plant_latents(
    store: ArtifactStore,
    *,
    tokens: int,
    k: int = 8,
    num_latents: int = 256,
    vocabulary: int = 500,
    d_in: int = 16,
    train_tokens: int = 0,
    seed: int = 0,
) -> PlantedLatents:
    """Write corpus, latent cache and SAE; `tokens` are those of explain and score, half each, to a document."""
    documents = max(2, tokens // DOCUMENT)
    splits = ["train"] * (train_tokens // DOCUMENT)
    splits += ["explain"] * (documents // 2) + ["score"] * (documents - documents // 2)
    facts = {"tokens": tokens, "k": k, "latents": num_latents, "vocabulary": vocabulary, "splits": len(splits)}
    config = {**facts, "d_in": d_in, "seed": seed}
    drawn = _Drawn(k, num_latents, vocabulary, seed)

    def recipe(kind: str) -> Recipe:
        return Recipe(kind=kind, name="planted", version=1, config=config)

    corpus = store.build(recipe("corpus"), lambda space: _write_corpus(space, splits, drawn))
    latents = store.build(recipe("latents"), lambda space: _write_cache(space, splits, drawn))
    sae = store.build(recipe("sae"), lambda space: _planted_sae(d_in, num_latents, k, seed).save(space.out))
    return PlantedLatents(corpus, latents, sae)


def spelled(token: int) -> str:
    """The characters of a token id."""
    return f" {'ü→語'[token % 3]}{token}" if token % 50 == 7 else f" t{token}"


class _Drawn:
    """Token ids and firings of a document, from its number alone."""

    def __init__(self, k: int, num_latents: int, vocabulary: int, seed: int) -> None:
        self.k, self.num_latents, self.vocabulary, self._seed = k, num_latents, vocabulary, seed
        source = np.random.default_rng([seed, 0])
        weight = 1 / np.arange(1, vocabulary + 1) ** 0.8
        self._tokens = np.cumsum(weight) / weight.sum()
        density = np.exp(2 * source.standard_normal(num_latents))
        density[source.random(num_latents) < 0.05] = 0  # dead, unless they are some token's own
        self._latents = np.cumsum(density) / density.sum()
        self._own = np.searchsorted(self._latents, source.random((vocabulary, max(1, k // 3))))

    def tokens(self, document: int) -> np.ndarray:
        """`[DOCUMENT]` int32."""
        source = np.random.default_rng([self._seed, 1, document])
        return np.searchsorted(self._tokens, source.random(DOCUMENT)).astype(np.int32)

    def code(self, document: int) -> tuple[np.ndarray, np.ndarray]:
        """Indices, ascending, and values `[DOCUMENT, k]`; slots that repeat a latent have value 0."""
        source = np.random.default_rng([self._seed, 2, document])
        indices = np.searchsorted(self._latents, source.random((DOCUMENT, self.k)))
        own = self._own[self.tokens(document)]
        keep = source.random(own.shape) < 0.9
        indices[:, : own.shape[1]] = np.where(keep, own, indices[:, : own.shape[1]])
        indices.sort(axis=1)
        values = source.gamma(2.0, 1.0, indices.shape).astype(np.float16) + np.float16(0.01)
        values[:, 1:][indices[:, 1:] == indices[:, :-1]] = 0
        return indices, values


def _pieces(splits: list[str]) -> Iterator[list[int]]:
    """Numbers of documents of one split, some at a time."""
    for split in dict.fromkeys(splits):
        members = [number for number, name in enumerate(splits) if name == split]
        for start in range(0, len(members), _DOCUMENTS_A_PIECE):
            yield members[start : start + _DOCUMENTS_A_PIECE]


def _write_corpus(space: Workspace, splits: list[str], drawn: _Drawn) -> None:
    spelling = [spelled(token) for token in range(drawn.vocabulary)]
    lengths = np.array([len(text) for text in spelling])
    context_id = 0
    with (
        pq.ParquetWriter(space.out / "documents.parquet", DOCUMENTS_SCHEMA) as texts,
        pq.ParquetWriter(space.out / "contexts.parquet", CONTEXTS_SCHEMA) as contexts,
    ):
        for piece in _pieces(splits):
            split = splits[piece[0]]
            rows, documents = [], []
            for document in piece:
                ids = drawn.tokens(document)
                ends = np.cumsum(lengths[ids])
                documents.append("".join(spelling[token] for token in ids))
                for start in range(0, DOCUMENT, CONTEXT):
                    here = slice(start, start + CONTEXT)
                    spans = ends[here] - lengths[ids[here]], ends[here]
                    rows.append((context_id, split, ids[here], np.full(len(ids[here]), document), *spans))
                    context_id += 1
            columns = [list(column) for column in zip(*rows, strict=True)]
            contexts.write_table(pa.table(columns, schema=CONTEXTS_SCHEMA))
            blank = [""] * len(piece)
            columns = [piece, [split] * len(piece), blank, blank, documents]
            texts.write_table(pa.table(columns, schema=DOCUMENTS_SCHEMA))


def _write_cache(space: Workspace, splits: list[str], drawn: _Drawn) -> None:
    binary = pa.binary(2 * drawn.k)
    fields = [pa.field(name, pa.int32(), nullable=False) for name in ("doc_id", "position", "token_id")]
    fields += [pa.field(name, binary, nullable=False) for name in ("indices", "values")]
    schema = pa.schema(fields)
    with pq.ParquetWriter(space.out / "rows.parquet", schema, compression="zstd") as writer:
        for piece in _pieces(splits):
            if splits[piece[0]] == "train":
                continue
            columns = [np.repeat(piece, DOCUMENT), np.tile(np.arange(DOCUMENT) % CONTEXT, len(piece))]
            columns.append(np.concatenate([drawn.tokens(document) for document in piece]))
            arrays = [pa.array(column.astype(np.int32)) for column in columns]
            for matrix, kind in zip(zip(*map(drawn.code, piece), strict=True), (np.uint16, np.float16), strict=True):
                data = np.concatenate(matrix).astype(kind)
                arrays.append(pa.FixedSizeBinaryArray.from_buffers(binary, len(data), [None, pa.py_buffer(data)]))
            writer.write_table(pa.table(arrays, schema=schema))
    sizes = {split: DOCUMENT * splits.count(split) for split in ("explain", "score")}
    facts = {"hookpoint": HOOKPOINT, "k": drawn.k, "num_latents": drawn.num_latents, "rows": sum(sizes.values())}
    write_json(space.out / "latents.json", {**facts, "splits": sizes, "value_type": "float16"})


def _planted_sae(d_in: int, num_latents: int, k: int, seed: int) -> TopKSae:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.nn.functional.normalize(torch.randn(num_latents, d_in, generator=generator), dim=1)
    return TopKSae(rows, torch.zeros(num_latents), rows.clone(), torch.zeros(d_in), k=k)
