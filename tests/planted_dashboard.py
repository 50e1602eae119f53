"""A report with as many latents as wanted, made by stretching the tables of a small one."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import polars as pl

from saeinterp.artifacts import Artifact, read_json, write_json
from saeinterp.report import render

WORDS = ["dates", "loops", "negation", "cities", "errors", "quantities", "speech", "code", "verbs", "plural", "links"]
WORDS += ["tokens", "about", "years", "names", "functions", "numbers", "commas", "tense", "endings", "lists", "quotes"]


def stretch(report: Artifact, folder: Path, *, latents: int, detail: int, pages: int = 600) -> Path:
    """Copy a report and give it `latents` rows with values and labels of their own; examples and profiles for `pages`.

    Args:
        detail: Latents whose page may be opened (`report.latents`).
    """
    shutil.copytree(report.path, folder)
    tables = folder / "tables"
    rng = np.random.default_rng(0)
    small = pl.read_parquet(tables / "latents.parquet")
    scored = small.filter(pl.col("status") == "scored")
    rows = scored[rng.integers(0, len(scored), latents)].with_columns(latent=pl.Series(range(latents), dtype=pl.Int32))
    hookpoints = small["hookpoint"].unique(maintain_order=True).to_list()
    each = -(-latents // len(hookpoints))
    layer = [hookpoints[index // each] for index in range(latents)]
    a, b = np.clip(rng.normal(0.68, 0.16, latents), 0, 1), np.clip(rng.normal(0.7, 0.15, latents), 0, 1)
    labels = [" ".join(rng.choice(WORDS, 6)) for _ in range(2 * latents)]
    columns = {
        "hookpoint": layer,
        "id": [f"L{name.rpartition('.')[2]}_F{index}" for index, name in enumerate(layer)],
        "explanation_a": labels[:latents],
        "explanation_b": labels[latents:],
        "value_a": a,
        "value_b": b,
        "delta": b - a,
        "density": 10 ** rng.uniform(-5, -1, latents),
    }
    for side, value in (("a", a), ("b", b)):
        columns |= {f"value_{side}_low": np.maximum(0, value - 0.1), f"value_{side}_high": np.minimum(1, value + 0.1)}
    rows = rows.with_columns(**{name: pl.Series(values) for name, values in columns.items()})
    rows.write_parquet(tables / "latents.parquet")
    differ = np.argsort(-np.abs(b - a), kind="stable")[:pages]
    for name in ("examples", "profiles"):
        if (tables / f"{name}.parquet").exists():
            table = pl.read_parquet(tables / f"{name}.parquet")
            parts = table.partition_by("hookpoint", "latent")
            copies = [
                parts[place % len(parts)].with_columns(
                    hookpoint=pl.lit(layer[index]), latent=pl.lit(int(index), dtype=table.schema["latent"])
                )
                for place, index in enumerate(differ)
            ]
            pl.concat(copies).write_parquet(tables / f"{name}.parquet")
    results = read_json(folder / "results.json")
    write_json(folder / "results.json", {**results, "detail_latents": detail})
    render(folder)
    return folder
