"""Scores made elsewhere: read, held against what their file says of them, compared as our own are."""

from saeinterp.compare.imported.step import (
    ImportedComparison,
    import_scores,
    read_score_review,
    read_scores_table,
    summary_of,
)

__all__ = ["ImportedComparison", "import_scores", "read_score_review", "read_scores_table", "summary_of"]
