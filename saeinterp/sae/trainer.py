"""One TopK SAE in training: explicit state, one step, curves; no files, no processes, no clock in the results.

The surprising choice: weights are trained in units where centred rows have root-mean-square 1 and folded back by
`Trainer.sae`. FVU does not care, but biases step by absolute amounts, and hookpoints differ in norm by a thousand.
"""

from __future__ import annotations

import math
import time

import numpy as np
import torch
from torch import Tensor

from saeinterp.config import TrainingConfig
from saeinterp.errors import DataError, TrainingError
from saeinterp.sae.checkpoints import Checkpoint
from saeinterp.sae.curves import CurveRow, Heldout, TimingRow, evaluate
from saeinterp.sae.kernels import (
    Weights,
    add_auxk,
    centre_gradient,
    choose_method,
    decode,
    encode_topk,
    normalise_rows,
    remove_parallel,
    write_gradients,
)
from saeinterp.sae.optimizers import SLOTS, default_lr, lr_factor, update
from saeinterp.sae.rows import Rows, Shuffle
from saeinterp.sae.state import Group, TrainState, Window
from saeinterp.sae.topk import TopKSae

DIVERGED = 100.0  # FVU of predicting the mean is 1; beyond this no run was seen to recover
_FIRST_ROWS = 8192  # rows of the shuffle that set b_dec and the scale


class Trainer:
    """Trains one SAE on the rows of one hookpoint.

    Args:
        source: Training rows.
        heldout: `[n, d_in]` rows for the curves' FVU.
        config: Of the SAE and its training.
        hookpoint: Named in errors.
        compute: Type of large matrix products.
        device: Where to train.
        group: The processes sharing this SAE.

    Raises:
        DataError: Fewer usable rows than one batch, or rows without variance.
    """

    def __init__(
        self,
        source: Rows,
        heldout: Tensor,
        *,
        config: TrainingConfig,
        hookpoint: str,
        compute: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        group: Group | None = None,
    ) -> None:
        source.require(
            config.batch_rows,
            purpose="one training batch",
            next_step=f"lower training.batch_rows (now {config.batch_rows}) or give more text",
        )
        self.source = source
        self.config = config
        self.hookpoint = hookpoint
        self.device = torch.device(device)
        self.group = group or Group()
        self.heldout = heldout.to(self.device)
        self.d_in = source.cache.d_in
        self.steps = config.epochs * len(source) // config.batch_rows
        self.peak_lr = config.lr or default_lr(
            config.num_latents, d_in=self.d_in, batch_rows=config.batch_rows, optimizer=config.optimizer
        )
        self.method = choose_method(k=config.k, num_latents=config.num_latents, device=self.device, compute=compute)
        self.shuffle = Shuffle(len(source), seed=config.seed)
        M, d = config.num_latents, self.d_in
        self._sizes = (M * d, M, M * d, d)
        # One buffer, hence one all-reduce a step: gradients, sum of rows, four scalars, firings.
        self._buffer = torch.zeros(sum(self._sizes) + d + 4 + M, device=self.device)
        self._started = self._last_time = time.monotonic()
        self.state = self._initial()

    @property
    def weights(self) -> Weights:
        """Views of the parameters, in training units."""
        return self._split(self.state.params)

    @property
    def finished(self) -> bool:
        """Whether every step was done."""
        return self.state.step >= self.steps

    def sae(self) -> TopKSae:
        """The SAE as it stands, in the units of the activations."""
        W_enc, b_enc, W_dec, b_dec = (tensor.clone() for tensor in self.weights)
        b_enc, b_dec = b_enc * self.state.scale, b_dec * self.state.scale
        return TopKSae(W_enc, b_enc, W_dec, b_dec, k=self.config.k, activation=self.config.activation)

    def silent(self) -> Tensor:
        """`[M]` bool: latents silent for the last `dead_after_rows` training rows (all rows of a shorter run)."""
        limit = min(self.config.dead_after_rows, self.steps * self.config.batch_rows)
        return self.state.since_fired >= limit

    def evaluate(self) -> Heldout:
        """FVU, L0 and firing latents on the held-out rows."""
        return evaluate(self.sae(), self.heldout)

    def step(self) -> None:
        """Do one step, and a row of the curves when it is due.

        Raises:
            TrainingError: The loss is not finite or has diverged; the weights are as before this step.
            DataError: All rows of the batch are equal.
        """
        state, config, weights = self.state, self.config, self.weights
        M, d, B = config.num_latents, self.d_in, config.batch_rows
        x = self._batch().mul_(1 / state.scale).sub_(weights.b_dec)
        code, pre = encode_topk(
            x, weights.W_enc, weights.b_enc, k=config.k, activation=config.activation, compute=self.method.compute
        )
        error = x - decode(code, weights.W_dec, method=self.method)
        flat, x_sum, scalars, fired = self._buffer.split([sum(self._sizes), d, 4, M])
        gradient = self._split(flat)
        write_gradients(x, code, error, weights, gradient, method=self.method)
        dead = self._auxk(x, pre, error, weights, gradient, scalars)
        on = (code.values != 0).float()
        gradient.b_dec.copy_(error.sum(0))
        x_sum.copy_(x.sum(0))
        scalars[0] = torch.linalg.vector_norm(x) ** 2
        scalars[1] = torch.linalg.vector_norm(error) ** 2
        scalars[3] = on.sum()
        fired.zero_().index_add_(0, code.indices.reshape(-1), on.reshape(-1))
        self.group.sum(self._buffer)

        squares, residual, aux, active = scalars.tolist()
        variance = squares - float(x_sum.double().square().sum()) / B
        if variance <= 1e-7 * squares:
            raise DataError(f"all rows of batch {self._where()} are equal", field=self.hookpoint)
        self._check(residual / variance)
        # Both losses are -1/2 (error^2 + ...) in the kernels' convention; the loss proper is relative to the variance.
        flat.mul_(-2 / variance)
        gradient.b_dec.copy_(centre_gradient(gradient.b_dec, gradient.b_enc, weights.W_enc))
        remove_parallel(gradient.W_dec, weights.W_dec)
        update(state.params, flat, state.moments, optimizer=config.optimizer, step=state.step, lr=self._lr(state.step))
        normalise_rows(weights.W_dec)

        alive = fired > 0
        state.since_fired.add_(B).masked_fill_(alive, 0)
        state.step += 1
        state.drawn += B
        window = state.window
        window.steps += 1
        window.fvu += residual / variance
        window.aux += aux / variance
        window.l0 += active / B
        window.revived += int(alive[dead].sum())
        if state.step % config.log_every == 0 or self.finished:
            self._log()

    def snapshot(self) -> Checkpoint:
        """The state as a checkpoint.

        Raises:
            TrainingError: A weight is not finite: such a state must not replace a good checkpoint.
        """
        if not bool(torch.isfinite(self.state.params).all()):
            raise TrainingError(f"a weight became NaN or infinite by step {self.state.step}", field=self.hookpoint)
        return self.state.snapshot(identity=self._identity())

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint.

        Raises:
            TrainingError: It was made with other data or another configuration.
        """
        found = checkpoint.scalars.get("identity")
        if found != self._identity():
            raise TrainingError(
                "the checkpoint belongs to another configuration or other activations",
                field=self.hookpoint,
                got=found,
                expected=str(self._identity()),
                next_step="remove this layer's folder below .work in the artifact folder and run again",
            )
        self.state = TrainState.restore(checkpoint, device=self.device)

    def _initial(self) -> TrainState:
        """W_enc as `nn.Linear`, W_dec its rows at unit norm, b_dec the mean of the first rows drawn."""
        config, M, d = self.config, self.config.num_latents, self.d_in
        first = self.source.take(self.shuffle.draw(0, min(len(self.source), max(_FIRST_ROWS, config.batch_rows))))
        mean = first.double().mean(0)
        scale = float((first.double() - mean).square().mean().sqrt())
        if not scale > 0:
            raise DataError(
                "training rows have no variance or are not finite",
                field=self.hookpoint,
                next_step="check the subject and the corpus",
            )
        generator = torch.Generator().manual_seed(config.seed)
        params = torch.zeros(sum(self._sizes))
        weights = self._split(params)
        weights.W_enc.copy_((2 * torch.rand(M, d, generator=generator) - 1) / math.sqrt(d))
        weights.W_dec.copy_(weights.W_enc)
        normalise_rows(weights.W_dec)
        weights.b_dec.copy_(mean / scale)
        return TrainState(
            params=params.to(self.device),
            moments=torch.zeros(SLOTS[config.optimizer], len(params), device=self.device),
            since_fired=torch.zeros(M, dtype=torch.int64, device=self.device),
            scale=scale,
        )

    def _batch(self) -> Tensor:
        """This process's rows of the next batch, float32, in the units of the activations."""
        rank, size, _ = self.group
        low, high = (self.state.drawn + part * self.config.batch_rows // size for part in (rank, rank + 1))
        rows = self.source.take(np.ascontiguousarray(self.shuffle.draw(low, high)))
        return rows.to(self.device).float()

    def _auxk(
        self, x: Tensor, pre: Tensor, error: Tensor, weights: Weights, gradient: Weights, scalars: Tensor
    ) -> Tensor:
        """Add AuxK's gradients, put its error into `scalars[2]`, return the dead latents."""
        config = self.config
        dead = (self.state.since_fired >= config.dead_after_rows).nonzero().squeeze(1)
        scalars[2] = 0
        most = self.d_in // 2
        if len(dead) and most and config.aux_coefficient:
            share = min(len(dead) / most, 1.0)
            aux = add_auxk(
                x,
                pre,
                error,
                dead,
                weights,
                gradient,
                k_aux=min(most, len(dead)),
                coefficient=config.aux_coefficient * share,
                activation=config.activation,
            )
            scalars[2] = aux * share
        return dead

    def _log(self) -> None:
        state, window = self.state, self.state.window
        state.curves.append(
            CurveRow(
                step=state.step,
                rows_seen=state.drawn,
                fvu_train=window.fvu / window.steps,
                fvu_heldout=self.evaluate().fvu,
                aux_loss=window.aux / window.steps,
                l0=window.l0 / window.steps,
                dead=int((state.since_fired >= self.config.dead_after_rows).sum()),
                revived=window.revived,
                lr=self._lr(state.step - 1),
            )
        )
        now = time.monotonic()
        rate = window.steps * self.config.batch_rows / max(now - self._last_time, 1e-9)
        state.timing.append(TimingRow(state.step, now - self._started, rate))
        self._last_time = now
        state.window = Window()

    def _check(self, fvu: float) -> None:
        if math.isfinite(fvu) and fvu <= DIVERGED:
            return
        raise TrainingError(
            f"training diverged at step {self.state.step} on batch {self._where()}: the loss is {fvu:.4g}",
            field=self.hookpoint,
            got=f"learning rate {self._lr(self.state.step):.3g}",
            expected="a fraction of variance unexplained around 1 or below",
            next_step="lower training.lr, or leave it empty for the default rule; the last good checkpoint is kept",
        )

    def _where(self) -> str:
        """The next batch, in words."""
        start, count = self.state.drawn, len(self.source)
        low = start % count
        return f"rows {low}-{low + self.config.batch_rows - 1} of the shuffle of epoch {start // count}"

    def _lr(self, step: int) -> float:
        config = self.config
        return self.peak_lr * lr_factor(
            step,
            steps=self.steps,
            warmup_fraction=config.warmup_fraction,
            decay_fraction=config.decay_fraction,
        )

    def _split(self, flat: Tensor) -> Weights:
        M, d = self.config.num_latents, self.d_in
        W_enc, b_enc, W_dec, b_dec = flat.split(self._sizes)
        return Weights(W_enc.view(M, d), b_enc, W_dec.view(M, d), b_dec)

    def _identity(self) -> dict[str, object]:
        """What a checkpoint must share with the run that takes it up."""
        config = self.config.model_dump(mode="json", exclude={"checkpoint_seconds"})
        return {"hookpoint": self.hookpoint, "rows": len(self.source), "d_in": self.d_in, "config": config}
