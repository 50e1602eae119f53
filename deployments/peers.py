"""Create .venv-peers with the other SAE trainers and SAEBench: what `make peers` runs, with any Python 3.11 or newer.

They are only compared with (tests/peers, tests/benchmarks) and want versions of common packages that saeinterp does
not, hence an environment of their own. The surprising choice: pip resolves nothing. torch comes first and alone, by the
pin that .venv has too, so that nothing else decides which build of it is downloaded; then exactly the listed packages.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time

from deployments.install import ROOT, announce_torch, run

ENVIRONMENT = ROOT / ".venv-peers"
CONSTRAINTS = ROOT / "tests" / "peers" / "constraints.txt"
PEERS = ("eai-sparsify", "sae-lens", "dictionary-learning", "sae-bench")
DOWNLOAD_GB, DISK_GB = 0.4, 1.7
_TARGET = "make peers"


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Create .venv-peers with sparsify, SAELens, dictionary_learning and SAEBench."
    )
    parser.add_argument("--torch-index", default="", help="package index to take torch from")
    options = parser.parse_args()
    if sys.version_info < (3, 11):
        found = ".".join(map(str, sys.version_info[:3]))
        sys.exit(f"Python {found} is too old: 3.11 or newer is needed. Next: {_TARGET} PYTHON=python3.12")
    pins = dict(line.split("==") for line in CONSTRAINTS.read_text().splitlines() if "==" in line)
    peers = ", ".join(f"{name} {pins[name]}" for name in PEERS)
    print(
        f"installing {peers} and what they import, {len(pins)} packages, into {ENVIRONMENT.name}: about {DOWNLOAD_GB} "
        f"GB to download with the CPU build of torch, {DISK_GB} GB on disk. Remove the folder to undo it.",
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
    run([*pip, "install", "-q", "--no-deps", "-r", wanted], "installing the peers", target=_TARGET)
    check = "import dictionary_learning.trainers.top_k, sae_bench.evals.core.main, sae_lens, sparsify"
    run([str(python), "-W", "ignore", "-c", check], "importing them", target=_TARGET)
    (ENVIRONMENT / ".installed").touch()
    size = sum(path.stat().st_size for path in ENVIRONMENT.rglob("*") if path.is_file() and not path.is_symlink())
    print(f"{ENVIRONMENT.name}: {size / 1e9:.1f} GB, {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
