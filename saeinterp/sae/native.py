"""The kernels of `reference` in C, for CPUs: compiled once on the machine that runs them, called through ctypes.

Needs nothing but a C compiler; without one, `library` is None and every function here is the one of `reference`.
The surprising choice: the compiled file is not linked with OpenMP. It takes the OpenMP library that torch brought
into the process, so there is one pool of threads, and `torch.set_num_threads` governs it.

Bits depend neither on the number of threads nor on which SAEs share a batch. Shapes as in `kernels`.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from saeinterp.sae import reference
from saeinterp.sae.optimizers import BETAS, EPS, MOMENTUM, Optimizer

log = logging.getLogger(__name__)

SWITCH = "SAEINTERP_NATIVE"  # "0" turns the C kernels off
_SOURCES = tuple(Path(__file__).with_name(name) for name in ("native_topk.c", "native_step.c", "native.h"))
_FLAGS = ("-O3", "-march=native", "-fopenmp", "-fPIC", "-fno-math-errno", "-fno-trapping-math")
_COMPILE_SECONDS = 120.0
_FLOATS = (torch.float32, torch.bfloat16)
_POINTER, _INT, _LONG, _DOUBLE = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_double
_SIGNATURES = {
    "top_k": [_POINTER, _LONG, _LONG, _LONG, _INT, _INT, _POINTER, _POINTER],
    "keep_top_k": [_POINTER, _LONG, _LONG, _LONG, _LONG, _INT, _INT, _POINTER, _POINTER],
    "decode_error": [*4 * [_POINTER], *5 * [_LONG], _INT, _POINTER, _POINTER],
    "weight_gradients": [_POINTER, _INT, *4 * [_POINTER], *5 * [_LONG], *3 * [_POINTER, _LONG], _POINTER],
    "update": [
        *2 * [_POINTER, _LONG], _POINTER, _POINTER, _LONG, *3 * [_LONG], _INT, *4 * [_DOUBLE], *3 * [_POINTER],
    ],
    "threads": [],
}  # fmt: skip


class _UnavailableError(Exception):
    """Why there are no C kernels, in one clause."""


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None (said once, in the log) where there is no compiler, it fails, or they are off."""
    if os.environ.get(SWITCH) == "0":
        log.info("C kernels are off (%s=0): training uses torch alone", SWITCH)
        return None
    try:
        return _load(_compiled())
    except (_UnavailableError, OSError, subprocess.SubprocessError) as error:
        log.info("no C kernels, training uses torch alone, several times slower on a CPU: %s", error)
        return None


def available() -> bool:
    """Whether the functions of this module run in C."""
    return library() is not None


def top_k(pre_SNM: Tensor, k: int, *, absolute: bool) -> tuple[Tensor, Tensor]:
    """`reference.top_k`, with ties broken by the lowest index; any NaN counts as largest."""
    lib = library()
    if lib is None or pre_SNM.dtype not in _FLOATS:
        return reference.top_k(pre_SNM, k, absolute=absolute)
    S, N, M = _selected_from(pre_SNM, k)
    values = torch.empty(S, N, k)
    indices = torch.empty(S, N, k, dtype=torch.int64)
    _call(
        lib.saeinterp_top_k, pre_SNM.data_ptr(), S * N, M, k, _is_bfloat16(pre_SNM), absolute,
        values.data_ptr(), indices.data_ptr(),
    )  # fmt: skip
    return values, indices


def keep_top_k(pre_SNM: Tensor, k: int, *, absolute: bool) -> tuple[Tensor, Tensor]:
    """`reference.keep_top_k`, with ties broken by the lowest index; any NaN counts as largest."""
    lib = library()
    if lib is None or pre_SNM.dtype not in _FLOATS:
        return reference.keep_top_k(pre_SNM, k, absolute=absolute)
    S, N, M = _selected_from(pre_SNM, k)
    z, fired = torch.empty_like(pre_SNM), torch.empty(S, M)
    _call(
        lib.saeinterp_keep_top_k, pre_SNM.data_ptr(), S, N, M, k, _is_bfloat16(pre_SNM), absolute,
        z.data_ptr(), fired.data_ptr(),
    )  # fmt: skip
    return z, fired


def decode_error(x_SNd: Tensor, values: Tensor, indices: Tensor, W_dec_SMd: Tensor) -> tuple[Tensor, Tensor]:
    """`reference.decode_error`, summed in float32 whichever type the decoder has."""
    lib = library()
    if lib is None or x_SNd.dtype is not torch.float32 or W_dec_SMd.dtype not in _FLOATS:
        return reference.decode_error(x_SNd, values, indices, W_dec_SMd)
    S, N, k = indices.shape
    d = x_SNd.shape[2]
    _check(x_SNd, (S, N, d))
    _check_code(values, indices)
    _check(W_dec_SMd, (S, W_dec_SMd.shape[1], d), dtype=W_dec_SMd.dtype, strided=True)
    error, dvalues = torch.empty_like(x_SNd), torch.empty_like(values)
    _call(
        lib.saeinterp_decode_error, x_SNd.data_ptr(), values.data_ptr(), indices.data_ptr(),
        W_dec_SMd.data_ptr(), W_dec_SMd.stride(0), S, N, d, k, _is_bfloat16(W_dec_SMd),
        error.data_ptr(), dvalues.data_ptr(),
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
    """`reference.weight_gradients`; where `x_SNd` is bfloat16, which is faster, the error is rounded to it as well."""
    lib = library()
    if lib is None or x_SNd.dtype not in _FLOATS:
        return reference.weight_gradients(
            x_SNd.to(error_SNd.dtype), error_SNd, values, dvalues, indices, W_enc=W_enc, b_enc=b_enc, W_dec=W_dec
        )
    S, N, k = indices.shape
    M, d = W_dec.shape[1:]
    assert N * k < 2**31
    _check(x_SNd, (S, N, d), dtype=x_SNd.dtype)
    _check(error_SNd, (S, N, d))
    _check_code(values, indices)
    _check(dvalues, (S, N, k))
    for out in (W_enc, W_dec):
        _check(out, (S, M, d), strided=True)
    _check(b_enc, (S, M), strided=True)
    fired = torch.empty(S, M)
    _call(
        lib.saeinterp_weight_gradients, x_SNd.data_ptr(), _is_bfloat16(x_SNd), error_SNd.data_ptr(),
        values.data_ptr(), dvalues.data_ptr(), indices.data_ptr(), S, N, d, M, k,
        W_enc.data_ptr(), W_enc.stride(0), b_enc.data_ptr(), b_enc.stride(0),
        W_dec.data_ptr(), W_dec.stride(0), fired.data_ptr(),
    )  # fmt: skip
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
    """`reference.update`, except that `gradient_SP` is left as it was."""
    lib = library()
    if lib is None or params_SP.dtype is not torch.float32:
        reference.update(
            params_SP, gradient_SP, moments, num_latents=num_latents, d_in=d_in, optimizer=optimizer, lr=lr,
            steps=steps, factor_S=factor_S,
        )  # fmt: skip
        return
    S, M, d = len(lr), num_latents, d_in
    P = 2 * M * d + M + d
    adam = optimizer == "adam"
    assert (len(steps), len(moments)) == (S, 1 + adam)
    _check(params_SP, (S, P), strided=True)
    _check(gradient_SP, (S, P), strided=True)
    _check(factor_S, (S,))
    for moment in moments:
        _check(moment, (S, P), strided=True)
    _call(
        lib.saeinterp_update, params_SP.data_ptr(), params_SP.stride(0), gradient_SP.data_ptr(),
        gradient_SP.stride(0), moments[0].data_ptr(), moments[-1].data_ptr(), moments.stride(1), S, M, d, adam,
        *BETAS, EPS, MOMENTUM, (_DOUBLE * S)(*lr), (_LONG * S)(*steps), factor_S.data_ptr(),
    )  # fmt: skip


def _call(function: ctypes._NamedFuncPointer, *arguments: object) -> None:
    """Every kernel returns 0, or 1 where it could not allocate its scratch space."""
    if function(*arguments):
        raise MemoryError("not enough memory for the scratch space of a training step; train fewer SAEs at once")


def _is_bfloat16(tensor: Tensor) -> bool:
    return tensor.dtype is torch.bfloat16


def _selected_from(pre_SNM: Tensor, k: int) -> tuple[int, int, int]:
    S, N, M = pre_SNM.shape
    _check(pre_SNM, (S, N, M), dtype=pre_SNM.dtype)
    assert 0 < k <= M < 2**31
    return S, N, M


def _check_code(values: Tensor, indices: Tensor) -> None:
    shape = tuple(indices.shape)
    _check(values, shape)
    _check(indices, shape, dtype=torch.int64)


def _check(
    tensor: Tensor, shape: tuple[int, ...], *, dtype: torch.dtype = torch.float32, strided: bool = False
) -> None:
    """C trusts what it is given; `strided` allows any stride between SAEs."""
    got = (tuple(tensor.shape), tensor.dtype, tensor.device.type)
    assert got == (shape, dtype, "cpu"), (got, shape, dtype)
    assert (tensor[0] if strided and len(tensor) else tensor).is_contiguous()


def _compiled() -> Path:
    """The shared library for this source, compiler and CPU, made now unless an earlier process made it."""
    compiler = next(
        (path for name in (os.environ.get("CC"), "gcc", "cc") if name and (path := shutil.which(name))), None
    )
    if compiler is None:
        raise _UnavailableError("no C compiler found (gcc)")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True, timeout=30).stdout
    sources = [path.read_text(encoding="utf-8") for path in _SOURCES]
    parts = [*sources, version, " ".join(_FLAGS), platform.machine(), _cpu_flags()]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    folder = _private_folder()
    target = folder / f"native-{key}.so"
    if target.exists():
        return target
    # Racing processes each build one, under a name of their own; the last rename wins, and all are alike.
    with tempfile.TemporaryDirectory(dir=folder) as building:
        linked = Path(building) / "native.so"
        _build([compiler, *_FLAGS, "-c", *(str(path) for path in _SOURCES if path.suffix == ".c")], folder=building)
        # Linked apart from -fopenmp, which would ask for an OpenMP library besides torch's.
        compiled = [f"{path.stem}.o" for path in _SOURCES if path.suffix == ".c"]
        _build([compiler, "-shared", *compiled, "-o", str(linked), "-lm"], folder=building)
        linked.replace(target)
    return target


def _build(command: Sequence[str], *, folder: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_COMPILE_SECONDS, check=False)
    if done.returncode:
        message = next((line for line in done.stderr.splitlines() if "error" in line.lower()), done.stderr[-200:])
        raise _UnavailableError(f"{command[0]} failed: {message.strip()}")


def _private_folder() -> Path:
    """A folder nobody else can write to: what lies there is code that we run."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = Path(root) / "saeinterp"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = folder.stat()
    if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise _UnavailableError(f"others can write to {folder}; make it private: chmod 700 {folder}")
    return folder


def _cpu_flags() -> str:
    """What the compiler may make use of here; a home folder can be shared by unlike machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    named = {line.split(":")[0].strip(): line for line in reversed(lines)}
    return " ".join(named.get(name, "") for name in ("model name", "flags", "Features", "CPU part"))


def _load(path: Path) -> ctypes.CDLL:
    """Load and declare the functions.

    Raises:
        OSError: It does not load, because torch brought no OpenMP library that has what it needs.
    """
    lib = ctypes.CDLL(str(path))
    for name, types in _SIGNATURES.items():
        function = getattr(lib, f"saeinterp_{name}")
        function.argtypes, function.restype = types, _INT
    threads = lib.saeinterp_threads()
    if threads != torch.get_num_threads():
        raise _UnavailableError(f"it would run {threads} threads where torch runs {torch.get_num_threads()}")
    return lib
