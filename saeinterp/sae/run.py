"""One SAE in training: its rows, its weights and moments, its curves, and what a checkpoint of it holds.

Weights are trained in units where centred rows have root-mean-square 1 and folded back by `Run.sae`: FVU does not
care, but biases step by absolute amounts, and hookpoints differ in norm by a thousand. The surprising choice: there
is no random generator in the state; initialisation draws once from the seed, and the shuffle is a pure function of
the seed and the cursor.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from saeinterp.config import TrainingConfig
from saeinterp.errors import DataError, TrainingError
from saeinterp.sae.checkpoints import Checkpoint
from saeinterp.sae.curves import CurveRow, Heldout, TimingRow, evaluate
from saeinterp.sae.kernels import Weights
from saeinterp.sae.optimizers import SLOTS, default_lr, lr_factor
from saeinterp.sae.reference import normalise_rows
from saeinterp.sae.sources import Source
from saeinterp.sae.topk import TopKSae

_FIRST_ROWS = 8192  # rows of the stream that set b_dec and the scale


class Shape(NamedTuple):
    """What SAEs must share to be trained as one batched problem."""

    d_in: int
    num_latents: int
    k: int
    activation: str
    batch_rows: int
    optimizer: str
    precision: str

    @classmethod
    def of(cls, config: TrainingConfig, *, d_in: int) -> Shape:
        """The shape of an SAE of width `d_in`."""
        shared = {name: getattr(config, name) for name in cls._fields if name != "d_in"}
        return cls(d_in=d_in, **shared)


@dataclass
class State:
    """The tensors of one SAE; in a batch they are views of the batch's."""

    params: Tensor
    """`[P]` float32: W_enc, b_enc, W_dec, b_dec one after another, in units of `Run.scale`."""
    moments: Tensor
    """`[slots, P]` of the optimizer."""
    since_fired: Tensor
    """`[M]` int64: rows seen, over all processes, since each latent was last active."""
    dead: Tensor
    """`[M]` bool: latents that AuxK trains."""
    window: Tensor
    """`[len(WINDOW)]` float64: sums since the last row of the curves."""


WINDOW = ("steps", "fvu", "aux", "l0", "revived")


class Run:
    """One SAE in training.

    Args:
        source: Its training rows.
        heldout: `[n, d_in]` rows for the curves' FVU.
        config: Of the SAE and its training; `overrides` are already applied.
        processes: How many share every batch; enters checkpoints.

    Raises:
        DataError: Fewer usable rows than one batch, or rows without variance or not finite.
    """

    def __init__(self, source: Source, heldout: Tensor, config: TrainingConfig, *, processes: int = 1) -> None:
        self.source = source
        self.config = config
        self.processes = processes
        self.heldout = heldout
        self.name = source.hookpoint
        self.shape = Shape.of(config, d_in=source.d_in)
        if source.rows < config.batch_rows:
            raise DataError(
                f"too few usable rows for one training batch (masked: {source.masked})",
                field=f"{self.name}, split train",
                got=source.rows,
                expected=f"at least {config.batch_rows}",
                next_step=f"lower training.batch_rows (now {config.batch_rows}) or give more text",
            )
        self.steps = config.epochs * source.rows // config.batch_rows
        self.peak_lr = config.lr or default_lr(
            config.num_latents, d_in=source.d_in, batch_rows=config.batch_rows, optimizer=config.optimizer
        )
        self.step = 0
        """Steps done."""
        self.curves: list[CurveRow] = []
        self.timing: list[TimingRow] = []
        self._seconds = 0.0  # of earlier processes
        self._started = self._last = time.monotonic()
        self.scale, self.state = self._initial()

    @property
    def finished(self) -> bool:
        """Whether every step was done."""
        return self.step >= self.steps

    @property
    def rows_seen(self) -> int:
        """Training rows seen, over all processes."""
        return self.step * self.config.batch_rows

    def lr_at(self, step: int) -> float:
        """Learning rate of a step (0-based)."""
        config = self.config
        factor = lr_factor(
            step, steps=self.steps, warmup_fraction=config.warmup_fraction, decay_fraction=config.decay_fraction
        )
        return self.peak_lr * factor

    def weights(self) -> Weights:
        """Views of the parameters `[1, ...]`, in training units."""
        return Weights.split(self.state.params[None], num_latents=self.config.num_latents, d_in=self.shape.d_in)

    def sae(self) -> TopKSae:
        """The SAE as it stands, in the units of the activations."""
        W_enc, b_enc, W_dec, b_dec = (tensor[0].clone() for tensor in self.weights())
        return TopKSae(
            W_enc, b_enc * self.scale, W_dec, b_dec * self.scale, k=self.config.k, activation=self.config.activation
        )

    def silent(self) -> Tensor:
        """`[M]` bool: latents silent for the last `dead_after_rows` training rows (all rows of a shorter run)."""
        limit = min(self.config.dead_after_rows, self.steps * self.config.batch_rows)
        return self.state.since_fired >= limit

    def evaluate(self) -> Heldout:
        """FVU, L0 and firing latents on the held-out rows."""
        return evaluate(self.sae(), self.heldout.to(self.state.params.device))

    def where(self) -> str:
        """The next batch, in words."""
        return self.source.where(self.config.batch_rows)

    def log_if_due(self) -> None:
        """Add a row to the curves at every `log_every`-th step and at the last."""
        if self.step % self.config.log_every and not self.finished:
            return
        steps, fvu, aux, l0, revived = self.state.window.tolist()
        self.state.window.zero_()
        self.curves.append(
            CurveRow(
                step=self.step,
                rows_seen=self.rows_seen,
                fvu_train=fvu / steps,
                fvu_heldout=self.evaluate().fvu,
                aux_loss=aux / steps,
                l0=l0 / steps,
                dead=int((self.state.since_fired >= self.config.dead_after_rows).sum()),
                revived=int(revived),
                lr=self.lr_at(self.step - 1),
            )
        )
        now = time.monotonic()
        rate = steps * self.config.batch_rows / max(now - self._last, 1e-9)
        self.timing.append(TimingRow(self.step, self._seconds + now - self._started, rate))
        self._last = now

    def snapshot(self) -> Checkpoint:
        """All that is needed to go on bit by bit.

        Raises:
            TrainingError: A weight is not finite: such a state must not replace a good checkpoint.
        """
        state = self.state
        if not bool(torch.isfinite(state.params).all()):
            raise TrainingError(f"a weight became NaN or infinite by step {self.step}", field=self.name)
        tensors = {
            "params": state.params,
            "moments": state.moments,
            "since_fired": state.since_fired,
            "dead": state.dead,
            "window": state.window,
            "curves": torch.tensor(self.curves, dtype=torch.float64).reshape(-1, len(CurveRow._fields)),
            "timing": torch.tensor(self.timing, dtype=torch.float64).reshape(-1, len(TimingRow._fields)),
        }
        seconds = self._seconds + time.monotonic() - self._started
        scalars = {
            "step": self.step,
            "cursor": self.source.cursor,
            "scale": self.scale,
            "seconds": seconds,
            "identity": self._identity(),
        }
        return Checkpoint({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, scalars)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint.

        Raises:
            TrainingError: It was made with another configuration, other data or another number of processes.
        """
        tensors, scalars = checkpoint
        self._same(scalars.get("identity") or {})
        device = self.state.params.device
        for name in State.__dataclass_fields__:
            getattr(self.state, name).copy_(tensors[name].to(device))
        self.scale, self.step = scalars["scale"], scalars["step"]
        self.curves = [CurveRow.parse(row) for row in tensors["curves"].tolist()]
        self.timing = [TimingRow.parse(row) for row in tensors["timing"].tolist()]
        self._seconds = scalars["seconds"]
        self.source.seek(scalars["cursor"])

    def _initial(self) -> tuple[float, State]:
        """W_enc as `nn.Linear`, W_dec its rows at unit norm, b_dec the mean of the first rows drawn."""
        config, M, d = self.config, self.config.num_latents, self.shape.d_in
        first = self.source.first(min(self.source.rows, max(_FIRST_ROWS, config.batch_rows))).double()
        bad = (~torch.isfinite(first)).any(1).nonzero().squeeze(1)
        if len(bad):
            raise DataError(
                f"{len(bad)} of the first {len(first)} training rows hold NaN or infinite values",
                field=self.name,
                next_step="check the subject and the corpus, and collect the activations again",
            )
        mean = first.mean(0)
        scale = float((first - mean).square().mean().sqrt())
        if not scale > 0:
            raise DataError(
                "training rows have no variance", field=self.name, next_step="check the subject and the corpus"
            )
        generator = torch.Generator().manual_seed(config.seed)
        params = torch.zeros(2 * M * d + M + d)
        weights = Weights.split(params[None], num_latents=M, d_in=d)
        weights.W_enc[0].copy_((2 * torch.rand(M, d, generator=generator) - 1) / math.sqrt(d))
        weights.W_dec.copy_(weights.W_enc)
        normalise_rows(weights.W_dec)
        weights.b_dec[0].copy_(mean / scale)
        return scale, State(
            params=params,
            moments=torch.zeros(SLOTS[config.optimizer], len(params)),
            since_fired=torch.zeros(M, dtype=torch.int64),
            dead=torch.zeros(M, dtype=torch.bool),
            window=torch.zeros(len(WINDOW), dtype=torch.float64),
        )

    def _same(self, found: dict[str, object]) -> None:
        expected = self._identity()
        for field, value in expected.items():
            theirs = found.get(field)
            if theirs != value:
                raise TrainingError(
                    f"the checkpoint was made with another {field}",
                    field=self.name,
                    got="empty" if theirs is None else theirs,
                    expected="empty" if value is None else repr(value),
                    next_step=f"set {field} back to go on from the checkpoint, or remove this layer's folder below "
                    ".work in the artifact folder to start anew",
                )

    def _identity(self) -> dict[str, object]:
        """What a checkpoint must share with the run that takes it up, by the name of the configuration field."""
        config = self.config.model_dump(mode="json", exclude={"checkpoint_seconds", "overrides", "saes"})
        return {
            **{f"training.{field}": value for field, value in config.items()},
            "launch.processes": self.processes,
            "hookpoint": self.name,
            "d_in": self.shape.d_in,
            "number of usable rows": self.source.rows,
        }
