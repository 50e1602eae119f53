"""The Parquet tables behind a report: written once by the step, read back by the renderers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saeinterp.report.format import Style, number

if TYPE_CHECKING:
    import polars as pl

MEASURES: tuple[tuple[str, str, Style], ...] = (
    ("f1", "F1", "score"),
    ("f1_always_yes", "F1, always yes", "score"),
    ("precision", "Precision", "score"),
    ("recall", "Recall", "score"),
    ("accuracy", "Accuracy", "score"),
    ("balanced_accuracy", "Balanced accuracy", "score"),
    ("mcc", "MCC", "score"),
    ("auroc", "AUROC", "score"),
    ("coverage", "Coverage", "share"),
)
"""Per-latent measures of one side: column, heading, style."""


def write_table(folder: Path, name: str, table: pl.DataFrame) -> None:
    """Write `<folder>/<name>.parquet`, compressed by zstd."""
    table.write_parquet(folder / f"{name}.parquet", compression="zstd")


def write_rows(folder: Path, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """The same for rows; no rows, no file."""
    import polars as pl

    if rows:
        write_table(folder, name, pl.DataFrame(rows, infer_schema_length=None))


def read_table(folder: Path, name: str) -> dict[str, list[Any]] | None:
    """The columns of a table in order, or None when the report has no such table."""
    import polars as pl

    path = folder / f"{name}.parquet"
    return pl.read_parquet(path).to_dict(as_series=False) if path.exists() else None


def table_sizes(folder: Path) -> list[tuple[str, int]]:
    """Name and number of rows of every table, by name; nothing of them is read."""
    import pyarrow.parquet as pq

    return [(path.stem, pq.read_metadata(path).num_rows) for path in sorted(folder.glob("*.parquet"))]


def every_label(columns: Mapping[str, list[Any]], metric: str, keys: Sequence[str], limit: int) -> list[dict[str, Any]]:
    """The first rows of the table of all explainers: the id, and per explainer its label and finished value."""
    return [
        {
            "id": columns["id"][index],
            "labels": [
                (columns[f"explanation_{key}"][index], number(columns[f"{metric}_{key}"][index], "score"))
                for key in keys
            ],
        }
        for index in range(min(len(columns["id"]), limit))
    ]


def plain_latents(latents: Mapping[str, list[Any]], limit: int) -> list[dict[str, Any]]:
    """The first rows of the latent table with finished texts, for pages without scripts."""
    return [
        {
            "index": index,
            **{name: latents[name][index] for name in ("id", "hookpoint")},
            "label_a": latents["explanation_a"][index],
            "label_b": latents["explanation_b"][index],
            "status": latents["status"][index].replace("_", " "),
            "value_a": number(latents["value_a"][index], "score"),
            "value_b": number(latents["value_b"][index], "score"),
            "delta": number(latents["delta"][index], "difference"),
            "density": number(latents["density"][index], "rate"),
        }
        for index in range(min(len(latents["id"]), limit))
    ]


def rows_of_latents(
    tables: Path, name: str, latents: Mapping[str, list[Any]], indices: Sequence[int]
) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """The rows of a table that belong to some latents, in the table's order."""
    import polars as pl

    path = tables / f"{name}.parquet"
    if not path.exists():
        return {}
    wanted = pl.DataFrame(
        {
            "hookpoint": [latents["hookpoint"][index] for index in indices],
            "latent": [latents["latent"][index] for index in indices],
        }
    )
    scan: pl.LazyFrame = pl.scan_parquet(path)
    keys = wanted.lazy().cast({"latent": scan.collect_schema()["latent"]})
    frame = scan.join(keys, on=["hookpoint", "latent"], how="semi", maintain_order="left").collect()
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in frame.iter_rows(named=True):
        found.setdefault((row["hookpoint"], row["latent"]), []).append(row)
    return found
