"""The arithmetic of one training step of S same-shaped TopK SAEs, forward and backward, without autograd.

Nothing here keeps state. Two roads give the same gradients: *dense* multiplies `[N, M]` activations, *sparse* touches
only the k active latents of each row. The heavy parts come from a backend: C on CPUs, Triton on CUDA, plain torch
elsewhere. The surprising choice: on CPUs the S matrix products run one after another, each threaded, because a
batched product is no faster there and its bits depend on S; so an SAE trained in a batch equals it trained alone.

Shapes: S SAEs, N rows each, d width of the hookpoint, M latents, k active a row, D dead latents. Rows are *centred*
(`b_dec` already subtracted) wherever they are called `x`.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

Activation = Literal["topk", "abs_topk"]
Backend = Literal["torch", "native", "triton"]

# Dense beats sparse while M <= ratio * k. Measured on two cores with AVX-512; AMX by its measured products alone;
# CUDA by counting bytes and FLOPs (tests/benchmarks/roofline.py), not measured.
_DENSE_RATIO = {"cuda": 128, "native-amx": 8, "native": 2, "amx": 40, "bfloat16": 8, "other": 4}


class TopKCode(NamedTuple):
    """Active latents of N rows, in no particular order; a slot with value 0 is not active."""

    values: Tensor
    """`[N, k]` activations."""
    indices: Tensor
    """`[N, k]` int64 latents."""


class Weights(NamedTuple):
    """The four tensors of S SAEs, or their gradients."""

    W_enc: Tensor
    """`[S, M, d]`"""
    b_enc: Tensor
    """`[S, M]`"""
    W_dec: Tensor
    """`[S, M, d]`"""
    b_dec: Tensor
    """`[S, d]`"""

    @classmethod
    def split(cls, flat_SP: Tensor, *, num_latents: int, d_in: int) -> Weights:
        """Views of a flat buffer `[S, P]`, `P = 2 M d + M + d`, that holds them in this order."""
        S, M, d = len(flat_SP), num_latents, d_in
        W_enc, b_enc, W_dec, b_dec = flat_SP.split([M * d, M, M * d, d], dim=1)
        return cls(W_enc.view(S, M, d), b_enc, W_dec.view(S, M, d), b_dec)


class Method(NamedTuple):
    """How the step multiplies. It changes bits, not meaning, and is the same on every run of one machine."""

    compute: torch.dtype
    """Type of the large matrix products; weights and their updates stay float32."""
    dense: bool
    """Decode and take weight gradients over all M latents by matrix products, instead of over the k active ones."""
    backend: Backend = "torch"
    """Who selects, decodes and sums."""


class Forward(NamedTuple):
    """What the rest of the step needs."""

    error: Tensor
    """`[S, N, d]` centred rows minus their reconstructions."""
    pre: Tensor
    """`[S, N, M]` pre-activations, of the compute type."""
    fired: Tensor
    """`[S, M]` float32: rows on which each latent is active."""


def choose_method(*, k: int, num_latents: int, device: torch.device, compute: torch.dtype) -> Method:
    """Dense products when many of the latents are active, sparse ones otherwise; the border depends on the device."""
    backend = _backend(device)
    amx = compute is torch.bfloat16 and torch.cpu._is_amx_tile_supported()
    if device.type == "cuda":
        kind = "cuda"
    elif backend == "native":
        kind = "native-amx" if amx else "native"
    else:
        kind = "amx" if amx else "bfloat16" if compute is torch.bfloat16 else "other"
    return Method(compute=compute, dense=num_latents <= _DENSE_RATIO[kind] * k, backend=backend)


def backend_of(method: Method) -> ModuleType:
    """The module with `top_k`, `keep_top_k`, `decode_error`, `weight_gradients` and `update`."""
    return _module(method.backend)


def _backend(device: torch.device) -> Backend:
    """C where it compiles, Triton where there is one for the card, else torch."""
    backends: dict[str, Backend] = {"cpu": "native", "cuda": "triton"}
    backend = backends.get(device.type, "torch")
    if backend == "torch":
        return backend
    return backend if _module(backend).available() else "torch"


def _module(backend: Backend) -> ModuleType:
    """Imported when first used: one compiles, the other needs triton."""
    names = {"native": "native", "triton": "triton_kernels", "torch": "reference"}
    return import_module(f"saeinterp.sae.{names[backend]}")


def write_gradients(
    x_SNd: Tensor, weights: Weights, out: Weights, *, k: int, activation: Activation, method: Method
) -> Forward:
    """Encode, decode, and write the gradients of `(decode(encode(x)) * error).sum()` into `out`, all but `b_dec`.

    A latent gets a gradient from the rows where it is active (value not 0), as under autograd, and the error counts as
    constant: that is the gradient of -1/2 ||error||^2, which one scaling at the end turns into the loss's.
    """
    absolute = activation == "abs_topk"
    compute, backend = method.compute, backend_of(method)
    x = x_SNd.to(compute)
    pre = _products(x, weights.W_enc.to(compute).mT, bias=weights.b_enc.to(compute))
    W_dec = weights.W_dec.to(compute)
    if method.dense:
        z, fired = backend.keep_top_k(pre, k, absolute=absolute)
        error = x_SNd - _products(z, W_dec)
        g = error.to(compute)
        dz = _products(g, W_dec.mT).masked_fill_(z == 0, 0)
        _products(z.mT, g, out=out.W_dec)
        _products(dz.mT, x, out=out.W_enc)
        out.b_enc.copy_(dz.sum(1, dtype=out.b_enc.dtype))
        return Forward(error, pre, fired)
    values, indices = backend.top_k(pre, k, absolute=absolute)
    error, dvalues = backend.decode_error(x_SNd, values, indices, W_dec)
    # C and Triton sum gradients from rows of the compute type, which halves what they read.
    rows = x_SNd if method.backend == "torch" else x
    fired = backend.weight_gradients(
        rows, error, values, dvalues, indices, W_enc=out.W_enc, b_enc=out.b_enc, W_dec=out.W_dec
    )
    return Forward(error, pre, fired)


def add_auxk(
    x_Nd: Tensor,
    pre_NM: Tensor,
    error_Nd: Tensor,
    dead_D: Tensor,
    weights: Weights,
    out: Weights,
    *,
    k_aux: int,
    coefficient: float,
    activation: Activation,
    method: Method,
) -> Tensor:
    """AuxK of one SAE (Gao et al., appendix A.2): dead latents reconstruct the error that the living ones leave.

    Adds the gradients of `-coefficient / 2 * ||error - error_hat||^2` to `out` in the rows of the dead latents,
    encoder included, and returns `||error - error_hat||^2`. The error itself counts as constant. The sign and
    the factor are those of `write_gradients`, so that one scaling at the end serves both.

    Args:
        dead_D: Latents counted as dead.
        weights: Of this SAE alone: `[M, d]`, `[M]`, `[M, d]`, `[d]`; so is `out`.
        k_aux: How many of them may be active a row (at most D).
    """
    compute = pre_NM.dtype
    pre_ND = pre_NM.index_select(1, dead_D)
    z_ND = backend_of(method).keep_top_k(pre_ND[None], k_aux, absolute=activation == "abs_topk")[0][0]
    W_Dd = weights.W_dec.index_select(0, dead_D).to(compute)
    rest_Nd = error_Nd - (z_ND @ W_Dd).to(error_Nd.dtype)
    g = rest_Nd.mul(coefficient).to(compute)
    dz_ND = (g @ W_Dd.T).masked_fill_(z_ND == 0, 0)
    out.W_dec.index_add_(0, dead_D, (z_ND.T @ g).to(out.W_dec.dtype))
    out.W_enc.index_add_(0, dead_D, (dz_ND.T @ x_Nd.to(compute)).to(out.W_enc.dtype))
    out.b_enc.index_add_(0, dead_D, dz_ND.sum(0, dtype=out.b_enc.dtype))
    return torch.linalg.vector_norm(rest_Nd) ** 2


def centre_gradient(g_sum_Sd: Tensor, b_enc_gradient_SM: Tensor, W_enc_SMd: Tensor) -> Tensor:
    """Gradient of `b_dec`: added after decoding (`g_sum`, the error summed over rows), subtracted before encoding."""
    return g_sum_Sd - _products(b_enc_gradient_SM[:, None], W_enc_SMd).squeeze(1)


def encode_topk(
    x_Nd: Tensor, W_enc: Tensor, b_enc: Tensor, *, k: int, activation: Activation, method: Method
) -> TopKCode:
    """The code of centred rows of one SAE.

    `topk` keeps the k largest of ReLU(pre); `abs_topk` the k largest magnitudes with their signs.
    """
    compute = method.compute
    pre = torch.addmm(b_enc.to(compute), x_Nd.to(compute), W_enc.to(compute).T)
    values, indices = backend_of(method).top_k(pre[None], k, absolute=activation == "abs_topk")
    return TopKCode(values[0].to(x_Nd.dtype), indices[0])


def decode(code: TopKCode, W_dec: Tensor, *, method: Method) -> Tensor:
    """`[N, d]`: the sum of active decoder rows of one SAE, without `b_dec`."""
    if method.dense:
        z = torch.zeros(len(code.values), len(W_dec), dtype=method.compute, device=W_dec.device)
        z.scatter_(1, code.indices, code.values.to(method.compute))
        return (z @ W_dec.to(method.compute)).to(W_dec.dtype)
    return embedding_bag(code.indices, W_dec, per_sample_weights=code.values, mode="sum")


def _products(a: Tensor, b: Tensor, *, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """`a[s] @ b[s]` (+ `bias[s]`) for each s: `[S, n, p]`, `[S, p, m]`, `[S, m]` to `[S, n, m]`."""
    if a.device.type != "cpu":
        result = torch.bmm(a, b) if bias is None else torch.baddbmm(bias[:, None], a, b)
        return result if out is None else out.copy_(result)
    result = torch.empty(len(a), a.shape[1], b.shape[2], dtype=a.dtype) if out is None else out
    for s in range(len(a)):
        if out is not None and out.dtype is not a.dtype:
            out[s].copy_(a[s] @ b[s])
        elif bias is None:
            torch.mm(a[s], b[s], out=result[s])
        else:
            torch.addmm(bias[s], a[s], b[s], out=result[s])
    return result
