"""The short answer on two models, like with like; their controls, their datasets, their trends with depth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from planted_health import HOOKPOINTS, Prepared
from planted_models import Documents, compare, health, layer

from saeinterp.artifacts import ArtifactStore
from saeinterp.compare.direct import compare_directly
from saeinterp.compare.layer_rows import MetricDifference
from saeinterp.compare.layers import compare_layers
from saeinterp.compare.model_sentences import layer_results
from saeinterp.compare.sides import LayerHealth, Place
from saeinterp.compare.trends import LayerRow, Trend, depth_trends
from saeinterp.config import GradingConfig
from saeinterp.errors import ComparabilityError, ConfigError
from saeinterp.health.grading.step import grade_layers

NAMES = ("Base", "Finance")
LAYERS = (4, 10, 16, 22, 28)


def recovered(value: float, number: int) -> LayerHealth:
    sums = Documents(60, seed=number).sums(np.random.default_rng(number), fvu=0.2)
    return layer(sums, layer=number, loss_recovered={"value": value, "low": None, "high": None, "reason": None})


def directly(a: list[float], b: list[float]) -> Any:
    pairs = {
        Place(f"layers.{number}", "WikiText"): ((recovered(x, number),), (recovered(y, number),))
        for number, x, y in zip(LAYERS, a, b)
    }
    found = compare_layers(pairs, titles=NAMES, draws=100)
    seeds: dict[Place, Any] = dict.fromkeys(pairs, ((0,), (0,)))
    layers = layer_results(pairs, found.metrics, seeds=seeds, control=None, names=NAMES, alpha=0.05)
    return compare_directly(layers, found.summary, graded={}, names=NAMES, alpha=0.05)


def test_the_gap_is_of_unrounded_means_in_percentage_points() -> None:
    # By hand: means 71.276 and 58.472; rounded first, their difference would be 12.81.
    a, b = [0.7921, 0.7634, 0.7108, 0.6617, 0.6358], [0.5842, 0.6335, 0.5701, 0.6137, 0.5221]
    found = directly(a, b)
    (gap,) = found.gaps
    assert gap.mean_a == pytest.approx(0.71276)
    assert gap.mean_b == pytest.approx(0.58472)
    assert gap.gap_points == pytest.approx(-12.804)
    assert "71.28% (Base) and 58.47% (Finance), gap −12.80 percentage points" in gap.sentence
    assert gap.hookpoints == tuple(f"layers.{number}" for number in LAYERS)
    assert found.reason == "not graded: Base, Finance"


def test_a_layer_of_one_side_takes_no_part_in_the_means(
    real: Prepared, control: Prepared, shared_store: ArtifactStore
) -> None:
    a = [health(shared_store, real, name) for name in HOOKPOINTS]
    found = compare(shared_store, a, [health(shared_store, real, HOOKPOINTS[0], k=5)])
    (gap,) = found.direct.gaps
    assert gap.hookpoints == (HOOKPOINTS[0],)
    assert found.direct.one_sided == ("layers.1, held-out: only Real",)
    assert any("On one side only, so not compared" in text for text in found.direct.sentences)


def test_a_dataset_of_one_side_is_compared_with_nothing(
    real: Prepared, control: Prepared, shared_store: ArtifactStore
) -> None:
    a = [health(shared_store, real, dataset=name) for name in ("prose", "problems")]
    b = [health(shared_store, control, dataset="prose")]
    grades = {
        "a": grade_layers(a, config=GradingConfig(), store=shared_store),
        "b": grade_layers(b, config=GradingConfig(), store=shared_store),
    }
    found = compare(shared_store, a, b, grades=grades)  # type: ignore[arg-type]
    assert found.datasets == ("prose", "problems")
    by_dataset = {item.dataset: item for item in found.layers}
    assert (by_dataset["prose"].missing, by_dataset["problems"].missing) == (None, "b")
    row = next(row for row in found.comparability if row.field == "datasets")
    assert (row.ok, row.severity, row.a, row.b) == (False, "soft", "prose, problems", "prose")
    assert found.direct.a is not None
    assert found.direct.a.saes == 1
    assert any("datasets of both sides (prose)" in text for text in found.direct.sentences)
    assert "problems" not in found.sentence
    assert {item.dataset for item in found.summary if item.mean_difference is not None} == {"prose"}


def test_several_datasets_are_told_apart_in_rows_and_sentences(
    real: Prepared, control: Prepared, shared_store: ArtifactStore
) -> None:
    sides = [[health(shared_store, parts, dataset=name) for name in ("prose", "problems")] for parts in (real, control)]
    found = compare(shared_store, *sides)
    assert [(item.hookpoint, item.dataset) for item in found.layers] == [
        ("layers.1", "prose"),
        ("layers.1", "problems"),
    ]
    assert "(prose)" in found.sentence
    assert "(problems)" in found.sentence
    assert {"fvu.layers.1@prose", "fvu.layers.1@problems"} <= {item.id for item in found.sentences}
    assert all(item.text.startswith("layers.1, prose") for item in found.sentences if item.id == "fvu.layers.1@prose")


def test_healthy_layers_are_counted_from_the_grades_of_shared_places(
    real: Prepared, control: Prepared, shared_store: ArtifactStore
) -> None:
    a = [health(shared_store, real, name) for name in HOOKPOINTS]
    b = [health(shared_store, control, HOOKPOINTS[0])]
    config = GradingConfig()
    grades = {
        "a": grade_layers(a, config=config, store=shared_store),
        "b": grade_layers(b, config=config, store=shared_store),
    }
    found = compare(shared_store, a, b, grades=grades)  # type: ignore[arg-type]
    assert found.direct.a is not None
    assert found.direct.b is not None
    assert (found.direct.a.saes, found.direct.b.saes) == (1, 1)  # layers.1 is on one side only
    counts = [
        side.healthy + side.incomplete + side.partial + side.unhealthy for side in (found.direct.a, found.direct.b)
    ]
    assert counts == [1, 1]
    assert found.direct.a.best  # over all of its own layers
    strict = grade_layers(b, config=GradingConfig(profile="stringent"), store=shared_store)
    with pytest.raises(ComparabilityError, match="grading profile: seed-lenient on one side, stringent on the other"):
        compare(shared_store, a, b, grades={"a": grades["a"], "b": strict})


def test_each_side_is_compared_with_its_own_control(
    real: Prepared, control: Prepared, shared_store: ArtifactStore
) -> None:
    a = [health(shared_store, real, name) for name in HOOKPOINTS]
    b = [health(shared_store, real, name, seed=5) for name in HOOKPOINTS]
    floor = [health(shared_store, control, name) for name in HOOKPOINTS]
    found = compare(shared_store, a, b, controls={"a": floor, "b": floor})
    assert [item.side for item in found.controls] == ["a", "b"]
    direct = compare(shared_store, a, floor)
    # A control beside the comparison says what the same control as a side says.
    assert [item.control for item in found.controls[0].layers] == [item.control for item in direct.layers]
    assert found.control is None
    assert "Real against its random-weights control on 2 layers" in found.controls[0].sentence
    assert all(item.control_sentence for side in found.controls for item in side.layers)
    with pytest.raises(ConfigError, match="weights of its own"):
        compare(shared_store, a, b, controls={"a": b})


def test_a_control_trained_otherwise_is_refused(real: Prepared, control: Prepared, shared_store: ArtifactStore) -> None:
    a, b = [health(shared_store, real)], [health(shared_store, real, seed=5)]
    with pytest.raises(ComparabilityError, match="control of Real: k: 6 on one side, 5 on the other"):
        compare(shared_store, a, b, controls={"a": [health(shared_store, control, k=5)]})


def rows(values_a: list[float], values_b: list[float]) -> list[LayerRow]:
    found = []
    for number, (x, y) in enumerate(zip(values_a, values_b)):
        side_a, side_b = ({"value": value} for value in (x, y))
        row = {"hookpoint": f"layers.{number}", "metric": "fvu", "title": "FVU", "a": side_a, "b": side_b}
        row |= {"difference": y - x, "n_documents": 9, "sentence": ""}
        found.append(LayerRow(number, MetricDifference.model_validate(row)))
    return found


def trend(values_a: list[float], values_b: list[float], of: str) -> Trend:
    return next(item for item in depth_trends(rows(values_a, values_b), titles=("A", "B")) if item.of == of)


def test_a_trend_word_comes_from_an_exact_test_over_six_layers_or_more() -> None:
    rising, mixed = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [0.3, 0.1, 0.2, 0.4, 0.2, 0.3]
    found = trend(rising, mixed, "a")
    assert (found.rho, found.p, found.direction) == (pytest.approx(1.0), pytest.approx(2 / 720), "rises")
    assert found.sentence == (
        "FVU of A rises with depth: Spearman's ρ = 1.00 over 6 layers, p = 0.003 (exact over 6! orders);"
        " these layers only."
    )
    assert trend(rising, mixed, "b").direction == "no detectable trend"
    assert trend(mixed, rising[::-1], "difference").of == "difference"


def test_five_layers_in_order_get_no_trend_word() -> None:
    falling = trend([0.5, 0.4, 0.3, 0.2, 0.1], [0.3, 0.1, 0.2, 0.4, 0.5], "a")
    assert (falling.rho, falling.p, falling.direction) == (pytest.approx(-1.0), None, None)
    assert not any(word in falling.sentence for word in ("rises", "falls", "trend with"))
    assert "no test below 6" in falling.sentence
