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
Status = Literal["ok", "failed", "control"]


def read_explanations(explanations: Artifact) -> pl.DataFrame:
    """`explanations.parquet`."""
    return pl.read_parquet(explanations.file("explanations.parquet"))


def read_latents(examples: Artifact) -> pl.DataFrame:
    """`latents.parquet` of an example set: one row per selected latent, ascending."""
    return pl.read_parquet(examples.file("latents.parquet")).sort("latent")


def explanation_row(latent: int, status: Status, *, explainer: str, **values: str | None) -> dict[str, Any]:
    """One row; columns of `SCHEMA` that are not named are null."""
    return {"latent": latent, "status": status, "explainer": explainer, **values}


def write_explanations(space: Workspace, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `explanations.parquet` and count what failed."""
    table = pl.DataFrame([{name: row.get(name) for name in SCHEMA} for row in rows], schema=SCHEMA)
    table.write_parquet(space.out / "explanations.parquet", compression="zstd")
    statuses = table["status"].to_list()
    space.counts |= {"latents": len(statuses), "failed": statuses.count("failed")}
