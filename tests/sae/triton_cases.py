"""The Triton kernels against plain torch: on a GPU as compiled, elsewhere through Triton's interpreter.

Collected by name, `TRITON_INTERPRET=1 pytest tests/sae/triton_cases.py`, as `test_triton.py` does: the variable must be
set before anything imports Triton, and transformers does.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from saeinterp.sae import reference, triton_kernels
from saeinterp.sae.kernels import Activation, Method, Weights, write_gradients
from saeinterp.sae.optimizers import SLOTS, Optimizer
from saeinterp.sae.reference import normalise_rows

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
NAN, INF = float("nan"), float("inf")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def chosen(row: list[float], k: int, *, absolute: bool) -> dict[int, float]:
    """The k largest of a row and their activations, by sorting in Python; ties go to the lowest index."""
    activations = [x if absolute or not x <= 0 else 0.0 for x in row]

    def rank(index: int) -> tuple[bool, float, int]:
        size = abs(activations[index])
        return size == size, -size if size == size else 0.0, index

    return {index: activations[index] for index in sorted(range(len(row)), key=rank)[:k]}


def rows(kind: str, M: int) -> Tensor:
    """`[2, 2, M]` pre-activations of one kind."""
    values = normal(2, 2, M, seed=M)
    if kind == "ties":
        return (values * 1.5).round()
    if kind == "negative":
        return -values.abs() - 0.1
    if kind == "zeros":
        return torch.where(values > 1, values, torch.zeros_like(values) * values.sign())
    if kind == "extremes":
        values *= torch.tensor([1e-42, 1e-38, 1.0, 1e38], device=DEVICE).repeat(-(-M // 4))[:M]
        values[..., M // 2] = INF
        values[..., M // 3] = -INF
    if kind == "nan":
        values[0, 0, M // 2] = NAN
        values[0, 1, M // 3] = -torch.tensor(NAN)
        values[1, 0, :] = NAN
    return values


@pytest.mark.parametrize("absolute", [False, True], ids=["topk", "abs_topk"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["normal", "ties", "negative", "zeros", "extremes", "nan"])
@pytest.mark.parametrize(("M", "k"), [(400, 32), (37, 5), (64, 64), (9, 1), (1, 1)])
def test_the_largest_are_kept_whatever_the_values(
    M: int, k: int, kind: str, dtype: torch.dtype, absolute: bool
) -> None:
    pre = rows(kind, M).to(dtype)
    z, fired = triton_kernels.keep_top_k(pre, k, absolute=absolute)
    values, indices = triton_kernels.top_k(pre, k, absolute=absolute)
    assert (z.dtype, values.dtype, indices.dtype) == (dtype, torch.float32, torch.int64)
    for s in range(2):
        for n in range(2):
            expected = chosen(pre[s, n].tolist(), k, absolute=absolute)
            assert indices[s, n].tolist() == sorted(expected)
            wanted = torch.tensor([expected[index] for index in sorted(expected)])
            assert torch.equal(values[s, n].cpu().nan_to_num(nan=7.5), wanted.nan_to_num(nan=7.5))
        spread = torch.zeros(2, M, device=DEVICE).scatter_(1, indices[s], values[s])
        assert torch.equal(z[s].float().nan_to_num(nan=7.5), spread.nan_to_num(nan=7.5))
        assert torch.equal(fired[s], (spread != 0).sum(0).float())


@pytest.mark.parametrize("absolute", [False, True], ids=["topk", "abs_topk"])
@pytest.mark.parametrize("kind", ["normal", "ties", "nan"])
@pytest.mark.parametrize(("M", "k"), [(300, 5), (129, 32), (200, 60)])
def test_rows_too_wide_for_one_program_are_chosen_from_in_pieces(
    M: int, k: int, kind: str, absolute: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = triton_kernels.top_k(rows(kind, M), k, absolute=absolute)
    kept = triton_kernels.keep_top_k(rows(kind, M), k, absolute=absolute)
    monkeypatch.setattr(triton_kernels, "_PIECE", 64)
    monkeypatch.setattr(triton_kernels, "_ROW", 64)
    for ours, expected in (
        (triton_kernels.top_k(rows(kind, M), k, absolute=absolute), whole),
        (triton_kernels.keep_top_k(rows(kind, M), k, absolute=absolute), kept),
    ):
        for tensor, other in zip(ours, expected):
            assert torch.equal(tensor.nan_to_num(nan=7.5), other.nan_to_num(nan=7.5))


@pytest.mark.parametrize("W_dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("S", "N", "M", "k", "d"), [(2, 6, 37, 5, 33), (1, 4, 200, 1, 16), (2, 3, 64, 64, 144)])
def test_decoding_and_weight_gradients_are_those_of_torch(
    S: int, N: int, M: int, k: int, d: int, W_dtype: torch.dtype
) -> None:
    x, W_dec = normal(S, N, d), normal(S, M, d, seed=1).to(W_dtype)
    pre = normal(S, N, M, seed=2) - 1  # some slots stay empty
    values, indices = triton_kernels.top_k(pre, k, absolute=False)
    if k > 1:
        assert (values == 0).any()
    error, dvalues = triton_kernels.decode_error(x, values, indices, W_dec)
    z = torch.zeros(S, N, M, dtype=torch.float64, device=DEVICE).scatter_(2, indices, values.double())
    exact = x.double() - z @ W_dec.double()
    torch.testing.assert_close(error, exact.float(), rtol=1e-5, atol=1e-5)
    dz = (error.double() @ W_dec.double().mT).masked_fill(z == 0, 0)
    torch.testing.assert_close(dvalues, dz.gather(2, indices).float(), rtol=1e-5, atol=1e-4)

    P, padding = 2 * M * d + M + d, 5
    out = Weights.split(torch.full((S, P + padding), NAN, device=DEVICE)[:, :P], num_latents=M, d_in=d)
    fired = triton_kernels.weight_gradients(
        x, error, values, dvalues, indices, W_enc=out.W_enc, b_enc=out.b_enc, W_dec=out.W_dec
    )
    dz = torch.zeros_like(z).scatter_(2, indices, dvalues.double())
    torch.testing.assert_close(out.W_dec, (z.mT @ error.double()).float(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(out.W_enc, (dz.mT @ x.double()).float(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(out.b_enc, dz.sum(1).float(), rtol=1e-5, atol=1e-4)
    assert torch.equal(fired, (z != 0).sum(1).float())
    assert out.b_dec.isnan().all()  # not theirs to write


def test_a_latent_active_on_every_row_gets_the_whole_sum() -> None:
    N, M, d = 300, 5, 20
    x = normal(1, N, d)
    indices = torch.arange(2, device=DEVICE).expand(1, N, 2).contiguous()
    values, dvalues = normal(1, N, 2, seed=1), normal(1, N, 2, seed=2)
    out = [torch.full(shape, NAN, device=DEVICE) for shape in ((1, M, d), (1, M), (1, M, d))]
    fired = triton_kernels.weight_gradients(
        x, 2 * x, values, dvalues, indices, W_enc=out[0], b_enc=out[1], W_dec=out[2]
    )
    assert fired.tolist() == [[N, N, 0, 0, 0]]
    torch.testing.assert_close(out[0][0, :2], dvalues[0].T @ x[0], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(out[2][0, :2], values[0].T @ (2 * x[0]), rtol=1e-5, atol=1e-4)
    assert not out[0][0, 2:].any()
    assert not out[1][0, 2:].any()
    assert not out[2][0, 2:].any()


@pytest.mark.parametrize("optimizer", ["adam", "signum"])
@pytest.mark.parametrize(("M", "d"), [(10, 16), (37, 33), (5, 64), (3, 1)])
def test_updates_are_those_of_torch(optimizer: Optimizer, M: int, d: int) -> None:
    S, P = 2, 2 * M * d + M + d
    ours = normal(S, P)
    W_dec = Weights.split(ours, num_latents=M, d_in=d).W_dec
    W_dec[1, 1] = 0
    normalise_rows(W_dec)
    theirs = ours.clone()
    moments = torch.zeros(SLOTS[optimizer], S, P, device=DEVICE)
    expected = moments.clone()
    for step in range(4):
        gradient = normal(S, P + 9, seed=step + 1)[:, :P]
        Weights.split(gradient, num_latents=M, d_in=d).W_dec[1, 1] = 0
        before = gradient.clone()
        options = {
            "num_latents": M, "d_in": d, "optimizer": optimizer, "lr": [1e-2, 3e-3], "steps": [step, step + 5],
            "factor_S": torch.tensor([-2.0, 0.5], device=DEVICE),
        }  # fmt: skip
        triton_kernels.update(ours, gradient, moments, **options)  # type: ignore[arg-type]
        assert torch.equal(gradient, before)
        reference.update(theirs, gradient.clone(), expected, **options)  # type: ignore[arg-type]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(moments, expected, rtol=1e-5, atol=1e-6)
    assert not W_dec[1, 1].any()
    torch.testing.assert_close(W_dec[0].norm(dim=1), torch.ones(M, device=DEVICE))


@pytest.mark.parametrize("optimizer", ["adam", "signum"])
def test_a_gradient_that_is_not_a_number_shows_in_the_weights(optimizer: Optimizer) -> None:
    M, d = 4, 8
    P = 2 * M * d + M + d
    params = normal(1, P)
    triton_kernels.update(
        params, torch.full((1, P), NAN, device=DEVICE), torch.zeros(SLOTS[optimizer], 1, P, device=DEVICE),
        num_latents=M, d_in=d, optimizer=optimizer, lr=[1e-3], steps=[0], factor_S=torch.ones(1, device=DEVICE),
    )  # fmt: skip
    assert params.isnan().all()


@pytest.mark.parametrize("activation", ["topk", "abs_topk"])
@pytest.mark.parametrize("dense", [False, True], ids=["sparse", "dense"])
def test_a_step_of_a_batch_has_the_bits_of_each_alone_and_the_gradients_of_torch(
    dense: bool, activation: Activation
) -> None:
    S, N, M, k, d = 3, 10, 48, 6, 24
    x = normal(S, N, d)
    weights = Weights(normal(S, M, d), normal(S, M), normal(S, M, d, seed=1), normal(S, d))
    normalise_rows(weights.W_dec)

    def step(which: slice, backend: str) -> tuple[Tensor, ...]:
        out = Weights(*(torch.full_like(tensor[which], NAN) for tensor in weights))
        method = Method(torch.float32, dense, backend)  # type: ignore[arg-type]
        part = Weights(*(tensor[which] for tensor in weights))
        error, _, fired = write_gradients(x[which], part, out, k=k, activation=activation, method=method)
        return error, fired, out.W_enc, out.b_enc, out.W_dec

    together = step(slice(None), "triton")
    for ours, theirs in zip(together, step(slice(None), "torch")):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    if GPU and dense:
        return  # cuBLAS picks its algorithm by the number of SAEs
    for s in range(S):
        for ours, alone in zip(together, step(slice(s, s + 1), "triton")):
            assert torch.equal(ours[s : s + 1], alone)


def test_types_that_triton_does_not_serve_go_to_torch() -> None:
    pre = normal(1, 3, 20).double()
    for ours, theirs in zip(
        triton_kernels.top_k(pre, 4, absolute=True), reference.top_k(pre, 4, absolute=True), strict=True
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="no CUDA device")
@pytest.mark.parametrize(("M", "k"), [(4096, 32), (131_072, 64), (20_000, 300)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_on_a_gpu_a_large_step_neither_waits_nor_varies(M: int, k: int, dtype: torch.dtype) -> None:
    S, N, d = 1, 2048, 576
    P = 2 * M * d + M + d
    x, W_dec = normal(S, N, d), normal(S, M, d, seed=1).to(dtype)
    pre = normal(S, N, M, seed=2).to(dtype)
    params, gradient, factor = normal(S, P), torch.zeros(S, P, device=DEVICE), torch.ones(S, device=DEVICE)
    out = Weights.split(gradient, num_latents=M, d_in=d)

    def step() -> list[Tensor]:
        here, moments = params.clone(), torch.zeros(2, S, P, device=DEVICE)
        values, indices = triton_kernels.top_k(pre, k, absolute=False)
        z, counts = triton_kernels.keep_top_k(pre, k, absolute=False)
        error, dvalues = triton_kernels.decode_error(x, values, indices, W_dec)
        fired = triton_kernels.weight_gradients(
            x, error, values, dvalues, indices, W_enc=out.W_enc, b_enc=out.b_enc, W_dec=out.W_dec
        )
        triton_kernels.update(
            here, gradient, moments, num_latents=M, d_in=d, optimizer="adam", lr=[1e-3], steps=[3], factor_S=factor
        )
        return [values, indices, z, counts, error, dvalues, fired, gradient.clone(), here]

    first = step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        second = step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    values, indices, z, counts, error, *_ = first
    expected = pre.float().clamp_min(0).topk(k, dim=2).values
    torch.testing.assert_close(values.sort(2, descending=True).values, expected, rtol=0, atol=0)
    assert torch.equal(torch.zeros_like(pre).scatter_(2, indices, values.to(dtype)), z)
    assert torch.equal(counts, (z != 0).sum(1).float())
    exact = x[0, :50].double() - z[0, :50].double() @ W_dec[0].double()
    torch.testing.assert_close(error[0, :50].double(), exact, rtol=1e-4, atol=1e-4)
