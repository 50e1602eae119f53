"""The Triton kernels: right (on a GPU as compiled, elsewhere interpreted), and compilable for GPUs that are not here.

Both in processes of their own: Triton reads how it is to run when it is first imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed: make test-triton")

ROOT = Path(__file__).resolve().parents[2]


def environment(**changes: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**kept, "PYTHONPATH": path, **changes}


def test_every_kernel_does_what_plain_torch_does(tmp_path: Path) -> None:
    options = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "tests/sae/triton_cases.py"],
        cwd=ROOT, env=environment(TRITON_CACHE_DIR=str(tmp_path), **options),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="Triton brings NVIDIA's assembler for Linux only")
@pytest.mark.parametrize("capability", [80, 90], ids=["A100", "H100"])
def test_every_program_compiles_for_gpus_that_are_not_here(capability: int, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/sae/compile_triton.py"), str(capability)],
        env=environment(TRITON_CACHE_DIR=str(tmp_path)),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert {entry["program"] for entry in found} == {
        "keep_program", "top_program", "decode_program", "gradient_program", "update_program",
    }  # fmt: skip
    # Only the widest rows may need more than the registers.
    assert not [entry for entry in found if entry["stack"] and entry["shape"] != "large"]
