"""Blocks of a stream: some contexts of the train split, run through the subject, as usable rows of every hookpoint.

Which contexts make up a block is a pure function of the corpus, the seed and the size of the buffer; which rows of it
are usable is decided as in the activation cache. The surprising choice: with several processes each runs the subject
on a share of the batches and all of them get all rows, in the order of one process: memory is not shared out, so that
the stream is the same for any number of processes.

Shapes: B contexts, T tokens, n rows, d width of a hookpoint.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from saeinterp.errors import ConfigError, DataError, SaeinterpError, TrainingError
from saeinterp.subject.cache import DTYPES, usable
from saeinterp.subject.contexts import Contexts
from saeinterp.subject.forwarding import batches_by_length, forward_batch, hookpoint_widths
from saeinterp.subject.models import Subject

Gather = Callable[[Tensor], Sequence[Tensor]]
"""The tensor, of one shape and type everywhere, of each process in order of rank."""

_COUNTED = 65_536  # contexts whose tokens are looked at together


def all_gather(tensor: Tensor, *, device: torch.device | str) -> list[Tensor]:
    """A `Gather` over torch's default process group; `device` is one its backend works on."""
    here = tensor.to(device)
    found = [torch.empty_like(here) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(found, here)
    return [part.cpu() for part in found]


class Part(NamedTuple):
    """What one hookpoint gives to a block or to a batch of it."""

    rows: Tensor
    """`[n, d]` usable rows in the storage type, on the CPU."""
    large: int
    """Rows left out for their norm alone."""


class Share(NamedTuple):
    """What one process did of a block."""

    batches: list[dict[str, Part]]
    """By hookpoint, for each of its batches up to the first that failed."""
    error: SaeinterpError | None


class Coming:
    """One process's share of a block, on its way: made at once (`inline`) or in a thread."""

    def __init__(
        self,
        block: int,
        hookpoints: Sequence[str],
        batches: Sequence[np.ndarray],
        work: Callable[[], Share],
        *,
        inline: bool,
    ) -> None:
        self.block = block
        self.hookpoints = hookpoints
        self.batches = batches
        self._work = work
        self._share: Share | None = None
        self._error: Exception | None = None
        self._thread = None if inline else threading.Thread(target=self._run, name=f"block {block}")
        if self._thread is None:
            self._run()
        else:
            self._thread.start()

    def _run(self) -> None:
        try:
            self._share = self._work()
        except Exception as error:  # noqa: BLE001, raised by `share` in the thread that asks
            self._error = error

    def join(self) -> None:
        """Wait until the subject is free."""
        if self._thread is not None:
            self._thread.join()

    def share(self) -> Share:
        """Wait for it."""
        self.join()
        if self._error is not None:
            raise self._error
        assert self._share is not None
        return self._share


class BlockPlan:
    """Which contexts make up which block.

    Every epoch takes the contexts in another seeded order and cuts that into the same number of blocks, of about
    equally many usable rows and at most `buffer_rows` (but for one context); none lies in two epochs.

    Args:
        contexts: Of the train split.
        special_ids: Tokens that are masked.
        buffer_rows: Rows of a block.
        seed: Of the order.

    Raises:
        DataError: No token is usable.
    """

    def __init__(self, contexts: Contexts, special_ids: Sequence[int], *, buffer_rows: int, seed: int) -> None:
        self._seed = seed
        self._usable = _usable_tokens(contexts, special_ids)
        self.rows = int(self._usable.sum())
        """Usable rows of an epoch; those with too large a norm are not known yet and among them."""
        if not self.rows:
            raise DataError(
                "no usable rows: every token is special or at position 0",
                field="split train",
                got=f"{contexts.tokens} tokens",
                next_step="check the corpus: contexts need at least two ordinary tokens",
            )
        self.masked = {"position0": len(contexts), "special": contexts.tokens - len(contexts) - self.rows}
        """Tokens of an epoch that are masked for their position or id."""
        self.blocks = min(math.ceil(self.rows / buffer_rows), len(contexts))
        """Blocks of an epoch."""
        self._epoch = -1
        self._order = self._filled = np.empty(0, np.int64)

    def contexts(self, block: int) -> np.ndarray:
        """Indices of the contexts of a block; they may be none."""
        epoch, part = divmod(block, self.blocks)
        if epoch != self._epoch:
            self._order = np.random.Generator(np.random.PCG64([self._seed, epoch])).permutation(len(self._usable))
            self._filled = np.cumsum(self._usable[self._order])
            self._epoch = epoch
        return self._order[self._cut(part) : self._cut(part + 1)]

    def _cut(self, part: int) -> int:
        """The fewest contexts that hold `part` blocks' share of the rows; all of them for the last."""
        if part == self.blocks:
            return len(self._order)
        return int(np.searchsorted(self._filled, part * self.rows / self.blocks)) + 1 if part else 0


def _usable_tokens(contexts: Contexts, special_ids: Sequence[int]) -> np.ndarray:
    """`[contexts]` int64: tokens of each that are neither at position 0 nor special."""
    lengths, token_ids = contexts.lengths.astype(np.int64), contexts.token_ids
    stops = np.cumsum(lengths)
    counts = np.empty(len(lengths), np.int64)
    for first in range(0, len(lengths), _COUNTED):
        some = slice(first, first + _COUNTED)
        start, stop = stops[some][0] - lengths[some][0], stops[some][-1]
        starts = stops[some] - lengths[some] - start
        positions = np.arange(stop - start) - np.repeat(starts, lengths[some])
        counts[some] = np.add.reduceat(usable(positions, token_ids[start:stop], special_ids), starts, dtype=np.int64)
    return counts


class BlockMaker:
    """Runs the subject over blocks.

    Args:
        subject: The running model.
        contexts: Of the train split.
        limits: The largest norm of a usable row, by hookpoint.
        special_ids: Tokens that are masked.
        plan: Of these contexts.
        batch_contexts: Contexts per forward pass.
        dtype: Storage type.
        rank: Of this process; it runs batches `rank`, `rank + size`, ...
        size: Number of processes.
        gather: Brings the processes' tensors together.

    Raises:
        ConfigError: A hookpoint does not exist, or an unknown storage type.
    """

    def __init__(
        self,
        subject: Subject,
        contexts: Contexts,
        limits: Mapping[str, float],
        special_ids: Sequence[int],
        *,
        plan: BlockPlan,
        batch_contexts: int,
        dtype: str,
        rank: int = 0,
        size: int = 1,
        gather: Gather | None = None,
    ) -> None:
        if dtype not in DTYPES:
            raise ConfigError("not a storage type", field="capture.dtype", got=dtype, expected=" or ".join(DTYPES))
        self.widths = hookpoint_widths(subject, list(limits))
        """Width of each hookpoint."""
        self._subject = subject
        self._contexts = contexts
        self._lengths = contexts.lengths
        self._limits = limits
        self._special_ids = special_ids
        self._plan = plan
        self._batch_contexts = batch_contexts
        self._dtype = dtype
        self._rank = rank
        self._size = size
        self._gather = gather

    def batches(self, block: int) -> list[np.ndarray]:
        """Indices of the contexts of each forward pass."""
        contexts = self._plan.contexts(block)
        return [contexts[some] for some in batches_by_length(self._lengths[contexts], self._batch_contexts)]

    def forward(self, batches: Sequence[np.ndarray], hookpoints: Sequence[str]) -> Share:
        """This process's share of a block; cut short when the process is ending, which waits for its threads."""
        done: list[dict[str, Part]] = []
        for batch in batches[self._rank :: self._size]:
            if not threading.main_thread().is_alive():
                break
            try:
                done.append(self._forward(batch, hookpoints))
            except SaeinterpError as error:
                return Share(done, error)
        return Share(done, None)

    def join(self, batches: Sequence[np.ndarray], hookpoints: Sequence[str], share: Share) -> dict[str, Part]:
        """The block, from the shares of all processes; empties `share`. Every process calls this at the same point.

        Raises:
            SaeinterpError: What the first failing batch of any process raised.
        """
        if self._size > 1 and len(batches):
            return self._join_all(batches, hookpoints, share)
        if share.error is not None:
            raise share.error
        return {name: self._joined(name, [batch.pop(name) for batch in share.batches]) for name in hookpoints}

    def _forward(self, indices: np.ndarray, hookpoints: Sequence[str]) -> dict[str, Part]:
        """Usable rows of one batch of contexts."""
        contexts = [self._contexts[index] for index in indices]
        stored = forward_batch(
            self._subject, contexts, hookpoints, dtype=self._dtype, batch_contexts=self._batch_contexts
        )
        mask_BT = np.zeros((len(contexts), max(len(context.token_ids) for context in contexts)), bool)
        for mask_T, context in zip(mask_BT, contexts, strict=True):
            length = len(context.token_ids)
            mask_T[:length] = usable(np.arange(length), context.token_ids, self._special_ids)
        chosen = torch.from_numpy(mask_BT)
        return {name: _within(values_BTd[chosen], self._limits[name]) for name, values_BTd in stored.items()}

    def _join_all(self, batches: Sequence[np.ndarray], hookpoints: Sequence[str], share: Share) -> dict[str, Part]:
        """The block, brought together a hookpoint at a time; the rows travel as bytes, which every backend takes."""
        assert self._gather is not None
        size = self._size
        counts = torch.zeros(math.ceil(len(batches) / size), len(hookpoints), 2, dtype=torch.int64)
        for index, batch in enumerate(share.batches):
            counts[index] = torch.tensor([(len(batch[name].rows), batch[name].large) for name in hookpoints])
        if share.error is not None:
            counts[len(share.batches)] = -1
        found = self._gather(counts)
        self._raise_first(batches, hookpoints, share, found)
        joined = {}
        for place, name in enumerate(hookpoints):
            own = self._joined(name, [batch.pop(name) for batch in share.batches]).rows.view(torch.uint8)
            lengths = [part[:, place, 0].tolist() for part in found]
            # Not every backend takes a tensor without rows.
            padded = torch.zeros(max(1, *(sum(some) for some in lengths)), own.shape[1], dtype=torch.uint8)
            padded[: len(own)] = own
            pieces = [
                iter(rows[: sum(some)].split(some)) for rows, some in zip(self._gather(padded), lengths, strict=True)
            ]
            rows = [next(pieces[index % size]).view(DTYPES[self._dtype]) for index in range(len(batches))]
            large = sum(int(part[:, place, 1].sum()) for part in found)
            joined[name] = Part(torch.cat(rows), large)
        return joined

    def _raise_first(
        self, batches: Sequence[np.ndarray], hookpoints: Sequence[str], share: Share, found: Sequence[Tensor]
    ) -> None:
        """Raise, in every process, the error of the first batch that failed in any: none then waits for another."""
        failed = [
            index * self._size + rank
            for rank, counts in enumerate(found)
            for index in (counts[:, 0, 0] < 0).nonzero().flatten().tolist()
        ]
        if not failed:
            return
        rank = min(failed) % self._size
        if rank == self._rank and share.error is not None:
            raise share.error
        # What the contexts caused there they cause here.
        self._forward(batches[min(failed)], hookpoints)
        raise TrainingError(
            f"process {rank} could not run its part of the text through the subject",
            field="launch.processes",
            next_step=f"see what process {rank} says",
        )

    def _joined(self, name: str, parts: Sequence[Part]) -> Part:
        rows = [part.rows for part in parts] or [torch.empty(0, self.widths[name], dtype=DTYPES[self._dtype])]
        return Part(torch.cat(rows), sum(part.large for part in parts))


def _within(rows_nd: Tensor, limit: float) -> Part:
    """Leave out rows by the norm they have as stored, as the activation cache does."""
    keep = torch.linalg.vector_norm(rows_nd.float(), dim=1).numpy() <= limit
    large = int((~keep).sum())
    return Part(rows_nd[torch.from_numpy(keep)] if large else rows_nd, large)
