"""Two models layer by layer: joint intervals, what is said of them, what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from planted_health import HOOKPOINTS, Prepared, prepare
from planted_models import CONFIG, NAMES, compare, health, layer, side

from saeinterp.artifacts import ArtifactStore
from saeinterp.compare import compare_models, compare_models_recipe
from saeinterp.compare.layers import MetricDifference, compare_layers
from saeinterp.compare.models import ModelComparison
from saeinterp.compare.sides import LayerHealth, Place
from saeinterp.config import HealthConfig
from saeinterp.errors import ComparabilityError, ConfigError
from saeinterp.health import DocumentSums


def difference(a: LayerHealth, b: LayerHealth, metric: str, **options: Any) -> MetricDifference:
    place = Place("layers.1")
    found = compare_layers({place: ((a,), (b,))}, titles=("A", "B"), draws=400, **options)
    return next(row for row in found.metrics[place] if row.metric == metric)


def test_a_clear_difference_is_said_with_its_direction() -> None:
    row = difference(layer(side(0, fvu=0.2)), layer(side(1, fvu=0.3)), "fvu")
    assert row.difference == pytest.approx(0.1, abs=0.01)
    assert row.low is not None
    assert row.high is not None
    assert 0 < row.low < row.difference < row.high
    assert (row.verdict, row.lower) == ("different", "a")
    assert "lower for A than for B" in row.sentence
    assert "n = 60 documents" in row.sentence


def test_the_direction_follows_the_numbers_when_the_sides_are_swapped() -> None:
    row = difference(layer(side(1, fvu=0.3)), layer(side(0, fvu=0.2)), "fvu")
    assert (row.verdict, row.lower) == ("different", "b")
    assert "lower for B than for A" in row.sentence


def test_no_difference_is_said_to_be_undetected() -> None:
    row = difference(layer(side(0)), layer(side(1)), "fvu")
    assert row.verdict == "inconclusive"
    assert "no detectable difference" in row.sentence


def test_documents_are_resampled_jointly_so_shared_hardness_cancels() -> None:
    # Side b is side a with every loss shifted by the same 0.05 nat: the difference hardly varies.
    a = side(0, noise=1.0)
    shifted = a.sums.copy()
    shifted[:, 3] += 0.05 * a.sums[:, 1]
    b = DocumentSums(a.doc_ids, shifted)
    joint = difference(layer(a), layer(b), "delta_ce")
    elsewhere = DocumentSums(b.doc_ids + len(b.doc_ids), b.sums)
    apart = difference(layer(a), layer(elsewhere), "delta_ce")
    assert joint.difference == pytest.approx(0.05)
    assert joint.low == pytest.approx(0.05, abs=1e-9)
    assert apart.low is not None
    assert apart.low < 0.0


def test_documents_masked_on_one_side_still_count_on_the_other() -> None:
    a, b = side(0), side(1, fvu=0.3)
    fewer = DocumentSums(b.doc_ids[5:], b.sums[5:])
    row = difference(layer(a), layer(fewer), "fvu")
    assert row.n_documents == 60
    assert row.difference == pytest.approx(fewer.value("fvu") - a.value("fvu"))


def test_an_inapplicable_metric_has_no_difference_and_names_the_side() -> None:
    missing = {"value": None, "low": None, "high": None, "reason": "not applicable: zeroing costs nothing"}
    row = difference(layer(side(0)), layer(side(1), loss_recovered=missing), "loss_recovered")
    assert row.difference is None
    assert row.verdict is None
    assert row.reason == "B: not applicable: zeroing costs nothing"
    assert "not compared" in row.sentence


def test_the_dead_fraction_is_a_census_without_interval() -> None:
    row = difference(layer(side(0)), layer(side(1), dead_fraction=0.4), "dead_fraction")
    assert row.difference == pytest.approx(0.3)
    assert row.low is None
    assert row.verdict is None
    assert "no interval" in str(row.reason)


def test_too_few_documents_give_a_difference_without_a_verdict() -> None:
    row = difference(layer(side(0, count=4)), layer(side(1, count=4, fvu=0.5)), "fvu")
    assert row.difference is not None
    assert row.verdict is None
    assert "too few" in str(row.reason)


def test_layers_are_summed_up_without_a_test() -> None:
    pairs = {Place(f"layers.{i}"): ((layer(side(i)),), (layer(side(10 + i, fvu=0.25 + 0.05 * i)),)) for i in range(3)}
    found = compare_layers(pairs, titles=("A", "B"), draws=400)
    row = next(row for row in found.summary if row.metric == "fvu")
    differences = [rows[3].difference for rows in found.metrics.values()]
    assert row.layers == 3
    assert row.mean_difference == pytest.approx(np.mean(differences))
    assert row.low is not None
    assert row.low < row.mean_difference < row.high
    assert (row.smallest, row.largest) == (min(differences), max(differences))
    assert not any("p" in name.split("_") for name in type(row).model_fields)


def test_the_recipe_is_known_before_anything_is_made(real: Prepared, control: Prepared) -> None:
    sides = ([real.activations], [control.activations])
    recipe = compare_models_recipe(*sides, config=CONFIG, names=NAMES)
    renamed = compare_models_recipe(*sides, config=CONFIG, names=("Real", "Other"))
    margin = compare_models_recipe(*sides, config=CONFIG.model_copy(update={"margin": 0.2}), names=NAMES)
    assert recipe.folder.startswith("model-comparison/Real-vs-Control-")
    assert recipe.hash != renamed.hash
    assert recipe.hash == margin.hash  # the equivalence margin is of explainers' scores


def test_a_model_against_its_random_weights_control(
    real: Prepared, control: Prepared, shared_store: ArtifactStore
) -> None:
    a = [health(shared_store, real, name) for name in HOOKPOINTS]
    b = [health(shared_store, control, name) for name in HOOKPOINTS]
    found = compare(shared_store, a, b)
    assert found.control == "b"
    assert found.matched
    assert found.condition == "conditional on these SAEs (one SAE each)"
    assert [layer.hookpoint for layer in found.layers] == list(HOOKPOINTS)
    assert {row.field for row in found.configuration} >= {"weights", "title"}
    for item in found.layers:
        rows = {row.metric: row for row in item.metrics}
        assert rows["loss_recovered"].difference is None
        assert "not applicable" in str(rows["loss_recovered"].b.reason)
        assert item.control_sentence is not None
        fvu, delta_ce = item.control
        row = rows[fvu.metric]
        assert row.difference is not None
        assert row.low is not None
        assert fvu.outcome == ("beats" if row.low > 0 else "worse" if row.high < 0 else "no detectable difference")
        # Any SAE adds little CE to a model whose CE hardly depends on the layer: that is no merit of the control.
        assert delta_ce.outcome == "not applicable"
        assert "is not judged: zeroing this layer changes the control's CE by" in item.control_sentence
    assert "ΔCE: not applicable on 2" in found.sentence


def test_the_control_may_stand_on_either_side(real: Prepared, control: Prepared, shared_store: ArtifactStore) -> None:
    a, b = [health(shared_store, real)], [health(shared_store, control)]
    forward = compare(shared_store, a, b)
    made = compare_models(b, a, config=CONFIG, names=NAMES[::-1], store=shared_store)
    backward = ModelComparison.model_validate_json(made.file("comparison.json").read_bytes())
    assert (forward.control, backward.control) == ("b", "a")
    assert forward.sentence == backward.sentence
    assert [outcome.outcome for outcome in forward.layers[0].control] == [
        outcome.outcome for outcome in backward.layers[0].control
    ]


def test_a_missing_layer_is_shown_as_missing_and_the_others_are_compared(
    real: Prepared, control: Prepared, shared_store: ArtifactStore
) -> None:
    a = [health(shared_store, real, name) for name in HOOKPOINTS]
    found = compare(shared_store, a, [health(shared_store, control, "layers.0")])
    by_name = {layer.hookpoint: layer for layer in found.layers}
    assert by_name["layers.0"].missing is None
    assert by_name["layers.1"].missing == "b"
    fvu = next(row for row in by_name["layers.1"].metrics if row.metric == "fvu")
    assert fvu.a.value is not None
    assert fvu.b.value is None
    assert any(sentence.text == "layers.1: missing for Control." for sentence in found.sentences)
    row = next(row for row in found.comparability if row.field == "layers")
    assert (row.ok, row.severity, row.a, row.b) == (False, "soft", "layers.0, layers.1", "layers.0")
    assert next(row for row in found.summary if row.metric == "fvu").missing == 1


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"k": 5}, "k: 6 on one side, 5 on the other"),
        ({"num_latents": 40}, "SAE latents: 48 on one side, 40 on the other"),
        ({"lr": 0.5}, "SAE training lr: not known on one side, 0.5 on the other"),
        ({"health_config": HealthConfig(bootstrap=200, splice="unmasked")}, "health splice: all on one side"),
    ],
)
def test_sides_trained_or_measured_differently_are_refused_by_name(
    real: Prepared, control: Prepared, shared_store: ArtifactStore, change: Mapping[str, Any], field: str
) -> None:
    a, b = [health(shared_store, real)], [health(shared_store, control, **change)]
    with pytest.raises(ComparabilityError, match=field):
        compare(shared_store, a, b)
    found = compare(shared_store, a, b, allow_unmatched=True)
    assert not found.matched
    assert any(row.severity == "hard" and not row.ok for row in found.comparability)


def test_other_text_is_refused(
    real: Prepared, planted_folder: Path, planted_corpus: Path, shared_store: ArtifactStore
) -> None:
    elsewhere = prepare(shared_store, planted_folder, planted_corpus, control=True)
    a, b = [health(shared_store, real)], [health(shared_store, elsewhere)]
    with pytest.raises(ComparabilityError, match=r"corpus: documents\.jsonl-"):
        compare(shared_store, a, b)
    found = compare(shared_store, a, b, allow_unmatched=True)
    rows = {row.metric: row for row in found.layers[0].metrics}
    # Nothing is paired: the documents of both sides are resampled apart.
    total = sum(len(DocumentSums.read(item.file("documents.parquet")).doc_ids) for item in (*a, *b))
    assert rows["fvu"].n_documents == total


def test_a_bootstrap_of_another_size_is_named_but_not_refused(
    real: Prepared, control: Prepared, shared_store: ArtifactStore
) -> None:
    b = health(shared_store, control, health_config=HealthConfig(bootstrap=300))
    found = compare(shared_store, [health(shared_store, real)], [b])
    row = next(row for row in found.comparability if row.field == "health bootstrap")
    assert (row.ok, row.severity) == (False, "soft")
    assert found.matched


def test_no_shared_layer_and_a_layer_twice_are_errors(
    real: Prepared, control: Prepared, shared_store: ArtifactStore
) -> None:
    first, second = health(shared_store, real, "layers.0"), health(shared_store, control, "layers.1")
    with pytest.raises(ComparabilityError, match="share no layer"):
        compare(shared_store, [first], [second])
    with pytest.raises(ConfigError, match=r"comes twice.*layers\.0"):
        compare(shared_store, [first, first], [second])


def test_the_table_has_one_row_per_layer_and_metric(
    real: Prepared, control: Prepared, shared_store: ArtifactStore
) -> None:
    a = [health(shared_store, real, name) for name in HOOKPOINTS]
    b = [health(shared_store, control, "layers.0")]
    made = compare_models(a, b, config=CONFIG, names=NAMES, store=shared_store)
    table = pl.read_parquet(made.file("layers.parquet"))
    assert table.columns == [
        "hookpoint", "dataset", "recipe", "metric", "a", "b", "a_low", "a_high", "b_low", "b_high",
        "difference", "low", "high", "verdict", "n_documents",
        "saes_a", "saes_b", "models_low", "models_high", "models_verdict", "note",
    ]  # fmt: skip
    assert len(table) == 2 * 5
    row = table.row(by_predicate=(pl.col("hookpoint") == "layers.0") & (pl.col("metric") == "fvu"), named=True)
    assert row["difference"] == pytest.approx(row["b"] - row["a"])
    assert row["low"] < row["difference"] < row["high"]


def test_the_same_comparison_gives_the_same_bytes(
    real: Prepared, control: Prepared, shared_store: ArtifactStore, store: ArtifactStore
) -> None:
    sides = ([health(shared_store, real)], [health(shared_store, control)])
    files = [
        compare_models(*sides, config=CONFIG, names=NAMES, store=place).manifest()["files"]
        for place in (store, shared_store)
    ]
    assert files[0] == files[1]
