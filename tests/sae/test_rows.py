"""Which rows are trained on, and in which order."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from saeinterp.artifacts import Artifact
from saeinterp.sae.rows import CacheSource, Rows
from saeinterp.subject import ActivationCache


@pytest.fixture
def cache(activations: Artifact) -> ActivationCache:
    return ActivationCache.open(activations, "layers.1")


def test_masked_rows_and_rows_of_other_splits_are_never_taken(cache: ActivationCache) -> None:
    usable = cache.mask()
    for split in ("train", "health"):
        span = cache.split_rows(split)
        rows = Rows(cache, split, memory_bytes=1e9)
        expected = cache.read(span.start, span.stop)[torch.from_numpy(usable[span.start : span.stop])]
        assert 0 < len(rows) == len(expected) < len(span)
        assert torch.equal(rows.take(np.arange(len(rows))), expected)
        assert sum(rows.masked.values()) == len(span) - len(rows)
        assert rows.masked["position0"] > 0


def test_rows_read_from_the_file_equal_rows_held_in_memory(cache: ActivationCache) -> None:
    held, mapped = Rows(cache, "train", memory_bytes=1e9), Rows(cache, "train", memory_bytes=0)
    wanted = np.random.default_rng(0).integers(0, len(held), 700)
    assert torch.equal(held.take(wanted), mapped.take(wanted))
    assert torch.equal(held.spread(50), mapped.spread(50))


def test_held_out_rows_are_spread_over_the_whole_split(cache: ActivationCache) -> None:
    rows = Rows(cache, "health", memory_bytes=0)
    everything = rows.take(np.arange(len(rows)))
    assert torch.equal(rows.spread(10**9), everything)
    assert torch.equal(rows.spread(2), everything[[0, len(rows) // 2]])


class Counted:
    """So many rows, each its own number."""

    def __init__(self, count: int) -> None:
        self.cache = SimpleNamespace(d_in=1, hookpoint="layers.1")
        self.masked: dict[str, int] = {}
        self._count = count

    def __len__(self) -> int:
        return self._count

    def take(self, indices: np.ndarray) -> Tensor:
        return torch.from_numpy(indices)[:, None]


def stream(count: int, *, seed: int = 0) -> CacheSource:
    return CacheSource(Counted(count), seed=seed)  # type: ignore[arg-type]


def test_every_epoch_is_another_permutation_of_all_rows() -> None:
    source = stream(101, seed=3)
    first, second = source.next(101).flatten().tolist(), source.next(101).flatten().tolist()
    assert sorted(first) == sorted(second) == list(range(101))
    assert first != second
    assert first != stream(101, seed=4).next(101).flatten().tolist()
    assert source.cursor == {"drawn": 202}


def test_what_comes_next_depends_on_nothing_but_the_cursor() -> None:
    whole = stream(17).next(100)
    source = stream(17)
    for start, stop in ((40, 60), (0, 5), (16, 18), (33, 100), (17, 34)):
        source.seek({"drawn": start})
        assert source.where(stop - start).endswith(f"epoch {start // 17}")
        assert torch.equal(source.next(stop - start), whole[start:stop])


def test_the_parts_of_all_processes_are_the_batch() -> None:
    whole = stream(50).next(7)
    parts = [stream(50).next(7, rank=rank, size=3) for rank in range(3)]
    assert torch.equal(torch.cat(parts), whole)
