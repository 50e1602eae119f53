"""The summary of a report: its headline, what failed and a small table, whatever the texts in it are."""

from __future__ import annotations

import json

import pytest
from planted_reports import World

from saeinterp.report import Failure, Results, fitting, summary_markdown, summary_tables, write_report
from saeinterp.report.format import markdown_text
from saeinterp.report.summary import SUMMARY_BYTES

from .conftest import Report, read_report


def failure(text: str, layer: int = 0) -> Failure:
    return Failure(stage="training", hookpoint=f"layers.{layer}", side="subject", error=text)


def test_the_headline_is_the_report_s_and_findings_follow(report: Report) -> None:
    text = summary_markdown(report.results)
    assert report.results.explainers is not None
    assert text.startswith("# SmolLM2 135M and top-tokens as explainers\n\n**")
    assert f"**{markdown_text(report.results.explainers.sentence)}**" in text
    assert f"## {len(report.results.findings)} findings" in text
    assert "and 6 others, in the report" in text
    assert len(text.encode()) < 20_000


def test_failures_come_before_findings_and_are_counted(report: Report) -> None:
    failures = tuple(failure(f"error {layer}", layer) for layer in range(40))
    text = summary_markdown(report.results.model_copy(update={"failures": failures}))
    assert "## 40 steps failed; no number includes them" in text
    assert "- and 28 others, in the report" in text
    assert text.index("steps failed") < text.index("findings")


@pytest.mark.parametrize(
    "evil",
    [
        "</script><script>alert(1)</script>",
        "[click](javascript:alert(1))",
        "![x](http://example.invalid/x.png)",
        "| a | b |\n|---|---|\n# not a heading",
        "\u202etxt.exe\x00\x1b[31m",
        "{{ 7 * 7 }} {% raw %}",
    ],
)
def test_text_from_outside_stays_text(report: Report, evil: str) -> None:
    changed = report.results.model_copy(update={"title": evil, "failures": (failure(evil),), "findings": (evil,)})
    text = summary_markdown(changed)
    assert "<script" not in text
    assert "](" not in text.replace("\\](", "")
    for character in "\x00\x1b\u202e":
        assert character not in text
    assert text.count("\n# ") == 0
    assert "\n|" not in text


def test_a_summary_fits_a_database_row_whatever_is_in_it(report: Report) -> None:
    long = "\u202e" * 50_000
    changed = report.results.model_copy(
        update={"failures": tuple(failure(long, n) for n in range(99)), "findings": (long,) * 99, "title": long}
    )
    text = summary_markdown(changed)
    assert len(text.encode()) <= SUMMARY_BYTES
    assert "99 steps failed" in text
    assert "99 findings" in text
    assert "characters, all in the report" in text


def test_tables_hold_numbers_as_the_report_writes_them(report: Report) -> None:
    tables = summary_tables(report.results)
    assert set(tables) == {"metrics", "layers"}
    assert json.loads(json.dumps(tables)) == tables
    primary = next(row for row in tables["metrics"] if row["primary"])
    assert primary["B − A"] in report.markdown
    missing = [row["Loss recovered"] for row in tables["layers"] if row["model"] == "random weights"]
    assert all(value.startswith("NA: not applicable") for value in missing)


def test_a_table_too_long_keeps_its_first_rows() -> None:
    rows = [{"n": number, "text": "x" * 100} for number in range(1000)]
    kept = fitting(rows, 10_000)
    assert kept == rows[: len(kept)]
    assert len(json.dumps(kept).encode()) <= 10_000 < len(json.dumps(rows[: len(kept) + 1]).encode())


def test_a_report_without_anything_says_so(world: World) -> None:
    arguments = world.arguments(
        explainer_comparison=None,
        model_comparison=None,
        health={},
        saes={},
        grades={},
        failures=[failure("out of memory")],
    )
    results: Results = read_report(world, write_report(**arguments)).results
    text = summary_markdown(results)
    assert "Nothing was compared" in text
    assert "out of memory" in text
    assert summary_tables(results) == {}
