"""Probes against torch's autograd and SciPy's optimiser, F1 by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import optimize

from saeinterp.health.letters.logistic import Schedule, f1_scores, fit_dense, fit_logistic, fit_sparse, says_yes
from saeinterp.sae import TopKCode

SCHEDULE = Schedule(epochs=6, batch=16, lr=1e-2, lr_end=1e-4, seed=3)


def rows_and_labels(n: int = 90, d: int = 7, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, classes, (n,), generator=generator)
    centres = torch.randn(classes, d, generator=generator)
    return centres[labels] + 0.5 * torch.randn(n, d, generator=generator), labels


def by_autograd(
    x: torch.Tensor, labels: torch.Tensor, classes: int, *, decay: float, l1: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same training by torch's own loss, gradients and optimiser."""
    weight, bias = torch.zeros(classes, x.shape[1], requires_grad=True), torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=SCHEDULE.lr, weight_decay=decay)
    fall = (SCHEDULE.lr_end / SCHEDULE.lr) ** (1 / SCHEDULE.epochs)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=fall)
    targets = torch.nn.functional.one_hot(labels, classes).float()
    positives = targets.sum(0)
    loss_of = torch.nn.BCEWithLogitsLoss(pos_weight=(len(labels) - positives) / positives)
    generator = torch.Generator().manual_seed(SCHEDULE.seed)
    for _ in range(SCHEDULE.epochs):
        for some in torch.randperm(len(labels), generator=generator).split(SCHEDULE.batch):
            optimizer.zero_grad()
            loss = loss_of(x[some] @ weight.T + bias, targets[some]) + l1 * weight.abs().sum(-1).mean()
            loss.backward()
            optimizer.step()
        scheduler.step()
    return weight.detach(), bias.detach()


def test_dense_probes_are_trained_as_torch_trains_them() -> None:
    x, labels = rows_and_labels()
    probe = fit_dense(x, labels, classes=4, schedule=SCHEDULE, weight_decay=1e-2)
    weight, bias = by_autograd(x, labels, 4, decay=1e-2)
    assert torch.allclose(probe.weight, weight, atol=1e-5)
    assert torch.allclose(probe.bias, bias, atol=1e-5)
    assert float(probe.weight.abs().max()) > 0.05


def test_sparse_probes_are_trained_as_torch_trains_them_on_the_dense_code() -> None:
    generator = torch.Generator().manual_seed(1)
    _, labels = rows_and_labels()
    indices = torch.rand(len(labels), 12, generator=generator).argsort(1)[:, :3]  # three different latents of 12
    values = torch.rand(len(labels), 3, generator=generator) * 4
    dense = torch.zeros(len(labels), 12).scatter_(1, indices, values)
    options = {"num_latents": 12, "classes": 4, "schedule": SCHEDULE, "weight_decay": 1e-3, "l1": 0.05}
    probe = fit_sparse(TopKCode(values, indices), labels, **options)
    weight, bias = by_autograd(dense, labels, 4, decay=1e-3, l1=0.05)
    assert torch.allclose(probe.weight, weight, atol=1e-5)
    assert torch.allclose(probe.bias, bias, atol=1e-5)


def test_a_latent_that_never_fires_keeps_weight_zero() -> None:
    labels = torch.arange(40) % 2
    code = TopKCode(1.0 + labels[:, None].float(), labels[:, None])
    probe = fit_sparse(code, labels, num_latents=5, classes=2, schedule=SCHEDULE, weight_decay=0, l1=0.01)
    assert probe.weight[:, 2:].abs().max() == 0
    assert probe.weight[0, 0] > 0 > probe.weight[0, 1]


def test_a_class_without_rows_gets_a_finite_probe_that_says_no() -> None:
    x, labels = rows_and_labels()
    probe = fit_dense(x, labels, classes=5, schedule=SCHEDULE, weight_decay=1e-4)
    assert torch.isfinite(probe.weight).all()
    assert (probe.scores(x)[:, 4] < 0).all()


def test_the_same_seed_gives_the_same_bits_and_another_does_not() -> None:
    x, labels = rows_and_labels()
    one, two = (fit_dense(x, labels, classes=4, schedule=SCHEDULE, weight_decay=0) for _ in range(2))
    other = fit_dense(x, labels, classes=4, schedule=SCHEDULE._replace(seed=4), weight_decay=0)
    assert torch.equal(one.weight, two.weight)
    assert not torch.equal(one.weight, other.weight)


def objective(beta: np.ndarray, x: np.ndarray, truth: np.ndarray) -> float:
    """scikit-learn's, with C = 1 and balanced classes."""
    share = np.where(truth, len(truth) / (2 * truth.sum()), len(truth) / (2 * (~truth).sum()))
    margin = np.where(truth, 1, -1) * (x @ beta[:-1] + beta[-1])
    return float(0.5 * beta[:-1] @ beta[:-1] + (share * np.logaddexp(0, -margin)).sum())


@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_logistic_regressions_reach_the_optimum_that_scipy_finds(scale: float) -> None:
    rng = np.random.default_rng(0)
    x = scale * np.maximum(rng.standard_normal((5, 200, 3)) - 0.5, 0)
    truth = rng.random((5, 200)) < 0.02 + 0.9 * (x[:, :, 0] > 0.7 * scale)
    beta = fit_logistic(x, truth)
    for index in range(5):
        found = optimize.minimize(
            objective, np.zeros(4), args=(x[index], truth[index]), method="BFGS", options={"gtol": 1e-9}
        )
        ours = objective(beta[index], x[index], truth[index])
        assert ours <= found.fun + 1e-7 * (1 + abs(found.fun))
        if scale == 1.0:
            assert np.allclose(beta[index], found.x, atol=1e-4)


def test_separable_classes_end_too() -> None:
    truth = np.arange(100)[None] < 7
    x = np.where(truth, 50.0, 0.0)[..., None]
    beta = fit_logistic(x, truth)
    assert np.isfinite(beta).all()
    assert (says_yes(x, beta) == truth).all()


def test_features_that_are_silent_throughout_say_no() -> None:
    truth = np.arange(300)[None] % 7 == 0
    x = np.zeros((1, 300, 2))
    beta = fit_logistic(x, truth)
    assert np.allclose(beta, 0, atol=1e-9)
    assert not says_yes(x, beta).any()


def test_balanced_classes_by_hand() -> None:
    # One binary feature. 8 of 10 positives have it, 10 of 90 negatives do not lack it. Balanced, both classes weigh
    # 50, so without the penalty the odds where it is on are (0.8 × 50) / (10 / 90 × 50) = 7.2, where off 0.2 × 9 / 8.
    truth = np.arange(100) < 10
    feature = np.concatenate([np.ones(8), np.zeros(2), np.ones(10), np.zeros(80)])
    beta = fit_logistic(1e3 * feature[None, :, None], truth[None])[0]  # so large a feature makes the penalty vanish
    assert np.exp(1e3 * beta[0] + beta[1]) == pytest.approx(7.2, rel=1e-4)
    assert np.exp(beta[1]) == pytest.approx(0.2 * 9 / 8, rel=1e-4)


def test_f1_by_hand() -> None:
    said = np.array([[1, 1, 1, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]], dtype=bool)
    truth = np.array([[1, 1, 0, 1, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0]], dtype=bool)
    f1 = f1_scores(said, truth)
    # 2 TP / (2 TP + FP + FN) = 4 / (4 + 1 + 1).
    assert f1[:2].tolist() == pytest.approx([2 / 3, 0.0])
    assert np.isnan(f1[2])
