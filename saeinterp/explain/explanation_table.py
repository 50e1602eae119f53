"""The table of explanations: what explainers and controls write, and what scorers read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import polars as pl

from saeinterp.artifacts import Artifact, Workspace

KIND = "explanations"
SCHEMA: dict[str, Any] = {
    "latent": pl.Int32,
    "status": pl.String,
    "explanation": pl.String,
    "reply": pl.String,
    "reason": pl.String,
    "explainer": pl.String,
}
SAMPLE = "sample"
"""Numbers the explanations of a latent from 0, where it has several."""
Status = Literal["ok", "failed", "control"]


def read_explanations(explanations: Artifact) -> pl.DataFrame:
    """`explanations.parquet`."""
    return pl.read_parquet(explanations.file("explanations.parquet"))


def read_latents(examples: Artifact) -> pl.DataFrame:
    """`latents.parquet` of an example set: one row per selected latent, ascending."""
    return pl.read_parquet(examples.file("latents.parquet")).sort("latent")


def explanation_row(latent: int, status: Status, *, explainer: str, **values: str | int | None) -> dict[str, Any]:
    """One row; columns of `SCHEMA` that are not named are null, and `sample` numbers those of one latent."""
    return {"latent": latent, "status": status, "explainer": explainer, **values}


def write_explanations(space: Workspace, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `explanations.parquet` and count what failed; with a column `sample` where rows have one."""
    schema = {**SCHEMA, SAMPLE: pl.Int32} if any(SAMPLE in row for row in rows) else SCHEMA
    table = pl.DataFrame([{name: row.get(name) for name in schema} for row in rows], schema=schema)
    table.write_parquet(space.out / "explanations.parquet", compression="zstd")
    several = {"explanations": len(table)} if SAMPLE in schema else {}
    failed = table["status"].to_list().count("failed")
    space.counts |= {"latents": table["latent"].n_unique(), **several, "failed": failed}
