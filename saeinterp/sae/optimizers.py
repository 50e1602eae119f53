"""Learning-rate rule, schedule, and the two optimizers, as plain functions over flat tensors.

The surprising choice: optimizer state is one tensor `[slots, P]` owned by the trainer, not an
`torch.optim.Optimizer`, so that a checkpoint is the tensors themselves and nothing else.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.optim.adam import adam

Optimizer = Literal["adam", "signum"]
SLOTS: dict[Optimizer, int] = {"adam": 2, "signum": 1}
_BETAS = (0.9, 0.999)
_EPS = 1e-8
_MOMENTUM = 0.9
_LR: dict[Optimizer, float] = {"adam": 0.12, "signum": 0.036}


def default_lr(num_latents: int, *, d_in: int, batch_rows: int, optimizer: Optimizer) -> float:
    """Peak learning rate where the configuration names none: `c / sqrt(d_in) * sqrt(batch_rows / 1024)`.

    Weights have entries of the order of 1 / sqrt(d_in), and noise falls with the batch. Tuned on planted
    dictionaries (d 64 and 576, M 128 to 8,192, batches of 256 to 4,096, 50 to 1,500 steps) and on SmolLM2-135M
    (layers 5 and 15): the best rate lies within a factor of 1.5 and does not depend on M in that range, where the
    rule of Gao et al., 2e-4 sqrt(2^14 / M), is three to eight times lower. Beyond 8,192 latents the rate falls with
    1 / sqrt(M) as theirs does, and batches beyond 4,096 rows count as 4,096; neither was measured.
    """
    batch = math.sqrt(min(batch_rows, 4096) / 1024)
    large = math.sqrt(max(num_latents, 8192) / 8192)
    return _LR[optimizer] / math.sqrt(d_in) * batch / large


def lr_factor(step: int, *, steps: int, warmup_fraction: float, decay_fraction: float) -> float:
    """Multiplier of the peak rate at `step` (0-based) of `steps`: linear warm-up, plateau, linear decay.

    Warm-up takes `warmup_fraction` of the run and so never outlasts it; the last step has a rate above zero.
    """
    warmup = min(round(warmup_fraction * steps), steps - 1)
    decay = round(decay_fraction * steps)
    rising = (step + 1) / (warmup + 1)
    falling = (steps - step) / (decay + 1)
    return min(1.0, rising, falling)


def update(params: Tensor, gradient: Tensor, moments: Tensor, *, optimizer: Optimizer, step: int, lr: float) -> None:
    """One step on flat parameters `[P]`, in place.

    Args:
        moments: `[SLOTS[optimizer], P]`, zeros at first: Adam's two moments, or signum's momentum.
        step: Steps taken before this one (Adam's bias correction).
    """
    if optimizer == "signum":
        moments[0].lerp_(gradient, 1 - _MOMENTUM)
        params.add_(moments[0].sign(), alpha=-lr)
        return
    adam(
        [params],
        [gradient],
        [moments[0]],
        [moments[1]],
        [],
        [torch.tensor(float(step), device=params.device)],
        fused=params.device.type in ("cpu", "cuda"),
        amsgrad=False,
        beta1=_BETAS[0],
        beta2=_BETAS[1],
        lr=lr,
        weight_decay=0.0,
        eps=_EPS,
        maximize=False,
    )
