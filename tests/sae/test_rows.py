"""Which rows are trained on, and in which order."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saeinterp.artifacts import Artifact
from saeinterp.errors import DataError
from saeinterp.sae.rows import Rows, Shuffle
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


def test_too_few_rows_are_an_error_that_says_what_was_masked(cache: ActivationCache) -> None:
    rows = Rows(cache, "health", memory_bytes=0)
    with pytest.raises(DataError, match=r"layers.1, split health: too few usable rows.*position0.*at least 1000000"):
        rows.require(10**6, purpose="a test", next_step="give more text")


def test_every_epoch_is_another_permutation_of_all_rows() -> None:
    shuffle = Shuffle(101, seed=3)
    first, second = shuffle.draw(0, 101), shuffle.draw(101, 202)
    assert sorted(first) == sorted(second) == list(range(101))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, Shuffle(101, seed=4).draw(0, 101))


def test_a_draw_depends_on_nothing_but_its_place_in_the_stream() -> None:
    whole = Shuffle(17, seed=0).draw(0, 100)
    shuffle = Shuffle(17, seed=0)
    for start, stop in ((40, 60), (0, 5), (16, 18), (33, 100), (17, 34)):
        assert np.array_equal(shuffle.draw(start, stop), whole[start:stop])
