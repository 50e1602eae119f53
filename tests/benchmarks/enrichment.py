"""Association at the size of the published analysis, its nulls and half-samples, and more than fits into memory.

`make bench-enrichment` does it all and prints markdown (about ten minutes); `BENCH="--scale 0.1"` takes a tenth of the
latents. 49,152 latents as active as those published, 2% of them planted, on the first 1,000 problems of GSM8K (random
tokens of like frequencies where the file is not there). Each case runs in a process of its own, so that peaks of memory
are its own, inputs included; a loop over `scipy.stats.chi2_contingency` is timed on some pairs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
GSM8K = ROOT.parent / "shared" / "data" / "gsm8k-train.jsonl"
SAMPLES, LATENTS, SITES = 1000, 49_152, 96
MANY = {"samples": 60_000, "latents": 200_000, "tokens": 10_000, "active": 64, "held": 10}
COMPARED = 400
"""Latents of the sparse case that are counted as dense ones too."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the latents")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--permutations", type=int, default=200)
    parser.add_argument("--half-samples", type=int, default=200)
    parser.add_argument("--looped", type=int, default=2000, help="pairs that the loop over SciPy tests")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "bench-enrichment.json")
    parser.add_argument("--child", choices=list(CASES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(_measured(CASES[options.child], options)))
        return
    threads = {name: str(options.threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS")}
    found = {}
    for case in options.cases:
        command = [sys.executable, __file__, *sys.argv[1:], "--child", case]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **threads})
        found[case] = json.loads(done.stdout)
        print(f"{case}: {found[case]}", file=sys.stderr)
    about = {
        "command": shlex.join(["tests/benchmarks/enrichment.py", *sys.argv[1:]]),
        "machine": platform.processor() or platform.machine(),
        "threads": options.threads,
        "latents": int(LATENTS * options.scale),
        "incidence": "GSM8K" if GSM8K.exists() else "random tokens",
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"about": about, "cases": found}, indent=1) + "\n")
    print(markdown(about, found))
    print(f"\nwritten to {options.out}")


def _measured(case: Callable[[argparse.Namespace], dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    return {**case(options), "peak_gib": round(_peak(), 2)}


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _timed(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, {
        "seconds": round(time.perf_counter() - wall, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
    }


def _associate(preset: str) -> Callable[[argparse.Namespace], dict[str, Any]]:
    """Counts, tests, adjustment, effect sizes and the Parquet file."""

    def case(options: argparse.Namespace) -> dict[str, Any]:
        from saeinterp.enrichment import associate

        active, present, _ = _inputs(options)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "pairs.parquet"

            def work() -> Any:
                found = associate(active, present, preset=preset)
                found.write_parquet(path)
                return found

            found, spent = _timed(work)
            megabytes = round(path.stat().st_size / 2**20, 1)
        pairs = active.shape[1] * present.shape[1]
        listed = {"listed": len(found), "kept": int(found["kept"].sum()), "family": found.family}
        return {**spent, "pairs": pairs, **listed, "file_mib": megabytes}

    return case


def _draws(what: str) -> Callable[[argparse.Namespace], dict[str, Any]]:
    """Both presets in all permutations of both nulls, or in all half-samples."""

    def case(options: argparse.Namespace) -> dict[str, Any]:
        import numpy as np

        from saeinterp.enrichment import draw_rates
        from saeinterp.enrichment.strata import strata_of

        active, present, steps = _inputs(options)
        number = {"permutations": options.permutations, "half_samples": options.half_samples}
        found, spent = _timed(
            lambda: draw_rates(
                active,
                present,
                presets=("robust", "seed-gsm8k-chi2"),
                sites=np.arange(active.shape[1]) * SITES // active.shape[1],
                categories=["token"] * present.shape[1],
                sample_ids=[f"train_{index}" for index in range(SAMPLES)],
                strata=strata_of(steps, at_most=8),
                **{name: count if name == what else 0 for name, count in number.items()},
            )
        )
        return {**spent, "draws": found["robust"].counts.height // SITES}

    return case


def _many(options: argparse.Namespace) -> dict[str, Any]:
    """Few of very many latents and tokens in each of very many samples, written block by block."""
    import numpy as np
    import polars as pl

    from saeinterp.enrichment import associate, associate_to

    size = {**MANY, "latents": int(MANY["latents"] * options.scale)}
    active = _sparse(size["samples"], size["latents"], size["active"], power=0.5, seed=0)
    present = _sparse(size["samples"], size["tokens"], size["held"], power=0.7, seed=1)
    inputs = _peak()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.parquet"
        family, spent = _timed(lambda: associate_to(path, active, present))
        peak = _peak()
        columns = ["latent", "token", "a", "b", "c", "d", "p_value", "odds_ratio"]
        written = pl.scan_parquet(path)
        some = written.filter(pl.col("latent") < COMPARED).select(columns).collect()
        dense = associate(active[:, :COMPARED].toarray(), present).select(columns)
        listed = int(written.select(pl.len()).collect().item())
    apart = float(np.abs(some["p_value"].to_numpy() / dense["p_value"].to_numpy() - 1).max())
    if not some.drop("p_value").equals(dense.drop("p_value")) or apart > 1e-9:
        raise AssertionError("the sparse and the dense counts differ")
    return {
        **spent,
        **size,
        "listed": listed,
        "family": family,
        "inputs_gib": round(inputs, 2),
        "case_gib": round(peak, 2),
    }


def _loop(options: argparse.Namespace) -> dict[str, Any]:
    """One pair at a time, as the published analysis tested them."""
    import numpy as np
    from scipy.stats import chi2_contingency

    active, present, _ = _inputs(options)
    rng = np.random.default_rng(0)
    some = np.flatnonzero(active.any(axis=0) & ~active.all(axis=0))
    latents, tokens = rng.choice(some, options.looped), rng.integers(0, present.shape[1], options.looped)

    def work() -> None:
        for latent, token in zip(latents.tolist(), tokens.tolist(), strict=True):
            fires, holds = active[:, latent], present[:, token]
            both, row, column = int((fires & holds).sum()), int(fires.sum()), int(holds.sum())
            chi2_contingency([[both, row - both], [column - both, SAMPLES - row - column + both]])

    _, spent = _timed(work)
    return {**spent, "pairs": options.looped}


CASES: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "robust": _associate("robust"),
    "seed-gsm8k-chi2": _associate("seed-gsm8k-chi2"),
    "loop": _loop,
    "permutations": _draws("permutations"),
    "half_samples": _draws("half_samples"),
    "sparse": _many,
}


def _inputs(options: argparse.Namespace) -> tuple[Any, Any, Any]:
    """`[samples, latents]`, `[samples, tokens]` and the number of steps of each sample."""
    import numpy as np

    present, steps = _problems()
    rng = np.random.default_rng(0)
    latents = int(LATENTS * options.scale)
    rate = rng.beta(0.263, 1.082, latents)
    active = np.empty((SAMPLES, latents), np.bool_)
    for row in active:  # numbers of all rows at once would be most of the peak
        row[:] = rng.random(latents) < rate
    planted = latents // 50
    token = rng.choice(np.flatnonzero(present.sum(axis=0) >= 5), planted)
    active[:, :planted] = rng.random((SAMPLES, planted)) < np.where(present[:, token], 0.8, 0.02)
    return active, present, steps


def _problems() -> tuple[Any, Any]:
    import numpy as np

    from saeinterp.enrichment import parse_annotation_tokens

    if not GSM8K.exists():
        rng = np.random.default_rng(1)
        present = rng.random((SAMPLES, 628)) < np.minimum(4.5 / np.arange(1, 629), 0.95)
        return present, present.sum(axis=1)
    answers = [json.loads(line)["answer"] for line in GSM8K.read_text(encoding="utf-8").splitlines()]
    first = sorted(range(len(answers)), key=lambda index: f"train_{index}")[:SAMPLES]
    tokens = [set(parse_annotation_tokens(answers[index], grammar="seed")) for index in first]
    vocabulary = sorted(set().union(*tokens))
    present = np.array([[token in held for token in vocabulary] for held in tokens])
    return present, np.array([answers[index].count("<<") for index in first])


def _sparse(samples: int, columns: int, each: int, *, power: float, seed: int) -> Any:
    """At most `each` columns a sample, popular ones more often (Zipf)."""
    import numpy as np
    from scipy import sparse

    rng = np.random.default_rng(seed)
    share = np.cumsum(np.arange(1, columns + 1) ** -power)
    index = np.searchsorted(share / share[-1], rng.random(samples * each)).astype(np.int32)
    pointer = np.arange(0, samples * each + 1, each)
    matrix = sparse.csr_array((np.ones(len(index), np.bool_), index, pointer), shape=(samples, columns))
    matrix.sum_duplicates()
    return matrix


def markdown(about: dict[str, Any], found: dict[str, dict[str, Any]]) -> str:
    """Times and memory, and the ratio to the loop."""
    lines = ["| | time | CPU time | peak memory | |", "|---|---|---|---|---|"]
    for case, run in found.items():
        if case in ("robust", "seed-gsm8k-chi2"):
            what = f"{run['pairs']:,} pairs, {run['listed']:,} with p ≤ 0.05 written ({run['file_mib']} MiB)"
        elif case == "loop":
            what = f"{run['pairs']:,} pairs by `scipy.stats.chi2_contingency`"
        elif case == "sparse":
            what = (
                f"{run['latents']:,} latents × {run['tokens']:,} tokens × {run['samples']:,} samples, {run['active']} "
                f"and {run['held']} a sample; {run['listed']:,} pairs written; {COMPARED} latents agree with dense ones"
            )
        else:
            what = f"{run['draws'] - 1:,} draws under both presets"
        memory = run.get("case_gib", run["peak_gib"])
        lines.append(f"| {case} | {run['seconds']:.1f} s | {run['cpu_seconds']:.1f} s | {memory:.2f} GiB | {what} |")
    lines += [
        "",
        f"{about['latents']:,} latents, {about['incidence']}; {about['machine']}, {about['threads']} threads: ",
    ]
    lines[-1] += f"`{about['command']}`."
    if {"robust", "loop"} <= set(found):
        pair = found["loop"]["seconds"] / found["loop"]["pairs"]
        ratio = pair * found["robust"]["pairs"] / found["robust"]["seconds"]
        lines[-1] += f" The loop takes {pair * 1e6:.0f} µs a pair: `robust` in all is {ratio:,.0f} times as fast."
    return "\n".join(lines)


if __name__ == "__main__":
    main()
