"""`layers.parquet` of two models: one row per place and metric."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from saeinterp.compare.model_results import ModelComparison


def write_layers(path: Path, result: ModelComparison) -> None:
    """Write the table."""
    rows = []
    for layer in result.layers:
        for row in layer.metrics:
            values = row.model_dump(
                include={
                    "hookpoint", "dataset", "recipe", "metric", "difference", "low", "high", "verdict", "n_documents"
                }
            )  # fmt: skip
            for name, side in (("a", row.a), ("b", row.b)):
                values |= {name: side.value, f"{name}_low": side.low, f"{name}_high": side.high}
            values |= {"saes_a": len(layer.seeds_a), "saes_b": len(layer.seeds_b)}
            values |= {f"models_{name}": getattr(row.models, name, None) for name in ("low", "high", "verdict")}
            rows.append({**values, "note": row.reason or row.flag})
    numbers = ("a", "b", "a_low", "a_high", "b_low", "b_high", "difference", "low", "high")
    schema = pa.schema(
        [
            ("hookpoint", pa.string()),
            ("dataset", pa.string()),
            ("recipe", pa.string()),
            ("metric", pa.string()),
            *((name, pa.float64()) for name in numbers),
            ("verdict", pa.string()),
            ("n_documents", pa.int32()),
            ("saes_a", pa.int32()),
            ("saes_b", pa.int32()),
            ("models_low", pa.float64()),
            ("models_high", pa.float64()),
            ("models_verdict", pa.string()),
            ("note", pa.string()),
        ]
    )
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, compression="zstd")
