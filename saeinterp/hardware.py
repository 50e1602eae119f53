"""What this machine is made of: recorded beside every artifact, printed by `saeinterp sae show`.

The surprising choice: GPUs are read from the driver's files, not through torch, unless this process already uses
CUDA. Asking torch would load it into processes that do without, and take memory on the card.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

_CPUS = Path("/proc/cpuinfo")
_GPUS = Path("/proc/driver/nvidia/gpus")
_MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")


class Hardware(NamedTuple):
    """The machine of this process."""

    cpu: str
    """Model as the system names it, else the architecture."""
    cores: int
    """Logical cores this process may use."""
    memory_gb: float
    """Main memory in 10^9 bytes, of this container where it is limited."""
    gpus: tuple[str, ...]
    """Models of the GPUs: those torch sees where it uses CUDA in this process, else all of NVIDIA's driver."""


def hardware() -> Hardware:
    """Look at this machine; takes about a millisecond and needs no privileges."""
    import psutil

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = psutil.virtual_memory().total
    limit = _text(_MEMORY_LIMIT).strip()
    if limit.isdigit():  # else "max", or no such file
        memory = min(memory, int(limit))
    return Hardware(cpu=_cpu(), cores=usable, memory_gb=round(memory / 1e9, 1), gpus=_gpus())


def describe(values: Mapping[str, Any]) -> str:
    """The fields of a `Hardware`, as a manifest holds them, in one line."""
    gpus = list(values["gpus"])
    counted = [f"{gpus.count(name)} × {name}" if gpus.count(name) > 1 else name for name in dict.fromkeys(gpus)]
    cores = f"{values['cores']} core{'s' if values['cores'] != 1 else ''}"
    return f"{values['cpu']}, {cores}, {values['memory_gb']:g} GB, {', '.join(counted) or 'no GPU'}"


def _cpu() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", _text(_CPUS), re.M)
    if found:
        return " ".join(found[1].split())
    if sys.platform == "darwin":
        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        brand = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10).stdout.strip()
        if brand:
            return brand
    return platform.machine() or "unknown"


def _gpus() -> tuple[str, ...]:
    # Another thread may be importing torch this moment: its module is there before its functions are.
    cuda = sys.modules.get("torch.cuda")
    in_use = getattr(cuda, "is_initialized", None)
    if cuda is not None and in_use is not None and in_use():
        return tuple(cuda.get_device_name(index) for index in range(cuda.device_count()))
    names = []
    for path in sorted(_GPUS.glob("*/information")):
        found = re.search(r"^Model:\s*(.+?)\s*$", _text(path), re.M)
        names.append(found[1] if found else "unknown")
    return tuple(names)


def _text(path: Path) -> str:
    """A system file; empty where this system has none or keeps it from us: no reason for a step to fail."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
