"""Trains same-shaped TopK SAEs as one batched problem: one step for all, each with its own rows, rate and end.

No files, no processes, no clock in the results. The surprising choice: an SAE that ends, by finishing or by
diverging, leaves the batch, and the others go on as if it had never been there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from saeinterp.errors import ConfigError, DataError, SaeinterpError, TrainingError
from saeinterp.sae.kernels import Weights, add_auxk, backend_of, centre_gradient, choose_method, write_gradients
from saeinterp.sae.prefetch import Prefetch
from saeinterp.sae.run import Run, State
from saeinterp.sae.sources import Source

DIVERGED = 100.0  # FVU of predicting the mean is 1; beyond this no run was seen to recover
_CUDA_STEPS = 16  # steps between looks at what a GPU computed: every look waits for it


def _alone(buffer: Tensor) -> None:
    """The sum over one process."""


class Group(NamedTuple):
    """The processes that train together; each takes a slice of every batch."""

    rank: int = 0
    size: int = 1
    sum: Callable[[Tensor], None] = _alone
    """Replaces a tensor, in place, by its sum over processes."""


class Trainer:
    """Trains several SAEs at once.

    Args:
        runs: Of one `Shape`; rates, seeds, epochs and row counts may differ.
        compute: Type of large matrix products.
        device: Where to train.
        group: The processes sharing every batch.

    Raises:
        ConfigError: The runs differ in shape.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        *,
        compute: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        group: Group | None = None,
    ) -> None:
        shape = runs[0].shape
        for run in runs:
            for field, ours, theirs in zip(shape._fields, shape, run.shape):
                if ours != theirs:
                    raise ConfigError(
                        f"SAEs of one batch must agree in {field}: {runs[0].name} has {ours}, {run.name} has {theirs}",
                        field=f"training.{field}",
                        next_step="train them apart",
                    )
        self.shape = shape
        self.device = torch.device(device)
        self.group = group or Group()
        self.method = choose_method(k=shape.k, num_latents=shape.num_latents, device=self.device, compute=compute)
        self._look_every = _CUDA_STEPS if self.device.type == "cuda" else 1
        self.looked = True
        """Whether the last step was looked at for errors: only then is the state worth a checkpoint."""
        self._prefetch: Prefetch | None = None
        self._sources: list[Source] = []
        self.runs: list[Run] = []
        """Those still training."""
        self._stack(runs)

    def step(self) -> dict[str, SaeinterpError]:
        """Do one step of every run; returns the error of each that failed, by name.

        A run that failed has left the batch with its weights as before this step (on a GPU, where errors are looked
        for only now and then, with useless weights). One that finished stays until `take_finished`.
        """
        shape, runs, weights = self.shape, self.runs, self._weights
        M, B = shape.num_latents, shape.batch_rows
        P = self._params.shape[1]
        x = self._batch(weights.b_dec)
        flat, x_sum, scalars, fired = self._buffer.split([P, shape.d_in, 4, M], dim=1)
        gradient = Weights.split(flat, num_latents=M, d_in=shape.d_in)
        error, pre, counts = write_gradients(
            x, weights, gradient, k=shape.k, activation=runs[0].config.activation, method=self.method
        )
        fired.copy_(counts)
        torch.sum(error, 1, out=gradient.b_dec)
        torch.sum(x, 1, out=x_sum)
        scalars[:, 0] = torch.linalg.vector_norm(x.flatten(1), dim=1) ** 2
        scalars[:, 1] = torch.linalg.vector_norm(error.flatten(1), dim=1) ** 2
        scalars[:, 3] = counts.sum(1)
        self._auxk(x, pre, error, weights, gradient, scalars)
        self.group.sum(self._buffer)

        numbers = scalars.double()
        variance = numbers[:, 0] - x_sum.double().square().sum(1) / B
        fvu = numbers[:, 1] / variance
        failed = self._failures(fvu, numbers[:, 1] / (B * shape.d_in), variance)
        kept = {index: self._params[index].clone() for index in failed}
        gradient.b_dec.copy_(centre_gradient(gradient.b_dec, gradient.b_enc, weights.W_enc))
        backend_of(self.method).update(
            self._params,
            flat,
            self._moments,
            num_latents=M,
            d_in=shape.d_in,
            optimizer=shape.optimizer,
            lr=[run.lr_at(run.step) for run in runs],
            steps=[run.step for run in runs],
            factor_S=(-2 / variance).float(),
        )
        for index, params in kept.items():
            self._params[index] = params

        alive = fired > 0
        revived = (alive & self._dead).sum(1)
        self._since_fired.add_(B).masked_fill_(alive, 0)
        self._window.add_(
            torch.stack([torch.ones_like(fvu), fvu, numbers[:, 2] / variance, numbers[:, 3] / B, revived.double()], 1)
        )
        self._next_step.add_(1)
        for index, run in enumerate(runs):
            if index not in failed:
                run.step += 1
        errors = {runs[index].name: error for index, error in failed.items()}
        if errors:
            self._stack([run for index, run in enumerate(runs) if index not in failed])
        for run in self.runs:
            run.log_if_due()
        return errors

    def drop(self, run: Run) -> None:
        """Take a run out of the batch."""
        self._stack([other for other in self.runs if other is not run])

    def take_finished(self) -> list[Run]:
        """The runs that did their last step; they leave the batch."""
        finished = [run for run in self.runs if run.finished]
        if finished:
            self._stack([run for run in self.runs if not run.finished])
        return finished

    def _stack(self, runs: Sequence[Run]) -> None:
        """Make these runs the batch: their tensors become rows of the batch's, the others keep tensors of their own."""
        if self._prefetch is not None:
            self._prefetch.close()
            self._prefetch = None
            for run, source in zip(self.runs, self._sources):
                run.source = source
        for run in self.runs:
            if run not in runs:
                run.state = State(*(getattr(run.state, name).clone() for name in State.__dataclass_fields__))
        self.runs = list(runs)
        if not runs:
            return

        def stacked(name: str, dim: int = 0) -> Tensor:
            return torch.stack([getattr(run.state, name).to(self.device) for run in runs], dim)

        self._params, self._moments = stacked("params"), stacked("moments", 1)
        self._since_fired, self._dead, self._window = stacked("since_fired"), stacked("dead"), stacked("window")
        for index, run in enumerate(runs):
            run.state = State(
                self._params[index],
                self._moments[:, index],
                self._since_fired[index],
                self._dead[index],
                self._window[index],
            )
        shape, S = self.shape, len(runs)
        self._weights = Weights.split(self._params, num_latents=shape.num_latents, d_in=shape.d_in)
        # One buffer, hence one all-reduce a step: gradients, sum of rows, four scalars, firings.
        width = self._params.shape[1] + shape.d_in + 4 + shape.num_latents
        self._buffer = torch.zeros(S, width, device=self.device)
        self._sources = [run.source for run in runs]
        rank, size, _ = self.group
        # What other processes wait for must come in one order in all of them, so not from a thread.
        thread = False if any(source.collective for source in self._sources) else None
        self._prefetch = Prefetch(
            self._sources, shape.batch_rows, rank=rank, size=size, device=self.device, thread=thread
        )
        for run, consumed in zip(runs, self._prefetch.sources):
            run.source = consumed
        self._to_units = torch.tensor([1 / run.scale for run in runs], device=self.device)[:, None, None]
        self._next_step = torch.tensor([run.step + 1.0 for run in runs], dtype=torch.float64, device=self.device)
        self._bad = torch.zeros(S, 2, dtype=torch.float64, device=self.device)
        limits = [run.config.dead_after_rows for run in runs]
        self._limits = torch.tensor(limits, device=self.device)[:, None]
        self._dead_indices = self._indices()

    def _batch(self, b_dec_Sd: Tensor) -> Tensor:
        """This process's rows of every run's next batch `[S, N, d]`, centred, in training units."""
        self._places = [run.where() for run in self.runs]
        assert self._prefetch is not None
        self._x = self._prefetch.next().mul_(self._to_units).sub_(b_dec_Sd[:, None])
        return self._x

    def _indices(self) -> list[Tensor]:
        """The dead latents of each run."""
        none = torch.empty(0, dtype=torch.int64, device=self.device)
        some = self._dead.any(1).tolist()
        return [self._dead[s].nonzero().squeeze(1) if any_dead else none for s, any_dead in enumerate(some)]

    def _auxk(
        self, x: Tensor, pre: Tensor, error: Tensor, weights: Weights, gradient: Weights, scalars: Tensor
    ) -> None:
        """Add AuxK's gradients and put its error into `scalars[:, 2]`."""
        if any(run.step % self._look_every == 0 for run in self.runs):
            torch.ge(self._since_fired, self._limits, out=self._dead)
            self._dead_indices = self._indices()
        scalars[:, 2] = 0
        most = self.shape.d_in // 2
        for s, (run, dead) in enumerate(zip(self.runs, self._dead_indices)):
            if not len(dead) or not most or not run.config.aux_coefficient:
                continue
            share = min(len(dead) / most, 1.0)
            aux = add_auxk(
                x[s],
                pre[s],
                error[s],
                dead,
                Weights(*(tensor[s] for tensor in weights)),
                Weights(*(tensor[s] for tensor in gradient)),
                k_aux=min(most, len(dead)),
                coefficient=run.config.aux_coefficient * share,
                activation=run.config.activation,
                method=self.method,
            )
            scalars[s, 2] = aux * share

    def _failures(self, fvu_S: Tensor, error_S: Tensor, variance_S: Tensor) -> dict[int, SaeinterpError]:
        """The error of each run whose loss is not finite or has diverged, by its place in the batch.

        Judged by the mean squared error in training units, where rows vary by 1: the variance of centred rows is
        itself worthless once `b_dec` has diverged.
        """
        diverged = ~(error_S <= DIVERGED)
        equal = variance_S <= 1e-7 * self.shape.batch_rows * self.shape.d_in
        if self._look_every > 1:
            # What the first bad step looked like, kept on the device until it is looked at.
            first = (self._bad[:, 1] == 0) & (diverged | equal)
            self._bad = torch.where(first[:, None], torch.stack([fvu_S, self._next_step], 1), self._bad)
            self.looked = any(self._look(run) for run in self.runs)
            if not self.looked:
                return {}
            found = [(fvu, int(step) - 1) for fvu, step in self._bad.tolist()]
            return {s: self._failure(s, fvu, step=step) for s, (fvu, step) in enumerate(found) if step >= 0}
        failed: dict[int, SaeinterpError] = {}
        for s, (fvu, bad, flat) in enumerate(zip(fvu_S.tolist(), diverged.tolist(), equal.tolist())):
            if bad:
                failed[s] = self._failure(s, fvu, step=self.runs[s].step)
            elif flat:
                failed[s] = DataError(f"all rows of batch {self._places[s]} are equal", field=self.runs[s].name)
        return failed

    def _look(self, run: Run) -> bool:
        """Whether to wait for the device at this step: now and then, at a row of the curves, at the end."""
        done = run.step + 1
        return done % self._look_every == 0 or done % run.config.log_every == 0 or done >= run.steps

    def _failure(self, s: int, fvu: float, *, step: int) -> SaeinterpError:
        run = self.runs[s]
        if step == run.step and not bool(torch.isfinite(self._x[s]).all()):
            return DataError(
                f"training stopped at step {step}: batch {self._places[s]} holds NaN or infinite activations",
                field=run.name,
                next_step="check the subject and the corpus, and collect the activations again; the last good "
                "checkpoint is kept",
            )
        late = run.step - step
        batch = f"batch {self._places[s]}" if not late else f"the batch {late} before that of {self._places[s]}"
        return TrainingError(
            f"training diverged at step {step} on {batch}: the loss is {fvu:.4g}",
            field=run.name,
            got=f"learning rate {run.lr_at(step):.3g}",
            expected="a fraction of variance unexplained around 1 or below",
            next_step="lower training.lr, or leave it empty for the default rule; the last good checkpoint is kept",
        )
