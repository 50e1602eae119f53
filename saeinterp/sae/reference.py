"""Plain torch kernels of the training step: the fallback on any device, and what the faster backends must equal.

The surprising choice: top-k compares the *bits* of the pre-activations as integers, in two rounds (groups by their
maximum, then members), which is exact and two to three times faster than `torch.topk` on floats; after the ReLU the
order of negative numbers does not matter.

Shapes as in `kernels`. Weight and gradient tensors may be views with any stride between SAEs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag
from torch.optim.adam import adam

from saeinterp.sae.optimizers import BETAS, EPS, MOMENTUM, Optimizer

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


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


def top_k(pre_SNM: Tensor, k: int, *, absolute: bool) -> tuple[Tensor, Tensor]:
    """Values `[S, N, k]` (float32, or float64 for float64) and int64 indices of the active latents.

    The k largest after the ReLU, or the k largest magnitudes with their signs (`absolute`).
    """
    S, N, M = pre_SNM.shape
    pre = pre_SNM.view(S * N, M)
    indices = top_indices(pre.abs() if absolute else pre, k)
    values = pre.gather(1, indices).to(torch.promote_types(pre.dtype, torch.float32))
    return (values if absolute else values.clamp_min_(0)).view(S, N, k), indices.reshape(S, N, k)


def keep_top_k(pre_SNM: Tensor, k: int, *, absolute: bool) -> tuple[Tensor, Tensor]:
    """The same selection as activations `[S, N, M]` with zeros elsewhere, and how often each latent is active."""
    values, indices = top_k(pre_SNM, k, absolute=absolute)
    z = torch.zeros_like(pre_SNM).scatter_(2, indices, values.to(pre_SNM.dtype))
    return z, (z != 0).sum(1).float()


def decode_error(x_SNd: Tensor, values: Tensor, indices: Tensor, W_dec_SMd: Tensor) -> tuple[Tensor, Tensor]:
    """Error `[S, N, d]`, and gradients of the values `[S, N, k]`: <error, decoder row>, 0 where the value is 0."""
    S, N, k = indices.shape
    error, dvalues = torch.empty_like(x_SNd), torch.empty_like(values)
    rows = torch.arange(N, device=x_SNd.device)
    for s in range(S):
        W_dec = W_dec_SMd[s].to(x_SNd.dtype)
        torch.sub(x_SNd[s], embedding_bag(indices[s], W_dec, per_sample_weights=values[s], mode="sum"), out=error[s])
        # The backward of embedding_bag's per-sample weights.
        found = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            error[s], W_dec, indices[s].reshape(-1), rows * k, rows.repeat_interleave(k), 0, -1
        )
        dvalues[s] = found.view(N, k)
    return error, dvalues.masked_fill_(values == 0, 0)


def weight_gradients(
    x_SNd: Tensor,
    error_SNd: Tensor,
    values: Tensor,
    dvalues: Tensor,
    indices: Tensor,
    *,
    W_enc: Tensor,
    b_enc: Tensor,
    W_dec: Tensor,
) -> Tensor:
    """Write the gradients of both weight matrices and of `b_enc`; returns how often each latent is active `[S, M]`."""
    S, _, k = indices.shape
    M = W_dec.shape[1]
    fired = torch.zeros(S, M, device=x_SNd.device)
    for s in range(S):
        flat, weight, dweight = indices[s].reshape(-1), values[s].reshape(-1), dvalues[s].reshape(-1)
        # One sort by latent turns both weight gradients into bags of rows. Short integers sort faster.
        order = flat.to(torch.int16 if M <= 2**15 else torch.int32).sort(stable=True).indices
        counts = torch.bincount(flat, minlength=M)
        starts = counts.cumsum(0) - counts
        bag = order.div(k, rounding_mode="floor")
        W_dec[s] = embedding_bag(bag, error_SNd[s], starts, per_sample_weights=weight[order], mode="sum")
        W_enc[s] = embedding_bag(bag, x_SNd[s], starts, per_sample_weights=dweight[order], mode="sum")
        b_enc[s].zero_().index_add_(0, flat, dweight)
        fired[s].index_add_(0, flat, (weight != 0).float())
    return fired


def update(
    params_SP: Tensor,
    gradient_SP: Tensor,
    moments: Tensor,
    *,
    num_latents: int,
    d_in: int,
    optimizer: Optimizer,
    lr: Sequence[float],
    steps: Sequence[int],
    factor_S: Tensor,
) -> None:
    """One optimizer step of S SAEs, in place; decoder rows keep unit norm.

    Args:
        gradient_SP: Overwritten.
        moments: `[slots, S, P]`, zeros at first: Adam's two moments, or signum's momentum.
        lr: Learning rate of each SAE.
        steps: Steps each took before this one (Adam's bias correction).
        factor_S: The gradient is multiplied by it first.
    """
    size = num_latents * d_in
    decoder = slice(size + num_latents, 2 * size + num_latents)
    for s, (rate, step) in enumerate(zip(lr, steps, strict=True)):
        params, gradient = params_SP[s], gradient_SP[s].mul_(factor_S[s])
        W_dec = params[decoder].view(num_latents, d_in)
        # What only changes the (unit) norm of a decoder row.
        toward = gradient[decoder].view(num_latents, d_in)
        toward.addcmul_((toward * W_dec).sum(1, keepdim=True), W_dec, value=-1)
        if optimizer == "signum":
            moments[0, s].lerp_(gradient, 1 - MOMENTUM)
            params.add_(moments[0, s].sign(), alpha=-rate)
        else:
            adam(
                [params], [gradient], [moments[0, s]], [moments[1, s]], [],
                [torch.tensor(float(step), device=params.device)],
                fused=params.device.type in ("cpu", "cuda"), amsgrad=False, beta1=BETAS[0], beta2=BETAS[1],
                lr=rate, weight_decay=0.0, eps=EPS, maximize=False,
            )  # fmt: skip
        normalise_rows(W_dec)


def normalise_rows(W_dec: Tensor) -> None:
    """Scale decoder rows `[..., d]` to unit norm, in place; a row of zeros stays."""
    W_dec.div_(torch.linalg.vector_norm(W_dec, dim=-1, keepdim=True).clamp_min_(torch.finfo(W_dec.dtype).tiny))
