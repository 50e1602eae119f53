"""Grades in reports: a word beside every number, datasets and SAEs told apart, contradictions first, hostile tables."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import polars as pl
import pytest
from planted_reports import SUBJECT, build_world
from typer.testing import CliRunner

from flows.import_commands import app
from saeinterp.artifacts import ArtifactStore
from saeinterp.config import GradingConfig
from saeinterp.health.imported import import_health
from saeinterp.report import Results, write_report
from saeinterp.report.pages.dashboard import numbers

from .conftest import Report, read_report
from .test_writing import Page, at_path

TABLE = """# {title}

## Alpha Layer-by-Layer

- **Configuration**: k=64, 200 latents

| Layer | Loss Recovered | L0 | Dead Features | Absorption | Health |
|---|---|---|---|---|---|
| 2 | 95.10% ({data})<br>94.30% (News) | 60.10-61.20 | 30.25% ({data})<br>15.50% (News) | 0.260 | 4/4 |
| 6 | 91.00% ({data})<br>90.00% (News) | 58.00-57.50 | 0.50% | NA | 3/3 |

## Beta Layer-by-Layer

| Layer | Loss Recovered | L0 | Dead Features | Absorption |
|---|---|---|---|---|
| 2 | 55.00% ({data}) | 40 | 60.00% | 0.310 |
"""


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Two datasets, and two SAE training seeds per layer."""
    store = ArtifactStore(tmp_path_factory.mktemp("several"))
    world = build_world(
        store, compare=False, hookpoints=("layers.5", "layers.15"), datasets=("held-out", "squad"), seeds=(0, 1)
    )
    return read_report(world, write_report(**world.arguments()))


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Two layers of a model and of its control, on two datasets."""
    store = ArtifactStore(tmp_path_factory.mktemp("layers"))
    world = build_world(store, compare=False, hookpoints=("layers.5", "layers.15"), datasets=("held-out", "squad"))
    return read_report(world, write_report(**world.arguments(title="Layer health of two models")))


def test_the_markdown_report_of_layers_reads_as_reviewed(layers: Report, golden: Path) -> None:
    """To accept a change: SAEINTERP_UPDATE_GOLDEN=1 pytest tests/report, then review the diff."""
    written = re.sub(r"-[0-9a-f]{8}`", "-########`", layers.markdown)
    written = re.sub(r"^- (Versions|Platform): .*$", r"- \1: (differs by machine)", written, flags=re.M)
    if os.environ.get("SAEINTERP_UPDATE_GOLDEN"):
        (golden / "layers.md").write_text(written, encoding="utf-8")
    assert written == (golden / "layers.md").read_text(encoding="utf-8")


def test_two_models_are_set_side_by_side_on_every_graded_metric(layers: Report) -> None:
    section = layers.results.models
    assert section is not None
    assert section.direct is not None
    titles = [row.title for row in section.direct.rows]
    assert titles[0] == "Fully healthy"
    for name in ("Mean loss recovered", "Mean L0 [smallest, largest]", "Mean dead fraction [smallest, largest]"):
        assert titles.count(name) == 2, name
    dead = next(row for row in section.direct.rows if row.title.startswith("Mean dead") and row.dataset == "squad")
    values = [layer.dead.value for layer in layers.results.layers if layer.side == SUBJECT and layer.dataset == "squad"]
    assert dead.a.low == min(value for value in values if value is not None)
    assert dead.a.high == max(value for value in values if value is not None)


def imported(
    folder: Path, store: ArtifactStore, *, title: str = "t", data: str = "Wiki", name: str = "t.md"
) -> Results:
    path = folder / name
    path.write_text(TABLE.format(title=title, data=data), encoding="utf-8")
    made = import_health(path, config=GradingConfig(), store=store)
    report = write_report(
        title="An outside table",
        explainer_comparison=None,
        model_comparison=None,
        health={},
        saes={},
        failures=(),
        config=GradingConfig(),
        grades=made.grades,
        review=made.review,
        store=store,
    )
    results = Results.model_validate_json(report.file("results.json").read_bytes())
    pages = [report.file(file).read_text(encoding="utf-8") for file in ("report.html", "report.md")]
    for path, item in numbers(results):
        assert item.source in {step.id for step in results.provenance.steps}, path
    for attrs, _ in Page(pages[0]).by("data"):
        if "data-path" in attrs:
            assert json.loads(attrs["value"] or "") == at_path(results, attrs["data-path"] or "")["value"]
    folder.joinpath("report.html").write_text(pages[0], encoding="utf-8")
    folder.joinpath("report.md").write_text(pages[1], encoding="utf-8")
    return results


def test_every_graded_cell_has_its_number_word_and_thresholds(report: Report) -> None:
    section = report.results.grades
    assert section is not None
    subject = section.models[0]
    assert [layer.grade for layer in subject.layers] == ["4/4 healthy", "4/4 healthy", "3/4 partial"]
    for layer in subject.layers:
        for cell in layer.rows[0].cells:
            assert cell.number.value is not None
            assert cell.outcome in ("pass", "borderline", "fail")
    assert "98.31% [98.24, 98.39]% pass" in report.markdown
    assert "loss recovered pass ≥ 70%, borderline ≥ 60%" in report.markdown
    for text in (report.markdown, report.html):
        assert "seed-lenient" in text
        assert "convention of such reports, not of SAEBench" in text
        assert "crosses 0.25" in text
        assert "set by k = 32" in text
    floor = section.models[1]
    assert {layer.label for layer in floor.layers} == {"incomplete"}


def test_absorption_is_the_step_s_and_its_controls_are_printed(report: Report) -> None:
    subject = [layer for layer in report.results.layers if layer.side == SUBJECT]
    assert [layer.absorption.value for layer in subject] == [0.11, pytest.approx(0.24), pytest.approx(0.37)]
    assert all((layer.absorption.source or "").startswith("absorption/") for layer in subject)
    assert "| layers.5 | 0.110 [0.080, 0.140] | 0.070 | 0.310 | 0.146 [0.144, 0.149] |" in report.markdown
    assert "NA of a random SAE: only 3 letters have a probe with F1 above 0.6." in report.markdown
    assert "Random dictionary" in report.html


def test_datasets_and_seeds_are_told_apart_everywhere(several: Report) -> None:
    results = several.results
    assert results.datasets == ["held-out", "squad"]
    places = [(layer.side, layer.title, layer.dataset) for layer in results.layers]
    assert len(places) == len(set(places)) == 16
    assert {layer.title for layer in results.layers} == {
        f"{name} (seed {seed})" for name in ("layers.5", "layers.15") for seed in ("0", "1")
    }
    assert len({(row.side, row.title) for row in results.training}) == len(results.training) == 8
    tables = several.artifact.path / "tables"
    density = pl.read_parquet(tables / "density.parquet")
    assert density.group_by("side", "title").len().height == 16
    curves = pl.read_parquet(tables / "curves.parquet")
    assert curves.group_by("side", "title").len().height == 8
    assert "| Model | Layer | Dataset | Loss recovered |" in several.markdown
    assert re.search(r"Health measured on\*\*: held-out: 57 .*; squad: 57 ", several.markdown)
    assert '<th scope="col">Dataset</th>' in several.html
    assert results.grades is not None
    for model in results.grades.models:
        for layer in model.layers:
            assert [row.dataset for row in layer.rows] == ["held-out", "squad"]
            assert sum(row.decides for row in layer.rows) == 1
    assert results.models is not None
    assert {row.where.split(", ")[-1] for row in results.models.layers} == {"held-out", "squad"}
    shown = [attrs for attrs, _ in Page(several.html).by("data") if "data-path" in attrs]
    for attrs in shown:
        assert json.loads(attrs["value"] or "") == at_path(results, attrs["data-path"] or "")["value"]


def test_the_direct_comparison_of_models_is_the_stored_one(report: Report) -> None:
    assert report.world.models is not None
    stored = json.loads(report.world.models.file("comparison.json").read_text(encoding="utf-8"))["direct"]
    section = report.results.models
    assert section is not None
    assert section.direct is not None
    assert list(section.direct.findings) == stored["sentences"]
    healthy = section.direct.rows[0]
    assert (healthy.a.value, healthy.b.value) == (stored["a"]["healthy"], stored["b"]["healthy"])
    for sentence in stored["sentences"]:
        assert sentence in report.markdown


def test_a_report_without_grades_says_that_it_has_none(store: ArtifactStore) -> None:
    world = build_world(store, compare=False, control=False, graded=False, hookpoints=("layers.5",))
    written = read_report(world, write_report(**world.arguments()))
    assert written.results.grades is None
    assert "No grades" in written.html
    assert "Layer grades" not in written.markdown


def test_an_outside_table_is_reported_with_its_contradictions_first(tmp_path: Path, store: ArtifactStore) -> None:
    results = imported(tmp_path, store)
    assert results.grades is not None
    assert results.grades.table is not None
    problems = {(item.where, item.name) for item in results.grades.table.problems}
    assert problems == {
        ("Alpha, layers.2, Wiki", "dead fraction × latents is an integer"),
        ("Alpha, layers.2", "printed grade = computed grade"),
    }
    assert len(results.contradictions) == 2
    page, text = (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()
    assert text.index("2 integrity checks fail") < text.index("## Set-up")
    assert page.index("2 integrity checks fail") < page.index('id="grades"')
    assert "0.3025 × 200 = 60.5" in text
    assert "**3/4 partial** (decides)" in text
    assert "2/3 incomplete" not in text  # layer 6 passes all three that apply
    assert "**3/3 incomplete**" in text
    (direct,) = results.grades.direct
    assert (direct.a, direct.b) == ("Alpha", "Beta")
    mean = next(row for row in direct.rows if row.title.startswith("Mean loss recovered"))
    assert (mean.dataset, mean.difference.value, mean.difference.n) == ("Wiki", pytest.approx(-0.401), 1)
    assert "−40.10 percentage points" in text
    assert "Only Alpha has layers.6, News" in text


def test_a_hostile_table_is_text_everywhere(tmp_path: Path, store: ArtifactStore) -> None:
    evil = "<script>document.title='owned'</script><img src=x onerror=alert·1>\u202e\x1b`x`"
    imported(tmp_path, store, title=evil, data=evil.replace("(", "").replace(")", ""), name="<b>&.md")
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert not page.by("img")
    assert len([1 for attrs, _ in page.by("script") if "type" not in attrs]) == 1
    for written in (text, (tmp_path / "report.html").read_text(encoding="utf-8")):
        assert "\u202e" not in written
        assert "\x1b" not in written
    assert "<script>" not in text
    assert "<b>" not in text


def test_the_command_writes_the_report_and_prints_grades_and_problems(tmp_path: Path) -> None:
    (tmp_path / "t.md").write_text(TABLE.format(title="t", data="Wiki"), encoding="utf-8")
    runner = CliRunner()
    arguments = ["health", str(tmp_path / "t.md"), "--root", str(tmp_path / "runs")]
    done = runner.invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "layers.2     3/4 partial" in done.output
    assert "checks of the table, 2 failed" in done.output
    assert "line 9, Alpha, layers.2: printed grade = computed grade: printed 4/4, computed 3/4 partial" in done.output
    report = Path(done.output.rsplit("Report: ", 1)[1].strip())
    assert report.exists()
    again = runner.invoke(app, [*arguments, "--json", "--dataset", "News", "--profile", "seed-strict"])
    data = json.loads(again.output)
    assert (data["models"]["Alpha"]["dataset"], data["models"]["Alpha"]["profile"]) == ("News", "seed-strict")
    assert Path(data["report"]).is_dir()


@pytest.mark.parametrize(
    ("options", "code", "expected"),
    [
        (["--profile", "nope"], 2, "seed-lenient, seed-strict, stringent"),
        (["--dataset", "Pile"], 2, "worst-case or one of: Wiki"),
        (["--model", "one"], 2, "2 names, in the order Alpha, Beta"),
    ],
)
def test_the_command_names_what_is_wrong(tmp_path: Path, options: list[str], code: int, expected: str) -> None:
    (tmp_path / "t.md").write_text(TABLE.format(title="t", data="Wiki"), encoding="utf-8")
    done = CliRunner().invoke(app, ["health", str(tmp_path / "t.md"), "--root", str(tmp_path / "runs"), *options])
    assert done.exit_code == code
    assert expected in done.stderr
    assert not (tmp_path / "runs" / "report").exists()
    broken = tmp_path / "t.csv"
    broken.write_text("layer,dead\n4,28.25\n")
    refused = CliRunner().invoke(app, ["health", str(broken), "--root", str(tmp_path / "runs")])
    assert refused.exit_code == 1
    assert "t.csv, line 2: column 'dead': lies outside 0 to 1 (got '28.25')" in refused.stderr
