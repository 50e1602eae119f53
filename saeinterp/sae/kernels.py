"""The arithmetic of one TopK SAE step on plain tensors, forward and backward, without autograd.

Nothing here keeps state. The surprising choice: top-k compares the *bits* of the pre-activations as integers,
in two rounds (groups by their maximum, then members), which is exact and two to three times faster than
`torch.topk` on floats; after the ReLU the order of negative numbers does not matter.

Shapes: N rows, d width of the hookpoint, M latents, k active a row, D dead latents. Rows are *centred*
(`b_dec` already subtracted) wherever they are called `x_Nd`.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

Activation = Literal["topk", "abs_topk"]

# Dense beats sparse while M <= ratio * k. Measured at 4,096 x 576 with k = 32: AMX by the figures of the method
# page, AVX512-BF16 and float32 on two cores. The CUDA figure is a guess until it is measured.
_DENSE_RATIO = {"cuda": 256, "amx": 40, "bfloat16": 8, "other": 4}
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class TopKCode(NamedTuple):
    """Active latents of N rows, in no particular order; a slot with value 0 is not active."""

    values: Tensor
    """`[N, k]` activations."""
    indices: Tensor
    """`[N, k]` int64 latents."""


class Weights(NamedTuple):
    """The four tensors of an SAE, or their gradients."""

    W_enc: Tensor
    """`[M, d]`"""
    b_enc: Tensor
    """`[M]`"""
    W_dec: Tensor
    """`[M, d]`"""
    b_dec: Tensor
    """`[d]`"""


class Method(NamedTuple):
    """How the step multiplies. It changes bits, not meaning, and is the same on every run of one machine."""

    compute: torch.dtype
    """Type of the large matrix products; weights and their updates stay float32."""
    dense: bool
    """Decode and take weight gradients over all M latents by matrix products, instead of over the k active ones."""


def choose_method(*, k: int, num_latents: int, device: torch.device, compute: torch.dtype) -> Method:
    """Dense products when many of the latents are active, sparse ones otherwise; the border depends on the device."""
    if device.type == "cuda":
        ratio = _DENSE_RATIO["cuda"]
    elif compute is not torch.bfloat16:
        ratio = _DENSE_RATIO["other"]
    else:
        ratio = _DENSE_RATIO["amx" if torch.cpu._is_amx_tile_supported() else "bfloat16"]
    return Method(compute=compute, dense=num_latents <= ratio * k)


def encode_topk(
    x_Nd: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    *,
    k: int,
    activation: Activation,
    compute: torch.dtype,
) -> tuple[TopKCode, Tensor]:
    """The code of centred rows, and the pre-activations `[N, M]` (of type `compute`) it was selected from.

    `topk` keeps the k largest of ReLU(pre); `abs_topk` the k largest magnitudes with their signs.
    """
    pre_NM = torch.addmm(b_enc.to(compute), x_Nd.to(compute), W_enc.to(compute).T)
    indices = top_indices(pre_NM.abs() if activation == "abs_topk" else pre_NM, k)
    values = pre_NM.gather(1, indices).to(x_Nd.dtype)
    return TopKCode(values if activation == "abs_topk" else values.clamp_min_(0), indices), pre_NM


def top_indices(scores_NM: Tensor, k: int) -> Tensor:
    """`[N, k]` indices of k largest scores of each row, where all scores below zero count as equal.

    Ties are broken the same way on every run. A NaN with a clear sign bit counts as largest.
    """
    N, M = scores_NM.shape
    if k == M:
        return torch.arange(M, device=scores_NM.device).expand(N, M)
    # IEEE floats >= 0 sort like the integers with the same bits, and every negative float is a negative integer.
    bits = scores_NM.contiguous().view(_BITS[scores_NM.element_size()])
    per_group = next((size for size in (8, 4) if M % size == 0 and M // size >= 2 * k), 1)
    if per_group == 1 or bits.device.type != "cpu":
        return bits.topk(k, dim=1, sorted=False).indices
    # The k groups with the largest maxima hold k largest elements. Group g is the column set g, g + G, g + 2G ...,
    # so that the maximum runs along contiguous memory.
    G = M // per_group
    grouped = bits.view(N, per_group, G)
    groups = grouped.amax(1).topk(k, dim=1, sorted=False).indices
    members = grouped.gather(2, groups[:, None, :].expand(N, per_group, k)).view(N, per_group * k)
    best = members.topk(k, dim=1, sorted=False).indices
    return best.div(k, rounding_mode="floor").mul_(G).add_(groups.gather(1, best.remainder(k)))


def decode(code: TopKCode, W_dec: Tensor, *, method: Method) -> Tensor:
    """`[N, d]`: the sum of active decoder rows, without `b_dec`."""
    if method.dense:
        return (_scatter(code, W_dec.shape[0], method.compute) @ W_dec.to(method.compute)).to(W_dec.dtype)
    return embedding_bag(code.indices, W_dec, per_sample_weights=code.values, mode="sum")


def write_gradients(
    x_Nd: Tensor, code: TopKCode, g_Nd: Tensor, weights: Weights, out: Weights, *, method: Method
) -> None:
    """Write the gradients of `(decode(encode(x)) * g).sum()` into `out` (all but `b_dec`, see `centre_gradient`).

    A latent gets a gradient from the rows where it is active (value not 0), as under autograd.
    """
    M = weights.W_dec.shape[0]
    if method.dense:
        z_NM = _scatter(code, M, method.compute)
        g = g_Nd.to(method.compute)
        dz_NM = (g @ weights.W_dec.to(method.compute).T).masked_fill_(z_NM == 0, 0)
        out.W_dec.copy_(z_NM.T @ g)
        out.W_enc.copy_(dz_NM.T @ x_Nd.to(method.compute))
        out.b_enc.copy_(dz_NM.sum(0, dtype=out.b_enc.dtype))
        return
    N, k = code.indices.shape
    flat, values = code.indices.reshape(-1), code.values.reshape(-1)
    rows = torch.arange(N, device=flat.device)
    # d(value) = <g[row], W_dec[latent]>, the backward of embedding_bag's per-sample weights.
    dvalues = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        g_Nd, weights.W_dec, flat, rows * k, rows.repeat_interleave(k), 0, -1
    )
    dvalues = dvalues.masked_fill_(values == 0, 0)
    # One sort by latent turns both weight gradients into bags of rows. Short integers sort faster.
    order = flat.to(torch.int16 if M <= 2**15 else torch.int32).sort(stable=True).indices
    counts = torch.bincount(flat, minlength=M)
    starts = counts.cumsum(0) - counts
    bag = order.div(k, rounding_mode="floor")
    out.W_dec.copy_(embedding_bag(bag, g_Nd, starts, per_sample_weights=values[order], mode="sum"))
    out.W_enc.copy_(embedding_bag(bag, x_Nd, starts, per_sample_weights=dvalues[order], mode="sum"))
    out.b_enc.zero_().index_add_(0, flat, dvalues)


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
) -> Tensor:
    """AuxK (Gao et al., appendix A.2): dead latents reconstruct the error that the living ones leave.

    Adds the gradients of `-coefficient / 2 * ||error - error_hat||^2` to `out` in the rows of the dead latents,
    encoder included, and returns `||error - error_hat||^2`. The error itself counts as constant. The sign and
    the factor are those of `write_gradients` with `g = error`, so that one scaling at the end serves both.

    Args:
        dead_D: Latents counted as dead.
        k_aux: How many of them may be active a row (at most D).
    """
    compute = pre_NM.dtype
    z_ND = pre_NM.index_select(1, dead_D)
    if k_aux < len(dead_D):
        chosen = top_indices(z_ND.abs() if activation == "abs_topk" else z_ND, k_aux)
        z_ND = torch.zeros_like(z_ND).scatter_(1, chosen, z_ND.gather(1, chosen))
    if activation == "topk":
        z_ND = z_ND.clamp_min(0)
    W_Dd = weights.W_dec.index_select(0, dead_D).to(compute)
    rest_Nd = error_Nd - (z_ND @ W_Dd).to(error_Nd.dtype)
    g = rest_Nd.mul(coefficient).to(compute)
    dz_ND = (g @ W_Dd.T).masked_fill_(z_ND == 0, 0)
    out.W_dec.index_add_(0, dead_D, (z_ND.T @ g).to(out.W_dec.dtype))
    out.W_enc.index_add_(0, dead_D, (dz_ND.T @ x_Nd.to(compute)).to(out.W_enc.dtype))
    out.b_enc.index_add_(0, dead_D, dz_ND.sum(0, dtype=out.b_enc.dtype))
    return torch.linalg.vector_norm(rest_Nd) ** 2


def centre_gradient(g_sum_d: Tensor, b_enc_gradient: Tensor, W_enc: Tensor) -> Tensor:
    """Gradient of `b_dec`: added after decoding (`g_sum_d`, the sum of g over rows), subtracted before encoding."""
    return g_sum_d - b_enc_gradient @ W_enc


def remove_parallel(gradient_Md: Tensor, W_dec: Tensor) -> None:
    """Remove from each decoder row's gradient, in place, what only changes the (unit) norm."""
    along = (gradient_Md * W_dec).sum(1, keepdim=True)
    gradient_Md.addcmul_(along, W_dec, value=-1)


def normalise_rows(W_dec: Tensor) -> None:
    """Scale decoder rows to unit norm, in place; a row of zeros stays."""
    W_dec.div_(torch.linalg.vector_norm(W_dec, dim=1, keepdim=True).clamp_min_(torch.finfo(W_dec.dtype).tiny))


def _scatter(code: TopKCode, num_latents: int, dtype: torch.dtype) -> Tensor:
    dense = torch.zeros(code.values.shape[0], num_latents, dtype=dtype, device=code.values.device)
    return dense.scatter_(1, code.indices, code.values.to(dtype))
