"""The JSON Schema of `results.json`: every key with its title and description, from the fields' own.

The surprising choice: the schema is written beside every report, so a `results.json` that is read years later says
itself what its keys mean.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from saeinterp.artifacts import write_atomic, write_json
from saeinterp.errors import DataError
from saeinterp.report.results import Results
from saeinterp.report.stored import RESULTS, SCHEMA, read_results

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def results_schema() -> dict[str, Any]:
    """The schema of this version's `results.json`."""
    return {"$schema": DIALECT, **Results.model_json_schema(mode="serialization")}


def write_results(folder: Path, out: Path) -> list[Path]:
    """Copy a report's `results.json` and write its schema beside it; returns both files.

    Raises:
        DataError: There are no results, or they are of another version's format, which this schema does not fit.
    """
    if read_results(folder) is None:
        raise DataError(
            "the report is of another version's format",
            field=str(folder),
            next_step="make it again: saeinterp report DIR",
        )
    out.mkdir(parents=True, exist_ok=True)
    results, schema = out / RESULTS, out / SCHEMA
    write_atomic(results, (folder / RESULTS).read_bytes())
    write_json(schema, results_schema())
    return [results, schema]
