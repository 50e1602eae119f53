"""Reports at their edges: written all the same, what is missing said in words, every number on the page as stored."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from page_walker import check_markdown, check_page, check_payload
from planted_edges import EDGES, SCRIPTS
from planted_reports import World

from saeinterp.artifacts import ArtifactStore
from saeinterp.report import summary_markdown, write_csv, write_report
from saeinterp.report.format import visible

from .conftest import Report, read_report

Written = Callable[[str], Report]


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """The report of an edge by its name, written once."""
    made: dict[str, Report] = {}

    def written(name: str) -> Report:
        if name not in made:
            store = ArtifactStore(tmp_path_factory.mktemp(name))
            made[name] = read_report(World(store), write_report(**EDGES[name](store)))
        return made[name]

    return written


@pytest.mark.parametrize("name", EDGES)
def test_every_number_is_as_stored_and_nothing_reads_nan_or_none(edge: Written, name: str, tmp_path: Path) -> None:
    report = edge(name)
    page = check_page(report.html, report.artifact.path)
    assert len(page.numbers) > 10
    assert (check_payload(report.html, report.artifact.path) > 0) is (report.results.explainers is not None)
    check_markdown(report.markdown)
    check_markdown(summary_markdown(report.results))
    assert write_csv(report.artifact.path, tmp_path)


def test_a_whole_report_is_walked_too(report: Report) -> None:
    page = check_page(report.html, report.artifact.path)
    assert len(page.numbers) > 200
    check_markdown(report.markdown)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (r'<data class="num" value="[^"]*"', '<data class="num" value="0.123456"'),
        (r'(<data class="num"[^>]*>)[^<]*<', r"\1+9.999<"),
        (r'(>L5_F108<.*?<td class="r">)[^<]*<', r"\g<1>0.111<"),
        (r"<footer>", "<footer>nan "),
    ],
)
def test_the_walk_finds_a_number_that_was_changed(report: Report, old: str, new: str) -> None:
    spoiled, count = re.subn(old, new, report.html, count=1, flags=re.S)
    assert count == 1
    with pytest.raises(AssertionError):
        check_page(spoiled, report.artifact.path)


def test_one_latent_says_why_there_is_no_interval_and_no_test(edge: Written) -> None:
    report = edge("one_latent")
    section = report.results.explainers
    assert section is not None
    assert section.n_latents == 1
    assert section.primary.difference.no_interval
    assert section.primary.detectable is not None
    assert section.primary.detectable.reason in report.html
    assert "n = 1 latent." in report.markdown


def test_failed_explanations_are_counted_and_compared_as_empty_ones(edge: Written) -> None:
    both, one = edge("nothing_explained"), edge("one_side_failed")
    assert both.results.explainers is not None
    assert {row.status: (row.a, row.b) for row in both.results.explainers.statuses}["explanation_failed"] == (6, 6)
    assert {row.status: (row.a, row.b) for row in one.results.explainers.statuses}["explanation_failed"] == (6, 0)  # type: ignore[union-attr]
    for title, report in (("SmolLM2 135M", both), ("top-tokens", both), ("SmolLM2 135M", one)):
        for text in (report.html, report.markdown, summary_markdown(report.results)):
            assert f"Every explanation of {title} failed" in text
    assert "Every explanation of top-tokens failed" not in one.html
    for report in (both, one):
        assert "A failed explanation scores as an empty one does" in report.markdown
        assert "explanation failed" in report.html


def test_a_side_without_layers_is_named_with_what_failed(edge: Written) -> None:
    report = edge("one_side_missing")
    assert report.results.models is None
    assert {layer.side for layer in report.results.layers} == {"subject"}
    for text in (report.html, report.markdown):
        assert "1 step failed; the numbers below are without it" in text
        assert "out of memory" in text


def test_unmatched_sides_stand_under_a_banner_with_every_mismatch(edge: Written) -> None:
    report = edge("unmatched")
    section = report.results.explainers
    assert section is not None
    assert not section.matched
    broken = [check for check in section.checks if not check.ok and check.severity == "hard"]
    assert {"examples shown to the explainer", "scorer llm.model"} <= {check.field for check in broken}
    for text in (report.html, report.markdown):
        assert "Unmatched comparison" in text
        for check in broken:
            assert check.field in text
    assert "✗ not matched" in report.html
    assert "Unmatched comparison" in summary_markdown(report.results)


def test_missing_metrics_are_na_with_a_reason(edge: Written) -> None:
    report = edge("missing_metrics")
    layer = report.results.layers[0]
    for item in (layer.kl_recovered, layer.cosine, layer.l0, layer.always_on):
        assert item.value is None
        assert item.reason == "not in the artifact"
    for title in ("KL recovered", "Cosine", "L0", "Always on"):
        assert f"NA in {title}: not in the artifact." in report.markdown
    assert "not in the artifact" in report.html


def test_ninety_six_saes_stay_small_and_readable(edge: Written) -> None:
    report = edge("many_saes")
    assert len(report.results.layers) == len(report.results.training) == 96
    assert report.artifact.file("report.html").stat().st_size < 6_000_000
    assert report.artifact.file("report.md").stat().st_size < 120_000
    assert max(len(finding) for finding in report.results.findings) < 1_000
    lines = {line.field: line.value for line in report.results.setup}
    assert "layers.0@0 to layers.15@5 (96)" in lines["SAEs"]
    assert report.markdown.count("| layers.15@5 |") >= 2
    assert "over 96 rows" in report.markdown


def test_every_script_is_readable_and_none_turns_the_page_around(edge: Written) -> None:
    report = edge("scripts")
    for _, _, label, _ in SCRIPTS:
        assert visible(label) in report.html
    assert report.results.title in report.html
    assert 'dir="rtl"' not in report.html
    assert "\u200f" not in report.html + report.markdown
