"""Batches fetched ahead are the batches, and nobody can tell from a cursor that they were fetched ahead."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from saeinterp.errors import DataError
from saeinterp.sae.prefetch import Prefetch
from saeinterp.sae.rows import CacheSource

WIDTH, COUNT = 3, 8


class Numbered:
    """Rows of which each holds its own number, in a cache's clothing."""

    def __init__(self, rows: int, width: int, dtype: torch.dtype) -> None:
        self.cache = SimpleNamespace(d_in=width, hookpoint="layers.1")
        self.masked = {"position0": 5}
        self._rows, self._dtype = rows, dtype

    def __len__(self) -> int:
        return self._rows

    def take(self, indices: np.ndarray) -> Tensor:
        return torch.from_numpy(indices)[:, None].expand(-1, self.cache.d_in).to(self._dtype)


class Watched(CacheSource):
    """A source that says when it is asked, can fail, and knows when two ask at a time."""

    def __init__(self, seed: int = 0, *, rows: int = 50, width: int = WIDTH, dtype: torch.dtype = torch.bfloat16):
        super().__init__(Numbered(rows, width, dtype), seed=seed)  # type: ignore[arg-type]
        self.asked = threading.Semaphore(0)
        self.fail_at = -1
        self.busy = threading.Lock()
        self.overlapped = False

    def next(self, count: int, *, rank: int = 0, size: int = 1) -> Tensor:
        self.overlapped |= not self.busy.acquire(blocking=False)
        try:
            if self.cursor["drawn"] == self.fail_at:
                raise DataError("planted", field="layers.1")
            return super().next(count, rank=rank, size=size)
        finally:
            self.busy.release()
            self.asked.release()


def straight(seed: int, batches: int) -> list[Tensor]:
    """What a source gives without anything in between."""
    source = Watched(seed)
    return [source.next(COUNT).float() for _ in range(batches)]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


@pytest.fixture(params=[True, False], ids=["thread", "no thread"])
def thread(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def prefetch(*sources: Watched, thread: bool = True, **options: int) -> Prefetch:
    return Prefetch(sources, COUNT, device="cpu", thread=thread, **options)


def test_batches_are_those_of_the_sources_and_stay_as_they_were_given(thread: bool) -> None:
    with prefetch(Watched(0), Watched(1), thread=thread) as ahead:
        batches = [ahead.next() for _ in range(15)]  # over two epochs
    for number, batch in enumerate(batches):
        assert batch.dtype is torch.float32
        assert torch.equal(batch, torch.stack([straight(seed, 15)[number] for seed in (0, 1)]))


def test_the_next_batch_is_fetched_without_being_asked_for() -> None:
    source = Watched()
    with prefetch(source) as ahead:
        ahead.next()
        assert all(source.asked.acquire(timeout=30) for _ in range(2))
        assert ahead.sources[0].cursor == {"drawn": COUNT}
        assert source.cursor == {"drawn": 2 * COUNT}


def test_on_a_cpu_nothing_is_fetched_ahead_unless_asked_for() -> None:
    source = Watched()
    with Prefetch([source], COUNT, device="cpu") as ahead:
        ahead.next()
        assert not any("prefetch" in thread.name for thread in threading.enumerate())
        assert source.cursor == ahead.sources[0].cursor == {"drawn": COUNT}


def test_going_on_from_a_cursor_gives_what_would_have_come(thread: bool) -> None:
    with prefetch(Watched(0), Watched(1), thread=thread) as ahead:
        for _ in range(4):
            ahead.next()
        cursors = [source.cursor for source in ahead.sources]
        expected = [ahead.next() for _ in range(5)]
    with prefetch(Watched(0), Watched(1), thread=thread) as again:
        again.next()
        for source, cursor in zip(again.sources, cursors):
            source.seek(cursor)
        assert [source.cursor for source in again.sources] == cursors
        assert all(torch.equal(again.next(), batch) for batch in expected)


def test_after_closing_the_sources_stand_where_rows_were_consumed(thread: bool) -> None:
    sources = [Watched(0), Watched(1)]
    with prefetch(*sources, thread=thread) as ahead:
        for _ in range(3):
            ahead.next()
    assert [source.cursor for source in sources] == [{"drawn": 3 * COUNT}] * 2
    assert torch.equal(sources[1].next(COUNT).float(), straight(1, 4)[3])


def test_an_error_comes_when_its_rows_are_asked_for_and_all_sources_stay_in_step(thread: bool) -> None:
    sources = [Watched(0), Watched(1), Watched(2)]
    sources[1].fail_at = 2 * COUNT
    with prefetch(*sources, thread=thread) as ahead:
        for _ in range(2):
            ahead.next()
        for _ in range(2):  # it stays until it is put right
            with pytest.raises(DataError, match="planted"):
                ahead.next()
            assert [source.cursor for source in ahead.sources] == [{"drawn": 2 * COUNT}] * 3
        sources[1].fail_at = -1
        assert torch.equal(ahead.next(), torch.stack([straight(seed, 3)[2] for seed in range(3)]))


def test_an_error_ahead_does_not_keep_it_from_closing() -> None:
    source = Watched()
    source.fail_at = COUNT
    with prefetch(source) as ahead:
        ahead.next()
    assert source.cursor == {"drawn": COUNT}


def test_processes_get_the_parts_of_one_batch(thread: bool) -> None:
    parts = []
    for rank in range(3):
        with prefetch(Watched(0), thread=thread, rank=rank, size=3) as ahead:
            ahead.next()
            parts.append(ahead.next())
    assert torch.equal(torch.cat(parts, 1)[0], straight(0, 2)[1])


def test_a_consumed_source_answers_for_its_place_not_for_the_fetched_one(thread: bool) -> None:
    plain = Watched()
    plain.next(COUNT)
    with prefetch(Watched(), thread=thread) as ahead:
        ahead.next()
        source = ahead.sources[0]
        assert (source.rows, source.masked, source.hookpoint, source.d_in) == (50, {"position0": 5}, "layers.1", WIDTH)
        assert source.where(COUNT) == plain.where(COUNT)
        assert source.where(3) == plain.where(3)
        assert torch.equal(source.first(5), plain.first(5))
        assert torch.equal(source.next(4), plain.next(4))
        assert source.cursor == plain.cursor
        assert torch.equal(ahead.next()[0], plain.next(COUNT).float())


def test_rows_of_several_types_become_one_batch(thread: bool) -> None:
    with prefetch(Watched(0), Watched(0, dtype=torch.float32), thread=thread) as ahead:
        first, second = ahead.next()
    assert torch.equal(first, second)


def test_sources_that_share_a_stream_are_asked_one_at_a_time() -> None:
    shared = Watched()
    with prefetch(shared) as one, prefetch(shared) as other:
        for _ in range(50):
            one.next()
            other.next()
    assert not shared.overlapped


def test_sources_of_several_widths_are_refused() -> None:
    with pytest.raises(DataError, match="one width"):
        prefetch(Watched(), Watched(width=4))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_batches_arrive_whole_without_waiting_for_the_device() -> None:
    rows, width, count, batches = 30_000, 1024, 4096, 40
    plain = Watched(rows=rows, width=width)
    expected = [plain.next(count).double().sum() for _ in range(batches)]
    sums = []
    busy = torch.randn(4096, 4096, device="cuda")
    with Prefetch([Watched(rows=rows, width=width)], count, device="cuda") as ahead:
        ahead.next()
        ahead.sources[0].seek({"drawn": 0})
        torch.cuda.synchronize()
        for _ in range(batches):
            torch.cuda.set_sync_debug_mode("error")
            try:
                batch = ahead.next()
                busy = (busy @ busy).clamp_(-1, 1)  # the device lags behind
                sums.append(batch.double().sum())
                del batch  # its memory may be taken for the next batch only when the sum is done
            finally:
                torch.cuda.set_sync_debug_mode("default")
    assert [float(value) for value in sums] == [float(value) for value in expected]
