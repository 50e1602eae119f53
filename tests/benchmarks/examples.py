"""Example sets of a planted latent cache: seconds and memory, for a sample of latents and for all of them.

`python tests/benchmarks/examples.py` prints markdown. Every selection is built in a process of its own. The surprising
choice: memory is what the process holds beyond its imports, since those are most of it at small sizes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "benchmarks")]


def main() -> None:
    options = _options()
    if options.child:
        print(json.dumps(_build(options)))
        return
    _plant(options)
    rows = [f"{options.tokens:,} tokens, k = {options.k}, {options.latents:,} latents, width {options.width}", ""]
    rows += ["| latents | examples | seconds | MB beyond imports | MB on disk |", "|---|---:|---:|---:|---:|"]
    for selection in options.select:
        arguments = [*sys.argv[1:], "--child", "--select", selection]
        done = subprocess.run([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True, check=True)
        row = json.loads(done.stdout.splitlines()[-1])
        numbers = f"{row['examples']:,} | {row['seconds']:.1f} | {row['memory']:,.0f} | {row['disk']:,.0f}"
        rows.append(f"| `{selection}` | {numbers} |")
    print("\n".join(rows))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--latents", type=int, default=16_384)
    parser.add_argument("--vocabulary", type=int, default=20_000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--select", nargs="+", default=["sample:300", "all"])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "bench-examples")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def _plant(options: argparse.Namespace) -> Any:
    """The planted artifacts, made once per folder."""
    from planted_latents import plant_latents

    from saeinterp.artifacts import ArtifactStore

    sizes = {"k": options.k, "num_latents": options.latents, "vocabulary": options.vocabulary, "d_in": options.width}
    return plant_latents(ArtifactStore(options.folder), tokens=options.tokens, **sizes)


def _build(options: argparse.Namespace) -> dict[str, float]:
    from measure import forget_peak, memory
    from planted_latents import HOOKPOINT

    from saeinterp.artifacts import ArtifactStore
    from saeinterp.config import ExamplesConfig
    from saeinterp.latents import build_examples

    planted = _plant(options)
    config = ExamplesConfig(latents=options.select[0])
    forget_peak()
    before, started = memory().now, time.perf_counter()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        made = build_examples(
            planted.latents,
            planted.corpus,
            planted.sae,
            hookpoint=HOOKPOINT,
            config=config,
            store=ArtifactStore(folder),
        )
        seconds = time.perf_counter() - started
        disk = sum(file["bytes"] for file in made.manifest()["files"].values()) / 1e6
        counts = made.counts()
    return {"examples": counts["examples"], "seconds": seconds, "memory": memory().peak - before, "disk": disk}


if __name__ == "__main__":
    main()
