"""Sweeps as FVU–L0 frontiers: who is on them, matched L0 by hand, no comparison without a common L0."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from planted_health import Prepared, prepare
from planted_models import Documents, compare, health, layer

from saeinterp.artifacts import ArtifactStore
from saeinterp.compare.frontiers import Frontier, compare_frontiers
from saeinterp.compare.sides import LayerHealth, Place
from saeinterp.errors import ComparabilityError


def frontier(
    documents: Documents,
    a: list[tuple[float, float]],
    b: list[tuple[float, float]],
    *,
    rng: np.random.Generator,
    draws: int = 200,
) -> Frontier:
    """Both sides as (L0, FVU) of their recipes, which have no name in common."""
    pairs: dict[Place, tuple[tuple[LayerHealth, ...], tuple[LayerHealth, ...]]] = {}
    for index, points in enumerate((a, b)):
        for l0, fvu in points:
            sae = layer(documents.sums(rng, fvu=fvu, l0=l0))
            pair = pairs.setdefault(Place("layers.1", recipe=f"side {index}, l0={l0:g}"), ((), ()))
            place = Place("layers.1", recipe=f"side {index}, l0={l0:g}")
            pairs[place] = ((*pair[0], sae), ()) if index == 0 else ((), (*pair[1], sae))
    return compare_frontiers(pairs, layers={"layers.1": 1}, titles=("A", "B"), draws=draws)[0]


def exact(documents: Documents) -> Documents:
    """Documents on which FVU is as planted, whatever is resampled."""
    documents.hardness[:] = 0
    return documents


class NoNoise(np.random.Generator):
    def standard_normal(self, *shape: int) -> np.ndarray:  # type: ignore[override]
        return np.zeros(shape)


def no_noise() -> np.random.Generator:
    return NoNoise(np.random.PCG64(0))


def test_matched_l0_by_hand() -> None:
    # In log2 of L0: A falls from 0.4 at 4 to 0.2 at 6, B from 0.5 at 4 through 0.3 at 5 to 0.28 at 6.
    found = frontier(
        exact(Documents(60, seed=0)), [(16, 0.4), (64, 0.2)], [(16, 0.5), (32, 0.3), (64, 0.28)], rng=no_noise()
    )
    assert (found.l0_low, found.l0_high) == (pytest.approx(16), pytest.approx(64))
    assert [point.l0 for point in found.matched] == pytest.approx([16, 32, 64])
    assert [point.a for point in found.matched] == pytest.approx([0.4, 0.3, 0.2])
    assert [point.difference for point in found.matched] == pytest.approx([0.1, 0.0, 0.08])
    # Trapezoids over two octaves: A 0.3; B (0.4 + 0.29) / 2.
    assert (found.mean_a, found.mean_b) == (pytest.approx(0.3), pytest.approx(0.345))
    assert found.difference == pytest.approx(0.045)


def test_a_recipe_that_another_beats_on_both_axes_is_not_on_the_frontier() -> None:
    found = frontier(
        exact(Documents(60, seed=0)), [(16, 0.4), (20, 0.45), (64, 0.2)], [(16, 0.4), (64, 0.2)], rng=no_noise()
    )
    assert [point.on_frontier for point in found.a] == [True, False, True]
    assert found.difference == pytest.approx(0.0)


def test_without_a_common_l0_nothing_is_extrapolated() -> None:
    found = frontier(exact(Documents(60, seed=0)), [(16, 0.4), (32, 0.3)], [(64, 0.2), (128, 0.1)], rng=no_noise())
    assert found.difference is None
    assert found.verdict is None
    assert found.reason == "no common L0: 16.0 to 32.0 for A, 64.0 to 128.0 for B"
    assert "not compared" in found.sentence


def test_one_point_against_a_sweep_is_compared_at_its_l0() -> None:
    documents = exact(Documents(60, seed=0))
    found = frontier(documents, [(32, 0.25)], [(16, 0.4), (64, 0.2)], rng=no_noise())
    assert [point.l0 for point in found.matched] == pytest.approx([32])
    assert found.difference == pytest.approx(0.05)
    # TopK at one k falls short of k on a few rows: that is one L0, not two.
    near = frontier(documents, [(32, 0.25)], [(16, 0.4), (31.9, 0.3)], rng=no_noise())
    assert near.difference == pytest.approx(0.05, abs=1e-6)


def test_a_planted_gap_is_found_with_its_direction() -> None:
    rng = np.random.default_rng(0)
    documents = Documents(60, seed=1)
    points = [(16.0, 0.4), (32.0, 0.3), (64.0, 0.2)]
    found = frontier(documents, [(l0, fvu - 0.05) for l0, fvu in points], points, rng=rng)
    assert found.low is not None
    assert found.high is not None
    assert found.low < 0.05 < found.high
    assert (found.verdict, found.lower) == ("different", "a")
    assert "lower for A than for B" in found.sentence
    assert all(point.low is not None and point.low > 0 for point in found.matched)


def test_planted_nothing_is_found_no_more_often_than_the_level() -> None:
    """One curve for both sides; which document is hard for an SAE is drawn for each."""
    runs, found = 300, 0
    for run in range(runs):
        rng = np.random.default_rng(run)
        documents = exact(Documents(60, seed=run))
        points = [(16.0, 0.4), (64.0, 0.2)]
        found += frontier(documents, points, points, rng=rng, draws=200).verdict == "different"
    assert found / runs <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)


def test_a_sweep_over_k_pairs_equal_recipes_and_draws_frontiers(
    real: Prepared, control: Prepared, shared_store: ArtifactStore
) -> None:
    sides = [[health(shared_store, parts, k=k) for k in (2, 4, 8)] for parts in (real, control)]
    found = compare(shared_store, *sides)
    assert [item.recipe for item in found.layers] == ["k=2", "k=4", "k=8"]
    assert all(item.missing is None for item in found.layers)
    (item,) = found.frontiers
    assert [point.recipe for point in item.a] == ["k=2", "k=4", "k=8"]
    assert [point.l0 for point in item.a] == pytest.approx([2, 4, 8], rel=0.05)
    assert item.verdict is not None
    assert any(sentence.id == "frontier.layers.1@held-out" for sentence in found.sentences)
    ids = [sentence.id for sentence in found.sentences]
    assert len(set(ids)) == len(ids)
    recipes = {row.recipe for row in found.summary}
    assert recipes == {"k=2", "k=4", "k=8"}


def test_one_model_with_other_sae_settings_compares_them_and_says_so(
    real: Prepared, control: Prepared, shared_store: ArtifactStore
) -> None:
    narrow = [health(shared_store, real, k=k) for k in (2, 4)]
    wide = [health(shared_store, real, k=k, num_latents=64) for k in (2, 4)]
    found = compare(shared_store, narrow, wide)
    assert found.matched
    assert [item.recipe for item in found.layers] == ["k=2", "k=4"]  # width tells the sides apart, k the recipes
    assert len(found.frontiers) == 1
    assert any(item.step == "SAE" and (item.a, item.b) == ("48", "64") for item in found.configuration)
    with pytest.raises(ComparabilityError, match="num_latents"):
        compare(shared_store, narrow, [health(shared_store, control, k=k, num_latents=64) for k in (2, 4)])


def test_sweeps_without_a_common_recipe_meet_in_their_frontiers(real: Prepared, shared_store: ArtifactStore) -> None:
    found = compare(
        shared_store,
        [health(shared_store, real, k=k) for k in (2, 8)],
        [health(shared_store, real, k=k) for k in (4, 6)],
    )
    assert {item.missing for item in found.layers} == {"a", "b"}
    assert "no SAE of one side meets one of the other" in found.sentence
    (item,) = found.frontiers
    assert item.difference is not None
    assert item.l0_low == pytest.approx(4, rel=0.05)


def test_other_text_under_one_name_within_a_side_is_refused(
    real: Prepared, planted_folder: Path, planted_corpus: Path, shared_store: ArtifactStore
) -> None:
    elsewhere = prepare(shared_store, planted_folder, planted_corpus)
    sides = [
        [health(shared_store, real, k=2, seed=seed), health(shared_store, elsewhere, k=4, seed=seed)] for seed in (0, 1)
    ]
    with pytest.raises(ComparabilityError, match="held-out, within one side: corpus"):
        compare(shared_store, *sides)
