"""The steps that bring in an outside table: read it, grade its models, hold its claims against its numbers.

Payloads: `table.json` (an `ImportedTable`), `grades.json` per model as for our own layers, and `checks.json` (a
`TableReview`). The surprising choice: the recipe holds the file's checksum, not its path, so the same table gives the
same artifacts wherever it lies.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from saeinterp.artifacts import Artifact, ArtifactStore, Recipe, Workspace, write_json
from saeinterp.config import WORST_CASE, GradingConfig, recipe_of
from saeinterp.errors import ConfigError
from saeinterp.health.grading.comparison import GradeComparison, compare_grades
from saeinterp.health.grading.results import LayerGrades, Record
from saeinterp.health.grading.step import grade_rows, read_grades
from saeinterp.health.imported.checks import TableCheck, table_checks
from saeinterp.health.imported.rows import ImportedTable
from saeinterp.health.imported.table import read_health_table

log = logging.getLogger(__name__)

VERSION = 1


class PairComparison(Record):
    """Two models of the file by their grades."""

    a: str
    b: str
    comparison: GradeComparison


class TableReview(Record):
    """What the checks of a table found, and its models side by side."""

    checks: tuple[TableCheck, ...]
    pairs: tuple[PairComparison, ...]
    """The first model of the file against each other one."""

    @property
    def problems(self) -> tuple[TableCheck, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if not check.passed)


class ImportedHealth(NamedTuple):
    """What an import leaves: the table, the review of it, and one `grades` artifact per model."""

    table: Artifact
    review: Artifact
    grades: Mapping[str, Artifact]


def import_health(
    path: str | Path,
    *,
    models: Sequence[str] = (),
    num_latents: int | None = None,
    k: int | None = None,
    config: GradingConfig,
    store: ArtifactStore,
) -> ImportedHealth:
    """Read, grade and check an outside table of layer health; arguments as of `read_health_table`.

    Raises:
        DataError: The file cannot be read; file, line, column, value and expectation are named.
        ConfigError: A name, or the dataset that is to decide, does not fit the file.
    """
    table = read_health_table(path, models=models, num_latents=num_latents, k=k)
    known = list(dict.fromkeys(row.dataset for row in table.rows))
    if config.dataset not in (WORST_CASE, *known):
        raise ConfigError(
            "no layer was evaluated on the dataset that decides",
            field="grading.dataset",
            got=config.dataset,
            expected=f"{WORST_CASE} or one of: {', '.join(known)}",
        )
    # Graded before anything is stored, so that a table which cannot be graded leaves nothing behind.
    grades = {
        model.title: grade_rows(
            [row.graded(file=table.file, unit=table.unit) for row in table.of(model.title)], config=config
        )
        for model in table.models
    }
    settings = {"sha256": table.sha256, "file": table.file, "models": list(models), "num_latents": num_latents, "k": k}
    source = store.build(
        Recipe("health-table", _slug(Path(table.file).stem), VERSION, settings),
        lambda space: _write_table(space, table),
    )
    made = {
        title: store.build(
            Recipe("grades", _slug(title), VERSION, {"model": title, **recipe_of(config)}, (source,)),
            lambda space, found=found: _write_grades(space, found),  # type: ignore[misc]
        )
        for title, found in grades.items()
    }
    review = store.build(
        Recipe("table-review", source.name, VERSION, {}, (source, *made.values())),
        lambda space: _write_review(space, table, grades),
    )
    return ImportedHealth(source, review, made)


def read_table(artifact: Artifact) -> ImportedTable:
    """The content of `table.json`."""
    return ImportedTable.model_validate_json(artifact.file("table.json").read_bytes())


def read_review(artifact: Artifact) -> TableReview:
    """The content of `checks.json`."""
    return TableReview.model_validate_json(artifact.file("checks.json").read_bytes())


def summary_of(imported: ImportedHealth) -> dict[str, object]:
    """Grades, failed checks and comparisons as plain values, for `--json`."""
    review = read_review(imported.review)
    return {
        "models": {title: read_grades(item).model_dump(mode="json") for title, item in imported.grades.items()},
        "problems": [check.model_dump(mode="json") for check in review.problems],
        "checks": len(review.checks),
        "comparisons": [pair.model_dump(mode="json") for pair in review.pairs],
    }


def _write_table(space: Workspace, table: ImportedTable) -> None:
    write_json(space.out / "table.json", table.model_dump(mode="json"))
    space.counts = {"rows": len(table.rows), "models": len(table.models), "claims": len(table.claims)}


def _write_grades(space: Workspace, grades: LayerGrades) -> None:
    write_json(space.out / "grades.json", grades.model_dump(mode="json"))
    space.counts = {"saes": len(grades.saes), **grades.counts.model_dump()}


def _write_review(space: Workspace, table: ImportedTable, grades: Mapping[str, LayerGrades]) -> None:
    first, *others = table.models
    pairs = [
        PairComparison(
            a=first.title,
            b=other.title,
            comparison=compare_grades(grades[first.title], grades[other.title], names=(first.title, other.title)),
        )
        for other in others
    ]
    review = TableReview(checks=table_checks(table, grades), pairs=tuple(pairs))
    log.info("%s: %d of %d checks fail", table.file, len(review.problems), len(review.checks))
    write_json(space.out / "checks.json", review.model_dump(mode="json"))
    space.counts = {"checks": len(review.checks), "problems": len(review.problems)}


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-.")[:60] or "table"
