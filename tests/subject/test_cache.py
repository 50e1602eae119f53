"""The activation cache as a file format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from saeinterp.artifacts import Artifact, ArtifactStore, Recipe, Workspace, write_json
from saeinterp.errors import ConfigError, DamagedArtifactError
from saeinterp.subject import ActivationCache
from saeinterp.subject.cache import GROUP_ROWS, ShardWriter

D = 24
SHARDS = (GROUP_ROWS + 777, GROUP_ROWS)


def values(dtype: str) -> Tensor:
    """Random bit patterns without NaN or infinities, subnormal numbers and both zeros included."""
    rows = sum(SHARDS)
    numbers = torch.randn(rows, D, generator=torch.Generator().manual_seed(1)) * 50
    numbers[0, :3] = torch.tensor([0.0, -0.0, 1e-7])
    return numbers.to(getattr(torch, dtype))


def build(store: ArtifactStore, dtype: str = "bfloat16") -> tuple[Artifact, Tensor]:
    """A cache of two shards, written in uneven pieces."""
    data = values(dtype)
    rows = len(data)
    ids = np.stack([np.arange(rows) // 100, np.arange(rows) % 100, np.arange(rows) % 37]).astype(np.int32)

    def write(space: Workspace) -> None:
        folder = space.out / "layers.1"
        folder.mkdir()
        start = 0
        for number, count in enumerate(SHARDS):
            writer = ShardWriter(folder / f"{number:05d}.parquet", d_in=D, dtype=dtype)
            for low in range(start, start + count, 1000):
                high = min(low + 1000, start + count)
                writer.write(ids[:, low:high], data[low:high])
            writer.close()
            start += count
        norms = torch.linalg.vector_norm(data.float(), dim=1)
        save_file({"norms": norms}, folder / "norms.safetensors")
        save_file({"layers.1": data.float().mean(0)}, space.out / "means.safetensors")
        limit = float(norms.quantile(0.99))
        layer = {"rows": rows, "d_in": D, "dtype": dtype, "median_norm": 1.0, "norm_limit": limit, "mean_rows": rows}
        splits = {"train": rows - 1000, "score": 1000}
        write_json(space.out / "cache.json", {"hookpoints": {"layers.1": layer}, "special_ids": [5], "splits": splits})

    return store.build(Recipe(kind="activations", name=dtype, version=1, config={}), write), data


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_reading_gives_back_the_same_bits(store: ArtifactStore, dtype: str) -> None:
    artifact, data = build(store, dtype)
    cache = ActivationCache.open(artifact, "layers.1")
    assert (cache.rows, cache.d_in, cache.dtype) == (len(data), D, dtype)
    for start, stop in [
        (0, 1),
        (5, 900),
        (0, len(data)),
        (GROUP_ROWS - 3, GROUP_ROWS + 800),
        (len(data) - 1, len(data)),
    ]:
        found = cache.read(start, stop)
        assert found.dtype == data.dtype
        assert torch.equal(found.view(torch.int16), data[start:stop].view(torch.int16))
    assert cache.read(7, 7).shape == (0, D)


def test_reading_inside_a_row_group_copies_nothing(store: ArtifactStore) -> None:
    artifact, _ = build(store)
    cache = ActivationCache.open(artifact, "layers.1")
    base = cache.read(0, GROUP_ROWS)
    part = cache.read(100, 200)
    assert part.data_ptr() == base.data_ptr() + 100 * D * 2
    shard = cache._maps[0]
    low = shard.ctypes.data
    assert low <= part.data_ptr() < low + shard.nbytes


def test_every_row_group_is_aligned_for_two_byte_values(store: ArtifactStore) -> None:
    artifact, _ = build(store)
    cache = ActivationCache.open(artifact, "layers.1")
    assert [len(group) for group in cache.groups()] == [GROUP_ROWS, 777, GROUP_ROWS]
    assert all(cache.read(group.start, group.stop).data_ptr() % 2 == 0 for group in cache.groups())


def test_writing_to_what_was_read_never_reaches_the_file(store: ArtifactStore) -> None:
    artifact, data = build(store)
    ActivationCache.open(artifact, "layers.1").read(0, 10).zero_()
    assert torch.equal(ActivationCache.open(artifact, "layers.1", verify=True).read(0, 10), data[:10])


def test_other_parquet_readers_see_the_same_table(store: ArtifactStore) -> None:
    artifact, data = build(store)
    cache = ActivationCache.open(artifact, "layers.1")
    table = pq.read_table(artifact.path / "layers.1" / "00001.parquet")
    start = SHARDS[0]
    bits = b"".join(table["activation"].to_pylist())
    assert np.array_equal(np.frombuffer(bits, np.int16).reshape(-1, D), data[start:].view(torch.int16).numpy())
    for name, array in (("doc_id", cache.doc_ids), ("position", cache.positions), ("token_id", cache.token_ids)):
        assert np.array_equal(table[name].to_numpy(), array[start:])
    assert table.schema.metadata[b"dtype"] == b"bfloat16"
    assert table.schema.metadata[b"d_in"] == b"24"


def test_the_file_holds_little_more_than_the_values(store: ArtifactStore) -> None:
    artifact, data = build(store)
    size = sum(path.stat().st_size for path in (artifact.path / "layers.1").glob("*.parquet"))
    assert size < len(data) * (2 * D + 12) + 20_000


def test_batches_walk_over_every_row_once_in_order(store: ArtifactStore) -> None:
    artifact, data = build(store)
    cache = ActivationCache.open(artifact, "layers.1")
    rows = range(50, len(data) - 50)
    seen = list(cache.batches(rows, size=4000))
    assert torch.equal(torch.cat([values for _, values in seen]), data[50:-50])
    assert [row for part, _ in seen for row in part] == list(rows)
    assert max(len(part) for part, _ in seen) == 4000


def test_the_mask_drops_first_positions_special_tokens_and_outliers(store: ArtifactStore) -> None:
    artifact, _ = build(store)
    cache = ActivationCache.open(artifact, "layers.1")
    expected = (cache.positions > 0) & (cache.token_ids != 5) & (cache.norms <= cache.norm_limit)
    assert np.array_equal(cache.mask(), expected)
    counts = cache.mask_counts()
    assert all(count > 0 for count in counts.values())
    assert sum(counts.values()) == (~cache.mask()).sum()


def test_splits_are_ranges_of_rows(store: ArtifactStore) -> None:
    artifact, data = build(store)
    cache = ActivationCache.open(artifact, "layers.1")
    assert cache.split_rows("train") == range(len(data) - 1000)
    assert cache.split_rows("score") == range(len(data) - 1000, len(data))
    with pytest.raises(ConfigError, match=r"without that split.*'health'.*Expected"):
        cache.split_rows("health")


def test_rows_outside_the_cache_are_an_index_error(store: ArtifactStore) -> None:
    artifact, data = build(store)
    with pytest.raises(IndexError, match=f"of a cache with {len(data)}"):
        ActivationCache.open(artifact, "layers.1").read(0, len(data) + 1)


def test_an_unknown_hookpoint_names_those_there_are(store: ArtifactStore) -> None:
    artifact, _ = build(store)
    with pytest.raises(ConfigError, match=r"no such hookpoint.*'layers\.9'.*Expected layers\.1"):
        ActivationCache.open(artifact, "layers.9")


def shard(artifact: Artifact, number: int = 0) -> Path:
    return artifact.path / "layers.1" / f"{number:05d}.parquet"


def test_a_shard_cut_short_is_refused(store: ArtifactStore) -> None:
    artifact, _ = build(store)
    shard(artifact).write_bytes(shard(artifact).read_bytes()[:-100])
    with pytest.raises(
        DamagedArtifactError, match=r"damaged activation cache: unreadable.*00000\.parquet.*Next: remove"
    ):
        ActivationCache.open(artifact, "layers.1")


def test_a_missing_shard_is_refused(store: ArtifactStore) -> None:
    artifact, _ = build(store)
    shard(artifact, 0).unlink()
    with pytest.raises(DamagedArtifactError, match="shards missing"):
        ActivationCache.open(artifact, "layers.1")
    artifact, _ = build(store)
    shard(artifact, 1).unlink()
    with pytest.raises(DamagedArtifactError, match=f"{SHARDS[0]} rows where {sum(SHARDS)} were written"):
        ActivationCache.open(artifact, "layers.1")


def test_a_flipped_bit_is_found_when_asked(store: ArtifactStore) -> None:
    artifact, _ = build(store)
    data = bytearray(shard(artifact).read_bytes())
    data[500_000] ^= 1
    shard(artifact).write_bytes(data)
    with pytest.raises(DamagedArtifactError, match=r"layers\.1/00000\.parquet does not match its checksum"):
        ActivationCache.open(artifact, "layers.1", verify=True)


def test_a_shard_written_by_something_else_is_refused(store: ArtifactStore) -> None:
    artifact, _ = build(store)
    table = pq.read_table(shard(artifact))
    pq.write_table(table, shard(artifact), compression="none", use_dictionary=False, data_page_size=4096)
    with pytest.raises(DamagedArtifactError, match="not one plain page per row group"):
        ActivationCache.open(artifact, "layers.1")
    pq.write_table(table.drop_columns(["position"]), shard(artifact))
    with pytest.raises(DamagedArtifactError, match="another schema"):
        ActivationCache.open(artifact, "layers.1")
