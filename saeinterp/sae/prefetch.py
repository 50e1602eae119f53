"""The next batch of several SAEs, fetched and copied to the GPU while the present one is trained on.

A thread takes one batch ahead from every source, into pinned memory and from there to the device on a stream of its
own. The surprising choice: a source seen through a `Prefetch` stands where its rows were consumed, not where they were
fetched, so a checkpoint needs to know nothing of this; what was fetched and not consumed is fetched again after it.

On a CPU there is no thread, and `next` fetches. Shapes: S sources, N rows of each for this process, d width.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import NamedTuple

import torch
from torch import Tensor

from saeinterp.errors import DataError
from saeinterp.sae.sources import Cursor, Source

_TURN = threading.Lock()  # sources of one stream share it, whichever batch they belong to


class _Place(NamedTuple):
    """A source before a batch is taken."""

    cursor: Cursor
    masked: dict[str, int]
    where: str


class _Batch(NamedTuple):
    """A batch on the device, perhaps still on its way."""

    rows: Tensor
    """`[S, N, d]`"""
    copied: torch.cuda.Event | None
    after: list[_Place]
    """Where each source stands once the batch is consumed."""


class Prefetch:
    """Batches `[S, N, d]` of several sources of one width, on a device.

    Use `sources` instead of the sources it was made of until it is closed: those stand a batch ahead. Use it from one
    thread.

    Args:
        sources: One for each SAE.
        count: Rows of a batch, over all processes.
        rank: Of this process; it gets rows `[rank * count // size, (rank + 1) * count // size)` of each batch.
        size: Processes that share every batch.
        device: Where batches go.
        dtype: Type of the batches. Rows travel in the type that the sources give, and are converted on the device.
        thread: Whether to fetch ahead, in a thread; by default where the device is a GPU.

    Raises:
        DataError: Sources of several widths, or none.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        count: int,
        *,
        rank: int = 0,
        size: int = 1,
        device: torch.device | str,
        dtype: torch.dtype = torch.float32,
        thread: bool | None = None,
    ) -> None:
        widths = sorted({source.d_in for source in sources})
        if len(widths) != 1:
            raise DataError("sources of one batch must have one width", field="sources", got=widths, expected="one")
        self.device = torch.device(device)
        self.dtype = dtype
        self.count = count
        self._inner = list(sources)
        self._part = (rank, size)
        cuda = self.device.type == "cuda"
        self._thread: ThreadPoolExecutor | None = None
        if cuda if thread is None else thread:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._side = torch.cuda.Stream(self.device) if cuda else None
        # A buffer is filled again only after its copy; with two, the thread need not wait for it.
        self._pinned: list[Tensor | None] = [None, None]
        self._copied: list[torch.cuda.Event | None] = [None, None]
        self._turn = 0
        self._places = [self._place(source) for source in self._inner]
        self._coming: Future[_Batch] | None = None
        self.sources = tuple(ConsumedSource(self, index) for index in range(len(self._inner)))
        """Each source as far as it was consumed."""

    def __enter__(self) -> Prefetch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def next(self) -> Tensor:
        """The next batch `[S, N, d]`, ready on the current stream; the one after it is on its way.

        The tensor is the caller's own: nothing here writes to it again.

        Raises:
            SaeinterpError: What a source raised. The position is that before this batch, and `next` tries again.
        """
        self._coming = self._coming or self._start()
        try:
            batch = self._coming.result()
        except BaseException:
            self.drop()
            raise
        self._coming = None
        if batch.copied is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(batch.copied)
            # The memory belongs to the side stream, which must not reuse it before this one is done with it.
            batch.rows.record_stream(stream)
        self._places = batch.after
        if self._thread is not None:
            self._coming = self._start()
        return batch.rows

    def drop(self) -> None:
        """Forget what was fetched and not consumed; the sources underneath stand where they were consumed."""
        coming, self._coming = self._coming, None
        if coming is None:
            return
        if not coming.cancel():
            coming.exception()  # waits; an error will come again when those rows are asked for
        self._rewind()

    def close(self) -> None:
        """`drop`, and end the thread. The sources underneath may then be used directly; `next` may not."""
        self.drop()
        if self._thread is not None:
            self._thread.shutdown()

    def _start(self) -> Future[_Batch]:
        if self._thread is not None:
            return self._thread.submit(self._fetch)
        done: Future[_Batch] = Future()
        try:
            done.set_result(self._fetch())
        except Exception as error:  # noqa: BLE001 - raised by `next`, as if there were a thread
            done.set_exception(error)
        return done

    @torch.no_grad()
    def _fetch(self) -> _Batch:
        rank, size = self._part
        with _TURN:
            pieces = [source.next(self.count, rank=rank, size=size) for source in self._inner]
            after = [self._place(source) for source in self._inner]
        if self._side is None:
            rows = torch.empty(len(pieces), *pieces[0].shape, dtype=self.dtype, device=self.device)
            for s, piece in enumerate(pieces):
                rows[s].copy_(piece)
            return _Batch(rows, None, after)
        if pieces[0].is_cuda:
            self._side.wait_stream(torch.cuda.current_stream(self.device))  # where they are made
        with torch.cuda.device(self.device), torch.cuda.stream(self._side):
            rows = self._send(pieces)
            copied = torch.cuda.Event()
            copied.record()
        return _Batch(rows, copied, after)

    def _send(self, pieces: Sequence[Tensor]) -> Tensor:
        """The pieces as one tensor on the device, by way of a pinned buffer, on the current stream."""
        if pieces[0].is_cuda:
            for piece in pieces:
                piece.record_stream(torch.cuda.current_stream(self.device))
            return torch.stack([piece.to(self.dtype) for piece in pieces])
        turn, self._turn = self._turn, 1 - self._turn
        earlier, buffer = self._copied[turn], self._pinned[turn]
        if earlier is not None:
            earlier.synchronize()  # two batches ago: it has been over for long
        dtypes = {piece.dtype for piece in pieces}
        dtype = dtypes.pop() if len(dtypes) == 1 else self.dtype
        shape = (len(pieces), *pieces[0].shape)
        if buffer is None or buffer.shape != shape or buffer.dtype is not dtype:
            buffer = self._pinned[turn] = torch.empty(shape, dtype=dtype, pin_memory=True)
        for s, piece in enumerate(pieces):
            buffer[s].copy_(piece)
        rows = buffer.to(self.device, non_blocking=True)
        self._copied[turn] = torch.cuda.Event()
        self._copied[turn].record()  # type: ignore[union-attr]
        return rows.to(self.dtype)

    def _rewind(self) -> None:
        with _TURN:
            for source, place in zip(self._inner, self._places):
                source.seek(place.cursor)

    def _place(self, source: Source) -> _Place:
        return _Place(source.cursor, source.masked, source.where(self.count))


class ConsumedSource:
    """One source of a `Prefetch`, as far as its rows were consumed: a `Source`.

    Anything that asks more of it than its position drops what was fetched ahead of all of them.
    """

    def __init__(self, prefetch: Prefetch, index: int) -> None:
        self._prefetch = prefetch
        self._index = index
        self._source = prefetch._inner[index]
        self.hookpoint = self._source.hookpoint
        self.d_in = self._source.d_in
        self.collective = self._source.collective

    @property
    def rows(self) -> int:
        """Rows of one epoch."""
        return self._source.rows

    @property
    def masked(self) -> dict[str, int]:
        """Rows never given out, as known where the consumed rows end."""
        return self._place.masked

    @property
    def cursor(self) -> Cursor:
        """The position after the rows that were consumed."""
        return self._place.cursor

    def seek(self, cursor: Cursor) -> None:
        """Go to a position."""
        self._prefetch.drop()
        with _TURN:
            self._source.seek(cursor)
            self._moved()

    def first(self, count: int) -> Tensor:
        """At most `count` rows from the very start of the stream; the position stays."""
        with _TURN:
            return self._source.first(count)

    def next(self, count: int, *, rank: int = 0, size: int = 1) -> Tensor:
        """Rows of this source alone, past which the others of the batch do not go."""
        self._prefetch.drop()
        with _TURN:
            rows = self._source.next(count, rank=rank, size=size)
            self._moved()
        return rows

    def where(self, count: int) -> str:
        """The next `count` rows in words."""
        if count == self._prefetch.count:
            return self._place.where
        self._prefetch.drop()
        return self._source.where(count)

    @property
    def _place(self) -> _Place:
        return self._prefetch._places[self._index]

    def _moved(self) -> None:
        self._prefetch._places[self._index] = self._prefetch._place(self._source)
