"""Show a finished report in the Prefect UI: a summary, a table of layers and a link.

Prefect keeps artifacts in its database, so they stay small; the report itself lies in its folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from saeinterp.artifacts import Artifact, read_json

MARKDOWN_LIMIT = 90_000  # characters; the database row should stay below 100 KB


def publish_report(report: Artifact, *, key: str) -> None:
    """Create the markdown, table and link artifacts `<key>-summary`, `<key>-layers`, `<key>-report`."""
    html = report.file("report.html")
    text = report.file("report.md").read_text(encoding="utf-8")
    if len(text) > MARKDOWN_LIMIT:
        text = text[:MARKDOWN_LIMIT] + f"\n\n(cut here; the whole text is {report.file('report.md')})"
    create_markdown_artifact(markdown=text, key=f"{key}-summary", description=f"{report.id}: {html}")
    create_link_artifact(link=html.as_uri(), link_text=f"{report.id}/report.html", key=f"{key}-report")
    rows = layer_rows(report.path)
    if rows:
        create_table_artifact(table=rows, key=f"{key}-layers", description="Layer health")


def layer_rows(folder: Path) -> list[dict[str, Any]]:
    """One JSON row per side and layer from the report's results; a missing number shows its reason."""
    layers = read_json(folder / "results.json")["layers"]

    def cell(number: dict[str, Any]) -> Any:
        return number["reason"] if number["value"] is None else number["value"]

    columns = ("loss_recovered", "delta_ce", "fvu", "l0", "dead")
    return [
        {"model": row["side"], "layer": row["hookpoint"], **{name: cell(row[name]) for name in columns}}
        for row in layers
    ]
