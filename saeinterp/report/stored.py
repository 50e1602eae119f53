"""The results of a report that lies in a folder, read back.

The surprising choice: results of another version's format are not an error here but None, since most callers have
another way: they make the report again from the artifacts behind it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from saeinterp.artifacts import read_json
from saeinterp.errors import DamagedArtifactError, DataError
from saeinterp.report.results import FORMAT, Results

RESULTS = "results.json"
SCHEMA = "results.schema.json"


def read_results(folder: Path) -> Results | None:
    """The results of a report folder; None where they are of another version's format.

    Raises:
        DataError: There is no `results.json`, or it is no JSON.
    """
    path = folder / RESULTS
    try:
        data = read_json(path)
    except FileNotFoundError as error:
        raise DataError(
            f"no {RESULTS}: not a report",
            field=str(folder),
            expected="the folder of a report, such as runs/report/layer-health-1a2b3c4d",
        ) from error
    except ValueError as error:
        raise DamagedArtifactError(
            f"{RESULTS} is not JSON: {error}", field=str(folder), next_step="make the report again"
        ) from error
    if not isinstance(data, Mapping) or data.get("format") != FORMAT:
        return None
    try:
        return Results.model_validate(data)
    except ValidationError:
        return None


def is_data(name: str) -> bool:
    """Whether a file of a report is what its pages are rendered from."""
    return name == RESULTS or name.startswith("tables/")
