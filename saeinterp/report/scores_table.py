"""An outside table of scores as a report section: its file, what is wrong with it, how it was read."""

from __future__ import annotations

from saeinterp.artifacts import Artifact, ArtifactStore
from saeinterp.compare.imported import read_score_review, read_scores_table
from saeinterp.report.grade_results import OutsideTable, TableProblem
from saeinterp.report.lineage import Lineage


def scores_table(review: Artifact | None, store: ArtifactStore) -> OutsideTable | None:
    """The section of a `score-review` artifact; None for any other."""
    if review is None or review.kind != "score-review":
        return None
    source = Lineage(store).inputs(review, "score-table")[0]
    table, found = read_scores_table(source), read_score_review(review)
    return OutsideTable(
        file=", ".join(item.file for item in table.files),
        unit=table.files[0].unit,
        sha256=table.files[0].sha256,
        rows=sum(len(item.rows) for item in table.explainers),
        checks=len(found.checks),
        problems=tuple(
            TableProblem(line=item.line, model=item.model or "", hookpoint="", name=item.name, detail=item.detail)
            for item in found.problems
        ),
        notes=(*table.notes, *found.notes),
        source=source.id,
    )
