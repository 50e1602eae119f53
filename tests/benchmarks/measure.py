"""What is the same for every trainer: feeding rows, the clock, memory, quality.

Imported by ours and by the peers in their own environment, so it needs torch alone. The surprising choice: the clock
is in the feed. It runs from the moment a trainer asks for a batch to the moment it asks for one more, so each
trainer's own loop is timed whole and nothing around it is, without touching its code.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

WARM_UP = 3  # steps that do not count: first calls allocate, and choose kernels

Coder = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From rows `[N, d]` to reconstructions `[N, d]` and whether each latent fired on any of them `[M]`."""


class Feed:
    """Hands out contiguous batches of rows `[S, N, d]`, epoch after epoch, and times the loop that takes them.

    A trainer takes the SAEs by groups, `together(saes)`, or one after another, `alone(s)`.
    """

    def __init__(self, rows_SNd: Tensor, *, batch_rows: int, steps: int) -> None:
        self.rows = rows_SNd
        self.batch_rows = batch_rows
        self.steps = steps
        self._batches = rows_SNd.shape[1] // batch_rows
        self._asked: list[list[float]] = []
        self._rows_a_tick: list[int] = []

    def together(self, saes: range | None = None) -> Iterator[Tensor]:
        """Batches `[S, batch_rows, d]`, one step of each of these SAEs (default: all)."""
        return self._handed(self.rows if saes is None else self.rows[saes.start : saes.stop])

    def alone(self, sae: int) -> Iterator[Tensor]:
        """Batches `[batch_rows, d]` of one SAE."""
        return (batch[0] for batch in self._handed(self.rows[sae : sae + 1]))

    def batch(self, step: int, sae: int = 0) -> Tensor:
        """One batch `[batch_rows, d]`, outside the clock."""
        start = step % self._batches * self.batch_rows
        return self.rows[sae, start : start + self.batch_rows]

    def stop(self) -> None:
        """The loop is over; for trainers that do not ask for a batch after the last one."""
        if len(self._asked[-1]) == self.steps:
            self._asked[-1].append(time.perf_counter())

    def rows_per_second(self) -> float:
        """Rows trained on a second, over all SAEs, the first steps of the first loop left out."""
        seconds, rows = 0.0, 0
        for loop, (asked, a_tick) in enumerate(zip(self._asked, self._rows_a_tick, strict=True)):
            if len(asked) != self.steps + 1:
                raise RuntimeError(f"loop {loop} took {len(asked) - 1} batches, not {self.steps}")
            skipped = WARM_UP if loop == 0 else 0
            seconds += asked[-1] - asked[skipped]
            rows += (self.steps - skipped) * a_tick
        return rows / seconds

    def _handed(self, rows_SNd: Tensor) -> Iterator[Tensor]:
        asked: list[float] = []
        self._asked.append(asked)
        self._rows_a_tick.append(len(rows_SNd) * self.batch_rows)
        for step in range(self.steps):
            start = step % self._batches * self.batch_rows
            batch = rows_SNd[:, start : start + self.batch_rows]
            asked.append(time.perf_counter())
            yield batch
        asked.append(time.perf_counter())


class Memory(NamedTuple):
    """Resident memory of this process, in MB (10^6 bytes)."""

    now: float
    peak: float


def memory() -> Memory:
    """Now, and the most since the last `forget_peak`."""
    status = Path("/proc/self/status")
    if not status.exists():
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
        return Memory(peak, peak)
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return Memory(*(int(fields[name].split()[0]) * 1024 / 1e6 for name in ("VmRSS", "VmHWM")))


def forget_peak() -> None:
    """Start measuring the peak anew; where the system cannot, imports stay in it."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")


def fvu(x: Tensor, x_hat: Tensor) -> float:
    """Fraction of variance unexplained: `sum ||x - x_hat||^2 / sum ||x - mean||^2`, over rows `[N, d]`, in float64."""
    x, x_hat = x.double(), x_hat.double()
    return float((x - x_hat).square().sum() / (x - x.mean(0)).square().sum())


class Quality(NamedTuple):
    """Of all SAEs of a run."""

    fvu: list[float]
    dead: list[float]
    """Share of latents that no held-out row activates."""


@torch.no_grad()
def grade(coders: list[Coder], heldout_SNd: Tensor) -> Quality:
    """Held-out quality of each SAE, by one definition, on what it itself reconstructs."""
    fvus, dead = [], []
    for coder, x in zip(coders, heldout_SNd, strict=True):
        x_hat, fired = coder(x)
        fvus.append(fvu(x, x_hat))
        dead.append(1 - float(fired.double().mean()))
    return Quality(fvus, dead)
