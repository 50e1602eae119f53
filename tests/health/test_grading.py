"""Grades: thresholds at their edges, what is not measured, which dataset decides, ties, and what is said of them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from saeinterp.artifacts import Artifact, ArtifactStore, Recipe, write_json
from saeinterp.config import GradingConfig, Thresholds
from saeinterp.errors import ConfigError, DataError
from saeinterp.health import (
    LayerGrades,
    grade_layer,
    grade_layers,
    grade_layers_recipe,
    grade_rows,
    read_grades,
)
from saeinterp.health.grading.comparison import compare_grades
from saeinterp.health.grading.inputs import LayerRow
from saeinterp.health.grading.results import Measured, SaeGrade
from saeinterp.health.grading.rules import GRADED, LABELS

PASSING: dict[str, float | None] = {"loss_recovered": 0.9, "l0": 32.0, "dead_fraction": 0.05, "absorption": 0.1}
METRICS = st.fixed_dictionaries(
    {
        "loss_recovered": st.none() | st.floats(-5, 2),
        "l0": st.none() | st.floats(0, 1000),
        "dead_fraction": st.none() | st.floats(0, 1),
        "absorption": st.none() | st.floats(0, 1),
    }
)


def row(
    layer: int,
    *,
    dataset: str = "text",
    key: str | None = None,
    interval: float | None = None,
    seed: int | None = None,
    k: int | None = None,
    **values: float | None,
) -> LayerRow:
    """A layer that passes everything but what is given; `interval` is half the width of loss recovered's."""
    known = {**PASSING, **values}
    measured = {
        name: Measured(value=value, reason=None if value is not None else "gone") for name, value in known.items()
    }
    recovered = known["loss_recovered"]
    if interval is not None and recovered is not None:
        measured["loss_recovered"] = Measured(value=recovered, low=recovered - interval, high=recovered + interval)
    return LayerRow(
        key=key or f"layers.{layer}",
        hookpoint=f"layers.{layer}",
        layer=layer,
        dataset=dataset,
        source=f"health/{layer}-{dataset}",
        values=measured,
        seed=seed,
        k=k,
    )


def graded(*rows: LayerRow, **config: Any) -> LayerGrades:
    return grade_rows(rows, config=GradingConfig(**config))


def sae(grades: LayerGrades, hookpoint: str) -> SaeGrade:
    return next(item for item in grades.saes if item.hookpoint == hookpoint)


@pytest.mark.parametrize(
    ("values", "grade"),
    [
        # Rows of seed report 2.
        ({"loss_recovered": 0.9842, "l0": 61.37, "dead_fraction": 0.2825, "absorption": 0.269}, "3/4 partial"),
        ({"loss_recovered": 0.9851, "l0": 63.35, "dead_fraction": 0.18, "absorption": 0.269}, "4/4 healthy"),
        ({"loss_recovered": 0.6624, "l0": 94.33, "dead_fraction": 0.0, "absorption": 0.196}, "4/4 healthy"),
        ({"loss_recovered": 0.0487, "l0": 125.58, "dead_fraction": 0.0, "absorption": 0.232}, "3/4 partial"),
        ({"loss_recovered": 0.62891, "l0": 42.123, "dead_fraction": 0.6532, "absorption": 0.312}, "3/4 partial"),
        ({"loss_recovered": 0.55678, "l0": 54.321, "dead_fraction": 0.8912, "absorption": 0.267}, "2/4 unhealthy"),
        # What is not measured.
        ({"loss_recovered": None, "l0": 32, "dead_fraction": 0.0, "absorption": None}, "2/2 incomplete"),
        ({"loss_recovered": 0.9, "l0": 32, "dead_fraction": 0.5, "absorption": None}, "2/3 partial"),
        ({"loss_recovered": None, "l0": None, "dead_fraction": None, "absorption": None}, "0/0 incomplete"),
    ],
)
def test_rows_get_the_grades_that_the_thresholds_give(values: dict[str, float | None], grade: str) -> None:
    assert str(grade_layer(**values)) == grade


@pytest.mark.parametrize(
    ("metric", "value", "outcome"),
    [
        ("loss_recovered", 0.70, "pass"),
        ("loss_recovered", math.nextafter(0.70, 0), "borderline"),
        ("loss_recovered", 0.60, "borderline"),
        ("loss_recovered", math.nextafter(0.60, 0), "fail"),
        ("loss_recovered", 1.3, "pass"),
        ("loss_recovered", -4.0, "fail"),
        ("l0", 20, "pass"),
        ("l0", 200, "pass"),
        ("l0", 19.99, "fail"),
        ("l0", 200.01, "fail"),
        ("dead_fraction", 0.10, "pass"),
        ("dead_fraction", math.nextafter(0.10, 1), "borderline"),
        ("dead_fraction", 0.20, "borderline"),
        ("dead_fraction", math.nextafter(0.20, 1), "fail"),
        ("absorption", 0.25, "pass"),
        ("absorption", 0.2501, "borderline"),
        ("absorption", 0.35, "borderline"),
        ("absorption", 0.3501, "fail"),
    ],
)
def test_limits_belong_to_the_better_side(metric: str, value: float, outcome: str) -> None:
    grade = grade_layer(**{**PASSING, metric: value})
    assert getattr(grade, metric) == outcome
    assert grade.passed == (3 if outcome == "fail" else 4)
    strict = grade_layer(**{**PASSING, metric: value}, profile="seed-strict")
    assert strict.passed == (4 if outcome == "pass" else 3)


def test_the_stringent_profile_wants_ninety_percent() -> None:
    assert grade_layer(**{**PASSING, "loss_recovered": 0.90}, profile="stringent").passed == 4
    assert grade_layer(**{**PASSING, "loss_recovered": 0.89}, profile="stringent").label == "partial"


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        ("loss_recovered", math.nan),
        ("loss_recovered", math.inf),
        ("loss_recovered", "0.9"),
        ("loss_recovered", True),
        ("l0", -1.0),
        ("l0", math.inf),
        ("dead_fraction", 28.25),
        ("dead_fraction", -0.01),
        ("absorption", 1.01),
        ("absorption", -math.inf),
    ],
)
def test_impossible_values_are_refused_by_name(metric: str, value: Any) -> None:
    with pytest.raises(DataError, match=f"^{metric}: "):
        grade_layer(**{**PASSING, metric: value})


def test_an_unknown_profile_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="seed-lenient, seed-strict, stringent"):
        grade_layer(**PASSING, profile="lenient")


@settings(deadline=None)
@given(METRICS, st.sampled_from(["seed-lenient", "seed-strict", "stringent"]))
def test_grades_hold_together_and_not_measuring_never_helps(values: dict[str, float | None], profile: str) -> None:
    grade = grade_layer(**values, profile=profile)
    assert 0 <= grade.passed <= grade.applicable == sum(value is not None for value in values.values())
    assert (grade.label == "healthy") == (grade.passed == 4)
    assert (grade.label == "incomplete") == (grade.failed == 0 and grade.applicable < 4)
    assert (grade.label == "unhealthy") == (grade.failed >= 2)
    for metric in GRADED:
        without = grade_layer(**{**values, metric: None}, profile=profile)
        assert without.passed <= grade.passed
        assert without.label != "healthy"


def test_thresholds_of_ones_own_need_a_name_of_their_own() -> None:
    own = Thresholds(loss_recovered_pass=0.8, loss_recovered_borderline=0.5, borderline_passes=False)
    config = GradingConfig(profile="house", thresholds=own)
    grade = grade_layer(**{**PASSING, "loss_recovered": 0.75}, profile=config)
    assert (grade.profile, grade.loss_recovered, grade.passed) == ("house", "borderline", 3)
    with pytest.raises(ValidationError, match="another name"):
        GradingConfig(thresholds=own)
    with pytest.raises(ValidationError, match="no profile 'house'"):
        GradingConfig(profile="house")
    with pytest.raises(ValidationError, match="l0_low = 300 exceeds l0_high = 200"):
        Thresholds(l0_low=300)


@pytest.mark.parametrize(
    ("value", "half", "crosses"),
    [(0.72, 0.05, "0.7"), (0.65, 0.02, None), (0.65, 0.08, "0.7 and 0.6"), (0.75, 0.05, None), (0.58, 0.05, "0.6")],
)
def test_an_interval_that_crosses_a_threshold_is_undecided(value: float, half: float, crosses: str | None) -> None:
    grades = graded(row(4, loss_recovered=value, interval=half))
    metric = grades.saes[0].datasets[0].metric("loss_recovered")
    assert (metric.undecided or "").endswith(f"crosses {crosses}" if crosses else "")
    assert grades.saes[0].undecided == (crosses is not None)
    if crosses:
        assert any(item.rule == "undecided" for item in grades.recommendations)


def test_an_l0_that_topk_sets_is_said_to_be_set() -> None:
    notes = {
        k: graded(row(4, l0=l0, k=k)).saes[0].datasets[0].metric("l0").note
        for k, l0 in [(32, 32.0), (40, 25.0), (24, 61.0)]
    }
    assert notes == {32: "set by k = 32", 40: "at most k = 40", 24: None}


def test_the_worst_dataset_decides_unless_one_is_named() -> None:
    rows = (row(4, dataset="WikiText", dead_fraction=0.2825), row(4, dataset="SQuAD", dead_fraction=0.18))
    worst = graded(*rows).saes[0]
    assert (worst.passed, worst.applicable, worst.label, worst.decided_by) == (3, 4, "partial", "WikiText")
    named = graded(*rows, dataset="SQuAD").saes[0]
    assert (named.passed, named.label, named.decided_by) == (4, "healthy", "SQuAD")
    nowhere = graded(*rows, dataset="Pile").saes[0]
    assert (nowhere.passed, nowhere.applicable, nowhere.label) == (1, 1, "incomplete")
    assert "loss recovered NA: not evaluated on Pile" in nowhere.reasons


def test_a_missing_dataset_is_no_win() -> None:
    grades = graded(row(4, dataset="a"), row(4, dataset="b"), row(10, dataset="a"))
    short = sae(grades, "layers.10")
    assert (short.label, short.missing) == ("incomplete", ("b",))
    assert "not evaluated on b" in short.reasons
    assert sae(grades, "layers.4").label == "healthy"
    assert short.on("b") is None
    # The dataset that is to decide is NA where it is missing, whatever the other says.
    named = graded(row(4, dataset="a"), row(4, dataset="b"), row(10, dataset="a"), dataset="b")
    assert (sae(named, "layers.10").applicable, sae(named, "layers.10").label) == (1, "incomplete")
    assert grades.best is not None
    assert set(grades.best.titles) == {"layers.4", "layers.10"}
    assert "they differ in which metrics and datasets" in grades.best.reason


def test_the_best_layer_is_a_tie_where_intervals_overlap() -> None:
    near = (row(4, loss_recovered=0.90, interval=0.02), row(10, loss_recovered=0.92, interval=0.02))
    tie = graded(*near).best
    assert tie is not None
    assert tie.titles == ("layers.4", "layers.10")
    assert "overlap" in tie.reason
    by_value = graded(*near, ties="value").best
    assert by_value is not None
    assert by_value.titles == ("layers.10",)
    apart = graded(row(4, loss_recovered=0.80, interval=0.02), row(10, loss_recovered=0.92, interval=0.02)).best
    assert apart is not None
    assert apart.titles == ("layers.10",)
    more_passes = graded(row(4, loss_recovered=0.99, absorption=0.9), row(10, loss_recovered=0.71)).best
    assert more_passes is not None
    assert (more_passes.titles, more_passes.passed) == (("layers.10",), 4)


def test_equal_passes_of_different_metrics_are_not_told_apart_by_loss_recovered() -> None:
    grades = graded(row(4, loss_recovered=0.9, absorption=None), row(10, loss_recovered=0.8, dead_fraction=0.9))
    assert grades.best is not None
    assert grades.best.titles == ("layers.4", "layers.10")
    assert grades.best.applicable is None


def test_trend_words_need_six_layers_and_an_exact_p() -> None:
    falling = [row(layer, loss_recovered=0.95 - 0.01 * layer) for layer in range(7)]
    (trend,) = [item for item in graded(*falling).trends if item.metric == "loss_recovered"]
    assert (trend.rho, trend.direction) == (pytest.approx(-1.0), "falls")
    assert trend.p == pytest.approx(2 / math.factorial(7))
    few = graded(*falling[:5])
    (short,) = [item for item in few.trends if item.metric == "loss_recovered"]
    assert (short.rho, short.p, short.direction) == (pytest.approx(-1.0), None, None)
    assert not any("falls" in line for line in few.sentences)
    assert any("falls with depth" in line for line in graded(*falling).sentences)


def test_counts_means_and_sentences_follow_from_the_rows() -> None:
    recovered = [0.9842, 0.9684, 0.9002, 0.6624, 0.0487]
    dead = [0.2825, 0.01, 0.0, 0.0, 0.0]
    rows = [
        row(layer, loss_recovered=value, dead_fraction=share)
        for layer, value, share in zip((4, 10, 16, 22, 28), recovered, dead)
    ]
    grades = graded(*rows)
    assert grades.counts.model_dump() == {"healthy": 3, "incomplete": 0, "partial": 2, "unhealthy": 0}
    mean = next(item for item in grades.means if item.metric == "loss_recovered")
    assert mean.value == pytest.approx(0.71278)
    assert "Of 5 layers: 3/5 fully healthy, 2/5 partial." in grades.sentences
    assert any("71.28%" in line and "over 5 layers" in line for line in grades.sentences)


def test_recommendations_come_only_from_failures_and_cite_their_numbers() -> None:
    assert graded(row(4), row(10)).recommendations == ()
    failed = graded(row(4, dead_fraction=0.5)._replace(num_latents=400), row(10, l0=8.0, k=8))
    assert [item.rule for item in failed.recommendations] == ["dead_fraction", "l0_low"]
    assert "layers.4 (50.00%, 200 of 400)" in failed.recommendations[0].text
    assert "layers.10 (8.00, set by k = 8)" in failed.recommendations[1].text


def test_several_saes_of_a_layer_are_told_apart_and_averaged_only_over_seeds() -> None:
    seeds = [row(4, key=f"s{seed}", seed=seed, loss_recovered=0.8 + 0.1 * seed) for seed in (0, 1)]
    grades = graded(*seeds, row(10, seed=0, loss_recovered=0.7))
    assert [item.title for item in grades.saes] == ["layers.4 (seed 0)", "layers.4 (seed 1)", "layers.10"]
    mean = next(item for item in grades.means if item.metric == "loss_recovered")
    assert (mean.layers, mean.value) == (2, pytest.approx((0.85 + 0.7) / 2))
    sweep = graded(*(row(4, key=f"k{k}", k=k, l0=float(k)) for k in (32, 64)))
    assert [item.title for item in sweep.saes] == ["layers.4 (k = 32)", "layers.4 (k = 64)"]
    assert {item.reason for item in sweep.means} == {"SAEs of several recipes are not averaged"}
    rates = graded(*(row(4, key=f"lr{lr}", seed=0)._replace(training={"lr": lr, "seed": 0}) for lr in (0.1, 0.2)))
    assert [item.title for item in rates.saes] == ["layers.4 (lr 0.1)", "layers.4 (lr 0.2)"]
    assert rates.means[0].value is None


def test_models_are_compared_on_what_both_have() -> None:
    a = graded(
        row(4, dataset="WikiText", loss_recovered=0.98, dead_fraction=0.3),
        row(4, dataset="SQuAD", loss_recovered=0.99),
        row(10, dataset="WikiText", loss_recovered=0.5),
        row(10, dataset="SQuAD", loss_recovered=0.5),
    )
    b = graded(row(4, dataset="WikiText", loss_recovered=0.6), row(16, dataset="WikiText", loss_recovered=0.1))
    found = compare_grades(a, b, names=("A", "B"))
    assert (found.layers, found.datasets) == (("layers.4",), ("WikiText",))
    assert (found.only_a, found.only_b) == (("layers.10", "SQuAD"), ("layers.16",))
    (healthy,) = found.healthy
    assert (healthy.healthy_a, healthy.healthy_b, healthy.of_a) == (0, 1, 1)
    mean = next(item for item in found.means if item.metric == "loss_recovered")
    assert mean.difference == pytest.approx(-0.38)
    assert any("−38.00 percentage points" in line for line in found.sentences)
    assert not any("winner" in line or "better" in line for line in found.sentences)
    with pytest.raises(ConfigError, match="graded differently"):
        compare_grades(a, graded(row(4), profile="stringent"), names=("A", "B"))


def test_nothing_to_grade_and_doubled_rows_are_refused() -> None:
    with pytest.raises(DataError, match="no layer to grade"):
        graded()
    with pytest.raises(ConfigError, match="twice with one dataset"):
        graded(row(4), row(4))


def put(
    store: ArtifactStore, kind: str, name: str, file: str, data: Mapping[str, Any], *inputs: Artifact, **config: Any
) -> Artifact:
    recipe = Recipe(kind, name, 1, config, inputs)
    return store.build(recipe, lambda space: write_json(space.out / file, data))


def stored_layer(
    store: ArtifactStore, layer: int, *, dataset: str | None = None, absorption: float | None = 0.1
) -> tuple[Artifact, Artifact]:
    """A health artifact with its SAE behind it, and that SAE's absorption."""
    hookpoint = f"layers.{layer}"
    made = put(store, "sae", hookpoint, "training.json", {}, hookpoint=hookpoint, training={"k": 32, "seed": 7})
    health: dict[str, Any] = {
        "hookpoint": hookpoint,
        "layer": layer,
        "loss_recovered": {"value": 0.9, "low": 0.88, "high": 0.92, "reason": None, "n_documents": 9},
        "l0_mean": 32.0,
        "dead_fraction": 0.25,
        "num_latents": 400,
        "k": 32,
        "absorption": {"value": None, "reason": "not measured"},
        "checks": [{"name": "L0 ≤ k", "passed": False, "detail": "largest L0 33, k = 32"}],
    }
    if dataset:
        health["dataset"] = dataset
    reason = None if absorption is not None else "only 3 letters"
    found: dict[str, Any] = {
        "hookpoint": hookpoint,
        "value": absorption,
        "low": None,
        "high": None,
        "reason": reason,
        "random_control": {"value": 0.04, "reason": None, "letters": 26},
        "decoder_top_cosine": {"value": 0.3, "null_value": 0.1, "null_low": 0.09, "null_high": 0.11, "pairs": 50},
    }
    return (
        put(store, "health", f"m-{hookpoint}", "health.json", health, made, hookpoint=hookpoint, dataset=dataset),
        put(store, "absorption", hookpoint, "absorption.json", found, made),
    )


def test_the_step_joins_absorption_by_sae_and_keeps_checks_and_controls(store: ArtifactStore) -> None:
    pairs = [stored_layer(store, 4), stored_layer(store, 10, absorption=None)]
    artifact = grade_layers(
        [health for health, _ in pairs], [item for _, item in reversed(pairs)], config=GradingConfig(), store=store
    )
    grades = read_grades(artifact)
    assert [(item.title, item.passed, item.applicable, item.label) for item in grades.saes] == [
        ("layers.4", 3, 4, "partial"),
        ("layers.10", 2, 3, "partial"),
    ]
    first, second = grades.saes
    assert (first.seed, first.absorption_source) == (7, pairs[0][1].id)
    assert first.absorption_control is not None
    assert first.absorption_control.value == 0.04
    assert first.decoder_top_cosine is not None
    assert first.decoder_top_cosine.null_high == 0.11
    assert first.datasets[0].dataset == "held-out"
    assert not first.datasets[0].checks[0].passed
    assert second.datasets[0].metric("absorption").reason == "only 3 letters"
    assert artifact.counts() == {"saes": 2, "healthy": 0, "incomplete": 0, "partial": 2, "unhealthy": 0}


def test_the_step_gives_equal_bytes_and_its_recipe_knows_the_rules(store: ArtifactStore, tmp_path: Any) -> None:
    def make(where: ArtifactStore, **config: Any) -> Artifact:
        pairs = [stored_layer(where, layer, dataset=name) for layer in (4, 10) for name in ("a", "b")]
        absorption: Sequence[Artifact] = list({item.hash: item for _, item in pairs}.values())
        return grade_layers([item for item, _ in pairs], absorption, config=GradingConfig(**config), store=where)

    first, again = make(store), make(ArtifactStore(tmp_path / "elsewhere"))
    assert first.hash == again.hash
    assert first.manifest()["files"] == again.manifest()["files"]
    assert make(store, profile="stringent").hash != first.hash
    assert make(store, dataset="a").hash != first.hash
    data = json.loads(first.file("grades.json").read_text())
    assert (data["profile"], data["dataset"]) == ("seed-lenient", "worst-case")
    assert data["thresholds"]["loss_recovered_pass"] == 0.7


def test_the_step_refuses_what_cannot_be_graded(store: ArtifactStore) -> None:
    health, _ = stored_layer(store, 4)
    with pytest.raises(ConfigError, match="twice with one dataset"):
        grade_layers([health, health], config=GradingConfig(), store=store)
    with pytest.raises(DataError, match="no layer to grade"):
        grade_layers([], config=GradingConfig(), store=store)
    assert grade_layers_recipe([], config=GradingConfig()).folder.startswith("grades/layers-")
    assert set(LABELS) == {"healthy", "incomplete", "partial", "unhealthy"}
