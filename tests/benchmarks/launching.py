"""Starts one training run in a process of its own, in the environment of whoever is measured.

saeinterp starts its training processes with variables that make waiting threads sleep and freed memory stay. Whether
they help a peer too is tried when it is tuned (`environment`), and then it gets them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from planted_rows import Case, write_rows

from saeinterp.config import LaunchConfig
from saeinterp.sae.launch import _environment

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WHO = {
    "ours": "saeinterp",
    "sparsify": "sparsify",
    "sae_lens": "SAELens",
    "dictionary_learning": "dictionary_learning",
}
"""Trainers, by the name of their function, with the name to print."""


class Rows(NamedTuple):
    """A file of rows."""

    path: Path
    written: Case
    """The case it was written for; a case of fewer rows takes the first."""


@contextmanager
def rows_file(folder: Path, case: Case, *, seed: int) -> Iterator[Rows]:
    """Rows on disk while the context lasts; they are as large as memory allows, so no two files at once."""
    path = folder / f"rows-{seed}.bin"
    write_rows(path, case, seed=seed)
    try:
        yield Rows(path, case)
    finally:
        path.unlink()


def run(who: str, case: Case, rows: Rows, settings: dict[str, Any], *, seed: int, threads: int) -> dict[str, Any]:
    """Train and grade; see `worker.answer` for the result, which is `{"error": text}` when the process failed."""
    python = Path(sys.executable) if who == "ours" else ROOT / ".venv-peers" / "bin" / "python"
    if not python.exists():
        return {"error": "no .venv-peers: make peers"}
    request = {
        "who": who,
        "case": case,
        "rows": str(rows.path),
        "written": rows.written,
        "settings": settings,
        "seed": seed,
        "threads": threads,
    }
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}
    if who == "ours" or settings.get("environment") == "ours":
        env = _environment(env, LaunchConfig(threads=threads))
    else:
        env |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [str(python), "-W", "ignore", str(HERE / "worker.py")],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        env=env,
        check=False,
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit {done.returncode}"]
        return {"error": last[0][:300]}
    # Some packages print when they are imported.
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found
