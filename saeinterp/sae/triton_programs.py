"""The programs that `triton_kernels` launches on a GPU, in Triton's Python.

The surprising choice: selection sees no floats. IEEE floats from 0 up sort like the integers with the same bits, so
the k-th largest of a row is found by halving an interval of integers, counting at each step how many of the row, held
in registers, lie above its middle; that is exact, and stops as soon as the count is k.

No program waits for another. Where several add to one number they count ones, which is exact in any order, so results
are the same on every run. Without Triton the module can be imported, and nothing in it called.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs
# (Triton compiles annotations too and knows no names but its own.)

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

triton: Any = import_module("triton") if find_spec("triton") else None
tl: Any = import_module("triton.language") if triton else None
jit: Any = triton.jit if triton else lambda function: function


@jit
def _keys(bits, ABSOLUTE: tl.constexpr, WIDE: tl.constexpr):
    """What a row is ordered by, int32 from 0 up: every NaN is largest, and after a ReLU all negatives are 0."""
    magnitude = bits & (0x7FFFFFFF if WIDE else 0x7FFF)
    keys = tl.minimum(magnitude, 0x7F800001 if WIDE else 0x7F81)  # infinity, and all that is not a number
    if not ABSOLUTE:
        keys = tl.where((bits >= 0) | (magnitude > (0x7F800000 if WIDE else 0x7F80)), keys, 0)
    return keys


@jit
def _select(keys, k):
    """Which are the k largest keys, ties going to the lowest index; keys below 0 are never chosen."""
    low = 0
    high = tl.max(keys, 0) + 1
    found = tl.sum((keys >= 0).to(tl.int32), 0)
    # At least k keys reach `low`, `found` of them, and fewer reach `high`.
    while (high - low > 1) & (found != k):
        middle = low + (high - low) // 2
        count = tl.sum((keys >= middle).to(tl.int32), 0)
        enough = count >= k
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle)
        found = tl.where(enough, count, found)
    chosen = keys >= low
    if found > k:
        tied = (keys == low).to(tl.int32)
        room = k - (found - tl.sum(tied, 0))
        chosen = (keys > low) | ((tied == 1) & (tl.cumsum(tied, 0) <= room))
    return chosen


@jit
def keep_program(
    bits_ptr,
    out_ptr,
    fired_ptr,
    N,
    M,
    k,
    ABSOLUTE: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row `[M]` of the pre-activations' bits to the bits of the activations; counts the active ones by latent."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < M
    bits = tl.load(bits_ptr + row * M + column, mask=inside, other=0).to(tl.int32)
    keys = tl.where(inside, _keys(bits, ABSOLUTE, WIDE), -1)
    active = _select(keys, k) & (keys > 0)
    kept = tl.where(active, bits if ABSOLUTE else keys, 0)
    tl.store(out_ptr + row * M + column, kept.to(out_ptr.dtype.element_ty), mask=inside)
    tl.atomic_add(fired_ptr + row // N * M + column, tl.full((BLOCK,), 1.0, tl.float32), mask=active, sem="relaxed")


@jit
def top_program(
    bits_ptr,
    from_ptr,
    values_ptr,
    indices_ptr,
    M,
    k,
    ABSOLUTE: tl.constexpr,
    WIDE: tl.constexpr,
    NAMED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The k largest of one piece (second axis of the grid) of one row, ordered by index; slots left over stay.

    Values are written as the bits of float32. `from_ptr` names the columns (`NAMED`), -1 where there is none.
    """
    row, piece = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = piece * BLOCK + tl.arange(0, BLOCK)
    inside = column < M
    bits = tl.load(bits_ptr + row * M + column, mask=inside, other=0).to(tl.int32)
    index = column
    if NAMED:
        index = tl.load(from_ptr + row * M + column, mask=inside, other=-1)
        inside = index >= 0
    keys = tl.where(inside, _keys(bits, ABSOLUTE, WIDE), -1)
    chosen = _select(keys, k)
    start = (row * tl.num_programs(1) + piece) * k
    slot = tl.cumsum(chosen.to(tl.int32), 0) - 1
    value = bits if ABSOLUTE else keys
    if not WIDE:
        value = value << 16
    tl.store(values_ptr + start + slot, value, mask=chosen)
    tl.store(indices_ptr + start + slot, index.to(indices_ptr.dtype.element_ty), mask=chosen)


@jit
def decode_program(
    x_ptr,
    values_ptr,
    indices_ptr,
    W_dec_ptr,
    W_dec_stride,
    error_ptr,
    dvalues_ptr,
    N,
    d,
    k,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One row: error and gradients of the values. Each piece of the decoder rows is read once for both."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.arange(0, BLOCK_K)
    values = tl.load(values_ptr + row * k + slot, mask=slot < k, other=0.0)
    active = values != 0  # NaN is active
    latent = tl.load(indices_ptr + row * k + slot, mask=active, other=0)
    W_row = W_dec_ptr + row // N * W_dec_stride + latent * d
    dvalues = tl.zeros((BLOCK_K,), tl.float32)
    for start in range(0, d, BLOCK_D):
        column = start + tl.arange(0, BLOCK_D)
        inside = column < d
        W = tl.load(W_row[:, None] + column[None, :], mask=active[:, None] & inside[None, :], other=0.0).to(tl.float32)
        x = tl.load(x_ptr + row * d + column, mask=inside, other=0.0)
        error = x - tl.sum(values[:, None] * W, 0)
        tl.store(error_ptr + row * d + column, error, mask=inside)
        dvalues += tl.sum(tl.where(inside[None, :], W * error[None, :], 0.0), 1)
    tl.store(dvalues_ptr + row * k + slot, tl.where(active, dvalues, 0.0), mask=slot < k)


@jit
def gradient_program(
    x_ptr,
    error_ptr,
    values_ptr,
    dvalues_ptr,
    order_ptr,
    starts_ptr,
    W_enc_ptr,
    W_enc_stride,
    b_enc_ptr,
    b_enc_stride,
    W_dec_ptr,
    W_dec_stride,
    M,
    d,
    k,
    PAIRS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """A piece (second axis of the grid) of the gradients of one latent: sums over its rows, in their order.

    `order_ptr` lists pairs of row and latent (row * k + slot) by latent; those of latent i start at `starts[i]`.
    """
    latent, piece = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = piece * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = column < d
    decoder, encoder = tl.zeros((BLOCK_D,), tl.float32), tl.zeros((BLOCK_D,), tl.float32)
    bias = tl.zeros((PAIRS,), tl.float32)
    stop = tl.load(starts_ptr + latent + 1)
    for start in range(tl.load(starts_ptr + latent), stop, PAIRS):
        place = start + tl.arange(0, PAIRS)
        pair = tl.load(order_ptr + place, mask=place < stop, other=0)
        value = tl.load(values_ptr + pair, mask=place < stop, other=0.0)
        dvalue = tl.load(dvalues_ptr + pair, mask=place < stop, other=0.0)
        row = (pair.to(tl.int32) // k).to(tl.int64)  # dividing 64 bits is slow
        offset = row[:, None] * d + column[None, :]
        there = (place < stop)[:, None] & inside[None, :]
        decoder += tl.sum(value[:, None] * tl.load(error_ptr + offset, mask=there, other=0.0).to(tl.float32), 0)
        encoder += tl.sum(dvalue[:, None] * tl.load(x_ptr + offset, mask=there, other=0.0).to(tl.float32), 0)
        bias += dvalue
    s, m = latent // M, latent % M
    tl.store(W_dec_ptr + s * W_dec_stride + m * d + column, decoder, mask=inside)
    tl.store(W_enc_ptr + s * W_enc_stride + m * d + column, encoder, mask=inside)
    if piece == 0:
        tl.store(b_enc_ptr + s * b_enc_stride + m, tl.sum(bias, 0))


@jit
def update_program(
    params_ptr,
    params_stride,
    gradient_ptr,
    gradient_stride,
    first_ptr,
    second_ptr,
    moment_stride,
    rates_ptr,
    factor_ptr,
    M,
    d,
    b_enc_stop,
    KEEP_FIRST: tl.constexpr,
    KEEP_SECOND: tl.constexpr,
    EPS: tl.constexpr,
    TINY: tl.constexpr,
    ADAM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One optimizer step of d parameters: a row of W_enc, d biases or fewer, a row of W_dec (kept at unit norm).

    `rates` is `[S, 2]`: what Adam's first moment is multiplied by, and what divides the root of its second.
    """
    piece, s = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    biases = (M + d - 1) // d
    is_decoder = (piece >= M + biases) & (piece < 2 * M + biases)
    start = piece * d
    stop = tl.minimum(start + d, b_enc_stop)
    if piece >= M + biases:
        start = (piece - biases) * d + M  # the last piece of b_enc may be short
        stop = start + d
    column = start + tl.arange(0, BLOCK)
    inside = column < stop
    p = tl.load(params_ptr + s * params_stride + column, mask=inside, other=0.0)
    g = tl.load(gradient_ptr + s * gradient_stride + column, mask=inside, other=0.0) * tl.load(factor_ptr + s)
    if is_decoder:
        g -= tl.sum(g * p, 0) * p
    rate = tl.load(rates_ptr + 2 * s)
    first = tl.load(first_ptr + s * moment_stride + column, mask=inside, other=0.0)
    first += (g - first) * (1 - KEEP_FIRST)
    tl.store(first_ptr + s * moment_stride + column, first, mask=inside)
    if ADAM:
        second = tl.load(second_ptr + s * moment_stride + column, mask=inside, other=0.0)
        second = second * KEEP_SECOND + g * g * (1 - KEEP_SECOND)
        tl.store(second_ptr + s * moment_stride + column, second, mask=inside)
        p -= rate * tl.div_rn(first, tl.div_rn(tl.sqrt_rn(second), tl.load(rates_ptr + 2 * s + 1)) + EPS)
    else:
        # NaN has no sign, but must not pass for 0.
        sign = tl.where(first > 0, 1.0, tl.where(first < 0, -1.0, first))
        p -= rate * sign
    if is_decoder:
        p = tl.div_rn(p, tl.maximum(tl.sqrt_rn(tl.sum(p * p, 0)), TINY))
    tl.store(params_ptr + s * params_stride + column, p, mask=inside)
