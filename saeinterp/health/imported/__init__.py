"""Health tables made elsewhere: read, checked, graded."""

from saeinterp.health.imported.step import (
    ImportedHealth,
    TableReview,
    import_health,
    read_review,
    read_table,
    summary_of,
)

__all__ = ["ImportedHealth", "TableReview", "import_health", "read_review", "read_table", "summary_of"]
