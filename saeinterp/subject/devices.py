"""Where models run and in which type: `auto` resolved by what the hardware does fast."""

from __future__ import annotations

import platform
import re
from functools import lru_cache
from pathlib import Path

from saeinterp.errors import ConfigError


def resolve_device(device: str) -> str:
    """`auto` becomes `cuda` where there is one, else `cpu`; anything else is checked and returned.

    Raises:
        ConfigError: Not a device, or not one of this machine.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(
            "not a device", field="subject.device", got=device, expected="'auto', 'cpu', 'cuda' or 'cuda:1'"
        ) from error
    count = torch.cuda.device_count()
    if kind.type == "cuda" and (count == 0 or (kind.index or 0) >= count):
        raise ConfigError(
            f"this machine has {count} CUDA devices",
            field="subject.device",
            got=device,
            next_step="use device: auto, or run on a machine with that GPU",
        )
    return device


def resolve_dtype(dtype: str, device: str = "auto") -> str:
    """`auto` becomes `bfloat16` where the hardware multiplies it fast, else `float32`.

    Fast means a CUDA device with bfloat16, or a CPU with the AVX512-BF16, AMX or (Arm) BF16 instructions;
    elsewhere bfloat16 on a CPU is emulated and several times slower than float32.
    """
    if dtype != "auto":
        return dtype
    if device.startswith("cuda") or device == "auto":
        import torch

        if torch.cuda.is_available():
            return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    return "bfloat16" if _cpu_has_bfloat16() else "float32"


def fast_bfloat16() -> bool:
    """Whether this machine multiplies bfloat16 fast, on a GPU or on the CPU."""
    return resolve_dtype("auto") == "bfloat16"


@lru_cache(maxsize=1)
def _cpu_has_bfloat16() -> bool:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:  # macOS
        import subprocess

        if platform.machine() != "arm64":
            return False
        found = subprocess.run(
            ["sysctl", "-n", "hw.optional.arm.FEAT_BF16"], capture_output=True, text=True, check=False, timeout=10
        )
        return found.stdout.strip() == "1"
    flags = set(re.findall(r"\w+", " ".join(re.findall(r"^(?:flags|Features)\s*:(.*)$", text, re.M))))
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})
