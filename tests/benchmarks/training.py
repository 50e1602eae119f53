"""Training against sparsify, SAELens and dictionary_learning: speed, quality and memory after the same rows.

`make bench-training` does it all and prints markdown; `BENCH="--quick"` sees in a minute that everything works,
`BENCH="--tune"` looks for everyone's settings anew and changes `tuned.json`. Everyone gets the same rows in the same
batches, the same threads, a process of their own for every run, and settings tuned on rows of another seed. The
surprising choice: runs of everyone follow each other within each seed, in a rotating order, and ratios are taken
within a seed, so a machine that slows down meanwhile slows all of them.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import tuning
from launching import ROOT, WHO, Rows, rows_file, run
from planted_rows import ACTIVE, CASES, D_IN, FEATURES, FEW, Case, shortened
from tables import markdown

QUICK_SEEDS = 1


def main() -> None:
    options = _options()
    chosen = {name: shortened(CASES[name]) if options.quick else CASES[name] for name in options.cases}
    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        if options.tune:
            _tune(chosen, options, Path(folder))
            return
        results, minutes = _compare(chosen, options, Path(folder))
    document = {
        "about": _about(options, minutes),
        "cases": {
            name: {"case": case._asdict(), "settings": _settings(name, options), "runs": results[name]}
            for name, case in chosen.items()
        },
    }
    out = options.out or options.folder / "bench-training.json"
    out.write_text(json.dumps(document, indent=1) + "\n")
    print(markdown(document))
    print(f"\nwritten to {out}")
    failed = [run for runs in results.values() for run in runs if "error" in run]
    if failed:
        sys.exit(f"{len(failed)} runs failed: {failed[0]['who']}: {failed[0]['error']}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few steps, one seed: numbers mean nothing")
    parser.add_argument("--tune", action="store_true", help="find settings and write tuned.json instead of comparing")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--only", nargs="+", choices=WHO, default=list(WHO))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs", help="for rows (2 GB while it runs) and results")
    parser.add_argument("--out", type=Path, help="JSON file; default is bench-training.json in the folder")
    options = parser.parse_args()
    if options.quick:
        options.seeds = QUICK_SEEDS
    return options


def _compare(
    cases: dict[str, Case], options: argparse.Namespace, folder: Path
) -> tuple[dict[str, list[dict[str, Any]]], float]:
    """The runs of each case, in the order they were made, and how many minutes they took."""
    started = time.monotonic()
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in cases}
    settings = {name: _settings(name, options) for name in cases}
    for seed in range(options.seeds):
        for names in _sharing(cases):
            with rows_file(folder, max((cases[name] for name in names), key=lambda case: case.rows), seed=seed) as rows:
                for name in names:
                    turn = seed % len(options.only)
                    for who in options.only[turn:] + options.only[:turn]:
                        # One after another, theirs take as long as they are many: once is enough for all of them.
                        few = FEW if seed and who != "ours" else cases[name].saes
                        case = cases[name]._replace(saes=min(few, cases[name].saes))
                        found = _run(who, case, rows, settings[name][who], seed, options, name)
                        results[name].append({"who": who, "seed": seed, **found})
    return results, (time.monotonic() - started) / 60


def _tune(cases: dict[str, Case], options: argparse.Namespace, folder: Path) -> None:
    """Tune everyone asked for and keep what is known of the others."""
    for name, full in cases.items():
        case = full._replace(saes=min(full.saes, tuning.SAES))
        with rows_file(folder, case, seed=tuning.SEED) as rows:
            for who in options.only:
                found = tuning.tune(
                    who,
                    case,
                    lambda settings, who=who, case=case, rows=rows, name=name: _run(
                        who, case, rows, settings, tuning.SEED, options, name
                    ),
                )
                tuned = tuning.load()
                tuned.setdefault(name, {})[who] = found
                if not options.quick:
                    tuning.save(tuned)
                print(f"{name}: {WHO[who]} is best with {found['settings']}", flush=True)


def _run(
    who: str, case: Case, rows: Rows, settings: dict[str, Any], seed: int, options: argparse.Namespace, name: str
) -> dict[str, Any]:
    started = time.monotonic()
    found = run(who, case, rows, settings, seed=seed, threads=options.threads)
    said = found.get("error") or f"{found['rows_per_second']:,.0f} rows/s, FVU {found['fvu']:.4f}"
    seconds = time.monotonic() - started
    print(
        f"{name}, seed {seed}: {WHO[who]} {json.dumps(settings)}: {said} ({seconds:.0f} s)", file=sys.stderr, flush=True
    )
    return found


def _settings(name: str, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Tuned settings of everyone asked for, in one case."""
    tuned = tuning.load().get(name, {})
    missing = [who for who in options.only if tuned.get(who, {}).get("settings") is None]
    if missing:
        sys.exit(
            f"no settings for {', '.join(missing)} in case {name}. Next: --tune --cases {name} --only {missing[0]}"
        )
    return {who: tuned[who]["settings"] for who in options.only}


def _sharing(cases: dict[str, Case]) -> list[list[str]]:
    """Cases that can read one file: as many SAEs, as many held-out rows."""
    groups: dict[tuple[int, int], list[str]] = {}
    for name, case in cases.items():
        groups.setdefault((case.saes, case.heldout), []).append(name)
    return list(groups.values())


def _about(options: argparse.Namespace, minutes: float) -> dict[str, Any]:
    from saeinterp.hardware import describe, hardware

    return {
        "machine": describe(hardware()._asdict()),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "threads": options.threads,
        "rows": f"{FEATURES:,} planted directions, {ACTIVE} drawn a row, d = {D_IN}",
        "command": shlex.join(["python", *sys.argv]),
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "minutes": round(minutes, 1),
    }


if __name__ == "__main__":
    main()
