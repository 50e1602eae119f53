"""Explainers in reports: three or more with their ranking, self-scored ones with a banner, scores made elsewhere."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path

import markupsafe
import polars as pl
import pytest
from planted_reports import build_world

from saeinterp.artifacts import ArtifactStore
from saeinterp.compare import read_explainer_pairs, read_scorer_agreement
from saeinterp.compare.imported import import_scores
from saeinterp.config import ComparisonConfig
from saeinterp.report import write_report
from saeinterp.report.format import markdown_text
from saeinterp.report.pages.dashboard import numbers

from .conftest import Report, read_report
from .test_writing import Page, at_path

BANNER = "Two things changed at once: the explainer and its judge"


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A report of three explainers, each judged by its own model."""
    world = build_world(
        ArtifactStore(tmp_path_factory.mktemp("three")), third=True, self_scored=True, control=False, graded=False
    )
    return read_report(world, write_report(**world.arguments(title="Three explainers")))


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, Report]:
    """A report of an imported table with a wrong mean and a hostile label."""
    folder = tmp_path_factory.mktemp("outside")
    rows = "\n".join(f"| {x} | <script>alert({x})</script> | 0.{3 + x} | 0.{2 + x} |" for x in range(7))
    text = f"| latent | big label | big F1 | small F1 |\n|---|---|---|---|\n{rows}\n\n- **big**: Mean F1 = 0.95\n"
    (folder / "paper.md").write_text(text, encoding="utf-8")
    store = ArtifactStore(folder / "runs")
    made = import_scores([folder / "paper.md"], config=ComparisonConfig(bootstrap=200), store=store)
    world = build_world(ArtifactStore(folder / "other"), compare=False, control=False, graded=False)
    arguments = world.arguments(title="Scores from paper.md", store=store, health={}, saes={})
    report = write_report(**{**arguments, "explainer_comparison": made.comparisons["ab"], "review": made.review})
    return text, made.table.id, read_report(world, report)


def test_three_explainers_are_ranked_first_and_every_pair_follows(three: Report) -> None:
    assert three.world.pairs is not None
    stored = read_explainer_pairs(three.world.pairs)
    pairs = three.results.pairs
    assert pairs is not None
    assert [(row.title, row.value.value) for row in pairs.ranking] == [(i.title, i.mean) for i in stored.ranking]
    assert pairs.ranking[0].title == "SmolLM2 360M"
    assert [row.title for row in pairs.pairs] == [
        "A: SmolLM2 135M and B: top-tokens",
        "A: SmolLM2 135M and C: SmolLM2 360M",
        "B: top-tokens and C: SmolLM2 360M",
    ]
    for row, item in zip(pairs.pairs, stored.pairs):
        assert (row.p_holm.value, row.verdict_words, row.sentence) == (
            item.paired.p_holm,
            item.verdict_words,
            item.sentence,
        )
        assert escape(item.sentence) in three.html
        assert markdown_text(item.sentence) in three.markdown
    order = [three.html.index(f'id="{name}"') for name in ("ranking", "verdict", "latents", "metrics")]
    assert order == sorted(order)


def test_the_pair_in_full_carries_the_adjusted_verdict(three: Report) -> None:
    section, pairs = three.results.explainers, three.results.pairs
    assert section is not None
    assert pairs is not None
    assert (section.verdict, section.sentence) == (pairs.pairs[0].verdict, pairs.pairs[0].sentence)
    assert section.primary.p_holm == pairs.pairs[0].p_holm
    assert {family.name: family.tests for family in section.families}["primary"] == 3
    said = " ".join(three.results.findings)
    assert "before adjustment" not in said
    assert "Adjusted over 3 pairs" in said


def test_numbers_of_three_explainers_are_traceable(three: Report) -> None:
    shown = [(attrs, text) for attrs, text in Page(three.html).by("data") if "data-path" in attrs]
    assert sum((attrs["data-path"] or "").startswith("pairs.") for attrs, _ in shown) > 60
    for attrs, _ in shown:
        assert json.loads(attrs["value"] or "") == at_path(three.results, attrs["data-path"] or "")["value"]
    known = {step.id for step in three.results.provenance.steps}
    for path, item in numbers(three.results):
        assert item.source in known, path
        assert item.value is None or not path.startswith("pairs") or item.n is not None, path


def test_every_explainers_labels_are_in_a_table_of_their_own(three: Report) -> None:
    table = pl.read_parquet(three.artifact.path / "tables" / "explainers.parquet")
    assert {"explanation_a", "explanation_b", "explanation_c", "f1_c", "mcnemar_p_holm_bc"} <= set(table.columns)
    assert "years and dates" in three.html


def test_self_scored_explainers_stand_under_a_banner(three: Report, report: Report) -> None:
    assert BANNER in three.html
    assert BANNER in three.markdown
    assert three.results.explainers is not None
    assert three.results.explainers.matched
    pairs = three.results.pairs
    assert pairs is not None
    judged = [check for check in pairs.pairs[1].checks if check.field == "scorer model"]
    assert [(check.a, check.b, check.severity) for check in judged] == [
        ("demo:smollm2-135m (detection)", "judge-c (detection)", "soft")
    ]
    assert BANNER not in report.html
    assert BANNER not in report.markdown


def test_an_outside_table_ends_in_the_same_report_with_its_problems(outside: tuple[str, str, Report]) -> None:
    _, source, found = outside
    results = found.results
    assert results.scores_table is not None
    assert results.scores_table.source == source
    assert [(item.line, item.model, item.name) for item in results.scores_table.problems] == [
        (11, "big", "printed mean = mean of the rows")
    ]
    assert results.contradictions == [("line 11, big", "printed mean = mean of the rows: printed 0.95, computed 0.60")]
    assert "printed 0.95, computed 0.60" in found.html
    assert "what the outside scores were made with is not known" in found.html
    assert results.explainers is not None
    assert results.explainers.sentence in found.html
    assert [row.metric for row in results.explainers.rows] == ["f1"]
    assert {line.field: line.value for line in results.setup}["Outside table"] == "paper.md, 7 latents of big and small"


def test_labels_of_an_outside_table_stay_text(outside: tuple[str, str, Report]) -> None:
    _, _, found = outside
    assert "<script>alert" not in found.html
    assert "<script>alert" not in found.markdown
    table = pl.read_parquet(found.artifact.path / "tables" / "latents.parquet")
    assert table["explanation_a"][3] == "<script>alert(3)</script>"
    assert set(table["outcome"]) == {"unknown"}
    assert not (Path(found.artifact.path) / "tables" / "examples.parquet").exists()
    assert "always-yes value" not in " ".join(found.results.findings)


def test_a_second_scorer_stands_beside_the_first_under_its_own_name(tmp_path: Path) -> None:
    world = build_world(ArtifactStore(tmp_path), third=True, second_scorer=True, control=False, graded=False)
    report = read_report(world, write_report(**world.arguments(title="Judged twice")))
    assert world.agreement is not None
    stored = read_scorer_agreement(world.agreement)
    section = report.results.scorers
    assert section is not None
    assert (section.scorer, section.second_scorer) == ("demo:smollm2-135m (detection)", "judge-2 (detection)")
    for row, pair in zip(section.pairs, stored.pairs, strict=True):
        assert [item.difference.value for item in row.judged] == [
            pair.first.paired.difference,
            pair.second.paired.difference,
        ]
        assert row.pearson.value == pair.pearson_r
        assert row.pearson.n == pair.n
    assert len(section.pairs) == 3
    lines = {line.field: line.value for line in report.results.setup}
    assert (lines["Scorer"], lines["Second scorer"]) == ("demo:smollm2-135m (detection)", "judge-2 (detection)")
    # The primary analysis is that of a report without the second scorer.
    alone = build_world(ArtifactStore(tmp_path / "alone"), third=True, control=False, graded=False)
    first = read_report(alone, write_report(**alone.arguments(title="Judged twice")))
    assert report.results.explainers == first.results.explainers
    assert report.results.pairs == first.results.pairs
    assert "Second scorer" not in first.markdown
    assert "Second scorer" not in first.html
    for page, text in ((report.markdown, markdown_text), (report.html, lambda line: str(markupsafe.escape(line)))):
        assert "Second scorer" in page
        for line in stored.sentences:
            assert text(line.text) in page
    for path, number in numbers(section, "scorers"):
        assert number.n is not None, path
        assert number.source, path
