"""The C kernels against plain torch, and what happens without them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor

from saeinterp.sae import native, reference
from saeinterp.sae.kernels import Weights
from saeinterp.sae.optimizers import Optimizer

ROOT = Path(__file__).resolve().parent.parent.parent
needs_library = pytest.mark.skipif(not native.available(), reason="no C compiler with OpenMP here")
FLOATS = [torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    """More than one, but no more than a busy machine bears."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def dense_by_sorting(pre_SNM: Tensor, k: int, *, absolute: bool) -> Tensor:
    """The k largest by a stable sort, as activations: ties go to the lowest index."""
    act = pre_SNM if absolute else pre_SNM.clamp_min(0)
    order = (act.abs() if absolute else act).float().sort(dim=2, descending=True, stable=True).indices[..., :k]
    return torch.zeros_like(act).scatter_(2, order, act.gather(2, order))


def same(got: Tensor, expected: Tensor) -> bool:
    return torch.equal(got.nan_to_num(nan=-12345.0), expected.nan_to_num(nan=-12345.0))


def check_selection(pre: Tensor, k: int, *, absolute: bool) -> None:
    expected = dense_by_sorting(pre, k, absolute=absolute)
    values, indices = native.top_k(pre, k, absolute=absolute)
    assert values.dtype is torch.float32
    assert indices.shape == (*pre.shape[:2], k)
    assert int(indices.min()) >= 0
    assert int(indices.max()) < pre.shape[2]
    ordered = indices.sort(dim=2).values
    assert bool((ordered[..., 1:] > ordered[..., :-1]).all()), "an index is there twice"
    assert same(torch.zeros(pre.shape).scatter_(2, indices, values), expected.float())
    z, fired = native.keep_top_k(pre, k, absolute=absolute)
    assert z.dtype is pre.dtype
    assert same(z, expected)
    assert torch.equal(fired, (expected != 0).sum(1).float())


@needs_library
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize(
    ("M", "k"), [(1, 1), (7, 1), (7, 7), (48, 5), (100, 99), (400, 32), (1000, 1), (4096, 32), (5000, 7), (9001, 300)]
)
def test_the_k_largest_are_chosen_exactly(dtype: torch.dtype, absolute: bool, M: int, k: int) -> None:
    check_selection(normal(3, 21, M).to(dtype), k, absolute=absolute)


@needs_library
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize(("M", "k"), [(33, 4), (400, 32), (4096, 32)])
def test_ties_go_to_the_lowest_index(dtype: torch.dtype, absolute: bool, M: int, k: int) -> None:
    check_selection((normal(2, 40, M) * 2).round().to(dtype), k, absolute=absolute)
    check_selection(torch.ones(1, 3, M, dtype=dtype), k, absolute=absolute)
    # Equal in the upper sixteen bits, so that only the lower half of a float32 tells them apart.
    check_selection((1 + normal(2, 40, M).abs() * 1e-4).to(dtype), k, absolute=absolute)


@needs_library
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("M", [50, 4100])
def test_rows_with_fewer_than_k_positives_fill_up_with_zeros(dtype: torch.dtype, M: int) -> None:
    pre = -normal(1, 6, M).abs()
    pre[0, 1, ::17] = 1.5
    pre[0, 2] = 0.0
    pre[0, 3] = -0.0
    pre[0, 4, 5] = 1e-40  # subnormal
    pre[0, 5, 3:9] = torch.inf
    for absolute in (False, True):
        check_selection(pre.to(dtype), 8, absolute=absolute)


@needs_library
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("M", [50, 4100])
def test_nan_and_infinity_are_never_lost(dtype: torch.dtype, M: int) -> None:
    pre = normal(2, 4, M)
    pre[0, 1, 7] = torch.inf
    pre[1, 2, 9] = -torch.inf
    for absolute, sign in product((False, True), (1, -1)):
        pre[0, 0, M // 2] = torch.copysign(torch.tensor(torch.nan), torch.tensor(float(sign)))
        check_selection(pre.to(dtype), 6, absolute=absolute)
        values, _ = native.top_k(pre.to(dtype), 1, absolute=absolute)
        assert bool(values[0, 0].isnan().all())


def case(S: int, N: int, M: int, d: int, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows, values, indices, unit decoder rows; a fifth of the values are 0."""
    values = normal(S, N, k, seed=1).clamp_min(-0.8) + 0.8
    indices = normal(S, N, M, seed=2).topk(k, dim=2).indices
    return normal(S, N, d, seed=3), values, indices, normal(S, M, d, seed=4) / d**0.5


SHAPES = [(1, 50, 64, 32, 4), (3, 33, 70, 37, 9), (2, 17, 40, 576, 40), (9, 20, 31, 65, 1), (1, 5, 8, 3, 3)]


@needs_library
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_decoding_equals_the_sum_of_decoder_rows(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, values, indices, W_dec = case(*shape)
    S, _, M, d, _ = shape
    weights = torch.full((S, M * d + 5), torch.nan)[:, 2 : M * d + 2].view(S, M, d).copy_(W_dec)
    if dtype is torch.bfloat16:
        weights = weights.bfloat16()
    error, dvalues = native.decode_error(x, values, indices, weights)
    z = torch.zeros(*x.shape[:2], M, dtype=torch.float64).scatter_(2, indices, values.double())
    expected = x.double() - z @ weights.double()
    torch.testing.assert_close(error.double(), expected, rtol=1e-5, atol=1e-5)
    toward = (expected @ weights.double().mT).gather(2, indices).masked_fill_(values == 0, 0)
    torch.testing.assert_close(dvalues.double(), toward, rtol=1e-5, atol=1e-5)
    assert bool((dvalues[values == 0] == 0).all())


@needs_library
def test_a_row_without_active_latents_is_its_own_error() -> None:
    x, values, indices, W_dec = case(1, 4, 8, 48, 3)
    error, dvalues = native.decode_error(x, torch.zeros_like(values), indices, W_dec)
    assert torch.equal(error, x)
    assert not dvalues.any()


def gradient_buffer(S: int, M: int, d: int) -> Weights:
    """Gradients in one buffer with other things behind them, as the trainer has them; NaN is what was not written."""
    P = 2 * M * d + M + d
    return Weights.split(torch.full((S, P + 11), torch.nan)[:, :P], num_latents=M, d_in=d)


@needs_library
@pytest.mark.parametrize("shape", SHAPES)
def test_weight_gradients_are_sums_over_the_active_rows(shape: tuple[int, ...]) -> None:
    x, values, indices, _ = case(*shape)
    S, N, M, d, k = shape
    error, dvalues = normal(S, N, d, seed=5), normal(S, N, k, seed=6).masked_fill_(values == 0, 0)
    out = gradient_buffer(S, M, d)
    fired = native.weight_gradients(
        x, error, values, dvalues, indices, W_enc=out.W_enc, b_enc=out.b_enc, W_dec=out.W_dec
    )
    z, dz = (torch.zeros(S, N, M, dtype=torch.float64).scatter_(2, indices, v.double()) for v in (values, dvalues))
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(out.W_dec.double(), z.mT @ error.double(), **close)
    torch.testing.assert_close(out.W_enc.double(), dz.mT @ x.double(), **close)
    torch.testing.assert_close(out.b_enc.double(), dz.sum(1), **close)
    assert torch.equal(fired, (z != 0).sum(1).float())
    assert bool(out.b_dec.isnan().all())
    silent = fired == 0
    assert not out.W_dec[silent].any()
    assert not out.W_enc[silent].any()


@needs_library
@pytest.mark.parametrize("shape", SHAPES)
def test_weight_gradients_of_bfloat16_rows_round_the_rows_alone(shape: tuple[int, ...]) -> None:
    x, values, indices, _ = case(*shape)
    S, N, M, d, k = shape
    error, dvalues = normal(S, N, d, seed=5), normal(S, N, k, seed=6).masked_fill_(values == 0, 0)
    error[0, 0, 0], error[0, 1, 0] = torch.nan, torch.inf
    short, full = gradient_buffer(S, M, d), gradient_buffer(S, M, d)
    x_short, error_short = x.bfloat16(), error.bfloat16().float()
    native.weight_gradients(
        x_short, error, values, dvalues, indices, W_enc=short.W_enc, b_enc=short.b_enc, W_dec=short.W_dec
    )
    native.weight_gradients(
        x_short.float(), error_short, values, dvalues, indices, W_enc=full.W_enc, b_enc=full.b_enc, W_dec=full.W_dec
    )
    for got, expected in zip(short[:3], full[:3]):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5, equal_nan=True)


@needs_library
@pytest.mark.parametrize("optimizer", ["adam", "signum"])
@pytest.mark.parametrize(("S", "M", "d"), [(1, 40, 576), (3, 21, 37), (2, 9000, 2), (1, 2, 9000)])
def test_the_update_is_that_of_torch(optimizer: Optimizer, S: int, M: int, d: int) -> None:
    P = 2 * M * d + M + d
    start = normal(S, P, seed=1)
    W_dec = Weights.split(start, num_latents=M, d_in=d).W_dec
    reference.normalise_rows(W_dec)
    buffer = torch.full((S, P + 3), torch.nan)
    slots = 2 if optimizer == "adam" else 1
    results = []
    for backend in (native, reference):
        params, moments = start.clone(), torch.zeros(slots, S, P)
        for step in range(4):
            gradient = buffer[:, :P].copy_(normal(S, P, seed=10 + step))
            backend.update(
                params,
                gradient,
                moments,
                num_latents=M,
                d_in=d,
                optimizer=optimizer,
                lr=[0.01 * (s + 1) for s in range(S)],
                steps=[step + 5 * s for s in range(S)],
                factor_S=torch.arange(1.0, S + 1),
            )
        results.append((params, moments))
    (params, moments), (expected, expected_moments) = results
    torch.testing.assert_close(moments, expected_moments, rtol=1e-4, atol=1e-6)
    # Where rounding turned the sign of a momentum, signum steps the other way: rare, and told apart from a mistake.
    off = (params - expected).abs() > 1e-4
    assert float(off.float().mean()) < (1e-3 if optimizer == "signum" else 1e-9)
    norms = Weights.split(params, num_latents=M, d_in=d).W_dec.norm(dim=2)
    torch.testing.assert_close(norms, torch.ones(S, M))


@needs_library
def test_a_decoder_row_of_zeros_stays() -> None:
    params = torch.zeros(1, 2 * 3 * 5 + 3 + 5)
    native.update(
        params, torch.zeros_like(params), torch.zeros(2, *params.shape), num_latents=3, d_in=5, optimizer="adam",
        lr=[0.1], steps=[0], factor_S=torch.ones(1),
    )  # fmt: skip
    assert not params.any()


def everything(pick: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """All outputs of two steps of those SAEs, of nine, that `pick` takes."""
    S, N, M, d, k = 9, 300, 500, 50, 20
    x, _, _, W_dec = case(S, N, M, d, k)
    x, W_dec = pick(x), pick(W_dec)
    found: list[Tensor] = []
    for dtype, absolute in product(FLOATS, (False, True)):
        pre = torch.stack([a @ b.T for a, b in zip(x, W_dec)]).to(dtype)
        values, indices = native.top_k(pre, k, absolute=absolute)
        error, dvalues = native.decode_error(x, values, indices, W_dec.to(dtype))
        out = gradient_buffer(len(x), M, d)
        fired = native.weight_gradients(
            x.to(dtype), error, values, dvalues, indices, W_enc=out.W_enc, b_enc=out.b_enc, W_dec=out.W_dec
        )
        params = torch.cat([W_dec.flatten(1), W_dec[:, :, 0], W_dec.flatten(1), W_dec[:, 0]], 1)
        gradient = torch.cat([out.W_enc.flatten(1), out.b_enc, out.W_dec.flatten(1), error.sum(1)], 1)
        moments = torch.zeros(2, *params.shape)
        native.update(
            params, gradient, moments, num_latents=M, d_in=d, optimizer="adam", lr=[0.1] * len(x), steps=[3] * len(x),
            factor_S=torch.full((len(x),), 0.5),
        )  # fmt: skip
        z, counts = native.keep_top_k(pre, k, absolute=absolute)
        found += [values, indices, error, dvalues, gradient, fired, params, *moments, z, counts]
    return found


@needs_library
def test_bits_do_not_depend_on_the_number_of_threads() -> None:
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(everything(lambda tensor: tensor))
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other))


@needs_library
def test_an_sae_of_a_batch_gets_the_bits_it_gets_alone() -> None:
    together, alone = everything(lambda tensor: tensor), everything(lambda tensor: tensor[4:5])
    assert all(torch.equal(a[4], b[0]) for a, b in zip(together, alone))


@needs_library
def test_types_that_the_kernels_lack_go_to_torch() -> None:
    pre = normal(1, 6, 40).double()
    values, indices = native.top_k(pre, 3, absolute=False)
    assert values.dtype is torch.float64
    torch.testing.assert_close(values.sort().values, pre.topk(3).values.sort().values)
    assert same(pre.gather(2, indices).clamp_min(0), values)


def report(code: str, *, cache: Path, **changes: str) -> subprocess.Popen[str]:
    """A fresh interpreter that loads the kernels from `cache`, and prints."""
    env = {**os.environ, "XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(ROOT), **changes}
    head = (
        "import logging; logging.basicConfig(level=logging.INFO, format='%(message)s')\n"
        "import torch; torch.set_num_threads(1)\n"
        "from saeinterp.sae import native, reference\n"
    )
    command = [sys.executable, "-c", head + code]
    return subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


STEP = (
    "x = torch.randn(1, 8, 40, generator=torch.Generator().manual_seed(0))\n"
    "for _ in range(3): got = native.top_k(x, 4, absolute=True)\n"
    "want = reference.top_k(x, 4, absolute=True)\n"
    "assert all(torch.equal(a.sort().values, b.sort().values) for a, b in zip(got, want))\n"
    "print(native.available())\n"
)


@pytest.mark.parametrize(
    ("changes", "said"), [({"PATH": "", "CC": ""}, "no C compiler"), ({native.SWITCH: "0"}, native.SWITCH)]
)
def test_without_the_kernels_torch_does_the_same_and_says_why_once(
    tmp_path: Path, changes: dict[str, str], said: str
) -> None:
    out, log = report(STEP, cache=tmp_path, **changes).communicate()
    assert out.strip() == "False", log
    assert len(log.strip().splitlines()) == 1
    assert said in log
    assert not list(tmp_path.rglob("*.so"))


def test_a_compiler_that_fails_is_not_fatal(tmp_path: Path) -> None:
    broken = tmp_path / "broken-compiler"
    broken.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo 1.0 && exit 0\necho "error: no such option" >&2\nexit 1\n'
    )
    broken.chmod(0o755)
    out, log = report(STEP, cache=tmp_path, CC=str(broken)).communicate()
    assert out.strip() == "False", log
    assert "no such option" in log


@needs_library
def test_racing_processes_share_one_library_in_a_private_folder(tmp_path: Path) -> None:
    racers = [report(STEP, cache=tmp_path) for _ in range(2)]
    for racer in racers:
        out, log = racer.communicate()
        assert out.strip() == "True", log
    folder = tmp_path / "saeinterp"
    assert folder.stat().st_mode & 0o777 == 0o700
    (built,) = folder.iterdir()
    made = built.stat().st_mtime_ns
    out, _ = report(STEP, cache=tmp_path).communicate()
    assert out.strip() == "True"
    assert built.stat().st_mtime_ns == made, "compiled again"


@needs_library
def test_a_cache_that_others_can_write_to_is_not_trusted(tmp_path: Path) -> None:
    folder = tmp_path / "saeinterp"
    folder.mkdir()
    folder.chmod(0o777)
    out, log = report(STEP, cache=tmp_path).communicate()
    assert out.strip() == "False"
    assert "chmod 700" in log


@needs_library
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_torch_and_the_kernels_share_one_pool_of_threads(tmp_path: Path) -> None:
    code = (
        "lib = native.library()\n"
        "for count in (2, 1, 3): torch.set_num_threads(count); assert lib.saeinterp_threads() == count\n"
        "maps = [line.split(None, 5)[-1].strip() for line in open('/proc/self/maps')]\n"
        "names = {name for name in maps if 'omp' in name.split('/')[-1]}\n"
        "print(len({name for name in names if name.startswith('/')}))\n"
    )
    out, log = report(code, cache=tmp_path).communicate()
    assert out.strip() == "1", log
