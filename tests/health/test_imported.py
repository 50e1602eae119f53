"""Outside tables: what people write is read, what cannot be true is found, what cannot be read is refused by place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saeinterp.artifacts import ArtifactStore
from saeinterp.config import GradingConfig
from saeinterp.errors import ConfigError, DataError
from saeinterp.health import LayerGrades, grade_rows, read_grades
from saeinterp.health.imported import import_health, read_review, summary_of
from saeinterp.health.imported.cells import Place, quantities
from saeinterp.health.imported.checks import table_checks
from saeinterp.health.imported.table import read_health_table

SEEDS = Path(__file__).resolve().parents[3] / "shared" / "seeds"
HERE = Place("t.md", 3, "Dead")

REPORT = """# Alpha-1B against Beta-1B

## 🚀 **Alpha-1B Training Summary**
- **Model**: `lab/alpha-1b`
- **Configuration**: k=64, 200 latents, Context=512

## 📊 **Alpha-1B Layer-by-Layer Performance Analysis**

| Layer | Loss Recovered | L0 Sparsity | Dead Features | Absorption | Health Status |
|-------|----------------|-------------|---------------|------------|---------------|
| **2** | 95.10% (Wiki)<br>94.30% (News) | 60.10-61.20 | 30.00% (Wiki)<br>15.50% (News) | 0.260 | ⚠️ 3/4 Healthy |
| **6** | 91.00% (Wiki)<br>90.00% (News) | 58.00-57.50 | 0.50% | 0.250 | ✅ 4/4 Healthy |
| **9** | 40.00% (Wiki)<br>41.00% (News) | 63.00-62.00 | 0.00% | 0.240 | ✅ 4/4 Healthy |

- **Training Success Rate**: 2/3 layers fully healthy, 1/3 partially healthy

## **lab/beta-1b Layer-by-Layer Performance Analysis**

- **Configuration**: k=64, 200 latents

| Layer | Loss Recovered | L0 Sparsity | Dead Features | Absorption | Health Status |
|-------|----------------|-------------|---------------|------------|---------------|
| **2** | 55.00% (Wiki) | 40.125 | 60.25% | 0.310 | ❌ 2/4 Healthy |
| **6** | 65.00% (Wiki) | 70.500 | 70.00% | NA | ❌ 2/4 Healthy |
| **9** | 59.00% (Wiki) | 20.000 | 50.00% | 0.360 | ❌ 1/4 Healthy |

- **Training Success Rate**: 1/3 layers fully healthy, 2/3 unhealthy

## Direct Model Comparison

| Metric | lab/beta-1b | Alpha-1B | Comparison |
|--------|-------------|----------|------------|
| **Healthy Layers** | 1/3 (33%) | 1/3 (33%) | **-0%** |
| **Avg Loss Recovery** | 59.67% | 75.0% | **-15.37%** |
| **Dead Features** | 50.00-70.00% | 0.0-30.00% | **Higher** |
| **L0 Sparsity Range** | 20.00-70.50 | 57.50-63.00 | **Wider** |
"""


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def grades_of(path: Path, **config: Any) -> dict[str, LayerGrades]:
    table = read_health_table(path)
    return {
        model.title: grade_rows(
            [row.graded(file=table.file) for row in table.of(model.title)], config=GradingConfig(**config)
        )
        for model in table.models
    }


def problems(path: Path) -> list[tuple[int, str, str, str]]:
    table = read_health_table(path)
    found = table_checks(table, grades_of(path))
    return [(check.line, check.hookpoint or "", check.name, check.detail) for check in found if not check.passed]


def test_a_report_of_two_models_is_read_as_its_writer_meant(tmp_path: Path) -> None:
    table = read_health_table(write(tmp_path, "report.md", REPORT))
    assert [(model.title, model.names) for model in table.models] == [
        ("Alpha-1B", ("Alpha-1B", "lab/alpha-1b")),
        ("lab/beta-1b", ("lab/beta-1b",)),
    ]
    first = table.rows[0]
    assert (first.hookpoint, first.layer, first.dataset, first.line) == ("layers.2", 2, "Wiki", 11)
    assert (first.k, first.num_latents, first.printed) == (64, 200, (3, 4))
    assert {name: value.value for name, value in first.values.items()} == {
        "loss_recovered": 0.951,
        "l0": 60.1,
        "dead_fraction": 0.3,
        "absorption": 0.26,
    }
    assert [row.values["l0"].value for row in table.of("Alpha-1B")] == [60.1, 61.2, 58.0, 57.5, 63.0, 62.0]
    assert [row.values["dead_fraction"].value for row in table.of("Alpha-1B")] == [0.3, 0.155, 0.005, 0.005, 0, 0]
    assert any("60.10 and 61.20 taken as the values on Wiki and News" in note for note in table.notes)
    missing = table.of("lab/beta-1b")[1].values["absorption"]
    assert (missing.value, missing.reason) == (None, "empty in the table")


def test_grades_are_computed_and_printed_ones_held_against_them(tmp_path: Path) -> None:
    path = write(tmp_path, "report.md", REPORT)
    alpha, beta = grades_of(path).values()
    assert [(item.title, item.passed, item.applicable, item.label) for item in alpha.saes] == [
        ("layers.2", 3, 4, "partial"),
        ("layers.6", 4, 4, "healthy"),
        ("layers.9", 3, 4, "partial"),
    ]
    assert [(item.passed, item.applicable, item.label) for item in beta.saes] == [
        (2, 4, "unhealthy"),
        (2, 3, "partial"),
        (1, 4, "unhealthy"),
    ]
    found = problems(path)
    assert (
        13,
        "layers.9",
        "printed grade = computed grade",
        "printed 4/4, computed 3/4 partial (Wiki 3/4, News 3/4)",
    ) in found
    assert (24, "layers.6", "printed grade = computed grade", "printed 2/4, computed 2/3 partial") in found


def test_every_kind_of_contradiction_is_found_and_nothing_else(tmp_path: Path) -> None:
    found = problems(write(tmp_path, "report.md", REPORT))
    named = {(line, where, name) for line, where, name, _ in found}
    assert named == {
        (13, "layers.9", "printed grade = computed grade"),
        (15, "", "printed count of fully healthy layers = computed"),
        (15, "", "printed count of partial layers = computed"),
        (23, "layers.2, Wiki", "dead fraction × latents is an integer"),
        (24, "layers.6, Wiki", "L0 ≤ k"),
        (24, "layers.6, Wiki", "L0 ≤ alive latents"),
        (24, "layers.6", "printed grade = computed grade"),
        (27, "", "printed count of fully healthy layers = computed"),
        (33, "", "printed count of fully healthy layers = computed"),
        (33, "", "printed share of healthy layers = computed"),
        (33, "", "differences of percentages are percentage points"),
        (33, "", "printed gap of healthy layers = computed"),
        (34, "", "printed mean of loss recovered = computed"),
        (34, "", "differences of percentages are percentage points"),
        (34, "", "printed gap of mean loss recovered = computed"),
    }
    details = {(line, name): detail for line, _, name, detail in found}
    assert details[34, "printed mean of loss recovered = computed"] == (
        "printed 75.0%, computed 75.37% (Wiki), 75.10% (News)"
    )
    assert "computed −15.70 percentage points (Wiki)" in details[34, "printed gap of mean loss recovered = computed"]


def test_the_seed_report_is_graded_without_its_errors(tmp_path: Path, store: ArtifactStore) -> None:
    found = sorted(SEEDS.glob("001_*.txt"))
    if not found:
        pytest.skip("the seed reports are not on this machine")
    imported = import_health(found[0], config=GradingConfig(), store=store)
    base, finance = (read_grades(item) for item in imported.grades.values())
    assert list(imported.grades) == ["Llama-2-7B", "cxllin/Llama2-7b-Finance"]
    layer = base.saes[0]
    assert (layer.passed, layer.applicable) == (3, 4)
    assert [(item.dataset, item.passed) for item in layer.datasets] == [("WikiText", 3), ("SQuAD", 4)]
    assert (finance.saes[-1].hookpoint, finance.saes[-1].passed, finance.saes[-1].applicable) == ("layers.28", 2, 4)
    assert (base.counts.healthy, finance.counts.healthy, finance.counts.total) == (3, 0, 5)
    means = [
        next(item for item in side.means if item.metric == "loss_recovered" and item.dataset == "WikiText")
        for side in (base, finance)
    ]
    assert [round(100 * (mean.value or 0), 2) for mean in means] == [71.28, 58.48]
    trends = [next(item for item in side.trends if item.metric == "loss_recovered") for side in (base, finance)]
    assert [trend.rho for trend in trends] == [pytest.approx(-1.0), pytest.approx(-0.1)]
    assert [trend.direction for trend in trends] == [None, None]
    review = read_review(imported.review)
    said = " ".join(review.pairs[0].comparison.sentences)
    assert "−12.80 percentage points" in said
    assert "Only Llama-2-7B has SQuAD" in said
    failed = {(item.hookpoint, item.name): item.detail for item in review.problems}
    for number in (10, 16, 22, 28):
        assert (f"layers.{number}, WikiText", "dead fraction × latents is an integer") in failed
    assert ("layers.4, WikiText", "dead fraction × latents is an integer") not in failed
    assert failed["layers.28, WikiText", "L0 ≤ alive latents"] == "largest L0 54.321, 43.52 alive"
    assert failed["layers.28", "printed grade = computed grade"] == "printed 1/4, computed 2/4 unhealthy"
    details = [item.detail for item in review.problems]
    assert "printed 1/5, computed 0/5" in details
    assert "printed 71.1%, computed 71.28% (WikiText), 71.82% (SQuAD)" in details
    assert "printed −12.62%, computed −12.80 percentage points (WikiText)" in details


CSV = """model,layer,dataset,loss_recovered,loss_recovered_low,loss_recovered_high,l0,dead (%),absorption,note
m,layers.4,Wiki,0.91,0.89,0.93,32,12.5,0.1,x
m,layers.4,News,71%,,,32,0,0.1,
m,10,Wiki,0.61,0.63,0.66,33,0,NA,
"""


def test_csv_rows_have_datasets_intervals_and_units_of_their_columns(tmp_path: Path) -> None:
    table = read_health_table(write(tmp_path, "t.csv", CSV), num_latents=400, k=32)
    assert [(row.hookpoint, row.dataset, row.line) for row in table.rows] == [
        ("layers.4", "Wiki", 2),
        ("layers.4", "News", 3),
        ("layers.10", "Wiki", 4),
    ]
    first = table.rows[0].values
    assert (first["loss_recovered"].value, first["loss_recovered"].low) == (0.91, 0.89)
    assert first["dead_fraction"].value == 0.125
    assert table.rows[1].values["loss_recovered"].value == 0.71
    assert table.notes == ("line 1: columns not read: note",)
    checks = {check.name: check for check in table_checks(table, grades_of(write(tmp_path, "u.csv", CSV)))}
    assert not checks["intervals contain their values"].passed or not checks["L0 ≤ k"].passed
    failed = [
        (check.line, check.name) for check in table_checks(table, grades_of(tmp_path / "u.csv")) if not check.passed
    ]
    assert failed == [(4, "L0 ≤ k"), (4, "intervals contain their values")]


def test_a_health_file_of_ours_comes_in_by_the_same_door(tmp_path: Path) -> None:
    values = {
        "hookpoint": "layers.9",
        "layer": 9,
        "dataset": "squad",
        "k": 32,
        "num_latents": 400,
        "l0_mean": 31.5,
        "l0_max": 32,
        "dead_fraction": 0.05,
        "loss_recovered": {"value": 0.9, "low": 0.88, "high": 0.92, "n_documents": 40, "reason": None},
        "absorption": {"value": None, "reason": "not measured"},
        "tokens": 1000,
    }
    table = read_health_table(write(tmp_path, "health.json", json.dumps(values)), models=["mine"])
    (row,) = table.rows
    assert (row.model, row.hookpoint, row.layer, row.dataset, row.k) == ("mine", "layers.9", 9, "squad", 32)
    assert (row.values["l0"].value, row.values["loss_recovered"].high) == (31.5, 0.92)
    assert row.values["absorption"].reason == "not measured"
    listed = {
        "model": "m",
        "k": 16,
        "rows": [{"layer": 4, "l0": 16}, {"layer": 5, "l0": "16.0", "dead_fraction": "1.25%"}],
    }
    table = read_health_table(write(tmp_path, "list.json", json.dumps(listed)))
    assert [(item.hookpoint, item.k, item.values["l0"].value) for item in table.rows] == [
        ("layers.4", 16, 16.0),
        ("layers.5", 16, 16.0),
    ]
    assert table.rows[1].values["dead_fraction"].value == 0.0125


HEAD = "layer,loss_recovered,l0,dead,absorption\n"


@pytest.mark.parametrize(
    ("name", "text", "parts"),
    [
        (
            "t.csv",
            HEAD + "4,98.42,32,0,0\n",
            ["t.csv, line 2", "'loss_recovered'", "98.42", "write percentages with %"],
        ),
        ("t.csv", HEAD + "4,0.9,32,28.25,0\n", ["line 2", "'dead'", "28.25", "outside 0 to 1", "from 0 to 1"]),
        ("t.csv", HEAD + "4,0.9,-3,0,0\n", ["line 2", "'l0'", "-3", "negative"]),
        ("t.csv", HEAD + "4,0.9,32,0,0\n5,nan,32,0,0\n", ["line 3", "'loss_recovered'", "nan", "not a number"]),
        ("t.csv", HEAD + "4,1e999,32,0,0\n", ["line 2", "'loss_recovered'", "not finite"]),
        ("t.csv", HEAD + '4,"0,9",32,0,0\n', ["line 2", "0,9", "not a number"]),
        ("t.csv", HEAD + "4,0.9,32,0\n", ["line 2", "another number of columns", "5 columns"]),
        ("t.csv", HEAD + "4,0.9,32,0,0\n4,0.8,32,0,0\n", ["line 3", "comes twice", "line 2"]),
        ("t.csv", HEAD + ",0.9,32,0,0\n", ["line 2", "'layer'", "is empty"]),
        ("t.csv", "depth,score\n4,0.9\n", ["line 1", "names no layer or no metric", "loss_recovered"]),
        ("t.csv", "layer,l0,mean l0\n4,3,3\n", ["line 1", "two columns mean the same"]),
        ("t.csv", HEAD + "4,0.9,30-33,0,0\n", ["line 2", "holds 2 numbers", "30.0"]),
        ("t.csv", "", ["holds no table of layers"]),
        ("t.json", '[{"layer": 4, "l0": tru}]', ["t.json, line 1, column 21", "no valid JSON"]),
        ("t.json", '[{"layer": 4, "l0": NaN}]', ["NaN is no number"]),
        ("t.json", '[{"layer": 4, "dead_fraction": 1.5}]', ["row 1", "'dead_fraction'", "1.5"]),
        ("t.json", '[{"layer": 4, "l0": [1]}]', ["'l0'", "not a number"]),
        ("t.json", '[{"layer": 4, "l0": 1' + "0" * 400 + "}]", ["row 1", "not finite"]),
        ("t.json", '"text"', ["is no list of rows"]),
        ("t.json", "[" * 100_000, ["t.json"]),
        ("t.md", "# no table\n", ["t.md", "holds no table of layers"]),
        ("t.md", "| Layer | L0 |\n|---|---|\n| 4 | 31 | 2 |\n", ["t.md, line 3", "another number of cells"]),
        ("t.md", "| Layer | Dead |\n|---|---|\n| 4 | 12.5 |\n", ["t.md, line 3", "'Dead'", "12.5", "with %"]),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_place(tmp_path: Path, name: str, text: str, parts: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        read_health_table(write(tmp_path, name, text))
    for part in parts:
        assert part in str(caught.value)


def test_files_that_are_no_tables_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.csv, \.tsv, \.json"):
        read_health_table(write(tmp_path, "t.xlsx", ""))
    with pytest.raises(DataError, match="No such file"):
        read_health_table(tmp_path / "absent.csv")
    (tmp_path / "latin.csv").write_bytes(HEAD.encode() + b"\xff\xfe,1,2,3,4\n")
    with pytest.raises(DataError, match=r"latin\.csv, line 2: is not UTF-8"):
        read_health_table(tmp_path / "latin.csv")


def test_models_are_named_by_the_user_once_each(tmp_path: Path) -> None:
    path = write(tmp_path, "report.md", REPORT)
    table = read_health_table(path, models=["A", "B"])
    assert [model.title for model in table.models] == ["A", "B"]
    assert {row.model for row in table.rows} == {"A", "B"}
    assert {claim.model for claim in table.claims} == {"A", "B"}
    for wrong in (["A"], ["A", "A"]):
        with pytest.raises(ConfigError, match="--model"):
            read_health_table(path, models=wrong)
    plain = write(tmp_path, "plain.csv", HEAD + "4,0.9,32,0,0\n")
    assert read_health_table(plain).models[0].title == "plain"


def test_rounding_of_printed_digits_is_allowed_for_and_no_more(tmp_path: Path) -> None:
    # 1/3 of 300 latents is 33.3%: right to its printed digit, wrong to more digits of another number.
    def failed(cell: str, latents: int) -> list[str]:
        path = write(tmp_path, "t.csv", HEAD + f"4,0.9,32,{cell},0\n")
        table = read_health_table(path, num_latents=latents)
        return [check.name for check in table.rows[0].graded(file="t.csv").checks if not check.passed]

    assert failed("33.3%", 300) == []
    assert failed("33.333%", 300) == []
    assert failed("33.30%", 300) == ["dead fraction × latents is an integer"]
    assert failed("33.3%", 16_000) == []  # some integer always rounds to it
    names = [
        check.name
        for check in read_health_table(tmp_path / "t.csv", num_latents=16_000).rows[0].graded(file="t").checks
    ]
    assert "dead fraction × latents is an integer" not in names


@settings(deadline=None)
@given(st.floats(0, 1), st.integers(0, 4))
def test_a_printed_percentage_lies_within_its_rounding(value: float, digits: int) -> None:
    (found,) = quantities(f"{100 * value:.{digits}f}%", "dead_fraction", HERE)
    assert abs(found.value - value) <= found.half_step * (1 + 1e-9) + 1e-15


@settings(deadline=None)
@given(st.text(max_size=30))
def test_any_cell_is_read_or_refused(text: str) -> None:
    try:
        found = quantities(text, "dead_fraction", HERE)
    except DataError as error:
        found, refusal = [], str(error)
    else:
        refusal = ""
    assert all(0 <= item.value <= 1 for item in found)
    assert not refusal or "t.md, line 3" in refusal


def test_an_import_is_the_same_artifacts_wherever_the_file_lies(tmp_path: Path, store: ArtifactStore) -> None:
    first = import_health(write(tmp_path, "report.md", REPORT), config=GradingConfig(), store=store)
    (tmp_path / "other").mkdir()
    moved = write(tmp_path / "other", "report.md", REPORT)
    again = import_health(moved, config=GradingConfig(), store=ArtifactStore(tmp_path / "elsewhere"))
    assert again.review.hash == first.review.hash
    assert again.review.manifest()["files"] == first.review.manifest()["files"]
    assert str(tmp_path) not in first.table.file("table.json").read_text()
    other = import_health(moved, num_latents=400, config=GradingConfig(), store=store)
    assert other.table.hash != first.table.hash
    data = json.loads(json.dumps(summary_of(first)))
    assert set(data["models"]) == {"Alpha-1B", "lab/beta-1b"}
    assert len(data["problems"]) == 15
    assert data["checks"] == len(read_review(first.review).checks)
