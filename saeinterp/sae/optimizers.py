"""Learning-rate rule, schedule, and the constants of the two optimizers, whose arithmetic is `update` of a backend.

The surprising choice: optimizer state is one tensor `[slots, S, P]` owned by the trainer, not a
`torch.optim.Optimizer`, so that a checkpoint is the tensors themselves and nothing else.
"""

from __future__ import annotations

import math
from typing import Literal

Optimizer = Literal["adam", "signum"]
SLOTS: dict[Optimizer, int] = {"adam": 2, "signum": 1}
BETAS = (0.9, 0.999)
EPS = 1e-8
MOMENTUM = 0.9
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
