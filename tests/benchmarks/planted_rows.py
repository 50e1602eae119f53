"""The benchmark's cases, and rows with a known dictionary behind them.

A row is a sum of about 24 of 2,048 unit directions in 576 dimensions, some forty times as frequent as others, with
random magnitudes, plus a constant and a little noise: more directions than dimensions, as in a residual stream.
Everyone is fed the same rows in the same order. The surprising choice: the shorter of the two one-SAE cases trains on
the first rows of the longer one, so that one file a seed serves both.

Shapes: S SAEs, N rows, d width.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

D_IN = 576
FEATURES = 2048
ACTIVE = 24  # directions drawn a row; a few rows draw one twice
NOISE = 0.02
FEW = 12  # SAEs of a case with many that peers train after the first seed; all are graded on these
_CHUNK = 2**14


class Case(NamedTuple):
    """What everyone trains."""

    title: str
    saes: int
    num_latents: int
    k: int
    batch_rows: int
    steps: int
    rows: int
    """Distinct training rows of each SAE; shorter than `steps * batch_rows` means several epochs."""
    heldout: int = 8192

    @property
    def batches(self) -> int:
        """Batches in one epoch."""
        return self.rows // self.batch_rows


CASES = {
    "wide": Case("one SAE, M = 4096, k = 32", 1, 4096, 32, 4096, 50, 50 * 4096),
    "narrow": Case("one SAE, M = 400, k = 32", 1, 400, 32, 4096, 200, 200 * 4096),
    "many": Case("96 SAEs, M = 512, k = 100", 96, 512, 100, 256, 30, 10 * 256, heldout=1024),
}


def shortened(case: Case) -> Case:
    """A case that runs in seconds, to see that everything works."""
    saes, steps = min(case.saes, 4), 8
    batch = min(case.batch_rows, 1024)
    return case._replace(saes=saes, steps=steps, batch_rows=batch, rows=steps * batch, heldout=1024)


def planted(rows: int, *, dictionary: int, draw: int) -> Tensor:
    """`[rows, d]` float32: `dictionary` seeds the directions, `draw` the rows."""
    source = torch.Generator().manual_seed(dictionary)
    directions = torch.randn(FEATURES, D_IN, generator=source)
    directions /= directions.norm(dim=1, keepdim=True)
    constant = torch.randn(D_IN, generator=source) / 4
    # By rank: the most frequent direction is in one of 6 rows, the last in one of 240.
    frequency = (torch.arange(FEATURES) + 16.0) ** -0.75
    source.manual_seed(draw)
    out = torch.empty(rows, D_IN)
    for piece in out.split(_CHUNK):
        count = len(piece)
        drawn = torch.multinomial(frequency, count * ACTIVE, replacement=True, generator=source).view(count, ACTIVE)
        magnitude = 0.5 + torch.empty(count, ACTIVE).exponential_(generator=source)
        piece.copy_(embedding_bag(drawn, directions, per_sample_weights=magnitude, mode="sum"))
        piece += constant + NOISE * torch.randn(count, D_IN, generator=source)
    return out


def write_rows(path: Path, case: Case, *, seed: int) -> None:
    """Training rows of all SAEs, then held-out rows of all, as bare float32."""
    with path.open("wb") as file:
        for draw, rows in ((0, case.rows), (1, case.heldout)):
            for sae in range(case.saes):
                base = 1_000_000 * seed + 1000 * sae
                planted(rows, dictionary=base + 1, draw=base + 2 + draw).numpy().tofile(file)


def read_rows(path: Path, written: Case, case: Case) -> tuple[Tensor, Tensor]:
    """The rows `[S, N, d]` and `[S, heldout, d]` of a case, from a file written for that case or a longer one."""
    with path.open("rb") as file:
        train = np.empty((case.saes, case.rows, D_IN), dtype=np.float32)
        for sae in range(case.saes):
            file.seek(4 * D_IN * sae * written.rows)
            file.readinto(memoryview(train[sae]).cast("B"))
        heldout = np.empty((case.saes, case.heldout, D_IN), dtype=np.float32)
        file.seek(4 * D_IN * written.saes * written.rows)
        file.readinto(memoryview(heldout).cast("B"))
    return torch.from_numpy(train), torch.from_numpy(heldout)
