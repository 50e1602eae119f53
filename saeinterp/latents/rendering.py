"""Chosen windows as rows of `examples.parquet`: their text, their tokens and what the latent does on each.

Texts are slices of the documents at stored offsets, never decoded tokens, so that characters of several bytes come
out whole. The surprising choice: rows are made by columns for many latents at once, since a row at a time in Python
takes longer than everything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from saeinterp.latents.entries import Entries
from saeinterp.latents.picking import Pick
from saeinterp.latents.windows import Windows
from saeinterp.subject import Contexts

SCHEMA = pa.schema(
    [
        ("latent", pa.int32()),
        ("example_id", pa.int32()),
        ("role", pa.large_string()),
        ("kind", pa.large_string()),
        ("quantile", pa.int8()),
        ("doc_id", pa.int32()),
        ("context_id", pa.int32()),
        ("start", pa.int32()),
        ("end", pa.int32()),
        ("text", pa.large_string()),
        ("token_ids", pa.large_list(pa.int32())),
        ("tokens", pa.large_list(pa.large_string())),
        ("activations", pa.large_list(pa.float32())),
    ]
)


class Shown(NamedTuple):
    """The examples of one latent: its picks, and its activations on their tokens, float32, one after another."""

    latent: int
    picks: list[Pick]
    activations: np.ndarray


class Text:
    """The text of the explain and score splits, by row; holds what it is given and copies nothing.

    Args:
        documents: Text by `doc_id`.
    """

    def __init__(self, contexts: Contexts, documents: dict[int, str], windows: Windows) -> None:
        self.tokens = contexts.token_ids
        self._contexts = contexts
        self._documents = documents
        self._windows = windows
        self._starts, self._ends = contexts.char_spans

    def spelled(self, row: int) -> str:
        """The characters of one row's token."""
        document = self._documents[int(self._contexts.doc_ids[row])]
        return document[self._starts[row] : self._ends[row]]

    def shown(self, latent: int, picks: list[Pick], entries: Entries) -> Shown:
        """Look up the activations of one latent on the tokens of its picks."""
        rows, _ = self._rows(np.array([pick.window for pick in picks], np.int64))
        place = np.minimum(np.searchsorted(entries.rows, rows), len(entries.rows) - 1)
        fires = entries.rows[place] == rows
        return Shown(latent, picks, np.where(fires, entries.values[place], np.float32(0)))

    def table(self, shown: Sequence[Shown]) -> pa.Table:
        """The rows of some latents, with columns `SCHEMA`."""
        picks = [pick for item in shown for pick in item.picks]
        window = np.array([pick.window for pick in picks], np.int64)
        rows, offsets = self._rows(window)
        pieces, texts = self._pieces(window, rows, offsets)
        activations = np.concatenate([np.zeros(0, np.float32), *(item.activations for item in shown)])
        counts = [len(item.picks) for item in shown]
        windows = self._windows

        def listed(values: pa.Array) -> pa.Array:
            return pa.LargeListArray.from_arrays(pa.array(offsets), values)

        columns = {
            "latent": np.repeat(np.array([item.latent for item in shown], np.int32), counts),
            "example_id": np.concatenate([np.zeros(0, np.int32), *(np.arange(n, dtype=np.int32) for n in counts)]),
            "role": [pick.role for pick in picks],
            "kind": [pick.kind for pick in picks],
            "quantile": [pick.quantile for pick in picks],
            "doc_id": windows.doc_id[window],
            "context_id": self._contexts.context_ids[windows.context[window]],
            "start": windows.start[window],
            "end": windows.end[window],
            "text": texts,
            "token_ids": listed(pa.array(self.tokens[rows])),
            "tokens": listed(pa.array(pieces, pa.large_string())),
            "activations": listed(pa.array(activations)),
        }
        arrays = [
            values if isinstance(values, pa.Array) else pa.array(values, SCHEMA.field(name).type)
            for name, values in columns.items()
        ]
        return pa.table(arrays, schema=SCHEMA)

    def _rows(self, window: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows of some windows, one after another, and where each window begins: `[sum]`, `[n + 1]` int64."""
        lengths = self._windows.end[window] - self._windows.start[window]
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
        return np.arange(offsets[-1]) + np.repeat(self._windows.row[window] - offsets[:-1], lengths), offsets

    def _pieces(self, window: np.ndarray, rows: np.ndarray, offsets: np.ndarray) -> tuple[list[str], list[str]]:
        """The text of every token and of every window.

        Tokens that share a character give it to the first of them in the window, as in `Context.pieces`.
        """
        # Each window is lifted above the one before, so that one running maximum serves all of them.
        lift = np.repeat(np.arange(len(window)), np.diff(offsets)) << 31
        starts, ends = self._starts[rows].astype(np.int64), self._ends[rows]
        covered = np.maximum.accumulate(ends + lift)
        starts[1:] = np.maximum(starts[1:], covered[:-1] - lift[1:])
        lows, highs, edges = starts.tolist(), ends.tolist(), offsets.tolist()
        pieces: list[str] = []
        texts: list[str] = []
        for number, doc_id in enumerate(self._windows.doc_id[window].tolist()):
            document, here = self._documents[doc_id], slice(edges[number], edges[number + 1])
            found = [document[low:high] for low, high in zip(lows[here], highs[here], strict=True)]
            pieces += found
            texts.append("".join(found))
        return pieces, texts
