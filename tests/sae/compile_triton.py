"""Compiles every Triton program for a GPU that need not be here, as the step would launch it.

`python compile_triton.py 90` prints a JSON list: for each launch the program, its registers a thread and the bytes it
spills, read from the machine code. Launches are taken from the real functions, called on CPU tensors; nothing runs.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from saeinterp.sae import triton_kernels
from saeinterp.sae.optimizers import SLOTS

_CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
# Rows, latents, active, width. Triton treats an argument that is 1 as a constant, hence "ones".
_SHAPES = {
    "ones": (1, 1, 1, 1),
    "small": (512, 400, 32, 576),
    "middle": (4, 4096, 32, 576),
    "large": (4, 32_768, 64, 2304),
}


class AbsentGpu:
    """As much of a driver as compiling takes."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        """What is compiled for."""
        return self._target

    def get_current_device(self) -> int:
        """The only one."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """The default one."""
        return device


def compiled(capability: int) -> list[dict[str, Any]]:
    """One entry a launch."""
    driver.set_active(AbsentGpu(capability))
    run, found = JITFunction.run, []

    def compile_only(self: JITFunction, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        kernel = run(self, *arguments, grid=grid, warmup=True, **options)
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            Path(file.name).write_bytes(kernel.asm["cubin"])
            usage = subprocess.run([_CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True)
        registers, stack = re.findall(r"REG:(\d+) STACK:(\d+)", usage.stdout)[-1]
        found.append({"program": self.__name__, "registers": int(registers), "stack": int(stack), "shape": name})

    JITFunction.run = compile_only  # type: ignore[method-assign]
    S = 2
    for name, (N, M, k, d) in _SHAPES.items():
        P = 2 * M * d + M + d
        x, values = torch.zeros(S, N, d), torch.zeros(S, N, k)
        indices = torch.zeros(S, N, k, dtype=torch.int64)
        W, b = torch.zeros(S, M, d), torch.zeros(S, M)
        for dtype in (torch.bfloat16, torch.float32):
            pre = torch.zeros(S, N, M, dtype=dtype)
            for absolute in (False, True):
                triton_kernels.keep_top_k(pre, k, absolute=absolute)
                triton_kernels.top_k(pre, k, absolute=absolute)
            triton_kernels.decode_error(x, values, indices, W.to(dtype))
            rows = x.to(dtype)
            triton_kernels.weight_gradients(rows, x, values, values, indices, W_enc=W, b_enc=b, W_dec=W)
        if name == "large":
            continue
        flat, factor = torch.zeros(S, P), torch.ones(S)
        for optimizer, slots in SLOTS.items():
            triton_kernels.update(
                flat, flat, torch.zeros(slots, S, P), num_latents=M, d_in=d, optimizer=optimizer,
                lr=[1e-3] * S, steps=[0] * S, factor_S=factor,
            )  # fmt: skip
    return found


if __name__ == "__main__":
    json.dump(compiled(int(sys.argv[1])), sys.stdout)
