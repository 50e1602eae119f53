"""Comparing two explainers: the seed report's own table, planted truth, planted nothing, and honest bookkeeping."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted_scores import Chain, score_rows, table, verdict_rows

from saeinterp.artifacts import Artifact, ArtifactStore
from saeinterp.compare import (
    ComparedExplainers,
    ExplainerComparison,
    ScoreTable,
    compare_explainers,
    compare_explainers_recipe,
    compare_scores,
    read_explainer_comparison,
)
from saeinterp.compare.results import MetricResult
from saeinterp.config import ComparisonConfig
from saeinterp.errors import DataError
from saeinterp.stats import always_yes, compare_paired

SEED_70B = [0.218, 0.364, 0.182, 0.343, 0.218, 0.543, 0.291, 0.236, 0.091, 0.255, 0.164]
SEED_7B = [0.127, 0.382, 0.255, 0.371, 0.145, 0.429, 0.327, 0.200, 0.436, 0.091, 0.400]
FAST = ComparisonConfig(bootstrap=200)


def imported(title: str, values: list[float], **extra: list[float]) -> ScoreTable:
    return ScoreTable.of_columns(title, hookpoint="layers.4", latent=range(10, 21), accuracy=values, **extra)


def metric(result: ExplainerComparison, name: str) -> MetricResult:
    return next(item for item in result.metrics if item.name == name)


def sentence(result: ExplainerComparison, name: str) -> str:
    return next(item.text for item in result.sentences if item.id == name)


def planted(
    hit_a: float = 0.7, hit_b: float = 0.4, *, latents: int = 12, seed: int = 0, **options: Any
) -> ComparedExplainers:
    a = table("large", verdict_rows(range(latents), hit_a, 0.2, seed=2 * seed + 1))
    b = table("small", verdict_rows(range(latents), hit_b, 0.2, seed=2 * seed + 2))
    return compare_scores(a, b, config=FAST, **options)


def numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [number for item in value.values() for number in numbers(item)]
    if isinstance(value, list):
        return [number for item in value for number in numbers(item)]
    return [value] if isinstance(value, float) else []


# The golden table -----------------------------------------------------------------------------------------------------


def test_seed_report_one_imported_as_accuracy_is_no_detectable_difference() -> None:
    found = compare_scores(
        imported("Qwen 70B", SEED_70B), imported("Qwen 7B", SEED_7B), config=ComparisonConfig(metric="accuracy")
    ).result
    assert (round(found.primary.mean_a, 3), round(found.primary.mean_b, 3)) == (0.264, 0.288)
    assert (round(found.primary.sd_a or 0, 3), round(found.primary.sd_b or 0, 3)) == (0.121, 0.129)
    assert round(found.primary.pearson_r or 0, 3) == 0.260
    assert found.primary.p_value == pytest.approx(0.634766, abs=5e-7)
    assert round(found.primary.min_detectable or 0, 3) == 0.143
    assert found.verdict == "inconclusive"
    assert found.sentence == (
        "Qwen 70B and Qwen 7B show no detectable difference: per-latent accuracy, averaged over latents: "
        "0.264 (Qwen 70B) and 0.288 (Qwen 7B), difference +0.0235 (95% CI −0.0738 to 0.1292), sign-flip p = 0.635, "
        "n = 11, smallest detectable 0.143."
    )
    assert "outperform" not in " ".join(item.text for item in found.sentences)


def test_seed_report_one_lies_below_always_yes_once_its_class_balance_is_known() -> None:
    floor = [50 / 55] * 3 + [30 / 35] + [50 / 55] + [30 / 35] + [50 / 55] * 5
    found = compare_scores(
        imported("Qwen 70B", SEED_70B, accuracy_always_yes=floor),
        imported("Qwen 7B", SEED_7B),
        config=ComparisonConfig(metric="accuracy"),
    ).result
    assert metric(found, "accuracy").always_yes.macro == pytest.approx(0.9, abs=0.01)
    assert "always-yes is higher than Qwen 70B" in sentence(found, "control.always-yes.a")
    assert "always-yes is higher than Qwen 7B" in sentence(found, "control.always-yes.b")


def test_an_imported_table_has_no_pooled_metrics_and_says_why() -> None:
    found = compare_scores(
        imported("A", SEED_70B), imported("B", SEED_7B), config=ComparisonConfig(metric="accuracy")
    ).result
    micro = metric(found, "accuracy").micro
    assert micro.value_a is None
    assert micro.reason == "the table holds no confusion counts"
    assert metric(found, "accuracy").bounds.reason is not None
    assert metric(found, "f1").macro.reason is not None
    assert sentence(found, "coverage") == "How many verdicts were usable is not known."


# Planted truth and planted nothing ------------------------------------------------------------------------------------


def test_a_planted_difference_is_found_in_every_reading() -> None:
    found = planted(0.9, 0.3).result
    assert found.verdict == "different"
    assert found.primary.difference < 0
    assert found.better[0] > found.better[1]
    assert found.sentence.startswith("large is higher than small")
    f1 = metric(found, "f1").micro
    assert f1.p_swap is not None
    assert f1.p_swap < 0.01
    assert found.verdicts is not None
    assert found.verdicts.p_value < 0.01
    assert found.verdicts.difference == found.verdicts.only_b - found.verdicts.only_a < 0


def test_planted_nothing_is_rarely_called_different() -> None:
    verdicts = [planted(0.5, 0.5, seed=seed, latents=8).result for seed in range(40)]
    assert sum(item.verdict == "different" for item in verdicts) <= 6  # P(more) < 0.001 at a rate of 0.05


def test_identical_sides_are_equivalent_and_get_distinct_names() -> None:
    rows = verdict_rows(range(10), 0.6, 0.2, seed=1)
    found = compare_scores(table("same", rows), table("same", rows), config=FAST).result
    assert (found.title_a, found.title_b) == ("same (A)", "same (B)")
    assert found.verdict == "equivalent"
    assert found.better == (0, 0, 10)
    assert metric(found, "f1").micro.p_swap == 1.0
    assert found.primary.min_detectable is None


def test_swapping_the_sides_negates_differences_and_keeps_p() -> None:
    a = table("large", verdict_rows(range(9), 0.7, 0.2, seed=1, unusable=0.05))
    b = table("small", verdict_rows(range(9), 0.5, 0.2, seed=2))
    there, back = compare_scores(a, b, config=FAST).result, compare_scores(b, a, config=FAST).result
    assert back.primary.difference == -there.primary.difference
    assert back.primary.p_value == there.primary.p_value
    for name in ("f1", "mcc", "balanced_accuracy"):
        first, second = metric(there, name), metric(back, name)
        assert second.micro.p_swap == first.micro.p_swap
        assert second.micro.difference == pytest.approx(-(first.micro.difference or 0))
        assert second.bounds.difference_low == pytest.approx(-(first.bounds.difference_high or 0))


def test_every_metric_is_what_its_name_says() -> None:
    found = planted().result
    counts = {
        side: score_rows(verdict_rows(range(12), hit, 0.2, seed=seed), hookpoint="layers.5")
        for side, hit, seed in (("a", 0.7, 1), ("b", 0.4, 2))
    }
    a, b = counts["a"], counts["b"]
    for name in ("f1", "precision", "recall", "accuracy", "balanced_accuracy", "mcc", "auroc"):
        expected = compare_paired(a[name].to_numpy(), b[name].to_numpy())
        row = metric(found, name).macro
        assert row.paired is not None
        assert (row.mean_a, row.paired.p_value) == (pytest.approx(expected.mean_a), expected.p_value)
    totals = a.select("tp", "fp", "tn", "fn").sum().row(0)
    assert metric(found, "f1").micro.value_a == pytest.approx(2 * totals[0] / (2 * totals[0] + totals[1] + totals[3]))
    weighted = (a["f1"] * a["firings"]).sum() / a["firings"].sum()
    assert metric(found, "frequency_weighted_f1").micro.value_a == pytest.approx(weighted)
    assert metric(found, "frequency_weighted_f1").macro.reason is not None
    assert metric(found, "auroc").micro.value_a is None
    assert metric(found, "pooled_auroc").micro.value_a is not None
    assert metric(found, "f1").always_yes.macro == pytest.approx(float(always_yes(15, 15).f1))


def test_secondary_tests_are_one_family_under_holm_and_the_primary_stands_alone() -> None:
    found = planted().result
    assert found.primary.p_holm is None
    sizes = {family.name: family.tests for family in found.families}
    secondary = [item.macro.paired for item in found.metrics if item.macro.paired and not item.primary]
    pooled = [item.micro for item in found.metrics if item.micro.p_swap is not None]
    assert sizes["primary"] == 1
    assert sizes["secondary"] == len(secondary) + len(pooled) + 1  # and the verdict-level test
    assert sizes["latents"] == 12
    assert all(paired.p_holm is not None and paired.p_holm >= paired.p_value for paired in secondary)
    assert "primary: 1 (none)" in sentence(found, "families")


# Bookkeeping ----------------------------------------------------------------------------------------------------------


def test_a_failed_explanation_stays_in_the_primary_analysis_and_leaves_the_complete_pairs() -> None:
    verdicts = verdict_rows(range(10), {i: 0.0 if i < 2 else 0.8 for i in range(10)}, 0.1, seed=1)
    a = table("A", verdicts, status={0: "explanation_failed", 1: "explanation_failed"})
    b = table("B", verdict_rows(range(10), 0.8, 0.1, seed=2))
    found = compare_scores(a, b, config=FAST).result
    assert (found.n_scored, found.primary.n) == (10, 10)
    assert found.complete_pairs is not None
    assert found.complete_pairs.n == 8
    assert found.complete_pairs.mean_a > found.primary.mean_a
    assert "2 (A) and 0 (B) with a failed explanation" in sentence(found, "latents")
    assert "A failed explanation scores as an empty one does" in sentence(found, "latents")


def test_a_failed_explanation_without_a_score_takes_that_of_the_empty_control() -> None:
    verdicts = verdict_rows(range(8), 0.8, 0.1, seed=1)
    full = table("A", verdicts, status={0: "explanation_failed"})
    names = ["tp", "fp", "tn", "fn", "f1", "precision", "recall", "accuracy", "balanced_accuracy", "mcc", "auroc"]
    blank = full.scores.with_columns(
        pl.when(pl.col("latent") == 0).then(None).otherwise(pl.col(name)).alias(name) for name in [*names, "usable"]
    )
    assert full.verdicts is not None
    a = ScoreTable("A", blank, full.verdicts.filter(pl.col("latent") != 0))
    b = table("B", verdict_rows(range(8), 0.7, 0.1, seed=2))
    empty = table("empty", verdict_rows(range(8), 0.1, 0.1, seed=3))
    found = compare_scores(a, b, controls={"empty": empty}, config=FAST)
    rows = found.latents.filter(pl.col("latent") == 0)
    assert rows["f1_a"][0] == rows["f1_empty"][0]
    assert found.result.n_latents == 8
    with pytest.raises(DataError, match="add 'empty' to the controls"):
        compare_scores(a, b, config=FAST)


def test_latents_that_were_not_scored_are_counted_and_listed() -> None:
    status = {8: "too_rare", 9: "dead", 10: "too_dense"}
    a = table("A", verdict_rows(range(8), 0.8, 0.1, seed=1), status=status, extra=(8, 9, 10))
    b = table("B", verdict_rows(range(8), 0.7, 0.1, seed=2), status=status, extra=(8, 9, 10))
    found = compare_scores(a, b, config=FAST)
    counts = {item.status: (item.a, item.b) for item in found.result.statuses}
    assert counts["too_rare"] == counts["dead"] == counts["too_dense"] == (1, 1)
    assert (found.result.n_selected, found.result.n_scored) == (11, 8)
    assert found.latents["id"].to_list()[-3:] == ["L5_F8", "L5_F9", "L5_F10"]
    assert found.latents.filter(pl.col("status_a") == "dead")["f1_a"].to_list() == [None]


def test_latents_that_one_side_lacks_are_named_and_left_out() -> None:
    a = table("A", verdict_rows(range(8), 0.8, 0.1, seed=1))
    b = table("B", verdict_rows(range(2, 10), 0.8, 0.1, seed=2))
    found = compare_scores(a, b, config=FAST).result
    assert found.unmatched == ("L5_F0", "L5_F1", "L5_F8", "L5_F9")
    assert found.n_latents == 6


def test_unusable_verdicts_lower_coverage_and_open_worst_case_bounds() -> None:
    a = table("A", verdict_rows(range(10), 0.8, 0.1, seed=1, unusable=0.1))
    b = table("B", verdict_rows(range(10), 0.7, 0.1, seed=2))
    found = compare_scores(a, b, config=FAST)
    result = found.result
    assert result.coverage_a.usable < result.coverage_a.examples == 300
    assert result.coverage_b.share == 1.0
    bounds = metric(result, "f1").bounds
    assert bounds.low_a is not None
    assert bounds.high_a is not None
    assert bounds.low_a < result.primary.mean_a < bounds.high_a
    assert bounds.low_b == bounds.high_b == pytest.approx(result.primary.mean_b)
    assert bounds.difference_low == pytest.approx((bounds.low_b or 0) - bounds.high_a)
    assert "worst joint assignment" in sentence(result, "coverage")
    assert (found.latents["f1_a_worst"] <= found.latents["f1_a_best"]).all()


@given(st.integers(0, 2**20), st.floats(0.02, 0.3))
@settings(max_examples=15, deadline=None)
def test_no_assignment_of_unusable_verdicts_escapes_the_bounds(seed: int, missing: float) -> None:
    a = verdict_rows(range(6), 0.6, 0.3, seed=seed, unusable=missing)
    b = verdict_rows(range(6), 0.5, 0.3, seed=seed + 1, unusable=missing)
    config = ComparisonConfig(bootstrap=100)
    found = compare_scores(table("A", a), table("B", b), config=config).result
    rng = np.random.default_rng(seed)
    completed = []
    for rows in (a, b):
        guess = pl.Series(rng.uniform(size=len(rows)) < 0.5)
        completed.append(rows.with_columns(verdict=pl.col("verdict").fill_null(guess), status=pl.lit("ok")))
    resolved = [score_rows(rows.with_columns(probability=pl.lit(0.5)), hookpoint="layers.5") for rows in completed]
    for name in ("f1", "accuracy", "balanced_accuracy", "recall"):
        bounds = metric(found, name).bounds
        difference = resolved[1][name].mean() - resolved[0][name].mean()  # type: ignore[operator]
        assert (bounds.difference_low or 0) - 1e-9 <= difference <= (bounds.difference_high or 0) + 1e-9


def test_controls_are_compared_to_both_sides() -> None:
    permuted = table("permuted", verdict_rows(range(12), 0.2, 0.2, seed=8))
    found = planted(controls={"permuted": permuted}).result
    names = [control.name for control in found.controls]
    assert names == ["always-yes", "permuted"]
    control = found.controls[1]
    assert control.against_a.mean_b == found.primary.mean_a
    assert control.against_b.mean_b == found.primary.mean_b
    assert control.against_a.p_holm is not None
    assert control.against_a.p_holm >= control.against_a.p_value
    assert control.against_a.difference > 0
    assert sentence(found, "control.permuted.a").startswith("large is higher than permuted")


def test_hookpoints_are_broken_down_and_small_ones_get_no_p() -> None:
    def stacked(title: str, hit: float, seed: int) -> ScoreTable:
        parts = [
            table(title, verdict_rows(range(n), hit, 0.2, seed=seed + n), hookpoint=name)
            for name, n in (("layers.5", 8), ("layers.10", 3))
        ]
        verdicts = pl.concat([part.verdicts for part in parts if part.verdicts is not None])
        return ScoreTable(title, pl.concat([part.scores for part in parts]), verdicts)

    found = compare_scores(stacked("A", 0.8, 1), stacked("B", 0.3, 50), config=FAST).result
    five, ten = found.by_hookpoint
    assert (five.hookpoint, five.n, ten.hookpoint, ten.n) == ("layers.5", 8, "layers.10", 3)
    assert five.paired is not None
    assert ten.paired is None
    assert ten.reason is not None
    assert ten.difference is not None
    weighted = (five.n * (five.difference or 0) + ten.n * ten.difference) / 11
    assert found.primary.difference == pytest.approx(weighted)


def test_mcnemar_uses_one_example_per_document() -> None:
    a = table("A", verdict_rows(range(6), 0.9, 0.05, seed=1, documents=9))
    b = table("B", verdict_rows(range(6), 0.05, 0.9, seed=2, documents=9))
    found = compare_scores(a, b, config=FAST)
    assert found.latents["mcnemar_examples"].to_list() == [9] * 6
    assert found.result.mcnemar is not None
    assert found.result.mcnemar.examples == 54
    assert (found.latents["mcnemar_p_holm"] >= found.latents["mcnemar_p"]).all()
    assert set(found.result.mcnemar.latents) <= set(found.latents["id"])


def test_strata_show_where_a_side_says_match() -> None:
    strata = planted(0.9, 0.1).result.strata
    activating = [row for row in strata if row.kind == "activating"]
    random = [row for row in strata if row.kind == "random"]
    assert [row.quantile for row in activating] == list(range(10))
    assert len(random) == 1
    assert all((row.share_a or 0) > (row.share_b or 0) for row in activating)
    assert random[0].share_a == pytest.approx(0.2, abs=0.1)
    assert random[0].examples_a == 12 * 15


# Refusals -------------------------------------------------------------------------------------------------------------


def test_counts_that_contradict_the_verdicts_are_refused() -> None:
    a, b = table("A", verdict_rows(range(8), 0.8, 0.1, seed=1)), table("B", verdict_rows(range(8), 0.7, 0.1, seed=2))
    tampered = a.scores.with_columns(tp=pl.col("tp") + 1, fn=pl.col("fn") - 1)
    with pytest.raises(DataError, match=r"layers\.5 latent 0 do not follow from its verdicts"):
        compare_scores(ScoreTable("A", tampered, a.verdicts), b, config=FAST)


def test_a_metric_that_contradicts_its_counts_is_refused() -> None:
    a, b = table("A", verdict_rows(range(8), 0.8, 0.1, seed=1)), table("B", verdict_rows(range(8), 0.7, 0.1, seed=2))
    with pytest.raises(DataError, match=r"f1 of layers\.5 latent 0 does not follow from its counts"):
        compare_scores(ScoreTable("A", a.scores.with_columns(f1=pl.col("f1") * 0.9), a.verdicts), b, config=FAST)


def test_sides_that_disagree_about_the_truth_are_refused() -> None:
    rows = verdict_rows(range(8), 0.8, 0.1, seed=1)
    flipped = rows.with_columns(truth=pl.when(pl.col("example_id") == 3).then(~pl.col("truth")).otherwise("truth"))
    with pytest.raises(DataError, match="disagree on the truth"):
        compare_scores(table("A", rows), table("B", flipped), config=FAST)


def test_a_missing_primary_metric_names_those_there_are() -> None:
    rows = [verdict_rows(range(8), hit, 0.1, seed=1, probabilities=False) for hit in (0.8, 0.7)]
    config = ComparisonConfig(metric="auroc", bootstrap=200)
    with pytest.raises(DataError, match="probabilities") as error:
        compare_scores(table("A", rows[0]), table("B", rows[1]), config=config)
    assert "balanced_accuracy" in str(error.value)


def test_nothing_scored_is_an_error_that_counts_the_outcomes() -> None:
    scores = pl.DataFrame({"hookpoint": ["layers.5"] * 2, "latent": [1, 2], "status": ["dead", "too_rare"]})
    with pytest.raises(DataError, match="no latent was scored") as error:
        compare_scores(ScoreTable("A", scores), ScoreTable("B", scores), config=FAST)
    assert "'dead': 1" in str(error.value)


def test_a_latent_listed_twice_is_refused() -> None:
    scores = pl.DataFrame({"hookpoint": ["layers.5"] * 2, "latent": [1, 1], "f1": [0.1, 0.2]})
    with pytest.raises(DataError, match="twice"):
        ScoreTable("A", scores)


def test_a_side_without_scores_is_refused(store: ArtifactStore) -> None:
    with pytest.raises(DataError, match="a side has no scores"):
        compare_explainers([], [], {}, config=FAST, store=store)


def test_auroc_can_be_the_primary_metric() -> None:
    config = ComparisonConfig(metric="auroc", bootstrap=200)
    a, b = table("A", verdict_rows(range(9), 0.9, 0.1, seed=1)), table("B", verdict_rows(range(9), 0.5, 0.4, seed=2))
    found = compare_scores(a, b, config=config).result
    assert found.metric_title == "per-latent AUROC, averaged over latents"
    row = metric(found, "auroc").macro
    assert row.interval_a is not None
    assert "bootstrap-t over latents" in row.interval_a.method
    assert metric(found, "auroc").always_yes.macro == 0.5


def test_few_latents_end_inconclusive_with_reasons_in_place_of_intervals() -> None:
    found = planted(0.9, 0.1, latents=4).result
    assert found.verdict == "inconclusive"
    assert found.primary.ci_low is None
    assert found.primary.ci_reason is not None
    assert "can reach p < 0.05" in found.sentence
    micro = metric(found, "f1").micro
    assert micro.interval_a is not None
    assert micro.interval_a.low is None
    assert micro.interval_a.reason is not None


# The step -------------------------------------------------------------------------------------------------------------


def artifacts(store: ArtifactStore) -> tuple[list[Artifact], list[Artifact], dict[str, list[Artifact]]]:
    a, b, permuted = [], [], []
    for seed, name in enumerate(("layers.5", "layers.10")):
        chain = Chain(store, hookpoint=name)

        def rows(hit: float, number: int, *, seed: int = seed, chain: Chain = chain) -> pl.DataFrame:
            return verdict_rows(chain.latents, hit, 0.2, seed=10 * seed + number, unusable=0.03)

        a.append(chain.scores(chain.explanations("big-7b"), rows(0.8, 1), status={9: "dead"}, extra=(9,)))
        floor = chain.explanations("top-tokens", kind="top-tokens")
        b.append(chain.scores(floor, rows(0.5, 2), status={9: "dead"}, extra=(9,)))
        control = chain.explanations("big-7b", control="permuted")
        permuted.append(chain.scores(control, rows(0.2, 3), status={9: "dead"}, extra=(9,)))
    return a, b, {"permuted": permuted}


def test_the_step_stores_a_comparison_that_reads_back(store: ArtifactStore) -> None:
    a, b, controls = artifacts(store)
    seen: list[tuple[int, int, str]] = []
    made = compare_explainers(
        a, b, controls, config=FAST, store=store, progress=lambda done, total, what: seen.append((done, total, what))
    )
    found = read_explainer_comparison(made)
    assert (found.title_a, found.title_b) == ("big-7b", "top-tokens")
    assert found.floor == "b"
    assert found.matched
    assert found.hookpoints == ("layers.5", "layers.10")
    assert ("kind", "llm", "top-tokens") in [(row.field, row.a, row.b) for row in found.configuration]
    assert [control.name for control in found.controls] == ["always-yes", "permuted"]
    latents = pl.read_parquet(made.file("latents.parquet"))
    assert len(latents) == 18
    assert latents["f1_permuted"].null_count() == 2
    inside = latents.drop_nulls("f1_a_low")
    assert len(inside) > 10
    assert ((inside["f1_a_low"] <= inside["f1_a"]) & (inside["f1_a"] <= inside["f1_a_high"])).all()
    assert made.counts() == {"latents": 16, "selected": 18}
    assert seen


def test_the_stored_json_holds_no_nan_and_a_reason_for_every_missing_value(store: ArtifactStore) -> None:
    a, b, controls = artifacts(store)
    made = compare_explainers(a, b, controls, config=FAST, store=store)
    data = json.loads(made.file("comparison.json").read_text(), parse_constant=lambda text: pytest.fail(text))
    assert np.isfinite(numbers(data)).all()
    for item in data["metrics"]:
        assert item["macro"]["mean_a"] is not None or item["macro"]["reason"]
        assert item["micro"]["value_a"] is not None or item["micro"]["reason"]
        assert item["bounds"]["low_a"] is not None or item["bounds"]["reason"]


def test_the_same_scores_give_the_same_bytes(tmp_path: Path) -> None:
    made = []
    for name in ("one", "two"):
        store = ArtifactStore(tmp_path / name)
        a, b, controls = artifacts(store)
        made.append(compare_explainers(a, b, controls, config=FAST, store=store))
    assert made[0].hash == made[1].hash
    for file in ("comparison.json", "latents.parquet"):
        assert made[0].file(file).read_bytes() == made[1].file(file).read_bytes()


def test_the_recipe_is_known_before_anything_is_compared_and_follows_margin_and_controls(store: ArtifactStore) -> None:
    a, b, controls = artifacts(store)
    recipe = compare_explainers_recipe(a, b, controls, config=FAST)
    assert store.find(recipe) is None
    wider = ComparisonConfig(bootstrap=200, margin=0.1)
    assert compare_explainers_recipe(a, b, controls, config=wider).hash != recipe.hash
    assert compare_explainers_recipe(a, b, {}, config=FAST).hash != recipe.hash
    assert compare_explainers_recipe(b, a, controls, config=FAST).hash != recipe.hash


def test_an_unmatched_comparison_is_made_under_a_banner_when_allowed(store: ArtifactStore) -> None:
    chain, other = Chain(store), Chain(store, sae_seed=1)
    a = chain.scores(chain.explanations("big-7b"), verdict_rows(range(8), 0.8, 0.2, seed=1))
    b = other.scores(other.explanations("small-1b"), verdict_rows(range(8), 0.5, 0.2, seed=2))
    config = ComparisonConfig(bootstrap=200, allow_unmatched=True)
    found = read_explainer_comparison(compare_explainers([a], [b], {}, config=config, store=store))
    assert not found.matched
    assert found.sentences[0].id == "unmatched"
    assert "SAE" in found.sentences[0].text
