"""The dense activation cache: Parquet shards that are read as memory, not parsed.

One folder per hookpoint (or site: a position slot of one) holds `NNNNN.parquet` with `doc_id, position, token_id int32,
activation FixedSizeBinary(2·d)` (raw bfloat16 or float16 bits), uncompressed, without dictionary or statistics, in row
groups of at most 16,384 rows. The surprising choice: Arrow's reader copies every page, so `read` maps the file and
looks straight at the page; each column of a row group is written as one plain page, whose values start at
`offset + size - rows·width`. Any Parquet reader still reads these files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from saeinterp.artifacts import Artifact, read_json, verify_artifact
from saeinterp.config import SPLITS, Split
from saeinterp.errors import ConfigError, DamagedArtifactError

GROUP_ROWS = 16_384
FORMAT = "saeinterp-activations-1"
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
_COLUMNS = ("doc_id", "position", "token_id", "activation")
_MAX_PAGE_HEADER = 256


def activation_schema(*, d_in: int, dtype: str) -> pa.Schema:
    """The Arrow schema of a shard; `dtype` (`bfloat16` or `float16`), `d_in` and the format are its metadata."""
    return pa.schema(
        [
            *(pa.field(name, pa.int32(), nullable=False) for name in _COLUMNS[:3]),
            pa.field("activation", pa.binary(2 * d_in), nullable=False),
        ],
        metadata={"format": FORMAT, "dtype": dtype, "d_in": str(d_in)},
    )


class ShardWriter:
    """Writes one shard, a row group at a time.

    Rows arrive in pieces of any length and leave in full row groups, so memory stays at one row group.
    """

    def __init__(self, path: Path, *, d_in: int, dtype: str) -> None:
        self._path = path
        self._schema = activation_schema(d_in=d_in, dtype=dtype)
        self._d_in = d_in
        self._writer = pq.ParquetWriter(
            path,
            self._schema,
            compression="none",
            use_dictionary=False,
            write_statistics=False,
            # One page per column and row group: what `ActivationCache` relies on.
            data_page_size=GROUP_ROWS * 2 * d_in + 1,
            data_page_version="1.0",
        )
        self._ids = np.empty((3, GROUP_ROWS), np.int32)
        self._values = np.empty((GROUP_ROWS, d_in), np.uint16)
        self._filled = 0

    def write(self, ids: np.ndarray, values: Tensor) -> None:
        """Append `ids` `[3, n]` int32 (doc_id, position, token_id) and `values` `[n, d_in]` (2-byte floats)."""
        bits = values.contiguous().view(torch.uint16).numpy()
        start = 0
        while start < len(bits):
            count = min(len(bits) - start, GROUP_ROWS - self._filled)
            self._ids[:, self._filled : self._filled + count] = ids[:, start : start + count]
            self._values[self._filled : self._filled + count] = bits[start : start + count]
            self._filled += count
            start += count
            if self._filled == GROUP_ROWS:
                self._flush()

    def close(self) -> None:
        """Write what is left and the footer."""
        if self._filled:
            self._flush()
        self._writer.close()
        # A resumed run trusts whole-looking shards, so their pages must be on disk before the rename.
        with self._path.open("rb") as handle:
            os.fsync(handle.fileno())

    def _flush(self) -> None:
        rows = self._filled
        values = pa.py_buffer(self._values[:rows])
        columns = [pa.array(self._ids[index, :rows]) for index in range(3)]
        columns.append(pa.FixedSizeBinaryArray.from_buffers(pa.binary(2 * self._d_in), rows, [None, values]))
        self._writer.write_table(pa.table(columns, schema=self._schema), row_group_size=rows)
        self._filled = 0


class _Group(NamedTuple):
    """A row group: its shard, first row in the cache, rows, and byte offset of each column's values."""

    shard: int
    start: int
    rows: int
    offsets: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class ActivationCache:
    """Activations of one hookpoint, opened for reading.

    Attributes:
        folder: The artifact's folder.
        hookpoint: Name, such as `layers.5`.
        rows: Tokens.
        d_in: Width.
        dtype: `bfloat16` or `float16`.
        median_norm: Median L2 norm over rows that are neither special tokens nor at position 0.
        norm_limit: Rows with a larger norm are masked.
        special_ids: Token ids that are masked.
    """

    folder: Path
    hookpoint: str
    rows: int
    d_in: int
    dtype: str
    median_norm: float
    norm_limit: float
    special_ids: tuple[int, ...]
    _splits: Mapping[str, int]
    _maps: Sequence[np.ndarray]
    _groups: Sequence[_Group]

    @classmethod
    def open(cls, artifact: Artifact, hookpoint: str, *, verify: bool = False) -> ActivationCache:
        """Map the shards of one hookpoint; reads footers only.

        Args:
            verify: Also compare the whole artifact with its checksums (reads every byte once per process).

        Raises:
            ConfigError: The artifact has no such hookpoint.
            DamagedArtifactError: A shard is missing, cut short or not what was written.
        """
        if verify:
            verify_artifact(artifact)
        summary = read_json(artifact.file("cache.json"))
        if hookpoint not in summary["hookpoints"]:
            raise ConfigError(
                "this cache has no such hookpoint",
                field="hookpoint",
                got=hookpoint,
                expected=", ".join(summary["hookpoints"]),
                next_step="add it to capture.hookpoints and run again",
            )
        facts = summary["hookpoints"][hookpoint]
        shards = open_shards(artifact.path / hookpoint, d_in=facts["d_in"], dtype=facts["dtype"])
        if shards.rows != facts["rows"]:
            raise _damaged(artifact.path / hookpoint, f"{shards.rows} rows where {facts['rows']} were written")
        return cls(
            folder=artifact.path,
            hookpoint=hookpoint,
            rows=shards.rows,
            d_in=facts["d_in"],
            dtype=facts["dtype"],
            median_norm=facts["median_norm"],
            norm_limit=facts["norm_limit"],
            special_ids=tuple(summary["special_ids"]),
            # Chosen positions differ in rows: not every problem has every place.
            _splits=facts.get("splits", summary["splits"]),
            _maps=shards.maps,
            _groups=shards.groups,
        )

    def read(self, start: int, stop: int) -> Tensor:
        """Rows `[stop - start, d_in]` as bfloat16 or float16.

        Inside one row group (16,384 rows, see `groups`) this is a view of the file and copies nothing; across
        groups the pieces are joined, which copies. Writing to the result never reaches the file.

        Raises:
            IndexError: The range leaves the cache.
        """
        self._check(start, stop)
        pieces = [piece for piece, _ in self._pieces(start, stop)]
        if not pieces:
            return torch.empty((0, self.d_in), dtype=DTYPES[self.dtype])
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def groups(self) -> list[range]:
        """The row groups: ranges of rows that `read` returns without copying."""
        return [range(group.start, group.start + group.rows) for group in self._groups]

    def batches(self, rows: range, *, size: int = GROUP_ROWS) -> Iterator[tuple[range, Tensor]]:
        """Walk over a range of rows in order, at most `size` at a time, never copying: `(rows, [n, d_in])`."""
        self._check(rows.start, rows.stop)
        for piece, start in self._pieces(rows.start, rows.stop):
            for offset in range(0, len(piece), size):
                part = piece[offset : offset + size]
                yield range(start + offset, start + offset + len(part)), part

    def split_rows(self, split: Split) -> range:
        """The rows of one split.

        Raises:
            ConfigError: That split was not collected.
        """
        start = 0
        for name in SPLITS:
            rows = self._splits.get(name, 0)
            if name == split and name in self._splits:
                return range(start, start + rows)
            start += rows
        raise ConfigError(
            "this cache was collected without that split",
            field="split",
            got=split,
            expected=", ".join(self._splits),
        )

    @cached_property
    def doc_ids(self) -> np.ndarray:
        """`[rows]` int32: document of each token."""
        return self._ints(0)

    @cached_property
    def positions(self) -> np.ndarray:
        """`[rows]` int32: position in the context."""
        return self._ints(1)

    @cached_property
    def token_ids(self) -> np.ndarray:
        """`[rows]` int32."""
        return self._ints(2)

    @cached_property
    def norms(self) -> np.ndarray:
        """`[rows]` float32: L2 norm of each row as stored."""
        norms = _tensor(self.folder / self.hookpoint / "norms.safetensors", "norms").numpy()
        if norms.shape != (self.rows,):
            raise _damaged(self.folder / self.hookpoint / "norms.safetensors", f"{norms.shape[0]} norms")
        return norms

    @cached_property
    def mean(self) -> Tensor:
        """`[d_in]` float32: mean over usable rows of the train split (of all rows where train was not collected)."""
        return _tensor(self.folder / "means.safetensors", self.hookpoint)

    def mask(self) -> np.ndarray:
        """`[rows]` bool, True where usable: position > 0, not a special token, norm within the limit."""
        return usable(self.positions, self.token_ids, self.special_ids) & (self.norms <= self.norm_limit)

    def mask_counts(self) -> dict[str, int]:
        """Rows masked by each reason, counted once, in this order: position0, special, norm."""
        first = self.positions == 0
        special = np.isin(self.token_ids, self.special_ids) & ~first
        large = (self.norms > self.norm_limit) & ~first & ~special
        return {"position0": int(first.sum()), "special": int(special.sum()), "norm": int(large.sum())}

    def _check(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.rows:
            raise IndexError(f"rows {start}:{stop} of a cache with {self.rows}")

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[Tensor, int]]:
        for group in self._groups[_first_group(self._groups, start) :]:
            if group.start >= stop:
                return
            low, high = max(start, group.start), min(stop, group.start + group.rows)
            if low < high:
                yield self._view(group, low - group.start, high - group.start), low

    def _view(self, group: _Group, low: int, high: int) -> Tensor:
        width = 2 * self.d_in
        raw = self._maps[group.shard][group.offsets[3] + low * width : group.offsets[3] + high * width]
        if raw.ctypes.data % 2:  # a writer with another page header length
            raw = raw.copy()
        return torch.from_numpy(raw).view(DTYPES[self.dtype]).view(-1, self.d_in)

    def _ints(self, column: int) -> np.ndarray:
        result = np.empty(self.rows, np.int32)
        for group in self._groups:
            raw = self._maps[group.shard][group.offsets[column] : group.offsets[column] + 4 * group.rows]
            result[group.start : group.start + group.rows] = np.frombuffer(raw.tobytes(), np.int32)
        return result


class Shards(NamedTuple):
    """The mapped shards of one folder."""

    rows: int
    maps: Sequence[np.ndarray]
    groups: Sequence[_Group]


def open_shards(folder: Path, *, d_in: int, dtype: str) -> Shards:
    """Map every shard of a hookpoint folder and locate its pages.

    Raises:
        DamagedArtifactError: A shard is missing, cut short, or written by something else.
    """
    paths = sorted(path for path in folder.glob("*.parquet") if re.fullmatch(r"\d{5}\.parquet", path.name))
    if not paths or [int(path.stem) for path in paths] != list(range(len(paths))):
        raise _damaged(folder, f"shards missing, found {[path.name for path in paths][:5]}")
    maps, groups, rows = [], [], 0
    for number, path in enumerate(paths):
        try:
            metadata = pq.read_metadata(path)
            schema = metadata.schema.to_arrow_schema()
        except (pa.ArrowException, OSError) as error:
            raise _damaged(path, f"unreadable ({str(error).splitlines()[0]})") from error
        if not schema.equals(activation_schema(d_in=d_in, dtype=dtype), check_metadata=True):
            raise _damaged(path, "another schema than cache.json says")
        # Copy-on-write: torch wants writable memory, and a write must not reach the artifact.
        maps.append(np.memmap(path, np.uint8, mode="c"))
        for index in range(metadata.num_row_groups):
            group = metadata.row_group(index)
            offsets = tuple(_page(path, group, column, width) for column, width in enumerate((4, 4, 4, 2 * d_in)))
            groups.append(_Group(number, rows, group.num_rows, offsets))
            rows += group.num_rows
    return Shards(rows, maps, groups)


def _page(path: Path, group: Any, column: int, width: int) -> int:
    """Byte offset of the values of a column chunk that is one plain page."""
    chunk = group.column(column)
    header = chunk.total_compressed_size - group.num_rows * width
    if not 0 < header <= _MAX_PAGE_HEADER or chunk.has_dictionary_page or chunk.compression != "UNCOMPRESSED":
        raise _damaged(path, f"column {_COLUMNS[column]} is not one plain page per row group")
    return int(chunk.data_page_offset + header)


def usable(positions: np.ndarray, token_ids: np.ndarray, special_ids: Sequence[int]) -> np.ndarray:
    """`[n]` bool: position > 0 and not a special token."""
    return (positions > 0) & ~np.isin(token_ids, special_ids)


def _first_group(groups: Sequence[_Group], row: int) -> int:
    low, high = 0, len(groups)
    while low < high:
        middle = (low + high) // 2
        if groups[middle].start + groups[middle].rows <= row:
            low = middle + 1
        else:
            high = middle
    return low


def _tensor(path: Path, name: str) -> Tensor:
    try:
        with safe_open(path, "pt") as handle:
            return handle.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise _damaged(path, f"unreadable ({str(error).splitlines()[0]})") from error


def _damaged(path: Path, problem: str) -> DamagedArtifactError:
    return DamagedArtifactError(
        f"damaged activation cache: {problem}",
        got=str(path),
        next_step="remove that artifact's folder and run again; it will be rebuilt",
    )
