"""Flagged latents as observed, by chance and in half-samples: the slow road, planted truth and planted nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from gsm8k_problems import first_problems, independent_latents
from scipy import sparse
from scipy.stats import binomtest

from saeinterp.enrichment import associate
from saeinterp.enrichment.contingency import Incidence
from saeinterp.enrichment.draws import LABELLED_HALVES, draw_rates
from saeinterp.enrichment.labels import published_labels
from saeinterp.enrichment.monosemantic import monosemantic_latents
from saeinterp.enrichment.rearranging import halves, observed, permuted
from saeinterp.enrichment.strata import strata_of
from saeinterp.errors import DataError

BOTH = ("robust", "seed-gsm8k-chi2")
CATEGORIES = ["number"] * 25 + ["operator"] * 10


def drawn(active: Any, present: Any, **changes: Any) -> dict[str, pl.DataFrame]:
    """The counts per preset, summed over sites."""
    samples, latents = active.shape
    options: dict[str, Any] = {
        "presets": BOTH,
        "sites": np.zeros(latents, np.int64),
        "categories": ["number"] * present.shape[1],
        "sample_ids": [f"train_{index}" for index in range(samples)],
        "strata": np.zeros(samples, np.int64),
        "permutations": 0,
        "half_samples": 0,
    }
    return {preset: found.counts for preset, found in draw_rates(active, present, **(options | changes)).items()}


def related(seed: int, *, samples: int = 240, latents: int = 90) -> tuple[np.ndarray, np.ndarray]:
    """Some latents that follow a token, some that follow two, most that follow none; 35 tokens of all frequencies."""
    rng = np.random.default_rng(seed)
    present = rng.random((samples, 35)) < rng.beta(0.6, 2.0, 35)
    active = rng.random((samples, latents)) < rng.beta(0.5, 1.5, latents)
    token, other = rng.integers(0, 35, latents // 2), rng.integers(0, 35, latents // 2)
    holds = present[:, token] | (present[:, other] & (np.arange(latents // 2) % 3 == 0))
    active[:, : latents // 2] = np.where(holds, rng.random(holds.shape) < 0.9, rng.random(holds.shape) < 0.03)
    active[:, -2], active[:, -1] = True, False
    return active, present


def slowly(
    active: np.ndarray, present: np.ndarray, strata: np.ndarray, *, any_dependence: bool = False
) -> dict[str, dict[str, Any]]:
    """What a draw must count, from whole frames of pairs."""
    vocabulary = [str(token) for token in range(35)]
    of_token = dict(zip(vocabulary, CATEGORIES, strict=True))
    exact = associate(active, present, any_dependence=any_dependence)
    interpretable = set(exact.filter(pl.col("latent_q") <= 0.05)["latent"].to_list())
    labelled = set(
        monosemantic_latents(exact, Incidence.of(active, present, seed=0), strata=strata)["latent"].to_list()
    )
    first = (
        exact.filter(pl.col("latent").is_in(list(interpretable)), pl.col("q_value").is_not_null())
        .sort(["kept", "odds_ratio_low", "a", "token"], descending=[True, True, True, False])
        .group_by("latent")
        .first()
    )
    chi2 = associate(active, present, preset="seed-gsm8k-chi2")
    labels = published_labels(chi2, vocabulary, category_of=of_token.__getitem__)
    return {
        "robust": {
            "interpretable": len(interpretable),
            "monosemantic": len(interpretable & labelled),
            "category_operator": sum(CATEGORIES[token] == "operator" for token in first["token"].to_list()),
            "max_enrichment": exact.filter("kept")["enrichment"].max(),
        },
        "seed-gsm8k-chi2": {
            "interpretable": len(labels),
            "monosemantic": int(labels["monosemantic"].sum()),
            "category_operator": labels.filter(pl.col("category") == "operator").height,
            "max_enrichment": chi2.filter("kept")["enrichment"].max(),
        },
    }


@pytest.mark.parametrize(("seed", "any_dependence"), [*((seed, False) for seed in range(5)), (5, True)])
def test_every_draw_counts_what_whole_frames_of_pairs_say(seed: int, any_dependence: bool) -> None:
    active, present = related(seed)
    strata = np.arange(240) % 4
    ids = [f"train_{index}" for index in range(240)]
    options = {"categories": CATEGORIES, "strata": strata, "any_dependence": any_dependence}
    found = drawn(active, present, permutations=2, half_samples=2, **options)
    arrangements = [
        observed(240),
        *permuted("free", ids, strata, number=2, seed=0),
        *permuted("strata", ids, strata, number=2, seed=0),
        *halves(ids, number=2, seed=0),
    ]
    for kind, number, order in arrangements:
        rows = order if kind == "half" else np.arange(240)
        expected = slowly(active[rows], present[order], strata[order], any_dependence=any_dependence)
        for preset, counts in found.items():
            row = counts.row(by_predicate=(pl.col("draw") == kind) & (pl.col("number") == number), named=True)
            assert {name: row[name] for name in expected[preset]} == expected[preset], (kind, number, preset)
            assert row["alive"] == active[rows].any(axis=0).sum()
    robust, published = (found[preset].row(0, named=True) for preset in BOTH)
    assert robust["interpretable"] > robust["monosemantic"] > 5
    assert published["interpretable"] > published["monosemantic"] > 5


def test_sparse_matrices_draw_the_same_counts() -> None:
    active, present = related(7)
    active[:, 50:-2] &= np.random.default_rng(0).random((240, 38)) < 0.02
    options = {"permutations": 3, "half_samples": 3, "strata": np.arange(240) % 3}
    dense = drawn(active, present, **options)
    for preset, counts in drawn(sparse.csr_matrix(active), sparse.coo_array(present), **options).items():
        assert counts.equals(dense[preset])
    narrow = active[:, 50:]
    assert sparse.csr_array(narrow).nnz < narrow.size / 16
    for preset, counts in drawn(sparse.csc_array(narrow), present, **options).items():
        assert counts.equals(drawn(narrow, present, **options)[preset])


def test_counts_of_sites_add_up() -> None:
    active, present = related(8)
    sites = np.arange(90) % 3
    whole = drawn(active, present, permutations=2, half_samples=2)
    for preset, counts in drawn(active, present, sites=sites, permutations=2, half_samples=2).items():
        summed = counts.group_by("draw", "number", maintain_order=True).agg(
            pl.exclude("site", "max_enrichment").sum(), pl.col("max_enrichment").max()
        )
        assert summed.equals(whole[preset].drop("site").select(summed.columns), null_equal=True)
        assert counts.filter(pl.col("draw") == "observed")["latents"].to_list() == [30, 30, 30]


def test_labels_are_made_in_so_many_halves() -> None:
    active, present = related(9, samples=80, latents=12)
    counts = drawn(active, present, half_samples=LABELLED_HALVES + 2)
    made = {preset: frame.filter(pl.col("draw") == "half")["monosemantic"] for preset, frame in counts.items()}
    assert made["robust"].null_count() == 2
    assert made["robust"].tail(2).null_count() == 2
    assert made["seed-gsm8k-chi2"].null_count() == 0


def test_permutations_keep_rows_whole_and_strata_apart() -> None:
    ids = [f"train_{index}" for index in (3, 1, 2, 11, 5, 4, 8, 7)]
    strata = np.array([0, 0, 1, 1, 1, 0, 2, 0])
    free, within = (
        [draw.order for draw in permuted(kind, ids, strata, number=40, seed=1)] for kind in ("free", "strata")
    )
    for order in free + within:
        assert sorted(order.tolist()) == list(range(8))
    assert all((strata[order] == strata).all() for order in within)
    assert any((strata[order] != strata).any() for order in free)
    assert len({tuple(order) for order in within}) > 25
    assert [tuple(draw.order) for draw in permuted("free", ids, strata, number=3, seed=2)] != [*map(tuple, free[:3])]


def test_halves_depend_on_ids_and_seed_alone() -> None:
    ids = [f"train_{index}" for index in range(31)]
    shuffled = np.random.default_rng(0).permutation(31)
    first = [{ids[place] for place in draw.order} for draw in halves(ids, number=20, seed=3)]
    again = [
        {ids[shuffled[place]] for place in draw.order}
        for draw in halves([ids[place] for place in shuffled], number=20, seed=3)
    ]
    assert first == again
    assert {len(half) for half in first} == {15}
    assert len({frozenset(half) for half in first}) == 20
    assert first != [{ids[place] for place in draw.order} for draw in halves(ids, number=20, seed=4)]


def test_latents_that_know_only_the_number_of_steps_are_chance_in_the_second_null_alone() -> None:
    rng = np.random.default_rng(0)
    steps = rng.integers(1, 9, 400)
    present = rng.random((400, 40)) < np.outer(steps, rng.beta(1, 4, 40)) / 8
    active = rng.random((400, 200)) < np.outer(steps / 8, rng.random(200))
    counts = drawn(active, present, strata=strata_of(steps, at_most=8), permutations=25)["robust"]
    rate = {name: counts.filter(pl.col("draw") == name)["interpretable"] for name in ("observed", "free", "strata")}
    assert rate["observed"][0] > 40
    assert rate["free"].max() < 10  # which would call all of them real
    assert rate["strata"].min() > 0.6 * rate["observed"][0]
    assert rate["strata"].mean() == pytest.approx(rate["observed"][0], rel=0.2)
    assert counts["monosemantic"].max() == 0


def test_where_there_is_nothing_the_published_rules_say_what_was_published() -> None:
    problems = first_problems()
    active = independent_latents(1, samples=1000, latents=5000)
    counts = drawn(active, problems.present, categories=problems.categories, permutations=15, sample_ids=problems.ids)
    published = counts["seed-gsm8k-chi2"].with_columns(
        share=pl.col("monosemantic") / pl.col("interpretable"),
        numbers=pl.col("category_number") / pl.col("interpretable"),
        rate=pl.col("interpretable") / pl.col("latents"),
    )
    # Published, where the latents are real: 74.9% monosemantic, 98.9% numbers.
    null = published.filter(pl.col("draw") == "free")
    assert null["share"].mean() == pytest.approx(0.752, abs=0.03)
    assert null["rate"].mean() == pytest.approx(0.244, abs=0.015)
    assert null["numbers"].mean() == pytest.approx(0.994, abs=0.004)
    assert published["share"][0] == pytest.approx(null["share"].mean(), abs=4 * null["share"].std())
    # Any latent that is flagged is a false one: draws with one are at most 5% (binomial, one in a thousand).
    flagged = counts["robust"].filter(pl.col("interpretable") > 0).height
    assert binomtest(flagged, counts["robust"].height, 0.05, alternative="greater").pvalue > 1e-3
    assert counts["robust"]["monosemantic"].max() == 0


@pytest.mark.parametrize(("a", "b"), [(0.15, 0.6), (0.5, 2.0), (2.0, 8.0), (0.263, 0.6)])
def test_other_plausible_activity_gives_other_published_rates_from_nothing(a: float, b: float) -> None:
    problems = first_problems()
    rng = np.random.default_rng(2)
    active = rng.random((1000, 4000)) < rng.beta(a, b, 4000)
    row = drawn(active, problems.present, categories=problems.categories)["seed-gsm8k-chi2"].row(0, named=True)
    assert 0.66 <= row["monosemantic"] / row["interpretable"] <= 0.79


def test_planted_latents_among_real_problems() -> None:
    problems = first_problems()
    rng = np.random.default_rng(3)
    active = independent_latents(3, samples=1000, latents=6000)
    holding = problems.present.sum(0)
    token = rng.choice(np.flatnonzero(holding >= 5), 1200)
    active[:, :1200] = rng.random((1000, 1200)) < np.where(problems.present[:, token], 0.8, 0.02)
    exact, chi2 = (associate(active, problems.present, preset=preset) for preset in BOTH)
    kept = exact.filter("kept")["latent"].unique().to_numpy()
    interpretable = exact.filter(pl.col("latent_q") <= 0.05)["latent"].unique().to_numpy()
    published = chi2.filter("kept")["latent"].unique().to_numpy()
    assert (kept < 1200).mean() >= 0.99
    assert (interpretable < 1200).mean() >= 0.95
    assert (published < 1200).mean() == pytest.approx(0.47, abs=0.04)
    recall = {
        (low, high): np.isin(np.flatnonzero((holding[token] >= low) & (holding[token] < high)), interpretable).mean()
        for low, high in ((5, 10), (10, 50), (50, 1001))
    }
    assert recall[5, 10] >= 0.85
    assert recall[10, 50] >= 0.99
    assert recall[50, 1001] >= 0.99


@pytest.mark.parametrize("preset", BOTH)
def test_half_samples_spread_as_new_problems_do(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saeinterp.enrichment.draws.LABELLED_HALVES", 0)
    rng = np.random.default_rng(4)
    strength, base = rng.uniform(0, 0.5, 150), rng.beta(1, 6, 150)
    frequency, token = rng.beta(1, 4, 30), rng.integers(0, 30, 150)
    rates, spreads = [], []
    for _ in range(15):
        present = rng.random((300, 30)) < frequency
        active = rng.random((300, 150)) < base + strength * present[:, token]
        counts = drawn(active, present, presets=(preset,), half_samples=15)[preset]
        share = (counts["interpretable"] / counts["alive"]).to_numpy()
        rates.append(share[0])
        spreads.append(share[1:].std(ddof=1))
    # Forty data sets with 30 halves each gave 1.15 (robust, which loses power in a half) and 0.95.
    assert 0.6 < np.mean(spreads) / np.std(rates, ddof=1) < 1.6


@pytest.mark.parametrize("preset", BOTH)
def test_nothing_to_flag_is_counted_as_nothing(preset: str) -> None:
    active = np.zeros((30, 3), bool)
    active[:, 0] = True
    present = np.eye(30, 4, dtype=bool)
    found = draw_rates(
        active,
        present,
        presets=(preset,),
        sites=[0, 0, 1],
        categories=["word"] * 4,
        sample_ids=[str(index) for index in range(30)],
        strata=np.zeros(30, np.int64),
        permutations=2,
        half_samples=2,
    )[preset]
    assert found.vocabulary == {}
    assert found.counts["alive"].to_list() == [1, 0] * 7
    assert found.counts.select("interpretable", "monosemantic", "category_word").sum().row(0) == (0, 0, 0)
    assert found.counts["max_enrichment"].null_count() == 14


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sites": [0, 0]}, "sites.*another length"),
        ({"categories": ["number"]}, "categories.*another length"),
        ({"sample_ids": ["a"]}, "sample_ids.*another length"),
        ({"strata": np.zeros(2, np.int64)}, "strata.*another length"),
        ({"sample_ids": ["a", "b", "c", "a"]}, "comes twice"),
    ],
)
def test_arguments_that_do_not_fit_are_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        drawn(np.eye(4, 3, dtype=bool), np.eye(4, 3, dtype=bool), **changes)
