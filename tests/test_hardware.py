"""What is recorded of the machine: true, complete, beside the checksummed content."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from saeinterp import hardware as module
from saeinterp.artifacts import ArtifactStore, Recipe, Workspace
from saeinterp.hardware import Hardware, describe, hardware


def test_this_machine_is_described_as_the_system_sees_it() -> None:
    found = hardware()
    assert found.cpu
    assert found.cores == (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    assert 0 < found.memory_gb <= psutil.virtual_memory().total / 1e9 + 0.1
    assert found.cpu in describe(found._asdict())


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot bind a process to cores")
def test_cores_are_those_the_process_may_use() -> None:
    code = (
        "import os; from saeinterp.hardware import hardware\n"
        "os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])\n"
        "print(hardware().cores)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


def test_looking_does_not_load_torch() -> None:
    code = "import sys; from saeinterp.hardware import hardware; hardware(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_gpus_are_named_by_the_driver_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for slot, model in (
        ("0000:01:00.0", "NVIDIA H100"),
        ("0000:02:00.0", "NVIDIA H100"),
        ("0000:03:00.0", "NVIDIA L4"),
    ):
        (tmp_path / slot).mkdir()
        text = f"Model: \t\t {model}\nIRQ:   \t\t 42\nBus Location: \t {slot}\n"
        (tmp_path / slot / "information").write_text(text)
    monkeypatch.setattr(module, "_GPUS", tmp_path)
    assert hardware().gpus == ("NVIDIA H100", "NVIDIA H100", "NVIDIA L4")
    assert describe(hardware()._asdict()).endswith("2 × NVIDIA H100, NVIDIA L4")


def test_a_container_s_memory_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(module, "_MEMORY_LIMIT", limit)
    limit.write_text("500000000\n")
    assert hardware().memory_gb == 0.5
    limit.write_text("max\n")
    assert hardware().memory_gb > 0.5


@pytest.mark.gpu
def test_torch_s_names_are_taken_where_cuda_is_in_use() -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    torch.cuda.init()
    assert hardware().gpus[0] == torch.cuda.get_device_name(0)


def test_the_manifest_holds_the_hardware_apart_from_what_equal_runs_share(store: ArtifactStore, tmp_path: Path) -> None:
    def write(space: Workspace) -> None:
        (space.out / "data.txt").write_text("x")

    recipe = Recipe("thing", "demo", 1, {})
    manifest = store.build(recipe, write).manifest()
    recorded = Hardware(**manifest["made"].pop("hardware"))
    assert recorded._replace(gpus=tuple(recorded.gpus)) == hardware()
    assert "hardware" not in json.dumps(manifest)
