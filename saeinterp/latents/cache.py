"""The latent cache: which latents fire on which token of the text that explainers and scorers use.

One row per token, in the order of the activation cache, so that a row number names a token in both. The
surprising choice: masked tokens keep their row with nothing active, so nothing downstream has to know
about masks. With k = 32 and fewer than 65,536 latents a token takes 128 bytes and three numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from saeinterp.artifacts import Artifact, ArtifactStore, Recipe, Ref, Workspace, read_json, write_json
from saeinterp.config import Split
from saeinterp.errors import ConfigError, DamagedArtifactError, DataError
from saeinterp.progress import Progress, silent
from saeinterp.sae import TopKSae
from saeinterp.subject import ActivationCache

VERSION = 2
KIND = "latents"
EXAMPLE_SPLITS: tuple[Split, ...] = ("explain", "score")
_CHUNK = 4096  # rows encoded at once
_HALF_LIMIT = 65_000.0  # beyond this float16 saturates
_HALF_LEAST = np.float32(2**-24)  # below this it is 0


class Firings(NamedTuple):
    """Active entries of consecutive rows; the three arrays are parallel and ordered by row.

    Attributes:
        rows: int32, row numbers of the cache.
        latents: int32.
        values: float32, never 0.
    """

    rows: np.ndarray
    latents: np.ndarray
    values: np.ndarray


def cache_latents_recipe(activations: Ref, sae: Ref, *, hookpoint: str) -> Recipe:
    """The recipe of a latent cache."""
    config = {"hookpoint": hookpoint}
    return Recipe(kind=KIND, name=hookpoint, version=VERSION, config=config, inputs=(activations, sae))


def cache_latents(
    activations: Artifact, sae: Artifact, *, hookpoint: str, store: ArtifactStore, progress: Progress | None = None
) -> Artifact:
    """Encode every token of the explain and score splits with one SAE.

    Payload: `rows.parquet` (doc_id, position, token_id int32; indices uint16 or uint32 and values float16 or
    float32, both as fixed-size binary of k entries; inactive slots hold value 0) and `latents.json`.

    Raises:
        DataError: The SAE has another width than the activations.
    """
    report = progress or silent

    def write(space: Workspace) -> None:
        cache = ActivationCache.open(activations, hookpoint)
        coder = TopKSae.load(sae.path)
        if coder.d_in != cache.d_in:
            raise DataError(
                "SAE and activations differ in width",
                field=hookpoint,
                got=coder.d_in,
                expected=f"d_in {cache.d_in}",
                next_step="use the SAE that was trained on this hookpoint",
            )
        # The type of the values must be known before the first row group is written, so it follows a bound:
        # |w . (x - b_dec) + b| <= |w| (|x| + |b_dec|) + |b|.
        longest = float(cache.norms[cache.mask()].max(initial=0.0)) + float(coder.b_dec.norm())
        bound = longest * float(coder.W_enc.norm(dim=1).max()) + float(coder.b_enc.abs().max())
        half = bound < _HALF_LIMIT
        schema = _schema(k=coder.k, num_latents=coder.num_latents, half=half)
        usable = cache.mask()
        firings = 0
        with pq.ParquetWriter(space.out / "rows.parquet", schema, compression="zstd") as writer:
            for rows, x in cache.batches(range(cache.rows), size=_CHUNK):
                code = coder.encode(x.float())
                values = code.values.float().numpy().copy()
                values[~usable[rows.start : rows.stop]] = 0.0
                if half:
                    # What float16 would round to 0 becomes the least it can hold: firing is never taken for silence.
                    faint = (values != 0) & (np.abs(values) < _HALF_LEAST)
                    values[faint] = np.copysign(_HALF_LEAST, values[faint])
                firings += int(np.count_nonzero(values))
                writer.write_batch(_batch(cache, rows, code.indices.numpy(), values, schema))
                report(rows.stop, cache.rows, "tokens")
        facts = {
            "hookpoint": hookpoint,
            "k": coder.k,
            "num_latents": coder.num_latents,
            "rows": cache.rows,
            "splits": {split: len(cache.split_rows(split)) for split in EXAMPLE_SPLITS},
            "value_type": "float16" if half else "float32",
        }
        write_json(space.out / "latents.json", facts)
        space.counts = {"rows": cache.rows, "firings": firings}

    return store.build(cache_latents_recipe(activations, sae, hookpoint=hookpoint), write)


@dataclass(frozen=True, eq=False)
class LatentCache:
    """A latent cache opened for reading; streams, so memory does not grow with the corpus.

    Attributes:
        folder: The artifact's folder.
        hookpoint: Such as `layers.5`.
        num_latents: Dictionary size.
        k: Slots per token.
        rows: Tokens.
    """

    folder: Path
    hookpoint: str
    num_latents: int
    k: int
    rows: int
    _splits: dict[str, int]
    _value_type: str

    @classmethod
    def open(cls, artifact: Artifact) -> LatentCache:
        """Open an artifact of kind `latents`."""
        facts = read_json(artifact.file("latents.json"))
        return cls(
            folder=artifact.path,
            hookpoint=facts["hookpoint"],
            num_latents=facts["num_latents"],
            k=facts["k"],
            rows=facts["rows"],
            _splits=facts["splits"],
            _value_type=facts["value_type"],
        )

    def split_rows(self, split: Split) -> range:
        """The rows of `explain` or `score`."""
        start = 0
        for name in EXAMPLE_SPLITS:
            if name == split:
                return range(start, start + self._splits[name])
            start += self._splits[name]
        raise ConfigError("not in the latent cache", field="split", got=split, expected=" or ".join(EXAMPLE_SPLITS))

    def column(self, name: Literal["doc_id", "token_id"]) -> np.ndarray:
        """Document or token of every row, int32 `[rows]`."""
        return pq.read_table(self.folder / "rows.parquet", columns=[name])[name].to_numpy()

    def firings(self) -> Iterator[Firings]:
        """Active entries in row order, a row group at a time."""
        index_type = np.uint16 if self.num_latents <= 2**16 else np.uint32
        value_type = np.float16 if self._value_type == "float16" else np.float32
        start = 0
        try:
            with pq.ParquetFile(self.folder / "rows.parquet") as file:
                for batch in file.iter_batches(batch_size=_CHUNK, columns=["indices", "values"]):
                    indices = _matrix(batch.column(0), index_type, self.k)
                    values = _matrix(batch.column(1), value_type, self.k)
                    active = values != 0
                    rows = np.arange(start, start + len(values), dtype=np.int32)
                    yield Firings(
                        np.repeat(rows, active.sum(axis=1)),
                        indices[active].astype(np.int32),
                        values[active].astype(np.float32),
                    )
                    start += len(values)
        except (pa.ArrowException, OSError) as error:
            raise DamagedArtifactError(
                f"unreadable latent cache ({str(error).splitlines()[0]})",
                got=str(self.folder),
                next_step=f"remove {self.folder} and run again; it will be rebuilt",
            ) from error


def _schema(*, k: int, num_latents: int, half: bool) -> pa.Schema:
    index_bytes = 2 if num_latents <= 2**16 else 4
    fields = [pa.field(name, pa.int32(), nullable=False) for name in ("doc_id", "position", "token_id")]
    fields.append(pa.field("indices", pa.binary(k * index_bytes), nullable=False))
    fields.append(pa.field("values", pa.binary(k * (2 if half else 4)), nullable=False))
    metadata = {
        "k": str(k),
        "num_latents": str(num_latents),
        "index_type": f"uint{8 * index_bytes}",
        "value_type": "float16" if half else "float32",
    }
    return pa.schema(fields, metadata=metadata)


def _batch(
    cache: ActivationCache, rows: range, indices: np.ndarray, values: np.ndarray, schema: pa.Schema
) -> pa.RecordBatch:
    here = slice(rows.start, rows.stop)
    # Slots are ordered by latent: top-k returns ties in no defined order.
    order = np.argsort(indices, axis=1, kind="stable")
    indices, values = np.take_along_axis(indices, order, 1), np.take_along_axis(values, order, 1)
    index_type = np.dtype(schema.metadata[b"index_type"].decode())
    value_type = np.dtype(schema.metadata[b"value_type"].decode())
    columns = [pa.array(column[here]) for column in (cache.doc_ids, cache.positions, cache.token_ids)]
    for matrix, kind in ((indices, index_type), (values, value_type)):
        data = np.ascontiguousarray(matrix.astype(kind))
        size = data.shape[1] * kind.itemsize
        columns.append(pa.FixedSizeBinaryArray.from_buffers(pa.binary(size), len(data), [None, pa.py_buffer(data)]))
    return pa.record_batch(columns, schema=schema)


def _matrix(column: pa.Array, kind: type, k: int) -> np.ndarray:
    size = k * np.dtype(kind).itemsize
    buffer = column.buffers()[1]
    raw = np.frombuffer(buffer, np.uint8)[column.offset * size : (column.offset + len(column)) * size]
    return raw.view(kind).reshape(len(column), k)
