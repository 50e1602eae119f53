"""The shards of an activation cache: planned from the context lengths, checked against the disk, written one by one.

A shard is whole or not there: it is written under another name and then renamed, so a killed run goes on with those
that are missing. The surprising choice: no batch straddles two shards, so any process can write any shard and the
bytes are the same.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from saeinterp.config import CaptureConfig
from saeinterp.errors import BudgetError
from saeinterp.subject.cache import ShardWriter
from saeinterp.subject.contexts import Contexts
from saeinterp.subject.forwarding import forward_window, hookpoint_widths, storage_dtype
from saeinterp.subject.models import Subject

SHARD_ROWS = 131_072
_ROW_OVERHEAD = 12 + 4  # three ids and the norm
_WINDOW_BATCHES = 8  # contexts are sorted by length within so many batches, to pad little
_WINDOW_TOKENS = 16_384  # ... but never keep more than this and one batch in memory


class Shard(NamedTuple):
    """Contexts `[start, stop)` of the corpus, `rows` tokens, stored as `<hookpoint>/<number>.parquet`."""

    number: int
    start: int
    stop: int
    rows: int

    def path(self, work: Path, hookpoint: str) -> Path:
        """Where it lies below `work` once it is whole."""
        return work / hookpoint / f"{self.number:05d}.parquet"


class Layout(NamedTuple):
    """What is stored of each row, known once the subject is loaded."""

    dtype: str
    """`bfloat16` or `float16`."""
    widths: dict[str, int]
    """Hookpoint -> d."""

    @classmethod
    def of(cls, subject: Subject, config: CaptureConfig) -> Layout:
        """The layout of a subject's activations.

        Raises:
            ConfigError: A hookpoint does not exist or gives no rows.
        """
        return cls(storage_dtype(config.dtype, subject), hookpoint_widths(subject, config.hookpoints))


def activation_bytes(tokens: int, d_in: int, hookpoints: Sequence[str]) -> int:
    """Bytes of an activation cache: two per value, and 16 per row for ids and norm."""
    return tokens * len(hookpoints) * (2 * d_in + _ROW_OVERHEAD)


def check_budget(tokens: int, widths: Mapping[str, int], *, budget_gb: float, work: Path) -> None:
    """Compare the bytes a cache would take with the budget, and with the free disk and what already lies in `work`.

    Raises:
        BudgetError: Saying what is needed, what is allowed, and the choices.
    """
    needed = sum(activation_bytes(tokens, width, [name]) for name, width in widths.items())
    shown = "/".join(str(width) for width in sorted(set(widths.values())))
    check_bytes(
        needed,
        what=f"{tokens:,} tokens × {len(widths)} hookpoints × {shown} values",
        choices="cap corpus.max_tokens, take a slice of the corpus (split: 'train[:5%]' or limit), name fewer "
        "hookpoints",
        budget_gb=budget_gb,
        work=work,
    )


def check_bytes(needed: int, *, what: str, choices: str, budget_gb: float, work: Path) -> None:
    """Compare the bytes of a cache with the budget, and with the free disk and what already lies in `work`.

    Args:
        what: What takes them, in the plural.
        choices: What would take fewer.

    Raises:
        BudgetError: Saying what is needed, what is allowed, and the choices.
    """
    what = f"{what} take {needed / 1e9:,.2f} GB ({needed:,} bytes)"
    if needed > budget_gb * 1e9:
        raise BudgetError(
            f"{what}, more than the budget of {budget_gb:g} GB",
            field="capture.disk_budget_gb",
            got=budget_gb,
            expected=f"at least {needed / 1e9:.2f}",
            next_step=f"{choices}, or raise capture.disk_budget_gb",
        )
    free = shutil.disk_usage(work).free
    # Counted after the free space, since other processes may be writing here: never too strict.
    if needed > free + sum(path.stat().st_size for path in work.rglob("*.parquet")):
        raise BudgetError(
            f"{what}, but {work} has {free / 1e9:,.2f} GB free",
            field="SAEINTERP_ROOT",
            got=str(work),
            next_step=f"{choices}, free some space, or set SAEINTERP_ROOT to a larger disk",
        )


def plan_shards(contexts: Contexts, *, batch_contexts: int) -> list[Shard]:
    """Cut the contexts into shards of at least `SHARD_ROWS` rows, at borders of windows."""
    window = window_contexts(contexts, batch_contexts)
    shards: list[Shard] = []
    start = 0
    lengths = contexts.lengths
    for stop in [*range(window, len(contexts), window), len(contexts)]:
        rows = int(lengths[start:stop].sum())
        if rows >= SHARD_ROWS or stop == len(contexts):
            shards.append(Shard(len(shards), start, stop, rows))
            start = stop
    return shards


def missing_shards(shards: Iterable[Shard], work: Path, hookpoints: Sequence[str]) -> list[Shard]:
    """Those that an earlier, killed run did not finish."""
    return [shard for shard in shards if not all(is_whole(shard.path(work, name), shard.rows) for name in hookpoints)]


def write_shards(
    subject: Subject,
    contexts: Contexts,
    shards: Iterable[Shard],
    *,
    config: CaptureConfig,
    layout: Layout,
    work: Path,
    report: Callable[[int], None],
) -> None:
    """Run the subject over the contexts of some shards and store them below `work`.

    Args:
        contexts: Of all shards.
        report: Called with the rows done by this call.

    Raises:
        BudgetError, DataError: See `forward_batch`.
    """
    window = window_contexts(contexts, config.batch_contexts)
    done = 0
    for name in layout.widths:
        (work / name).mkdir(exist_ok=True)
    for shard in shards:
        finals = {name: shard.path(work, name) for name in layout.widths}
        partials = {name: path.with_suffix(".partial") for name, path in finals.items()}
        writers = {
            name: ShardWriter(partials[name], d_in=width, dtype=layout.dtype) for name, width in layout.widths.items()
        }
        for start in range(shard.start, shard.stop, window):
            some = contexts[start : min(start + window, shard.stop)]
            captured = forward_window(
                subject, some, config.hookpoints, dtype=layout.dtype, batch_contexts=config.batch_contexts
            )
            for context, rows in captured:
                length = len(context.token_ids)
                ids = np.stack([context.doc_ids, np.arange(length, dtype=np.int32), context.token_ids])
                for name, values in rows.items():
                    writers[name].write(ids, values)
            done += sum(len(context.token_ids) for context in some)
            report(done)
        for name, writer in writers.items():
            writer.close()
            # A rename is what marks a shard whole.
            os.replace(partials[name], finals[name])


def window_contexts(contexts: Contexts, batch_contexts: int) -> int:
    """Contexts that are sorted by length together."""
    longest = int(contexts.lengths.max(initial=1))
    return batch_contexts * max(1, min(_WINDOW_BATCHES, _WINDOW_TOKENS // (batch_contexts * longest)))


def is_whole(path: Path, rows: int) -> bool:
    """Whether a shard of an earlier, killed run can be kept."""
    try:
        return bool(pq.read_metadata(path).num_rows == rows)
    except (FileNotFoundError, pa.ArrowException):  # never written, or cut short by a power failure
        return False
