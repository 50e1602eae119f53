"""Linear probes: one-vs-rest by Adam, on activations and on TopK codes, and balanced logistic regression by Newton.

Everything runs on the CPU, where sums have one order, so that a seed gives the same bits wherever the subject ran.
The surprising choice: gradients are written out and weights start at zero. The problems are convex, so the start
decides nothing that is sought, and a latent that never fires keeps weight 0 exactly instead of a remnant of its start.

Shapes: N rows, d width, M latents, k active latents a row, C classes (letters), F features of one regression.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import expit
from torch import Tensor
from torch.nn.functional import embedding_bag

from saeinterp.sae import TopKCode
from saeinterp.stats import classification

_BETAS, _EPSILON = (0.9, 0.999), 1e-8
SURE = 1e-6
"""A regression says "yes" above this: with features that are all 0 its intercept is 0 up to rounding."""


class Schedule(NamedTuple):
    """How probes are trained: Adam, the learning rate falling by one factor per epoch."""

    epochs: int
    batch: int
    lr: float
    lr_end: float
    seed: int
    """Of the shuffles."""

    def rates(self) -> Iterator[float]:
        """The learning rate of each epoch."""
        factor = (self.lr_end / self.lr) ** (1 / self.epochs)
        return (self.lr * factor**epoch for epoch in range(self.epochs))


class LinearProbe(NamedTuple):
    """`x @ weight.T + bias`, one row per class."""

    weight: Tensor
    """`[C, d]` float32; of a code `[C, M]`."""
    bias: Tensor
    """`[C]` float32."""

    def scores(self, x: Tensor) -> Tensor:
        """Logits `[N, C]` of rows `[N, d]`."""
        return x.float() @ self.weight.T + self.bias


def fit_dense(x_Nd: Tensor, labels: Tensor, *, classes: int, schedule: Schedule, weight_decay: float) -> LinearProbe:
    """One-vs-rest probes on rows: binary cross entropy, positives weighted by negatives / positives.

    Args:
        x_Nd: Rows, any float type.
        labels: `[N]` int64, the class of each row; a class without rows gets a probe that says "no".
        weight_decay: Added to the gradient times the parameter, bias included, as in torch's Adam.
    """
    x_Nd = x_Nd.float().contiguous()
    parameters = [torch.zeros(x_Nd.shape[1], classes), torch.zeros(classes)]

    def gradients(rows: Tensor, errors: Callable[[Tensor], Tensor]) -> list[Tensor]:
        x = x_Nd[rows]
        g = errors(torch.addmm(parameters[1], x, parameters[0]))
        return [x.T @ g, g.sum(0)]

    _train(parameters, gradients, labels, classes, schedule, decay=weight_decay)
    return LinearProbe(parameters[0].T.contiguous(), parameters[1])


def fit_sparse(
    code: TopKCode,
    labels: Tensor,
    *,
    num_latents: int,
    classes: int,
    schedule: Schedule,
    weight_decay: float,
    l1: float,
) -> LinearProbe:
    """As `fit_dense`, on the code of an SAE, with `l1` times the mean over classes of the weights' L1 norm added."""
    values, indices = code.values.float().cpu(), code.indices.cpu()
    parameters = [torch.zeros(num_latents, classes), torch.zeros(classes)]

    def gradients(rows: Tensor, errors: Callable[[Tensor], Tensor]) -> list[Tensor]:
        v, i = values[rows], indices[rows]
        g = errors(embedding_bag(i, parameters[0], per_sample_weights=v, mode="sum") + parameters[1])
        weight = parameters[0].sign().mul_(l1 / classes)
        weight.index_add_(0, i.flatten(), (v[..., None] * g[:, None]).flatten(0, 1))
        return [weight, g.sum(0)]

    _train(parameters, gradients, labels, classes, schedule, decay=weight_decay)
    return LinearProbe(parameters[0].T.contiguous(), parameters[1])


def _train(
    parameters: list[Tensor],
    gradients: Callable[[Tensor, Callable[[Tensor], Tensor]], list[Tensor]],
    labels: Tensor,
    classes: int,
    schedule: Schedule,
    *,
    decay: float,
) -> None:
    """Adam on `parameters`, in place."""
    targets = torch.nn.functional.one_hot(labels, classes).float()
    positives = targets.sum(0)
    # A class without rows has no ratio; any weight will do, since nothing is multiplied by it.
    weight = torch.where(positives > 0, (len(labels) - positives) / positives.clamp(min=1), 1.0)
    generator = torch.Generator().manual_seed(schedule.seed)
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in parameters]
    (b1, b2), step = _BETAS, 0
    with torch.inference_mode():
        for rate in schedule.rates():
            for rows in torch.randperm(len(labels), generator=generator).split(schedule.batch):
                y = targets[rows]

                def errors(logits: Tensor, y: Tensor = y) -> Tensor:
                    """Gradient of the batch's mean loss by the logits."""
                    p = logits.sigmoid()
                    return (p * (1 + (weight - 1) * y) - weight * y) / y.numel()

                step += 1
                for p, g, (m, v) in zip(parameters, gradients(rows, errors), moments, strict=True):
                    g.add_(p, alpha=decay)
                    m.lerp_(g, 1 - b1)
                    v.mul_(b2).addcmul_(g, g, value=1 - b2)
                    scale = (v / (1 - b2**step)).sqrt_().add_(_EPSILON)
                    p.addcdiv_(m, scale, value=-rate / (1 - b1**step))


def fit_logistic(x: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Logistic regressions with classes balanced and an L2 penalty of 1/2 |w|^2, each to its optimum.

    The objective is scikit-learn's `LogisticRegression(class_weight="balanced")` with C = 1:
    `1/2 |w|^2 + sum_i s_i log(1 + exp(-y_i f_i))`, `s_i = N / (2 × rows of i's class)`, the intercept free.

    Args:
        x: Features `[C, N, F]` of C regressions.
        truth: `[C, N]` bool, each row with both values.

    Returns:
        `[C, F + 1]` float64: weights, then the intercept.
    """
    count, rows, features = x.shape
    design = np.concatenate([x.astype(np.float64), np.ones((count, rows, 1))], axis=2)
    y = truth.astype(np.float64)
    positives = y.sum(1, keepdims=True)
    share = np.where(truth, rows / (2 * positives), rows / (2 * (rows - positives)))
    penalty = np.append(np.ones(features), 0.0)
    beta = np.zeros((count, features + 1))

    def objective(at: np.ndarray) -> np.ndarray:
        f = np.einsum("cnf,cf->cn", design, at)
        value: np.ndarray = (share * (np.logaddexp(0, f) - y * f)).sum(1) + 0.5 * (penalty * at**2).sum(1)
        return value

    value = objective(beta)
    for _ in range(100):
        p = expit(np.einsum("cnf,cf->cn", design, beta))
        gradient = np.einsum("cnf,cn->cf", design, share * (p - y)) + penalty * beta
        weighted = design * (share * p * (1 - p))[..., None]
        hessian = np.matmul(weighted.transpose(0, 2, 1), design) + np.diag(penalty)
        # Far out, where no row is undecided, the intercept has no curvature of its own.
        hessian[:, -1, -1] += 1e-12 * rows
        step = np.linalg.solve(hessian, gradient[..., None])[..., 0]
        slope = (gradient * step).sum(1)
        if (slope <= 1e-12 * (1 + value)).all():
            break
        size = np.ones(count)
        for _ in range(40):
            worse = objective(beta - size[:, None] * step) > value - 1e-4 * size * slope + 1e-12 * (1 + value)
            if not worse.any():
                break
            size[worse] /= 2
        beta = beta - size[:, None] * step
        value = objective(beta)
    return beta


def says_yes(x: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """What regressions `[C, F + 1]` answer on features `[C, N, F]`: bool `[C, N]`."""
    said: np.ndarray = np.einsum("cnf,cf->cn", x.astype(np.float64), beta[:, :-1]) + beta[:, -1:] > SURE
    return said


def f1_scores(said: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """F1 of answers `[..., N]` against the truth; NaN where both are "no" throughout."""
    tp, fp, fn = (said & truth).sum(-1), (said & ~truth).sum(-1), (~said & truth).sum(-1)
    return classification(tp, fp, (~said & ~truth).sum(-1), fn).f1
