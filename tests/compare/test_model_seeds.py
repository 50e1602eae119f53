"""Several SAE training seeds a side: what holds of these SAEs, and what may be said of the models."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from planted_health import HOOKPOINTS, Prepared
from planted_models import Documents, compare, health, layer
from scipy import stats

from saeinterp.artifacts import ArtifactStore
from saeinterp.compare.layers import MetricDifference, compare_layers
from saeinterp.compare.sides import LayerHealth, Place
from saeinterp.errors import ConfigError

PLACE = Place("layers.1")
SEED_SD = 0.02


def saes(
    documents: Documents, rng: np.random.Generator, *, fvu: float, count: int = 3, sd: float = SEED_SD
) -> list[LayerHealth]:
    return [layer(documents.sums(rng, fvu=fvu + sd * rng.standard_normal())) for _ in range(count)]


def fvu_row(a: Sequence[LayerHealth], b: Sequence[LayerHealth], **options: int) -> MetricDifference:
    found = compare_layers({PLACE: (a, b)}, titles=("A", "B"), **{"draws": 400, **options})
    return next(row for row in found.metrics[PLACE] if row.metric == "fvu")


def test_a_side_counts_as_the_mean_of_its_saes_with_their_spread() -> None:
    documents, rng = Documents(60, seed=0), np.random.default_rng(0)
    a, b = saes(documents, rng, fvu=0.2), saes(documents, rng, fvu=0.3, count=2)
    row = fvu_row(a, b)
    values = [sae.documents.value("fvu") for sae in a]
    assert row.a.value == pytest.approx(np.mean(values))
    assert row.a.sd == pytest.approx(np.std(values, ddof=1))
    assert row.a.values == pytest.approx(values)
    assert row.a.low is not None
    assert row.a.low < row.a.value < row.a.high
    assert row.difference == pytest.approx(row.b.value - row.a.value)
    assert "(A, mean of 3 SAEs)" in row.sentence
    assert "(B, mean of 2 SAEs)" in row.sentence
    assert row.models is None  # two seeds on one side


def test_three_seeds_a_side_give_a_sentence_about_the_models() -> None:
    documents, rng = Documents(60, seed=0), np.random.default_rng(1)
    row = fvu_row(saes(documents, rng, fvu=0.2), saes(documents, rng, fvu=0.4))
    assert row.models is not None
    assert (row.models.verdict, row.models.lower) == ("different", "a")
    assert row.models.low < row.low < row.difference < row.high < row.models.high  # type: ignore[operator]
    assert "lower for the model A than for B" in row.models.sentence
    assert "SAE training seeds included" in row.models.sentence


def test_where_documents_hardly_matter_the_interval_is_welchs_over_seeds() -> None:
    documents, rng = Documents(400, seed=0), np.random.default_rng(2)
    a, b = saes(documents, rng, fvu=0.2, sd=0.1), saes(documents, rng, fvu=0.3, count=4, sd=0.1)
    row = fvu_row(a, b, draws=100)
    expected = stats.ttest_ind(row.b.values, row.a.values, equal_var=False).confidence_interval(0.95)
    assert row.models is not None
    assert (row.models.low, row.models.high) == pytest.approx((expected.low, expected.high), rel=0.01)


def test_the_dead_fraction_of_models_is_tested_over_seeds_alone() -> None:
    documents, rng = Documents(60, seed=0), np.random.default_rng(3)
    dead = [[0.10, 0.12, 0.11], [0.30, 0.33, 0.31]]
    pair = tuple([layer(documents.sums(rng, fvu=0.2), dead_fraction=x) for x in side] for side in dead)
    row = compare_layers({PLACE: (pair[0], pair[1])}, titles=("A", "B"), draws=100).metrics[PLACE][4]
    expected = stats.ttest_ind(dead[1], dead[0], equal_var=False).confidence_interval(0.95)
    assert row.metric == "dead_fraction"
    assert row.low is None
    assert row.models is not None
    assert (row.models.low, row.models.high) == pytest.approx((expected.low, expected.high))
    assert "these tokens" in row.models.method


def test_planted_nothing_is_seldom_found_of_models_though_these_saes_often_differ() -> None:
    """Two equal models: seeds move FVU by more than documents do, so single SAEs differ and models do not."""
    rng = np.random.default_rng(4)
    runs, of_models, of_saes, single = 300, 0, 0, 0
    for run in range(runs):
        documents = Documents(60, seed=run)
        a, b = saes(documents, rng, fvu=0.25), saes(documents, rng, fvu=0.25)
        row = fvu_row(a, b, draws=100)
        assert row.models is not None
        of_models += row.models.verdict == "different"
        of_saes += row.verdict == "different"
        single += fvu_row(a[:1], b[:1], draws=100).verdict == "different"
    assert of_models / runs <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / runs)
    # The reason why a sentence about models needs seeds: documents alone see a difference of SAEs nearly always.
    assert of_saes / runs > 0.5
    assert single / runs > 0.5


def test_planted_truth_is_found_and_covered() -> None:
    rng = np.random.default_rng(5)
    runs, covered, found = 200, 0, 0
    for run in range(runs):
        documents = Documents(60, seed=run)
        row = fvu_row(saes(documents, rng, fvu=0.2), saes(documents, rng, fvu=0.32), draws=100)
        assert row.models is not None
        assert row.models.low is not None
        assert row.models.high is not None
        covered += row.models.low <= 0.12 <= row.models.high
        found += row.models.lower == "a"
    assert covered / runs >= 0.95 - 3 * np.sqrt(0.05 * 0.95 / runs)
    assert found / runs > 0.9


def test_one_sae_each_says_so_and_three_seeds_speak_of_models(
    real: Prepared, control: Prepared, shared_store: ArtifactStore
) -> None:
    sides = [[health(shared_store, parts, seed=seed) for seed in range(3)] for parts in (real, control)]
    one = compare(shared_store, sides[0][:1], sides[1][:1])
    assert one.condition == "conditional on these SAEs (one SAE each)"
    assert not any(sentence.id.startswith("models.") for sentence in one.sentences)
    two = compare(shared_store, sides[0][:2], sides[1][:1])
    assert two.condition == "conditional on these SAEs (two SAEs of Real, one SAE of Control)"
    assert not any(sentence.id.startswith("models.") for sentence in two.sentences)
    row = next(row for row in two.comparability if row.field == "SAE training seeds")
    assert (row.a, row.b, row.ok, row.severity) == ("0, 1", "0", False, "soft")
    three = compare(shared_store, *sides)
    assert three.condition == "SAE training seeds included (3 SAEs each)"
    assert three.layers[0].seeds_a == (0, 1, 2)
    assert {"models.fvu.layers.1@held-out", "fvu.layers.1@held-out"} <= {item.id for item in three.sentences}
    assert three.condition in three.sentence
    # The control is judged with seeds too, or the headline would claim what was not tested.
    rows = {row.metric: row for row in three.layers[0].metrics}
    for outcome in three.layers[0].control:
        if outcome.outcome == "not applicable":  # ΔCE: the control's CE hardly depends on the layer
            continue
        models = rows[outcome.metric].models
        assert models is not None
        words = {"a": "beats", "b": "worse"} if models.verdict == "different" else {}
        assert outcome.outcome == words.get(str(models.lower), "no detectable difference")
    assert "SAE training seeds included" in str(three.layers[0].control_sentence)


def test_seeds_enough_at_one_layer_only_leave_the_headline_with_these_saes(
    real: Prepared, control: Prepared, shared_store: ArtifactStore
) -> None:
    sides = [
        [*(health(shared_store, parts, seed=seed) for seed in range(3)), health(shared_store, parts, HOOKPOINTS[0])]
        for parts in (real, control)
    ]
    found = compare(shared_store, *sides)
    assert found.condition.startswith("conditional on these SAEs (1 to 3 SAEs each), but for layers with 3 or more")
    assert any(item.id == "models.fvu.layers.1@held-out" for item in found.sentences)
    assert not any(item.id.startswith("models.fvu.layers.0") for item in found.sentences)


def test_one_seed_twice_and_two_models_on_a_side_are_errors(
    real: Prepared, control: Prepared, shared_store: ArtifactStore
) -> None:
    first = health(shared_store, real, seed=0)
    with pytest.raises(ConfigError, match="training seed"):
        compare(shared_store, [first, first], [health(shared_store, control, seed=0)])
    with pytest.raises(ConfigError, match="several models"):
        compare(shared_store, [first, health(shared_store, control, seed=1)], [health(shared_store, control, seed=0)])
