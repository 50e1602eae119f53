"""The kernels of `reference` in Triton, for CUDA; its exact values, except for the order in which floats are summed.

Every function allocates what it returns, on the device of its arguments, and none waits for the device. The surprising
choice: what Triton does not serve (float64, k beyond 1,024 when decoding, rows beyond 16,384 wide when updating) goes
to `reference` rather than to another kernel: no SAE that is trained on a GPU is of that kind.

Bits depend neither on timing nor on which SAEs share a batch. Shapes as in `kernels`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from saeinterp.sae import reference
from saeinterp.sae.optimizers import BETAS, EPS, MOMENTUM, Optimizer
from saeinterp.sae.triton_programs import (
    decode_program,
    gradient_program,
    keep_program,
    top_program,
    triton,
    update_program,
)

_ROW = 32_768  # widest row that one program turns into activations, held in registers
_PIECE = 8192  # the same for a program that lists what it keeps, which takes more of them
_MOST_ACTIVE = 1024  # decoder rows that one program decodes
_WIDEST = 16_384  # decoder row that one program updates
_TILE = 4096  # numbers of a two-dimensional tile
_BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16}


def available() -> bool:
    """Whether Triton is installed; torch's CUDA builds for Linux bring it."""
    return triton is not None


def top_k(pre_SNM: Tensor, k: int, *, absolute: bool) -> tuple[Tensor, Tensor]:
    """`reference.top_k` in order of the indices, with ties broken by the lowest index; any NaN counts as largest."""
    if pre_SNM.dtype not in _BITS:
        return reference.top_k(pre_SNM, k, absolute=absolute)
    S, N, M = pre_SNM.shape
    assert 0 < k <= M
    bits, names = _bits(pre_SNM).view(S * N, M), None
    # A row too wide for one program goes in pieces; what is largest in them contains what is largest in the row.
    while bits.shape[1] > _PIECE:
        if k > _PIECE // 2:
            return _sorted_top_k(pre_SNM, k, absolute=absolute)
        bits, names = _largest(bits, names, k, absolute=absolute, index_type=torch.int32)
    values, indices = _largest(bits, names, k, absolute=absolute, index_type=torch.int64)
    return values.view(torch.float32).view(S, N, k), indices.view(S, N, k)


def keep_top_k(pre_SNM: Tensor, k: int, *, absolute: bool) -> tuple[Tensor, Tensor]:
    """`reference.keep_top_k`, with ties broken by the lowest index; any NaN counts as largest."""
    if pre_SNM.dtype not in _BITS:
        return reference.keep_top_k(pre_SNM, k, absolute=absolute)
    S, N, M = pre_SNM.shape
    assert 0 < k <= M
    if M > _ROW:
        values, indices = top_k(pre_SNM, k, absolute=absolute)
        z = torch.zeros_like(pre_SNM).scatter_(2, indices, values.to(pre_SNM.dtype))
        return z, (z != 0).sum(1).float()
    bits = _bits(pre_SNM)
    z = torch.empty_like(bits)
    fired = torch.zeros(S, M, device=pre_SNM.device)
    block = _power(M)
    with _device(pre_SNM):
        keep_program[(S * N,)](
            bits, z, fired, N, M, k, ABSOLUTE=absolute, WIDE=_wide(bits), BLOCK=block, num_warps=_warps(block)
        )
    return z.view(pre_SNM.dtype), fired


def decode_error(x_SNd: Tensor, values: Tensor, indices: Tensor, W_dec_SMd: Tensor) -> tuple[Tensor, Tensor]:
    """`reference.decode_error`, summed in float32 whichever type the decoder has."""
    S, N, k = indices.shape
    if x_SNd.dtype is not torch.float32 or k > _MOST_ACTIVE:
        return reference.decode_error(x_SNd, values, indices, W_dec_SMd)
    d = x_SNd.shape[2]
    assert W_dec_SMd[0].is_contiguous()
    x, values, indices = x_SNd.contiguous(), values.contiguous(), indices.contiguous()
    error, dvalues = torch.empty_like(x), torch.empty_like(values)
    block = _power(k)
    with _device(x):
        decode_program[(S * N,)](
            x, values, indices, W_dec_SMd, W_dec_SMd.stride(0), error, dvalues, N, d, k,
            BLOCK_K=block, BLOCK_D=min(_power(d), max(_TILE // block, 16)), num_warps=4,
        )  # fmt: skip
    return error, dvalues


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
    """`reference.weight_gradients`; each latent sums its rows in their order.

    Where `x` is bfloat16 the error is rounded to it too: gathering rows is what takes the time, and takes half of it.
    """
    if values.dtype is not torch.float32:
        return reference.weight_gradients(
            x_SNd, error_SNd, values, dvalues, indices, W_enc=W_enc, b_enc=b_enc, W_dec=W_dec
        )
    S, N, k = indices.shape
    M, d = W_dec.shape[1:]
    assert S * N * k < 2**31
    assert W_dec[0].is_contiguous()
    assert W_enc[0].is_contiguous()
    assert b_enc[0].is_contiguous()
    x = x_SNd.contiguous()
    error = error_SNd.to(x.dtype).contiguous()
    values, dvalues = values.contiguous(), dvalues.contiguous()
    order, starts = _by_latent(values, indices, M)
    # Tiles as tall as a latent's rows are many; independent of S, so that each SAE sums as it would alone.
    pairs = min(max(_power(N * k // M), 4), 32)
    block = min(_power(d), _TILE // 32)
    with _device(x):
        gradient_program[(S * M, -(-d // block))](
            x, error, values, dvalues, order, starts, W_enc, W_enc.stride(0), b_enc, b_enc.stride(0),
            W_dec, W_dec.stride(0), M, d, k, PAIRS=pairs, BLOCK_D=block, num_warps=4 if pairs > 4 else 1,
        )  # fmt: skip
    return starts.diff().view(S, M).float()


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
    """`reference.update`, except that `gradient_SP` is left as it was."""
    if params_SP.dtype is not torch.float32 or d_in > _WIDEST:
        reference.update(
            params_SP, gradient_SP, moments, num_latents=num_latents, d_in=d_in, optimizer=optimizer, lr=lr,
            steps=steps, factor_S=factor_S,
        )  # fmt: skip
        return
    S, M, d = len(params_SP), num_latents, d_in
    P = 2 * M * d + M + d
    adam = optimizer == "adam"
    assert params_SP.shape == gradient_SP.shape == (S, P)
    assert moments.shape == (1 + adam, S, P)
    assert all(tensor.stride(-1) == 1 for tensor in (params_SP, gradient_SP, moments))
    assert len(lr) == len(steps) == S
    # Adam's bias corrections, worked out here in float64.
    rates = [
        (rate / (1 - BETAS[0] ** (step + 1)), (1 - BETAS[1] ** (step + 1)) ** 0.5) if adam else (rate, 1.0)
        for rate, step in zip(lr, steps)
    ]
    block = _power(d)
    with _device(params_SP):
        update_program[(2 * M + 1 + -(-M // d), S)](
            params_SP, params_SP.stride(0), gradient_SP, gradient_SP.stride(0), moments[0], moments[-1],
            moments.stride(1), _sent(torch.tensor(rates), params_SP.device), factor_S.float().contiguous(), M, d,
            M * d + M, KEEP_FIRST=BETAS[0] if adam else MOMENTUM, KEEP_SECOND=BETAS[1], EPS=EPS,
            TINY=torch.finfo(torch.float32).tiny, ADAM=adam, BLOCK=block, num_warps=_warps(block),
        )  # fmt: skip


def _largest(
    bits_RM: Tensor, names_RM: Tensor | None, k: int, *, absolute: bool, index_type: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Bits of float32 `[R, pieces * k]` and column names of the k largest of each piece of each row.

    Columns are called by their numbers unless `names` are given; -1 is nobody's and never chosen.
    """
    R, M = bits_RM.shape
    block = min(_power(M), _PIECE)
    pieces = -(-M // block)
    shape = (R, pieces * k)
    values = torch.empty(shape, dtype=torch.int32, device=bits_RM.device)
    # The last piece of several may have fewer than k columns.
    full = M % block >= k or M % block == 0
    empty = torch.empty if full and names_RM is None else _nobody
    indices = empty(shape, dtype=index_type, device=bits_RM.device)
    with _device(bits_RM):
        top_program[(R, pieces)](
            bits_RM, names_RM if names_RM is not None else bits_RM, values, indices, M, k,
            ABSOLUTE=absolute, WIDE=_wide(bits_RM), NAMED=names_RM is not None, BLOCK=block, num_warps=_warps(block),
        )  # fmt: skip
    return values, indices


def _nobody(shape: tuple[int, int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.full(shape, -1, dtype=dtype, device=device)


def _sorted_top_k(pre_SNM: Tensor, k: int, *, absolute: bool) -> tuple[Tensor, Tensor]:
    """The same by sorting whole rows: for k so large that pieces of a row leave little out."""
    scores = (pre_SNM.abs() if absolute else pre_SNM.clamp_min(0)).float()
    indices = scores.nan_to_num(nan=torch.inf, posinf=torch.finfo(torch.float32).max)
    indices = indices.sort(dim=2, descending=True, stable=True).indices[:, :, :k].sort(dim=2).values
    values = pre_SNM.gather(2, indices).float()
    return (values if absolute else values.clamp_min_(0)), indices


def _by_latent(values: Tensor, indices: Tensor, M: int) -> tuple[Tensor, Tensor]:
    """Pairs of row and latent (row * k + slot, over all SAEs) in order of latent and row, and where each latent starts.

    Slots that hold no active latent come last, after all that a start points to.
    """
    S = len(indices)
    latents = S * M
    first = torch.arange(0, latents, M, device=indices.device)[:, None, None]
    keys = (indices + first).masked_fill_(values == 0, latents).view(-1)
    # Short integers sort faster.
    keys = keys.to(torch.int16 if latents < 2**15 - 1 else torch.int32)
    found = keys.sort(stable=True)
    bounds = torch.arange(latents + 1, device=keys.device, dtype=keys.dtype)
    return found.indices, torch.searchsorted(found.values, bounds, out_int32=True)


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(_BITS[tensor.dtype])


def _wide(bits: Tensor) -> bool:
    return bits.dtype is torch.int32


def _power(number: int) -> int:
    """The smallest power of two that is at least `number`."""
    return 1 << max(number - 1, 0).bit_length()


def _warps(block: int) -> int:
    """Warps of a program that holds a row of `block` in registers: 16 numbers a thread, or more of the widest."""
    return min(max(block // 512, 1), 16)


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on the device, without waiting for it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _device(tensor: Tensor) -> torch.cuda.device_of:
    """Triton launches on the current device, which need not be the tensors'."""
    return torch.cuda.device_of(tensor)
