"""Show a finished report in the Prefect UI: a summary, tables and a link.

Prefect keeps artifacts in its database, so they stay small; the report itself lies in its folder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from saeinterp.artifacts import Artifact, read_json
from saeinterp.health.probing.step import read_probes
from saeinterp.report import Results, fitting, summary_markdown, summary_tables
from saeinterp.report.format import plural
from saeinterp.report.summary import LISTED, line_of

BYTES_LIMIT = 90_000
"""Of one artifact: a database row should stay below 100 KB."""


def publish_report(report: Artifact, *, key: str) -> None:
    """Create `<key>-summary`, `<key>-report` (the link) and a table for each thing the report compares.

    Args:
        report: Its folder holds `results.json`, `report.html` and `report.md`.
        key: Of the flow; becomes lower case with dashes.
    """
    results = Results.model_validate(read_json(report.file("results.json")))
    html = report.file("report.html")
    publish(
        report,
        key=key,
        summary=f"{summary_markdown(results)}\n{_places(report, html)}",
        page=html,
        tables=summary_tables(results),
    )


def publish_probes(probes: Artifact, *, failures: Sequence[str] = ()) -> None:
    """The same for sparse probing, whose page is `report.md`.

    Args:
        failures: One line per failed layer.
    """
    results, _ = read_probes(probes)
    page = probes.file("report.md")
    means = [{name: value for name, value in row.items() if value is not None} for row in results["layers"]]
    lines = [
        f"# {line_of(results['table']['title'])}",
        "",
        f"{plural(results['rows'], 'text')} of {len(results['classes'])} classes, {plural(len(means), 'mean')} over "
        "them in the table beside this; probes, intervals and p are in the report.",
        "",
        *(f"- {line_of(line)}" for line in failures[: LISTED[0]]),
        *([f"- and {len(failures) - LISTED[0]} more"] if len(failures) > LISTED[0] else []),
    ]
    publish(probes, key="probe-latents", summary="\n".join(lines) + "\n", page=page, tables={"means": means})


def publish(
    artifact: Artifact, *, key: str, summary: str, page: Path, tables: Mapping[str, Sequence[Mapping[str, Any]]]
) -> None:
    """The same for any artifact with a page: a markdown artifact, a link and a table each.

    Raises:
        AssertionError: The summary is no summary: it would not fit.
    """
    slug = slugged(key)
    assert len(summary.encode()) <= BYTES_LIMIT, "a summary must fit into a database row"
    create_markdown_artifact(markdown=summary, key=f"{slug}-summary", description=artifact.id)
    create_link_artifact(link=artifact.link(page.name), link_text=f"{artifact.id}/{page.name}", key=f"{slug}-report")
    for name, rows in tables.items():
        kept = fitting(rows)
        if not kept:
            continue
        cut = "" if len(kept) == len(rows) else f"; the first {len(kept)} of {plural(len(rows), 'row')}"
        create_table_artifact(
            table=[dict(row) for row in kept],
            key=f"{slug}-{slugged(name)}",
            description=f"{name.capitalize()} of {artifact.id}{cut}",
        )


def slugged(text: str) -> str:
    """Text as a Prefect key: lower case letters, digits and single dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "report"


def _places(report: Artifact, html: Path) -> str:
    """Where the whole report lies."""
    if report.url is not None:
        return (
            "| | |\n|---|---|\n"
            f"| open in a browser | `saeinterp view {report.id} --root {report.url}` |\n"
            f"| lies at | `{report.location}` |\n"
        )
    return (
        "| | |\n|---|---|\n"
        f"| open in a browser | `{html}` |\n"
        f"| read or paste | `{report.path / 'report.md'}` |\n"
        f"| numbers | `{report.path / 'results.json'}` |\n"
    )
