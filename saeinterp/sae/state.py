"""All that a training run needs to go on bit by bit, beside its configuration and data.

The surprising choice: there is no random generator in it. Initialisation draws once from the seed, and the shuffle
is a pure function of the seed and the rows drawn so far.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from saeinterp.sae.checkpoints import Checkpoint
from saeinterp.sae.curves import CurveRow, TimingRow


def _alone(buffer: Tensor) -> None:
    """The sum over one process."""


class Group(NamedTuple):
    """The processes that train one SAE together; each takes a slice of every batch."""

    rank: int = 0
    size: int = 1
    sum: Callable[[Tensor], None] = _alone
    """Replaces a tensor, in place, by its sum over processes."""


@dataclass
class Window:
    """Sums since the last row of the curves."""

    steps: int = 0
    fvu: float = 0.0
    aux: float = 0.0
    l0: float = 0.0
    revived: int = 0


@dataclass
class TrainState:
    """One SAE in training."""

    params: Tensor
    """`[P]` float32: W_enc, b_enc, W_dec, b_dec one after another, in units of `scale`."""
    moments: Tensor
    """`[slots, P]` of the optimizer."""
    since_fired: Tensor
    """`[M]` int64: rows seen, over all processes, since each latent was last active."""
    scale: float
    """Root-mean-square of centred rows."""
    step: int = 0
    """Steps done."""
    drawn: int = 0
    """Rows taken from the shuffle: its cursor."""
    window: Window = field(default_factory=Window)
    curves: list[CurveRow] = field(default_factory=list)
    timing: list[TimingRow] = field(default_factory=list)

    def snapshot(self, *, identity: dict[str, object]) -> Checkpoint:
        """The state as tensors and JSON values; `identity` says what it belongs to."""
        tensors = {
            "params": self.params,
            "moments": self.moments,
            "since_fired": self.since_fired,
            "curves": torch.tensor(self.curves, dtype=torch.float64).reshape(-1, len(CurveRow._fields)),
            "timing": torch.tensor(self.timing, dtype=torch.float64).reshape(-1, len(TimingRow._fields)),
        }
        scalars = {
            "scale": self.scale,
            "step": self.step,
            "drawn": self.drawn,
            "window": asdict(self.window),
            "identity": identity,
        }
        return Checkpoint(tensors, scalars)

    @classmethod
    def restore(cls, checkpoint: Checkpoint, *, device: torch.device) -> TrainState:
        """The state of a checkpoint."""
        tensors, scalars = checkpoint
        return cls(
            params=tensors["params"].to(device),
            moments=tensors["moments"].to(device),
            since_fired=tensors["since_fired"].to(device),
            scale=scalars["scale"],
            step=scalars["step"],
            drawn=scalars["drawn"],
            window=Window(**scalars["window"]),
            curves=[CurveRow.parse(row) for row in tensors["curves"].tolist()],
            timing=[TimingRow.parse(row) for row in tensors["timing"].tolist()],
        )
