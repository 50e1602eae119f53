"""The text behind document sums: documents paired over corpora, their bytes, and whether their tokens are equal.

Two corpora may hold the same documents under other numbers, when a tokenizer drops or reorders some. The
surprising choice: tokenizers are told apart by what they did to the shared documents, not by their names or
files: equal tokens of equal text are one tokenizer in all that matters here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from saeinterp.compare.comparability import Node
from saeinterp.compare.sides import LayerHealth, MeasuredSae, Place, input_of
from saeinterp.health import DocumentSums
from saeinterp.health.documents import COLUMNS
from saeinterp.subject import documents as document_texts
from saeinterp.subject import read_contexts


@dataclass(frozen=True)
class EvaluatedText:
    """The held-out split of one corpus.

    Attributes:
        keys: doc_id -> SHA-256 of the document as read.
        tokens: SHA-256 -> the tokens of its text, int32, in order, without added ones.
        sizes: SHA-256 -> UTF-8 bytes of the text those tokens cover.
    """

    keys: Mapping[int, str]
    tokens: Mapping[str, NDArray[np.int32]]
    sizes: Mapping[str, int]

    @classmethod
    def read(cls, corpus: Node) -> EvaluatedText | None:
        """None where the corpus is gone."""
        if not corpus.manifest:
            return None
        artifact = corpus.artifact
        table = pq.read_table(artifact.file("documents.parquet"), columns=["doc_id", "split", "sha256"])
        columns = (table.column(name).to_pylist() for name in ("doc_id", "split", "sha256"))
        keys = {doc: sha for doc, split, sha in zip(*columns, strict=True) if split == "health"}
        bytes_before = {doc: _bytes_before(text) for doc, text in document_texts(artifact).items() if doc in keys}
        tokens: dict[str, list[NDArray[np.int32]]] = {}
        sizes: dict[str, int] = {}
        for context in read_contexts(artifact, splits="health"):
            is_text = context.char_ends > context.char_starts
            for doc in np.unique(context.doc_ids[is_text]):
                mine = is_text & (context.doc_ids == doc)
                start, stop = int(context.char_starts[mine].min()), int(context.char_ends[mine].max())
                before, key = bytes_before[int(doc)], keys[int(doc)]
                tokens.setdefault(key, []).append(context.token_ids[mine])
                sizes[key] = sizes.get(key, 0) + int(before[stop] - before[start])
        return cls(keys, {key: np.concatenate(parts) for key, parts in tokens.items()}, sizes)

    def same_tokens(self, other: EvaluatedText) -> bool | None:
        """Whether shared documents have equal tokens, as far as both go; None without a shared document."""
        shared = self.tokens.keys() & other.tokens.keys()
        if not shared:
            return None
        pairs = ((self.tokens[key], other.tokens[key]) for key in shared)
        return all(np.array_equal(x[: len(y)], y[: len(x)]) for x, y in pairs)

    def scored_bytes(self, documents: DocumentSums) -> NDArray[np.float64]:
        """Bytes [D] behind each document's predictions: its bytes times the share of its tokens that are predicted.

        Masked tokens and the first of every context are not predicted, more of them under one tokenizer than
        another; without that share a sum over predictions would be divided by text it does not cover.
        """
        predictions = documents.sums[:, COLUMNS.index("predictions")]
        sizes = np.zeros(len(predictions))
        for row, doc in enumerate(documents.doc_ids.tolist()):
            key = self.keys.get(doc)
            if key is not None and key in self.sizes:
                sizes[row] = self.sizes[key] / len(self.tokens[key])
        scored: NDArray[np.float64] = sizes * predictions
        return scored


class TextLibrary:
    """Evaluated texts by corpus, each read once."""

    def __init__(self) -> None:
        self._known: dict[str, EvaluatedText | None] = {}

    def __call__(self, corpus: Node) -> EvaluatedText | None:
        if corpus.recipe not in self._known:
            self._known[corpus.recipe] = EvaluatedText.read(corpus)
        return self._known[corpus.recipe]


def pair_documents(
    a: Mapping[Place, Sequence[MeasuredSae]],
    b: Mapping[Place, Sequence[MeasuredSae]],
    *,
    order: Sequence[Place],
    library: TextLibrary,
) -> dict[Place, tuple[tuple[LayerHealth, ...], tuple[LayerHealth, ...]]]:
    """The health of both sides by place, documents of equal text under one number within a dataset.

    Where the sides tokenise shared documents differently, their bytes are added (`LayerHealth.scored_bytes`).
    """
    found: dict[Place, tuple[tuple[LayerHealth, ...], tuple[LayerHealth, ...]]] = {}
    for dataset in dict.fromkeys(place.dataset for place in order):
        here = [place for place in order if place.dataset == dataset]
        sides = [_corpora([sae for place in here for sae in side.get(place, ())]) for side in (a, b)]
        paired = _Paired(sides, library)
        for place in here:
            left, right = (tuple(paired(sae) for sae in side.get(place, ())) for side in (a, b))
            found[place] = (left, right)
    return found


class _Paired:
    """Turns the document numbers of several corpora into common ones."""

    def __init__(self, sides: Sequence[Mapping[str, Node]], library: TextLibrary) -> None:
        corpora = {recipe: node for side in sides for recipe, node in side.items()}
        self._numbers: dict[str, Mapping[int, int]] = {}
        self._texts: dict[str, EvaluatedText | None] = {}
        self._shared: set[str] | None = None
        self._order = list(corpora)
        if len(corpora) <= 1:
            return
        self._texts = {recipe: library(node) for recipe, node in corpora.items()}
        known = {recipe: text for recipe, text in self._texts.items() if text is not None}
        keys = sorted({key for text in known.values() for key in text.keys.values()})
        number = {key: index for index, key in enumerate(keys)}
        self._numbers = {recipe: {doc: number[key] for doc, key in text.keys.items()} for recipe, text in known.items()}
        pairs = [(known[x], known[y]) for x in sides[0] for y in sides[1] if x in known and y in known]
        if any(x.same_tokens(y) is False for x, y in pairs):
            self._shared = set.intersection(*(set(text.tokens) for text in known.values()))

    def __call__(self, sae: MeasuredSae) -> LayerHealth:
        corpus = input_of(sae.node, "corpus")
        if corpus is None or len(self._order) <= 1:
            return sae.health
        documents, text = sae.health.documents, self._texts.get(corpus.recipe)
        known = self._numbers.get(corpus.recipe, {})
        # Documents of a corpus that is gone are shared with nobody: numbers of their own, below zero.
        own = -1 - self._order.index(corpus.recipe)
        ids = [known.get(doc, own - len(self._order) * doc) for doc in documents.doc_ids.tolist()]
        scored = None
        if self._shared is not None and text is not None:
            shared = [text.keys.get(doc) in self._shared for doc in documents.doc_ids.tolist()]
            scored = np.where(shared, text.scored_bytes(documents), 0.0)
        return sae.health._replace(
            documents=DocumentSums(np.array(ids, dtype=np.int32), documents.sums), scored_bytes=scored
        )


def _corpora(saes: Sequence[MeasuredSae]) -> dict[str, Node]:
    found = (input_of(sae.node, "corpus") for sae in saes)
    return {corpus.recipe: corpus for corpus in found if corpus is not None}


def _bytes_before(text: str) -> NDArray[np.int64]:
    """UTF-8 bytes before each character, int64 [len(text) + 1]."""
    points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    sizes = 1 + (points > 0x7F) + (points > 0x7FF).astype(np.int64) + (points > 0xFFFF)
    return np.concatenate([[0], np.cumsum(sizes)])
