"""The hand-written step against autograd and against plain top-k."""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from saeinterp.sae.kernels import (
    Activation,
    Method,
    TopKCode,
    Weights,
    add_auxk,
    centre_gradient,
    choose_method,
    encode_topk,
    write_gradients,
)
from saeinterp.sae.optimizers import SLOTS, Optimizer
from saeinterp.sae.reference import normalise_rows, top_indices, top_k, update

D_IN, ROWS = 16, 40
AUX = 1 / 32


def weights_of(num_latents: int, *, d_in: int = D_IN, dtype: torch.dtype = torch.float64) -> Weights:
    source = torch.Generator().manual_seed(num_latents)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source, dtype=dtype)

    weights = Weights(normal(num_latents, d_in), 0.3 * normal(num_latents), normal(num_latents, d_in), normal(d_in))
    normalise_rows(weights.W_dec)
    return weights


def rows_of(count: int = ROWS, *, d_in: int = D_IN, dtype: torch.dtype = torch.float64) -> Tensor:
    return 3 * torch.randn(count, d_in, generator=torch.Generator().manual_seed(7), dtype=dtype) + 1


class Step(NamedTuple):
    """What the kernels make of one step of one SAE."""

    loss: Tensor
    gradients: list[Tensor]
    code: TopKCode


def ours(
    x: Tensor, weights: Weights, *, k: int, activation: Activation, dense: bool, dead: Tensor | None, k_aux: int
) -> Step:
    """Loss and gradients of one SAE by the kernels."""
    return batch([x], [weights], k=k, activation=activation, dense=dense, dead=dead, k_aux=k_aux)[0]


def batch(
    rows: list[Tensor],
    each: list[Weights],
    *,
    k: int,
    activation: Activation,
    dense: bool,
    dead: Tensor | None,
    k_aux: int,
) -> list[Step]:
    """Loss and gradients of several SAEs as one batch."""
    x = torch.stack(rows)
    weights = Weights(*(torch.stack(tensors) for tensors in zip(*each)))
    centred = x - weights.b_dec[:, None]
    out = Weights(*(torch.full_like(tensor, torch.nan) for tensor in weights))
    method = Method(x.dtype, dense)
    error, pre, fired = write_gradients(centred, weights, out, k=k, activation=activation, method=method)
    values, indices = top_k(pre, k, absolute=activation == "abs_topk")
    steps = []
    for s in range(len(rows)):
        active = torch.bincount(indices[s][values[s] != 0], minlength=len(weights.b_enc[s]))
        assert torch.equal(fired[s], active.float())
        squared = error[s].square().sum()
        if dead is not None:
            aux = add_auxk(
                centred[s],
                pre[s],
                error[s],
                dead,
                each[s],
                Weights(*(tensor[s] for tensor in out)),
                k_aux=k_aux,
                coefficient=AUX,
                activation=activation,
                method=method,
            )
            squared = squared + AUX * aux
        out.b_dec[s] = error[s].sum(0)
        variance = (x[s] - x[s].mean(0)).square().sum()
        steps.append((squared / variance, -2 / variance, TopKCode(values[s], indices[s])))
    out.b_dec.copy_(centre_gradient(out.b_dec, out.b_enc, weights.W_enc))
    return [Step(loss, [tensor[s] * factor for tensor in out], code) for s, (loss, factor, code) in enumerate(steps)]


def by_autograd(
    x: Tensor, weights: Weights, *, code: TopKCode, activation: Activation, dead: Tensor | None, k_aux: int
) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients by autograd, with the selection of latents taken from `code` (ties have several)."""
    leaves = Weights(*(tensor.clone().requires_grad_() for tensor in weights))
    pre = (x - leaves.b_dec) @ leaves.W_enc.T + leaves.b_enc
    act = pre if activation == "abs_topk" else pre.relu()
    z = torch.zeros_like(pre).scatter(1, code.indices, act.gather(1, code.indices))
    error = x - (z @ leaves.W_dec + leaves.b_dec)
    variance = (x - x.mean(0)).square().sum()
    loss = error.square().sum() / variance
    if dead is not None:
        best = act[:, dead].abs().topk(k_aux, dim=1).indices
        z = torch.zeros_like(act[:, dead]).scatter(1, best, act[:, dead].gather(1, best))
        loss = loss + AUX * (z @ leaves.W_dec[dead] - error.detach()).square().sum() / variance
    loss.backward()
    return loss.detach(), [leaf.grad for leaf in leaves]


SHAPES = [(64, 4), (64, 1), (20, 20), (128, 7), (37, 5)]


@pytest.mark.parametrize("activation", ["topk", "abs_topk"])
@pytest.mark.parametrize("dense", [False, True], ids=["sparse", "dense"])
@pytest.mark.parametrize("k_aux", [0, 3, 9], ids=["no-aux", "some-dead", "all-dead"])
def test_gradients_equal_autograds(activation: Activation, dense: bool, k_aux: int) -> None:
    for num_latents, k in SHAPES:
        weights, x = weights_of(num_latents), rows_of()
        dead = torch.arange(1, num_latents, 2)[:9] if k_aux else None
        loss, gradients, code = ours(x, weights, k=k, activation=activation, dense=dense, dead=dead, k_aux=k_aux)
        expected, theirs = by_autograd(x, weights, code=code, activation=activation, dead=dead, k_aux=k_aux)
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
        for gradient, reference in zip(gradients, theirs):
            torch.testing.assert_close(gradient, reference, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dense", [False, True], ids=["sparse", "dense"])
def test_a_batch_has_the_bits_of_each_alone(dense: bool) -> None:
    rows = [rows_of(), rows_of(dtype=torch.float64) * 2 - 1, rows_of().flip(0) + 0.5]
    each = [weights_of(64), weights_of(64), Weights(*(tensor.flip(0) for tensor in weights_of(64)))]
    dead = torch.arange(0, 64, 9)
    options = {"k": 5, "activation": "topk", "dense": dense, "dead": dead, "k_aux": 4}
    for together, x, weights in zip(batch(rows, each, **options), rows, each):  # type: ignore[arg-type]
        alone = ours(x, weights, **options)  # type: ignore[arg-type]
        assert torch.equal(together.loss, alone.loss)
        assert all(torch.equal(a, b) for a, b in zip(together.gradients, alone.gradients))


@pytest.mark.parametrize("dense", [False, True], ids=["sparse", "dense"])
def test_gradients_hold_with_tied_latents(dense: bool) -> None:
    weights, x = weights_of(32), rows_of()
    for tensor in weights[:3]:
        tensor[16:] = tensor[:16]  # every pre-activation comes twice
    loss, gradients, code = ours(x, weights, k=3, activation="topk", dense=dense, dead=None, k_aux=0)
    expected, theirs = by_autograd(x, weights, code=code, activation="topk", dead=None, k_aux=0)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    for gradient, reference in zip(gradients, theirs):
        torch.testing.assert_close(gradient, reference, rtol=0, atol=1e-13)


def test_latents_that_the_relu_emptied_get_no_gradient() -> None:
    weights, x = weights_of(32), rows_of()
    weights.b_enc.fill_(-1e3)
    _, gradients, code = ours(x, weights, k=4, activation="topk", dense=False, dead=None, k_aux=0)
    assert not code.values.any()
    assert not any(gradient.any() for gradient in gradients[:3])
    assert gradients[3].any()


def test_auxk_reaches_the_encoder_of_dead_latents_and_no_other() -> None:
    weights, x = weights_of(64), rows_of()
    weights.b_enc[:8] = -30  # never among the top 2, yet positive for none: dead by construction
    dead = torch.arange(8, 16)
    _, without, _ = ours(x, weights, k=2, activation="topk", dense=False, dead=None, k_aux=0)
    _, with_aux, _ = ours(x, weights, k=2, activation="topk", dense=False, dead=dead, k_aux=8)
    changed = (with_aux[0] != without[0]).any(1)
    assert changed[8:16].all()
    assert not changed[:8].any()
    assert not changed[16:].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(("num_latents", "k"), [(512, 8), (400, 32), (96, 11), (37, 36), (9, 1), (9, 9)])
def test_the_largest_are_found_whatever_the_type_and_the_ties(dtype: torch.dtype, num_latents: int, k: int) -> None:
    source = torch.Generator().manual_seed(0)
    for values in (
        torch.randn(50, num_latents, generator=source),
        torch.randint(-2, 3, (50, num_latents), generator=source).float(),  # mostly ties
        torch.zeros(5, num_latents),
    ):
        scores = values.clamp_min(0).to(dtype)
        indices = top_indices(scores, k)
        assert all(len(set(row)) == k for row in indices.tolist())
        found = scores.gather(1, indices).sort(1).values
        assert torch.equal(found, scores.topk(k, dim=1).values.sort(1).values)


def test_negative_scores_are_only_taken_when_nothing_else_is_left() -> None:
    scores = torch.tensor([[-5.0, 2.0, -0.1, -3.0], [1.0, -1.0, 3.0, 2.0]])
    assert set(top_indices(scores, 3)[0].tolist()) > {1}
    assert set(top_indices(scores, 3)[1].tolist()) == {0, 2, 3}


def test_absolute_topk_keeps_signs() -> None:
    weights = Weights(torch.eye(4), torch.zeros(4), torch.eye(4), torch.zeros(4))
    x = torch.tensor([[0.5, -3.0, 1.0, -0.1]])
    code = encode_topk(x, weights.W_enc, weights.b_enc, k=2, activation="abs_topk", method=Method(x.dtype, False))
    found = dict(zip(code.indices[0].tolist(), code.values[0].tolist()))
    assert found == {1: -3.0, 2: 1.0}


def test_no_buffer_holds_a_row_per_active_latent() -> None:
    N, M, k, d = 256, 512, 16, 128
    weights, x = weights_of(M, d_in=d, dtype=torch.float32), rows_of(N, d_in=d, dtype=torch.float32)
    with torch.profiler.profile(profile_memory=True) as profile:
        ours(x, weights, k=k, activation="topk", dense=False, dead=None, k_aux=0)
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert 0 < largest < N * k * d * 4 / 2


@pytest.mark.parametrize("optimizer", ["adam", "signum"])
def test_an_update_is_torchs_own_without_what_is_parallel_and_keeps_unit_norm(optimizer: Optimizer) -> None:
    """Three steps of two SAEs with rates of their own; one decoder row is zero and stays."""
    M, P = 10, 2 * 10 * D_IN + 10 + D_IN
    source = torch.Generator().manual_seed(0)
    params = torch.randn(2, P, generator=source)
    W_dec = Weights.split(params, num_latents=M, d_in=D_IN).W_dec
    W_dec[1, 4] = 0
    normalise_rows(W_dec)
    leaves = [torch.nn.Parameter(row.clone()) for row in params]
    rates = (0.01, 0.002)
    adams = [torch.optim.Adam([leaf], lr=rate) for leaf, rate in zip(leaves, rates)]
    momentum = torch.zeros(2, P)
    moments = torch.zeros(SLOTS[optimizer], 2, P)
    for step in range(3):
        gradient = torch.randn(2, P, generator=source)
        gradient.view(2, P)[1, -D_IN - 6 * D_IN : -D_IN - 5 * D_IN] = 0  # of the zero row
        for s, (leaf, factor) in enumerate(zip(leaves, (-2.0, 0.5))):
            leaf.grad = gradient[s] * factor
            theirs = Weights.split(leaf.data[None], num_latents=M, d_in=D_IN).W_dec[0]
            along = Weights.split(leaf.grad[None], num_latents=M, d_in=D_IN).W_dec[0]
            along -= (along * theirs).sum(1, keepdim=True) * theirs
            if optimizer == "adam":
                adams[s].step()
            else:
                momentum[s] = 0.9 * momentum[s] + 0.1 * leaf.grad
                leaf.data -= rates[s] * momentum[s].sign()
            norms = theirs.norm(dim=1, keepdim=True)
            theirs.div_(torch.where(norms > 0, norms, 1))
        factors = torch.tensor([-2.0, 0.5])
        update(
            params, gradient, moments, num_latents=M, d_in=D_IN, optimizer=optimizer,
            lr=rates, steps=(step, step), factor_S=factors,
        )  # fmt: skip
    for ours, leaf in zip(params, leaves):
        torch.testing.assert_close(ours, leaf.data, rtol=0, atol=2e-6)
    norms = W_dec.norm(dim=2)
    assert norms[1, 4] == 0
    assert torch.allclose(norms[0], torch.ones(M))


def test_dense_and_sparse_are_chosen_by_how_many_latents_are_active() -> None:
    for device, compute in product(("cpu", "cuda"), (torch.float32, torch.bfloat16)):
        few = choose_method(k=32, num_latents=1 << 20, device=torch.device(device), compute=compute)
        many = choose_method(k=100, num_latents=100, device=torch.device(device), compute=compute)
        assert (few.dense, many.dense) == (False, True)
        assert few.compute is compute
