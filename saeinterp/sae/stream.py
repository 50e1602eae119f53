"""Training rows from the running model: for corpora whose activations would not fit on the disk.

All SAEs of a process share one stream. It runs the subject over a block of text at a time (see `blocks.py`), one
early-stopped forward pass per batch for all hookpoints, and each SAE sees the block's rows in an order of its own: a
block is the mixing buffer, and rows mix within it. The surprising choice: there is no reservoir that is topped up, so
nothing random has to be saved; the rows at a cursor follow from seed, text and the size of the buffer, and going on
after a kill runs the subject over the current block again.

A row has the bits it has in an activation cache wherever the model gives them regardless of what else is in the
batch; matrix products of other shapes may round the last bit otherwise.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from saeinterp.artifacts import Artifact
from saeinterp.config import Placement
from saeinterp.errors import ConfigError, DataError, TrainingError
from saeinterp.sae.blocks import BlockMaker, BlockPlan, Coming, Gather, Part, Share, all_gather
from saeinterp.sae.sources import Cursor
from saeinterp.subject.cache import ActivationCache
from saeinterp.subject.contexts import Contexts, read_contexts
from saeinterp.subject.models import Subject, load_subject

if TYPE_CHECKING:
    from saeinterp.sae.job import Text
    from saeinterp.sae.trainer import Group

_SEED = 0  # of the order of contexts: one for all SAEs, whatever seeds they have, so that they share forward passes


def open_stream(
    text: Text, activations: Artifact, hookpoints: Sequence[str], group: Group, device: torch.device
) -> ActivationStream:
    """The stream of the train split of a job's corpus; loads the subject.

    Args:
        text: What is run, and how.
        activations: Of any split; its norm limits, special tokens and storage type hold for the stream too.
        hookpoints: Of the SAEs of this process; an SAE gets the same rows whatever others there are.
        group: The processes that share every batch, and the work of running the subject.
        device: Where this process trains.

    Raises:
        ConfigError: The activations or the subject have no such hookpoint.
        DataError: The train split holds no usable token.
        SubjectError: The subject cannot be loaded.
    """
    caches = {name: ActivationCache.open(activations, name) for name in dict.fromkeys(hookpoints)}
    first = next(iter(caches.values()))
    # Each process runs the subject on the card it trains on.
    place = text.device
    wanted = place.device if isinstance(place, Placement) and place.device_map == "single" else place
    if wanted in ("auto", "cuda") and device.type == "cuda":
        place = str(device)
    return ActivationStream(
        load_subject(text.subject, device=place),
        read_contexts(text.corpus, splits="train"),
        list(caches),
        {name: cache.norm_limit for name, cache in caches.items()},
        first.special_ids,
        buffer_rows=text.capture.buffer_rows,
        batch_contexts=text.capture.batch_contexts,
        dtype=first.dtype,
        seed=_SEED,
        rank=group.rank,
        size=group.size,
        gather=partial(all_gather, device=device),
    )


class ActivationStream:
    """Blocks of activations for all SAEs of a process.

    Memory: each hookpoint holds the block its sources are at, and for a while the next one: with sources in step
    1 to 2 × `buffer_rows` × hookpoints × width × 2 bytes, and the rows of one hookpoint once more while a block is
    put together. A source that falls behind has its hookpoint's rows computed again rather than kept; one that
    stops keeps the block where it stopped.

    Args:
        subject: The running model; nobody else may run it while the stream works `ahead`.
        contexts: Of the train split.
        hookpoints: Every one captured.
        limits: The largest norm of a usable row, by hookpoint.
        special_ids: Tokens that are masked.
        buffer_rows: Rows of a block, about; a training batch must not be larger.
        batch_contexts: Contexts per forward pass.
        dtype: Storage type, `bfloat16` or `float16`.
        seed: Of the order of the contexts; the order of rows within a block has the source's.
        rank: Of this process.
        size: Processes that share the work; each holds every block. With several, sources are to be read in the
            thread that opened the stream, and all processes read the same in the same order.
        gather: How they bring it together; needed where there are several.
        ahead: Run the subject over the next block, in a thread, while this one is trained on; by default on a GPU.

    Raises:
        ConfigError: A hookpoint does not exist, an unknown storage type, no room for a row.
        DataError: No token is usable.
    """

    def __init__(
        self,
        subject: Subject,
        contexts: Contexts,
        hookpoints: Sequence[str],
        limits: Mapping[str, float],
        special_ids: Sequence[int],
        *,
        buffer_rows: int,
        batch_contexts: int,
        dtype: str,
        seed: int,
        rank: int = 0,
        size: int = 1,
        gather: Gather | None = None,
        ahead: bool | None = None,
    ) -> None:
        if buffer_rows < 1:
            raise ConfigError("must hold a row", field="capture.buffer_rows", got=buffer_rows, expected="1 or more")
        self.hookpoints = tuple(dict.fromkeys(hookpoints))
        self.buffer_rows = buffer_rows
        self.size = size
        self.plan = BlockPlan(contexts, special_ids, buffer_rows=buffer_rows, seed=seed)
        self._maker = BlockMaker(
            subject,
            contexts,
            {name: limits[name] for name in self.hookpoints},
            special_ids,
            plan=self.plan,
            batch_contexts=batch_contexts,
            dtype=dtype,
            rank=rank,
            size=size,
            gather=gather,
        )
        self.widths = self._maker.widths
        """Width of each hookpoint."""
        cuda = torch.device(subject.device).type == "cuda"
        self._ahead = cuda if ahead is None else ahead
        self._size = size
        self._reader = threading.get_ident()
        self._side: torch.cuda.Stream | None = None
        if cuda and self._ahead:
            torch.cuda.synchronize(subject.device)  # the weights are there before another stream reads them
            self._side = torch.cuda.Stream(subject.device)
        self._sources: dict[str, list[StreamRows]] = {name: [] for name in self.hookpoints}
        self._held: dict[tuple[int, str], Part] = {}
        self._coming: Coming | None = None

    def source(self, hookpoint: str, seed: int) -> StreamRows:
        """The rows of one SAE; `seed` is that of their order within each block.

        Raises:
            ConfigError: The stream does not capture that hookpoint.
        """
        if hookpoint not in self._sources:
            raise ConfigError(
                "not captured by this stream", field="hookpoint", got=hookpoint, expected=", ".join(self.hookpoints)
            )
        source = StreamRows(self, hookpoint, seed=seed)
        self._sources[hookpoint].append(source)
        return source

    @property
    def held(self) -> dict[str, list[int]]:
        """The blocks in memory, by hookpoint."""
        return {name: sorted(block for block, held in self._held if held == name) for name in self.hookpoints}

    def part(self, block: int, hookpoint: str) -> Part:
        """One hookpoint's rows of a block, from memory or by running the subject.

        Raises:
            BudgetError, DataError: See `forward_batch`.
        """
        # Elsewhere the processes would bring their tensors together in orders that differ.
        assert self._size == 1 or threading.get_ident() == self._reader, "several processes: read in the opening thread"
        held = self._held.get((block, hookpoint))
        if held is not None:
            return held
        coming, self._coming = self._coming, None
        if coming is not None and (coming.block != block or hookpoint not in coming.hookpoints):
            coming.join()  # the subject serves one at a time
            coming = None
        soon = [name for name in self._soon(block) if (block, name) not in self._held]
        if coming is None:
            names = [name for name in self.hookpoints if name == hookpoint or name in soon]
            coming = self._start(block, names, inline=True)
        made = self._maker.join(coming.batches, coming.hookpoints, coming.share())
        self._held.update({(block, name): part for name, part in made.items() if name in soon})
        return made[hookpoint]

    def moved(self) -> None:
        """Drop what no source is in or about to enter."""
        for block, name in list(self._held):
            if name not in self._soon(block):
                del self._held[block, name]

    def look_ahead(self) -> None:
        """Start on the block after the newest that a source is in, once those in step with it have all come there."""
        if not self._ahead or self._coming is not None:
            return
        blocks = [block for name in self.hookpoints for block in self._blocks(name)]
        newest = max(blocks)
        names = [name for name in self._soon(newest + 1) if (newest + 1, name) not in self._held]
        if names and newest - 1 not in blocks:
            self._coming = self._start(newest + 1, names, inline=False)

    def _blocks(self, hookpoint: str) -> list[int]:
        """The blocks its sources are in; a hookpoint without any will have one at the start."""
        return [source.block for source in self._sources[hookpoint]] or [0]

    def _soon(self, block: int) -> list[str]:
        """The hookpoints with a source in this block or in the one before."""
        return [name for name in self.hookpoints if any(block - 1 <= at <= block for at in self._blocks(name))]

    def _start(self, block: int, hookpoints: Sequence[str], *, inline: bool) -> Coming:
        batches = self._maker.batches(block)

        def work() -> Share:
            with torch.cuda.stream(self._side):
                return self._maker.forward(batches, hookpoints)

        return Coming(block, hookpoints, batches, work, inline=inline)


class StreamRows:
    """The rows of one SAE: a `Source`.

    The cursor holds `drawn`, the rows given so far; `block` and `offset`, where the next one lies; `norm`, the rows
    left out for their norm in the blocks of the first epoch that were entered. All follow from `drawn`.
    """

    def __init__(self, stream: ActivationStream, hookpoint: str, *, seed: int) -> None:
        self.hookpoint = hookpoint
        self.d_in = stream.widths[hookpoint]
        self.collective = stream.size > 1
        self._stream = stream
        self._seed = seed
        self._place = _Place()
        self._shuffled: tuple[int, int] = (-1, 0)
        self._order = torch.empty(0, dtype=torch.int64)

    @property
    def rows(self) -> int:
        """Rows of one epoch, by position and token; rows with too large a norm are only found on the way.

        There are therefore somewhat fewer in an epoch of text: a run of so many rows reads a little into the next.
        """
        return self._stream.plan.rows

    @property
    def masked(self) -> dict[str, int]:
        """Rows never given out: of an epoch, but those of too large a `norm` only as far as the first epoch was read.

        A function of the cursor.
        """
        return {**self._stream.plan.masked, "norm": self._place.norm}

    @property
    def cursor(self) -> Cursor:
        """The position; see the class."""
        return self._place._asdict()

    @property
    def block(self) -> int:
        """The block that holds the next row."""
        return self._place.block

    def seek(self, cursor: Cursor) -> None:
        """Go to a position.

        Raises:
            TrainingError: It is not one of a stream.
        """
        if set(cursor) != set(_Place._fields):
            raise TrainingError(
                "the checkpoint's position is not one of a stream",
                field=self.hookpoint,
                got=cursor,
                expected=", ".join(_Place._fields),
                next_step="remove this layer's folder below .work in the artifact folder to start anew",
            )
        self._place = _Place(**cursor)
        self._stream.moved()

    def first(self, count: int) -> Tensor:
        """At most `count` rows, and at most an epoch, from the start of the stream; the position stays.

        Raises:
            BudgetError, DataError: As `next`.
        """
        pieces: list[Tensor] = []
        for block in range(self._stream.plan.blocks):
            rows = self._stream.part(block, self.hookpoint).rows
            pieces.append(rows[self._permutation(block, len(rows))[:count]])
            count -= len(pieces[-1])
            if not count:
                break
        if not any(len(piece) for piece in pieces):
            raise self._nothing()
        return torch.cat(pieces)

    def next(self, count: int, *, rank: int = 0, size: int = 1) -> Tensor:
        """This process's part of the next `count` rows, in the storage type.

        Raises:
            BudgetError: A batch of contexts does not fit into the memory of the device.
            ConfigError: More rows than the buffer holds.
            DataError: NaN, infinite or overflowing activations; a whole epoch without usable rows.
        """
        stream = self._stream
        if count > stream.buffer_rows:
            raise ConfigError(
                f"smaller than a training batch of {count} rows",
                field="capture.buffer_rows",
                got=stream.buffer_rows,
                expected=f"at least {count}, better a hundred times that: rows mix within the buffer",
                next_step="raise it, or lower training.batch_rows",
            )
        low, high = (part * count // size for part in (rank, rank + 1))
        pieces: list[Tensor] = []
        taken = empty = 0
        while taken < count:
            rows, large = stream.part(self._place.block, self.hookpoint)
            start = self._place.offset
            step = min(count - taken, len(rows) - start)
            wanted = slice(start + max(low - taken, 0), start + max(min(high - taken, step), 0))
            pieces.append(rows[self._permutation(self._place.block, len(rows))[wanted]])
            taken += step
            empty = 0 if len(rows) else empty + 1
            if empty >= stream.plan.blocks:
                raise self._nothing()
            self._pass(step, total=len(rows), large=large)
        stream.look_ahead()
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def where(self, count: int) -> str:
        """The next rows in words."""
        drawn, block, offset, _ = self._place
        epoch = block // self._stream.plan.blocks
        return f"rows {drawn}-{drawn + count - 1} of the stream, from row {offset} of block {block} (epoch {epoch})"

    def _pass(self, step: int, *, total: int, large: int) -> None:
        """Go `step` rows on in a block of `total`, of which `large` were left out."""
        drawn, block, offset, norm = self._place
        if offset == 0 and block < self._stream.plan.blocks:
            norm += large
        if offset + step < total:
            self._place = _Place(drawn + step, block, offset + step, norm)
        else:
            self._place = _Place(drawn + step, block + 1, 0, norm)
            self._stream.moved()

    def _nothing(self) -> DataError:
        return DataError(
            "the norms of all rows of an epoch exceed the limit",
            field=f"{self.hookpoint}, split train",
            got=self.rows,
            expected="rows like those that the limit was taken from",
            next_step="raise capture.norm_multiple, or check that all splits hold the same kind of text",
        )

    def _permutation(self, block: int, count: int) -> Tensor:
        """The order of a block's rows."""
        if self._shuffled != (block, count):
            order = np.random.Generator(np.random.PCG64([self._seed, block])).permutation(count)
            self._order, self._shuffled = torch.from_numpy(order), (block, count)
        return self._order


class _Place(NamedTuple):
    """A position; see `StreamRows`."""

    drawn: int = 0
    block: int = 0
    offset: int = 0
    norm: int = 0
