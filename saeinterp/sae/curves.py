"""Training curves: one row every `log_every` steps, and what they are measured by.

FVU here is the FVU of layer health: sum ||x - x_hat||^2 / sum ||x - mean(x)||^2 over fixed rows, in float64.
The surprising choice: wall times live in a table of their own (`timing.parquet`), so equal runs have equal curves.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from saeinterp.errors import DataError
from saeinterp.sae.topk import TopKSae


class CurveRow(NamedTuple):
    """One row of `curves.parquet`; training figures are means over the steps since the row before."""

    step: int
    """Steps done."""
    rows_seen: int
    """Training rows seen, over all processes."""
    fvu_train: float
    """FVU of the training batches."""
    fvu_heldout: float
    """FVU of fixed held-out rows after this step."""
    aux_loss: float
    """AuxK's error over the batch variance, unscaled by its coefficient; 0 while nothing is dead."""
    l0: float
    """Active latents a row in the training batches."""
    dead: int
    """Latents silent for `dead_after_rows` rows or more."""
    revived: int
    """Latents that were dead and fired since the row before."""
    lr: float
    """Learning rate of this step."""

    @classmethod
    def parse(cls, values: Sequence[float]) -> CurveRow:
        """A row that was kept as floats."""
        step, rows, fvu_train, fvu_heldout, aux_loss, l0, dead, revived, lr = values
        return cls(int(step), int(rows), fvu_train, fvu_heldout, aux_loss, l0, int(dead), int(revived), lr)


class TimingRow(NamedTuple):
    """One row of `timing.parquet`."""

    step: int
    seconds: float
    """Since the process started (again)."""
    rows_per_second: float
    """Since the row before, evaluation included."""

    @classmethod
    def parse(cls, values: Sequence[float]) -> TimingRow:
        """A row that was kept as floats."""
        step, seconds, rate = values
        return cls(int(step), seconds, rate)


class Heldout(NamedTuple):
    """An SAE on fixed rows."""

    fvu: float
    l0: float
    fired: Tensor
    """`[M]` bool: latents active on at least one row."""


def evaluate(sae: TopKSae, x: Tensor) -> Heldout:
    """FVU, L0 and firing latents of an SAE on rows `x` `[n, d_in]`; sums in float64.

    Raises:
        DataError: The rows are all equal or not finite.
    """
    mean = x.double().mean(0)
    residual = variance = active = 0.0
    fired = torch.zeros(sae.num_latents, dtype=torch.bool, device=x.device)
    for piece in x.split(4096):
        code = sae.encode(piece)
        rows = piece.double()
        residual += float((rows - sae.decode(code)).square().sum())
        variance += float((rows - mean).square().sum())
        on = code.values != 0
        active += int(on.sum())
        fired[code.indices[on]] = True
    if not variance > 0:
        raise DataError("rows to evaluate on have no variance or are not finite", got=f"{len(x)} rows")
    return Heldout(residual / variance, active / len(x), fired)


def write_curves(path: Path, rows: Sequence[CurveRow] | Sequence[TimingRow]) -> None:
    """Write curve or timing rows as Parquet, column types by the row type's annotations."""
    kinds = {int: pa.int64(), float: pa.float64()}
    schema = pa.schema([(name, kinds[kind]) for name, kind in get_type_hints(type(rows[0])).items()])
    columns = {name: [row[index] for row in rows] for index, name in enumerate(schema.names)}
    pq.write_table(pa.table(columns, schema=schema), path, compression="zstd")
