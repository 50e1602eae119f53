"""Contexts: documents as token windows with their place in the text.

Every token knows its document and the characters it covers. The surprising choice: spans tile the text
(whitespace between two tokens belongs to the later one), so the text of any token window is one slice and
the slices of its tokens add up to it; tokens that share a multi-byte character share its span.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from saeinterp.artifacts import Artifact
from saeinterp.config import SPLITS, Split
from saeinterp.errors import ConfigError, DamagedArtifactError

MIN_TOKENS = 8
CONTEXTS_SCHEMA = pa.schema(
    [
        pa.field("context_id", pa.int32(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        *(
            pa.field(name, pa.list_(pa.field("item", pa.int32(), nullable=False)), nullable=False)
            for name in ("token_ids", "doc_ids", "char_starts", "char_ends")
        ),
    ]
)


class Context(NamedTuple):
    """One window of tokens; the arrays are int32 `[T]`.

    `doc_ids[i]` is the document of token i, `char_starts[i]:char_ends[i]` its characters in that document
    (empty for added tokens: BOS, separators).
    """

    context_id: int
    split: str
    token_ids: np.ndarray
    doc_ids: np.ndarray
    char_starts: np.ndarray
    char_ends: np.ndarray

    def text(self, start: int, stop: int, documents: dict[int, str]) -> str:
        """The text of tokens `[start, stop)`; over a document border, both parts."""
        return "".join(self.pieces(start, stop, documents))

    def pieces(self, start: int, stop: int, documents: dict[int, str]) -> list[str]:
        """The text of each token in `[start, stop)`.

        Tokens that share a character (parts of a multi-byte one) give it to the first of them; the others are "".
        """
        pieces = []
        covered: tuple[int, int] | None = None
        for index in range(start, stop):
            doc, low, high = int(self.doc_ids[index]), int(self.char_starts[index]), int(self.char_ends[index])
            if covered is not None and covered[0] == doc:
                low = max(low, covered[1])
            pieces.append(documents[doc][low:high] if low < high else "")
            covered = (doc, max(high, covered[1]) if covered is not None and covered[0] == doc else high)
        return pieces


class Contexts(Sequence[Context]):
    """The contexts of some splits, in order; backed by Arrow, made into `Context` on access."""

    def __init__(self, table: pa.Table) -> None:
        table = table.combine_chunks()
        self._ids = _flat(table, "context_id").to_numpy()
        self._splits: list[str] = table.column("split").to_pylist()
        columns = [_flat(table, name) for name in ("token_ids", "doc_ids", "char_starts", "char_ends")]
        self._offsets = columns[0].offsets.to_numpy()
        # `.values` ignores slicing, `.offsets` count from its start: the two belong together.
        self._values = [column.values.to_numpy() for column in columns]

    def __len__(self) -> int:
        return len(self._ids)

    @overload
    def __getitem__(self, index: int) -> Context: ...
    @overload
    def __getitem__(self, index: slice) -> list[Context]: ...
    def __getitem__(self, index: int | slice) -> Context | list[Context]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        position = range(len(self))[index]
        low, high = self._offsets[position], self._offsets[position + 1]
        arrays = [values[low:high] for values in self._values]
        return Context(int(self._ids[position]), self._splits[position], *arrays)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each context."""
        return np.diff(self._offsets)

    @property
    def tokens(self) -> int:
        """Tokens of all contexts."""
        return int(self._offsets[-1] - self._offsets[0])

    @property
    def context_ids(self) -> np.ndarray:
        """`[N]` int32: the id of each context."""
        return self._ids

    @property
    def token_ids(self) -> np.ndarray:
        """`[tokens]` int32: the token ids of all contexts, one context after another."""
        return self._flat(0)

    @property
    def doc_ids(self) -> np.ndarray:
        """`[tokens]` int32: the document of every token of all contexts."""
        return self._flat(1)

    @property
    def char_spans(self) -> tuple[np.ndarray, np.ndarray]:
        """Two int32 `[tokens]`: where every token of all contexts starts and ends in its document."""
        return self._flat(2), self._flat(3)

    def tokens_of(self, split: str) -> int:
        """Tokens of one split's contexts."""
        return int(self.lengths[np.array(self._splits, dtype=object) == split].sum())

    def _flat(self, column: int) -> np.ndarray:
        return self._values[column][self._offsets[0] : self._offsets[-1]]


class ContextBatch(NamedTuple):
    """`input_ids` `[B, T]` int64, right-padded with zeros, and `attention_mask` `[B, T]`, 1 on tokens."""

    input_ids: Tensor
    attention_mask: Tensor


def read_contexts(corpus: Artifact, *, splits: Split | Sequence[Split] = SPLITS) -> Contexts:
    """The contexts of one or several splits, in the corpus's order (train, health, explain, score).

    Raises:
        ConfigError: An unknown split.
        DamagedArtifactError: The table cannot be read.
    """
    wanted = [splits] if isinstance(splits, str) else list(splits)
    unknown = [split for split in wanted if split not in SPLITS]
    if unknown:
        raise ConfigError("unknown split", field="splits", got=unknown[0], expected=", ".join(SPLITS))
    return Contexts(_read(corpus.file("contexts.parquet"), None, wanted))


def documents(corpus: Artifact, *, splits: Sequence[Split] = SPLITS) -> dict[int, str]:
    """The text of every document that has a context in these splits, by `doc_id`.

    Raises:
        DamagedArtifactError: The table cannot be read.
    """
    table = _read(corpus.file("documents.parquet"), ["doc_id", "text"], splits)
    return dict(zip(table.column("doc_id").to_pylist(), table.column("text").to_pylist(), strict=True))


def batches(contexts: Sequence[Context], size: int) -> Iterator[ContextBatch]:
    """Right-padded batches of at most `size` contexts, in order."""
    for start in range(0, len(contexts), size):
        some = contexts[start : start + size]
        longest = max(len(context.token_ids) for context in some)
        input_ids = np.zeros((len(some), longest), np.int64)
        mask = np.zeros((len(some), longest), np.int64)
        for row, context in enumerate(some):
            input_ids[row, : len(context.token_ids)] = context.token_ids
            mask[row, : len(context.token_ids)] = 1
        yield ContextBatch(torch.from_numpy(input_ids), torch.from_numpy(mask))


@dataclass(frozen=True)
class Encoded:
    """One tokenised document: int32 arrays `[T]`, and the text that the spans refer to."""

    token_ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    text: str


def encode(tokenizer: Any, text: str) -> Encoded:
    """Tokenise a whole document, without added special tokens, with a span of characters per token.

    Tokenizers without offsets (slow ones) are decoded token by token; the text is then what they decode to.
    """
    if getattr(tokenizer, "is_fast", False):
        found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        offsets = np.array(found["offset_mapping"], np.int32).reshape(-1, 2)
        return Encoded(np.array(found["input_ids"], np.int32), *_tile(offsets), text)
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    pieces = list(_incremental(tokenizer, ids))
    ends = np.cumsum([len(piece) for piece in pieces], dtype=np.int32)
    starts = np.concatenate([np.zeros(1, np.int32), ends[:-1]]) if len(ends) else ends
    return Encoded(np.array(ids, np.int32), starts, ends, "".join(pieces))


def bos_prefix(tokenizer: Any) -> list[int]:
    """The special tokens a tokenizer puts before a text by itself (often BOS): every context starts with them."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return list(full[:start])
    return []


def special_ids(tokenizer: Any) -> list[int]:
    """Ids of every token the tokenizer calls special, sorted."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return sorted({*tokenizer.all_special_ids, *(index for index, token in added.items() if token.special)})


class _Run(NamedTuple):
    """A run of tokens to be cut: int32 arrays `[n]`."""

    token_ids: np.ndarray
    doc_ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


class Cutter:
    """Cuts the documents of one split into contexts.

    Args:
        length: Tokens per context, the prefix included.
        prefix: Token ids every context starts with.
        separator: With packing, the token id after each document; None cuts every document on its own.
    """

    def __init__(self, *, length: int, prefix: Sequence[int], separator: int | None) -> None:
        self._length = length - len(prefix)
        self._prefix = np.array(prefix, np.int32)
        self._separator = separator
        self._pending: list[_Run] = []

    def add(self, doc_id: int, encoded: Encoded) -> list[_Run]:
        """The contexts that this document completes."""
        run = _Run(encoded.token_ids, np.full(len(encoded.token_ids), doc_id, np.int32), encoded.starts, encoded.ends)
        if self._separator is None:
            return list(self._cut(run, last=True))
        end = np.array([len(encoded.text)], np.int32)
        mark = _Run(np.array([self._separator], np.int32), np.array([doc_id], np.int32), end, end)
        joined = _join([*self._pending, run, mark])
        whole = len(joined.token_ids) // self._length * self._length
        self._pending = [_Run(*(array[whole:] for array in joined))]
        return list(self._cut(_Run(*(array[:whole] for array in joined)), last=False))

    @property
    def pending_documents(self) -> set[int]:
        """Documents with tokens that no context holds yet."""
        return {int(index) for run in self._pending for index in np.unique(run.doc_ids)}

    def finish(self) -> list[_Run]:
        """The short context left over by packing, if it is long enough."""
        left, self._pending = self._pending, []
        return list(self._cut(_join(left), last=True)) if left else []

    def _cut(self, run: _Run, *, last: bool) -> Iterator[_Run]:
        for start in range(0, len(run.token_ids), self._length):
            piece = _Run(*(array[start : start + self._length] for array in run))
            count = len(piece.token_ids)
            if count < self._length and not (last and count >= MIN_TOKENS):
                continue
            if len(self._prefix):
                blank = np.full(len(self._prefix), piece.starts[0], np.int32)
                document = np.full(len(self._prefix), piece.doc_ids[0], np.int32)
                piece = _join([_Run(self._prefix, document, blank, blank), piece])
            yield piece


def _join(runs: Sequence[_Run]) -> _Run:
    return _Run(*(np.concatenate(arrays) for arrays in zip(*runs, strict=True)))


def _tile(offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Extend each start back to the end of what came before, so that spans leave no gap."""
    starts, ends = offsets[:, 0].copy(), offsets[:, 1].copy()
    if len(ends):
        before = np.concatenate([np.zeros(1, np.int32), np.maximum.accumulate(ends)[:-1]])
        starts = np.minimum(starts, before)
        ends = np.maximum(ends, starts)
    return starts, ends


def _incremental(tokenizer: Any, ids: Sequence[int]) -> Iterator[str]:
    """The text each token adds, decoding a short window so that spaces and partial characters come out right."""
    prefix = read = 0
    for index in range(len(ids)):
        before = tokenizer.decode(ids[prefix:read])
        after = tokenizer.decode(ids[prefix : index + 1])
        if after.endswith("�") and index + 1 < len(ids):
            yield ""  # an unfinished character: its last token gets it
            continue
        yield after[len(before) :]
        prefix, read = read, index + 1


def _flat(table: pa.Table, name: str) -> Any:
    column = table.column(name)
    return (
        column.chunk(0)
        if column.num_chunks == 1
        else pa.concat_arrays(column.chunks)
        if column.num_chunks
        else (pa.array([], column.type))
    )


def _read(path: Path, columns: list[str] | None, splits: Sequence[str]) -> pa.Table:
    try:
        # Filtered while it is read: the train split can be far larger than the others.
        return pq.read_table(path, columns=columns, filters=pc.field("split").isin(list(splits)))
    except (pa.ArrowException, OSError) as error:
        raise DamagedArtifactError(
            f"unreadable corpus table ({str(error).splitlines()[0]})",
            got=str(path),
            next_step="remove that artifact's folder and run again; it will be rebuilt",
        ) from error
