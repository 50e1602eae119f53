"""Scores made elsewhere: what people write is read, what cannot be true is found, what cannot be read is refused."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saeinterp.artifacts import ArtifactStore
from saeinterp.compare import ExplainerComparison, read_explainer_comparison
from saeinterp.compare.imported import (
    ImportedComparison,
    import_scores,
    read_score_review,
    read_scores_table,
    summary_of,
)
from saeinterp.compare.imported.headings import heading_parts
from saeinterp.compare.imported.ratios import Printed, denominators
from saeinterp.compare.imported.reading import read_scores
from saeinterp.config import ComparisonConfig
from saeinterp.errors import ComparabilityError, ConfigError, DataError, SaeinterpError

SEED = next((Path(__file__).resolve().parents[3] / "shared" / "seeds").glob("000*"), None)
FAST = ComparisonConfig(bootstrap=200)
WIDE = """latent,layer,big label,big F1,small label,small F1,F1 difference
10,4,"years, dates",0.51,years,0.42,-0.09
11,4,cities,0.62,places,0.40,-0.22
12,4,negation,0.33,not,0.35,+0.02
13,4,quotes,0.71,said,0.60,-0.11
14,4,loops,0.44,for,0.30,-0.14
15,4,errors,0.58,raise,0.49,-0.09
"""


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def imported(paths: list[Path], store: ArtifactStore, **options: Any) -> ImportedComparison:
    return import_scores(paths, config=options.pop("config", FAST), store=store, **options)


def comparison(found: ImportedComparison) -> ExplainerComparison:
    return read_explainer_comparison(found.comparisons["ab"])


def problems(found: ImportedComparison) -> dict[tuple[str, str | None], str]:
    return {(check.name, check.model): check.detail for check in read_score_review(found.review).problems}


# The golden table -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seed(tmp_path_factory: pytest.TempPathFactory) -> ImportedComparison:
    if SEED is None:
        pytest.skip("the seed reports are not beside this checkout")
    store = ArtifactStore(tmp_path_factory.mktemp("seed") / "runs")
    return import_scores([SEED], metric="accuracy", negatives=5, config=ComparisonConfig(), store=store)


def test_seed_report_one_comes_to_no_detectable_difference(seed: ImportedComparison) -> None:
    found = comparison(seed)
    primary = found.primary
    assert (found.title_a, found.title_b, found.hookpoints, primary.n) == ("Qwen 70B", "Qwen 7B", ("layers.4",), 11)
    assert (round(primary.mean_a, 3), round(primary.mean_b, 3)) == (0.264, 0.288)
    assert (round(primary.sd_a or 0, 3), round(primary.sd_b or 0, 3)) == (0.121, 0.129)
    assert round(primary.pearson_r or 0, 3) == 0.260
    assert round(primary.difference, 4) == 0.0235
    assert primary.p_value == 1300 / 2048
    assert round(primary.min_detectable or 0, 3) == 0.143
    assert found.verdict == "inconclusive"
    assert "outperform" not in " ".join(item.text for item in found.sentences)
    latents = pl.read_parquet(seed.comparisons["ab"].file("latents.parquet"))
    assert latents["explanation_a"][0] == "Significant changes, events, or constructions"
    assert latents["id"].to_list()[0] == "L4_F10"


def test_what_seed_report_one_prints_wrongly_is_named(seed: ImportedComparison) -> None:
    found = problems(seed)
    assert found["printed mean = mean of the rows", "Qwen 70B"] == "printed 0.243, computed 0.264"
    assert found["printed mean = mean of the rows", "Qwen 7B"] == "printed 0.282, computed 0.288"
    assert found["printed correlation = Pearson r of the rows", None] == "printed 0.4, computed 0.26"
    assert "no detectable difference" in found["what is said to be higher is so by the test", "Qwen 7B"]
    assert found["overall balanced accuracy is not below chance", "Qwen 7B"] == "printed 0.479, chance is 0.5"
    not_f1 = found["the values can be F1", None]
    assert "9 of 11 latents the values are multiples of 1/55" in not_f1
    assert "2 of 11 latents (13, 15) the values are multiples of 1/35" in not_f1
    passed = {(check.name, check.model) for check in read_score_review(seed.review).checks if check.passed}
    assert ("printed range = range of the rows", "Qwen 70B") in passed
    assert ("overall F1 = 2 P R / (P + R)", "Qwen 7B") in passed
    assert sum("printed difference of latent" in name for name, _ in passed) == 11


def test_seed_report_one_lies_below_always_yes(seed: ImportedComparison) -> None:
    found = comparison(seed)
    floor = next(item.always_yes.macro for item in found.metrics if item.primary)
    # 50 of 55 examples fire, 30 of 35 on latents 13 and 15: n is found in the values, the 5 is given.
    assert floor == pytest.approx((9 * 50 / 55 + 2 * 30 / 35) / 11)
    assert [control.name for control in found.controls] == ["always-yes"]
    said = {item.id: item.text for item in found.sentences}
    assert said["control.always-yes.b"].startswith("always-yes is higher than Qwen 7B")
    notes = read_score_review(seed.review).notes
    assert any("true negative rate of 0.964 and 0.11 negatives per positive" in note for note in notes)
    assert any("true negative rate of 0.723" in note and "F1 0.95" in note for note in notes)


def test_seed_report_one_under_its_own_name_is_doubted_twice_over(tmp_path: Path) -> None:
    if SEED is None:
        pytest.skip("the seed reports are not beside this checkout")
    found = imported([SEED], ArtifactStore(tmp_path), config=ComparisonConfig())
    assert comparison(found).metric == "f1"
    assert "F1 has no such denominator" in problems(found)["the values can be F1", None]
    assert comparison(found).controls == ()
    always_yes = next(item.always_yes for item in comparison(found).metrics if item.primary)
    assert (always_yes.macro, always_yes.reason) == (None, "the class balance of the examples is not known")


# Formats --------------------------------------------------------------------------------------------------------------


def values(path: Path, **options: Any) -> dict[str, list[float | None]]:
    table = read_scores([path], **options)
    return {item.title: [row.values[table.metric] for row in item.rows] for item in table.explainers}


BIG, SMALL = [0.51, 0.62, 0.33, 0.71, 0.44, 0.58], [0.42, 0.40, 0.35, 0.60, 0.30, 0.49]


def test_every_format_and_shape_gives_the_same_rows(tmp_path: Path) -> None:
    wide = {"latent": list(range(10, 16)), "big": BIG, "small": SMALL}
    long = [
        {"latent": latent, "explainer": name, "metric": "F1 score", "value": value}
        for name, column in (("big", BIG), ("small", SMALL))
        for latent, value in zip(range(10, 16), column)
    ]
    semi = [{"latent": row["latent"], "model": row["explainer"], "F1": row["value"]} for row in long]
    pl.DataFrame(wide).write_parquet(tmp_path / "wide.parquet")
    pl.DataFrame(long).write_csv(tmp_path / "long.csv")
    pl.DataFrame(semi).write_csv(tmp_path / "semi.tsv", separator="\t")
    write(tmp_path, "wide.json", json.dumps({"rows": pl.DataFrame(wide).to_dicts()}))
    rows = "\n".join(f"| **{x}** | {a:.2f} | {b:.2f} |" for x, a, b in zip(range(10, 16), BIG, SMALL))
    write(tmp_path, "wide.md", f"# Report\n\n| Feature | big F1 | small F1 |\n|---|---|---|\n{rows}\n")
    write(tmp_path, "wide.csv", WIDE)
    expected = {"big": BIG, "small": SMALL}
    for name in ("wide.parquet", "wide.json", "long.csv", "semi.tsv", "wide.md", "wide.csv"):
        assert values(tmp_path / name, metric="f1") == expected, name


def test_two_files_are_two_explainers_named_by_their_files(tmp_path: Path) -> None:
    for name, column in (("big", BIG), ("small", SMALL)):
        pl.DataFrame({"latent": range(10, 16), "f1": column}).write_csv(tmp_path / f"{name}.csv")
    table = read_scores([tmp_path / "big.csv", tmp_path / "small.csv"])
    assert (table.metric, [item.title for item in table.explainers]) == ("f1", ["big", "small"])
    named = read_scores([tmp_path / "big.csv", tmp_path / "small.csv"], explainers=["70B", "7B"])
    assert [(item.title, item.name) for item in named.explainers] == [("70B", "big"), ("7B", "small")]


@pytest.mark.parametrize(
    ("heading", "parts"),
    [
        ("Qwen 70B F1", ("Qwen 70B", "f1")),
        ("f1_qwen70b", ("qwen70b", "f1")),
        ("F1 (Qwen 7B)", ("Qwen 7B", "f1")),
        ("Class-Balanced Accuracy", ("", "balanced_accuracy")),
        ("big balanced accuracy", ("big", "balanced_accuracy")),
        ("small AUROC", ("small", "auroc")),
        ("big Label", ("big", "label")),
        ("Qwen 70B", ("Qwen 70B", None)),
    ],
)
def test_headings_are_taken_apart(heading: str, parts: tuple[str, str | None]) -> None:
    assert heading_parts(heading) == parts


def test_labels_layers_and_percentages_are_read(tmp_path: Path) -> None:
    text = "latent,layer,A F1 %,B F1 %\nL4_F7,4,51.5,42\n9,layers.6,20%,30%\n"
    rows = read_scores([write(tmp_path, "p.csv", text)]).explainers[0].rows
    assert [(row.hookpoint, row.latent, row.values["f1"]) for row in rows] == [
        ("layers.4", 7, 0.515),
        ("layers.6", 9, 0.2),
    ]
    labels = read_scores([write(tmp_path, "w.csv", WIDE)]).explainers
    assert [item.rows[0].explanation for item in labels] == ["years, dates", "years"]


def test_named_columns_are_taken_where_headings_say_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, "odd.csv", "feature,run 1,run 2,run 3\n1,0.1,0.2,0.9\n2,0.3,0.1,0.8\n")
    assert list(values(path, metric="f1")) == ["run 1", "run 2", "run 3"]
    assert list(values(path, metric="f1", columns=["run 1", "run 3"])) == ["run 1", "run 3"]


def test_a_latent_without_any_value_is_listed_as_not_scored(tmp_path: Path, store: ArtifactStore) -> None:
    found = comparison(imported([write(tmp_path, "gap.csv", WIDE + "16,4,rare,NA,rare,,\n")], store))
    assert (found.n_selected, found.n_scored) == (7, 6)
    assert {row.status: (row.a, row.b) for row in found.statuses}["not_scored"] == (1, 1)
    assert "1 without a value" in next(item.text for item in found.sentences if item.id == "latents")


def test_counts_in_a_table_give_every_metric_and_its_always_yes(tmp_path: Path, store: ArtifactStore) -> None:
    paths = []
    for name, hit in (("a", 10), ("b", 7)):
        rows = {"latent": range(6), "tp": [hit + x % 3 for x in range(6)], "fp": [3] * 6, "tn": [12] * 6}
        rows["fn"] = [15 - x for x in rows["tp"]]
        frame = pl.DataFrame(rows).with_columns(f1=2 * pl.col("tp") / (2 * pl.col("tp") + pl.col("fp") + pl.col("fn")))
        frame.write_csv(tmp_path / f"{name}.csv", float_precision=3)
        paths.append(tmp_path / f"{name}.csv")
    found = comparison(imported(paths, store))
    metrics = {item.name: item for item in found.metrics}
    assert metrics["f1"].always_yes.macro == pytest.approx(2 / 3)
    assert metrics["balanced_accuracy"].macro.mean_a == pytest.approx((11 / 15 + 12 / 15) / 2)
    assert metrics["f1"].micro.value_a is not None


# What the table says of itself ----------------------------------------------------------------------------------------


def test_a_wrong_difference_is_named_with_its_line(tmp_path: Path, store: ArtifactStore) -> None:
    found = imported([write(tmp_path, "w.csv", WIDE.replace("0.60,-0.11", "0.60,-0.21"))], store)
    (check,) = read_score_review(found.review).problems
    assert (check.line, check.detail) == (5, "printed -0.21, computed -0.11")
    assert "latent 13" in check.name


@given(st.integers(0, 2**20))
@settings(max_examples=60, deadline=None)
def test_accuracies_give_their_number_of_examples_away(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(20, 80))
    counts = rng.integers(1, n, size=(12, 2))
    latents = {("", i): [Printed(round(k / n, 3), 0.0005) for k in row] for i, row in enumerate(counts)}
    found = denominators(latents)
    assert len(found) == 12
    assert all(n % divisor == 0 for divisor in found.values())


def test_f1_is_rarely_taken_for_a_ratio() -> None:
    doubted = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        tp, fp = rng.binomial(25, rng.uniform(0.2, 0.9, (12, 2))), rng.binomial(25, 0.2, (12, 2))
        f1 = 2 * tp / (tp + fp + 25)
        latents = {("", i): [Printed(round(float(x), 3), 0.0005) for x in row] for i, row in enumerate(f1)}
        doubted += len(denominators(latents)) >= 0.8 * 12
    assert doubted == 0


def test_what_is_claimed_and_true_passes(tmp_path: Path, store: ArtifactStore) -> None:
    rows = "\n".join(f"| {x} | {a:.2f} | {b:.2f} |" for x, a, b in zip(range(6), BIG, SMALL))
    prose = "- **big**: Mean F1 = 0.53, Range = [0.33, 0.71]\n- **small**: mean: 0.43\n\nbig beats small, r = 0.82\n"
    path = write(tmp_path, "t.md", f"| latent | big F1 | small F1 |\n|---|---|---|\n{rows}\n\n{prose}")
    review = read_score_review(imported([path], store).review)
    assert [(check.name, check.detail) for check in review.problems] == [
        ("what is said to be higher is so by the test", "“big beats small”: no detectable difference")
    ]
    assert len(review.checks) == 5


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (WIDE.replace("11,4,", "10,4,"), r"w\.csv, line 3: latent 10 comes twice for big"),
        (WIDE.replace("0.62", ""), r"line 3: latent 11 has no f1 for big"),
        (WIDE.replace("0.62", "1.62"), r"line 3: column 'big F1': lies outside 0 to 1.*write percentages"),
        (WIDE.replace("0.62", "-0.1"), r"lies outside 0 to 1 \(got '-0.1'\)"),
        (WIDE.replace("0.62", "good"), r"line 3: column 'big F1': is not a number \(got 'good'\)"),
        (WIDE.replace("11,4", "eleven,4"), r"line 3: column 'latent': is no latent"),
        ("latent,F1\n1,0.2\n2,0.3\n", "holds the scores of one explainer only"),
        ("name,score\nx,0.2\n", "holds no table of scores"),
        ("latent,a,b\n", "holds no table of scores"),
        ("latent,a,b\n1,0.2\n", r"line 2: has another number of columns"),
        ("", "holds no table of scores"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused_by_place(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_scores([write(tmp_path, "w.csv", text)], metric="f1")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"metric": "f2"}, "--metric: is no metric"),
        ({"explainers": ["one"]}, "--explainer: does not name each explainer once"),
        ({"explainers": ["same", "same"]}, "two explainers have one name"),
        ({"columns": ["middle F1"]}, "--column: the table has no such column"),
    ],
)
def test_options_that_do_not_fit_are_named(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_scores([write(tmp_path, "w.csv", WIDE)], **options)


def test_several_metrics_need_one_to_be_named(tmp_path: Path) -> None:
    path = write(tmp_path, "m.csv", "latent,a F1,a precision,b F1,b precision\n1,0.1,0.2,0.3,0.4\n2,0.2,0.2,0.3,0.4\n")
    with pytest.raises(ConfigError, match="does not say which metric"):
        read_scores([path])
    assert values(path, metric="precision") == {"a": [0.2, 0.2], "b": [0.4, 0.4]}
    with pytest.raises(ConfigError, match="has other metrics"):
        read_scores([path], metric="accuracy")


def test_a_metric_that_no_test_is_frozen_for_is_refused(tmp_path: Path, store: ArtifactStore) -> None:
    with pytest.raises(ConfigError, match="metric"):
        imported([write(tmp_path, "w.csv", WIDE)], store, metric="precision")
    assert not (store.root / "score-table").exists()


def test_correlations_may_be_negative_and_are_compared_as_such(tmp_path: Path, store: ArtifactStore) -> None:
    path = write(tmp_path, "c.csv", "latent,a,b\n1,0.1,0.2\n2,-0.2,0.3\n3,0.3,0.1\n4,0.5,0.4\n5,0.2,0.1\n6,-0.1,0.5\n")
    found = comparison(imported([path], store, metric="correlation"))
    assert found.metric == "correlation"
    assert found.primary.mean_a == pytest.approx(0.8 / 6)
    assert found.primary.mean_b == pytest.approx(1.6 / 6)


def test_files_of_different_latents_are_refused_unless_allowed(tmp_path: Path, store: ArtifactStore) -> None:
    for name, first in (("a", 0), ("b", 2)):
        pl.DataFrame({"latent": range(first, first + 8), "f1": np.linspace(0.1, 0.8, 8)}).write_csv(
            tmp_path / f"{name}.csv"
        )
    paths = [tmp_path / "a.csv", tmp_path / "b.csv"]
    with pytest.raises(ComparabilityError, match="8 latents, 2 of them alone"):
        imported(paths, store)
    found = comparison(imported(paths, store, config=ComparisonConfig(bootstrap=200, allow_unmatched=True)))
    assert (found.n_latents, len(found.unmatched), found.matched) == (6, 4, False)


@given(st.binary(max_size=300), st.sampled_from([".csv", ".json", ".md", ".parquet", ".tsv"]))
@settings(max_examples=150, deadline=None)
def test_no_file_ends_in_anything_but_a_table_or_our_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, suffix: str
) -> None:
    path = tmp_path_factory.getbasetemp() / f"any{suffix}"
    path.write_bytes(data)
    with contextlib.suppress(SaeinterpError):
        assert len(read_scores([path], metric="f1").explainers) >= 2


def test_the_same_table_gives_the_same_artifacts_wherever_it_lies(tmp_path: Path, store: ArtifactStore) -> None:
    (tmp_path / "elsewhere").mkdir()
    first = imported([write(tmp_path, "w.csv", WIDE)], store)
    second = imported([write(tmp_path / "elsewhere", "w.csv", WIDE)], store)
    assert first == second
    assert read_scores_table(first.table).explainers[1].title == "small"
    assert json.loads(json.dumps(summary_of(first)))["checks"] == 6
