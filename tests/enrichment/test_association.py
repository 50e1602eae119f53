"""Associations of latents with tokens: golden rows, SciPy, planted truth and planted nothing."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy import sparse
from scipy.stats import chi2_contingency, fisher_exact

from saeinterp.enrichment import associate
from saeinterp.enrichment.association import associate_some, associate_to
from saeinterp.enrichment.contingency import Incidence
from saeinterp.errors import ConfigError, DataError

PRESETS = ("robust", "seed-gsm8k-chi2")


def matrices(a: int, b: int, c: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """One latent and one token with these counts."""
    active = np.repeat([True, True, False, False], [a, b, c, d])[:, None]
    present = np.repeat([True, False, True, False], [a, b, c, d])[:, None]
    return active, present


def noise(seed: int, *, samples: int, latents: int, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Latents and tokens of all frequencies that have nothing to do with each other."""
    rng = np.random.default_rng(seed)
    active = rng.random((samples, latents)) < rng.beta(0.5, 1.5, latents)
    present = rng.random((samples, tokens)) < rng.beta(0.5, 3.0, tokens)
    return active, present


@pytest.mark.parametrize(
    ("table", "enrichment", "yates", "fisher"),
    [((5, 20, 1, 974), 195.0, 3.8e-30, 3.8e-8), ((4, 19, 1, 976), 169.9, 4.3e-24, 1.05e-6)],
)
def test_golden_rows(table: tuple[int, int, int, int], enrichment: float, yates: float, fisher: float) -> None:
    published = associate(*matrices(*table), preset="seed-gsm8k-chi2").row(0, named=True)
    assert tuple(published[name] for name in "abcd") == table
    assert published["enrichment"] == pytest.approx(enrichment, abs=0.05)
    assert published["p_value"] == pytest.approx(yates, rel=0.02)
    assert published["kept"]
    exact = associate(*matrices(*table)).row(0, named=True)
    assert exact["p_value"] == pytest.approx(fisher, rel=0.02)
    assert exact["log10_p"] == pytest.approx(math.log10(exact["p_value"]))
    assert exact["q_value"] == pytest.approx(exact["p_value"])  # a family of one


@pytest.mark.parametrize("preset", PRESETS)
def test_every_pair_is_what_scipy_says(preset: str) -> None:
    active, present = noise(0, samples=200, latents=60, tokens=40)
    active[:, :4] |= present[:, :4]
    active[:, 4], active[:, 5], present[:, 6] = True, False, False
    frame = associate(active, present, preset=preset)
    found = {(row["latent"], row["token"]): row for row in frame.iter_rows(named=True)}
    listed = 0
    for latent in range(60):
        for token in range(40):
            fires, holds = active[:, latent], present[:, token]
            table = [
                [int((fires & holds).sum()), int((fires & ~holds).sum())],
                [int((~fires & holds).sum()), int((~fires & ~holds).sum())],
            ]
            if preset == "robust":
                p = fisher_exact(table, alternative="greater").pvalue
            elif min(np.sum(table, axis=0)) and min(np.sum(table, axis=1)):
                p = chi2_contingency(table).pvalue
            else:
                p = 1.0  # SciPy raises
            assert ((latent, token) in found) == (p <= 0.05)
            if p <= 0.05:
                row = found[latent, token]
                assert [[row["a"], row["b"]], [row["c"], row["d"]]] == table
                assert row["p_value"] == pytest.approx(p, rel=1e-6)
                listed += 1
    assert listed == len(frame) > 40


@pytest.mark.parametrize("preset", PRESETS)
def test_sparse_matrices_give_the_same_frame(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    active, present = noise(1, samples=300, latents=150, tokens=70)
    active[:, :5] = present[:, :5]
    active[:, 5] = ~present[:, 5]
    dense = associate(active, present, preset=preset)
    assert dense.equals(associate(sparse.csr_matrix(active), sparse.csc_array(present), preset=preset))
    assert dense.equals(associate(active, sparse.coo_array(present), preset=preset))
    assert dense.equals(associate(sparse.coo_matrix(active * 2.5), present, preset=preset))
    monkeypatch.setattr("saeinterp.enrichment.contingency.BLOCK_PAIRS", 700)
    assert dense.equals(associate(active, present, preset=preset))
    assert dense.equals(associate(sparse.csr_matrix(active), present, preset=preset))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("as_sparse", [False, True])
def test_pairs_written_block_by_block_are_the_same(
    preset: str, as_sparse: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    active, present = noise(6, samples=300, latents=150, tokens=70)
    active[:, 9:] &= np.random.default_rng(0).random((300, 141)) < 0.1
    active[:, :5] = present[:, :5]
    active[:, 5] = ~present[:, 5]
    given = sparse.csr_array(active) if as_sparse else active
    assert active.sum() < active.size / 16  # counted as it is
    frame = associate(active, present, preset=preset)
    monkeypatch.setattr("saeinterp.enrichment.contingency.BLOCK_PAIRS", 3000)
    monkeypatch.setattr("saeinterp.enrichment.tallies._MERGE", 50)
    family = associate_to(tmp_path / "pairs.parquet", given, sparse.csc_array(present), preset=preset)
    assert pl.read_parquet(tmp_path / "pairs.parquet").equals(frame)
    assert family == frame.family
    assert frame["kept"].sum() >= 5
    associate_to(tmp_path / "none.parquet", given[:, :0], present, preset=preset)
    assert pl.read_parquet(tmp_path / "none.parquet").schema == frame.schema


def test_some_latents_are_adjusted_over_all() -> None:
    active, present = noise(7, samples=200, latents=60, tokens=40)
    active[:, :20] |= present[:, :20]
    whole, some = associate(active, present, seed=3), np.array([2, 7, 11, 59])
    found = associate_some(Incidence.of(active, present, seed=3), some)
    assert found.equals(whole.filter(pl.col("latent").is_in(some)))
    assert found.family == whole.family


def test_effect_sizes_by_hand() -> None:
    row = associate(*matrices(12, 8, 6, 74)).row(0, named=True)
    assert row["enrichment"] == pytest.approx((12 / 20) / (6 / 80))
    assert row["odds_ratio"] == pytest.approx(12.5 * 74.5 / (8.5 * 6.5))
    error = 1.959964 * math.sqrt(1 / 12.5 + 1 / 8.5 + 1 / 6.5 + 1 / 74.5)
    assert row["odds_ratio_low"] == pytest.approx(row["odds_ratio"] * math.exp(-error), rel=1e-6)
    assert row["odds_ratio_high"] == pytest.approx(row["odds_ratio"] * math.exp(error), rel=1e-6)
    assert (row["precision"], row["recall"]) == pytest.approx((12 / 20, 12 / 18))
    assert row["f1"] == pytest.approx(24 / 38)
    assert row["mcc"] == pytest.approx((12 * 74 - 8 * 6) / math.sqrt(20 * 80 * 18 * 82))
    assert row["npmi"] == pytest.approx(math.log(12 * 100 / (20 * 18)) / -math.log(0.12))


def test_a_perfect_latent_is_kept_by_the_robust_rules_alone() -> None:
    table = (30, 0, 0, 170)
    exact = associate(*matrices(*table)).row(0, named=True)
    assert exact["kept"]
    assert exact["replicated"]
    assert exact["enrichment"] == math.inf
    # The published rules skip tables with an empty cell, perfect ones among them.
    assert not associate(*matrices(*table), preset="seed-gsm8k-chi2").row(0, named=True)["kept"]


def test_a_rare_token_is_outside_of_the_family() -> None:
    frame = associate(*matrices(4, 0, 0, 96))
    row = frame.row(0, named=True)
    assert row["p_value"] < 1e-6
    assert row["q_value"] is None
    assert not row["kept"]
    assert frame.family == 0


def test_adjusted_values_count_every_pair_that_could_be_rejected() -> None:
    active, present = noise(2, samples=300, latents=80, tokens=40)
    active[:, :6] |= present[:, :6]
    frame = associate(active, present)
    holding, firing = present.sum(0), active.sum(0)
    smallest, p = [], []
    for latent in range(80):
        for token in np.flatnonzero(holding >= 5):
            n_both = min(firing[latent], holding[token])
            margins = (firing[latent], holding[token])
            smallest.append(_tail(n_both, *margins, 300))
            p.append(_tail(int((active[:, latent] & present[:, token]).sum()), *margins, 300))
    smallest, p = np.array(smallest), np.array(p)
    k = next(k for k in range(1, len(p) + 1) if (smallest <= 0.05 / k).sum() <= k)
    tested = np.sort(p[smallest <= 0.05 / k])
    assert frame.family == len(tested)
    adjusted = np.minimum.accumulate((tested * len(tested) / np.arange(1, len(tested) + 1))[::-1])[::-1]
    expected = adjusted[adjusted <= 0.05]
    found = frame.filter(pl.col("q_value") <= 0.05)["q_value"].sort().to_numpy()
    assert len(expected) >= 6
    assert found == pytest.approx(expected, rel=1e-6)


def test_any_dependence_multiplies_q_by_the_harmonic_number_of_the_family() -> None:
    active, present = noise(4, samples=300, latents=40, tokens=30)
    active[:, :8] = present[:, :8] ^ (np.random.default_rng(0).random((300, 8)) < 0.03)
    usual, strict = associate(active, present), associate(active, present, any_dependence=True)
    penalty = sum(1 / rank for rank in range(1, usual.family + 1))
    assert strict.family == usual.family
    raised = np.minimum(usual["q_value"].to_numpy() * penalty, 1.0)
    assert strict["q_value"].to_numpy() == pytest.approx(raised, nan_ok=True)
    kept, kept_strictly = (set(zip(*frame.filter("kept")["latent", "token"])) for frame in (usual, strict))
    assert kept_strictly <= kept
    assert {(index, index) for index in range(8) if present[:, index].sum() > 20} & kept_strictly
    assert (strict["latent_q"].drop_nulls() >= usual["latent_q"].drop_nulls()).all()


def test_planted_latents_are_found_and_replicate() -> None:
    rng = np.random.default_rng(4)
    active, present = noise(4, samples=1000, latents=400, tokens=120)
    planted = [(latent, token) for latent, token in enumerate(np.flatnonzero(present.sum(0) > 40)[:30].tolist())]
    for latent, token in planted:
        active[:, latent] = np.where(rng.random(1000) < 0.9, present[:, token], rng.random(1000) < 0.05)
    kept = associate(active, present).filter("kept")
    found = set(kept.select("latent", "token").iter_rows())
    assert len(found & set(planted)) >= 28
    assert len(found - set(planted)) <= 3
    assert kept.filter("replicated").height >= 28


def test_where_there_is_nothing_the_robust_rules_keep_almost_nothing() -> None:
    false = published = 0
    for seed in range(20):
        active, present = noise(100 + seed, samples=400, latents=150, tokens=80)
        false += bool(associate(active, present)["kept"].any())
        published += associate(active, present, preset="seed-gsm8k-chi2")["kept"].sum()
    # At the complete null every kept pair is false; a set with one comes up in at most 5% of draws (sd of 20: 0.97).
    assert false <= 1 + 3 * 0.97
    assert published > 200


@pytest.mark.parametrize("preset", PRESETS)
def test_the_counts_of_the_first_half_are_those_of_its_samples(preset: str, tmp_path: Path) -> None:
    active, present = noise(3, samples=301, latents=30, tokens=20)
    active[:, :6] |= present[:, :6]
    half = Incidence.of(active, present, seed=7).first
    associate_to(tmp_path / "pairs.parquet", active, present, preset=preset, seed=7)
    frame = pl.read_parquet(tmp_path / "pairs.parquet")
    assert frame.height >= 6
    for row in frame.iter_rows(named=True):
        fires, holds = active[half, row["latent"]], present[half, row["token"]]
        counted = [(fires & holds).sum(), (fires & ~holds).sum(), (~fires & holds).sum(), (~fires & ~holds).sum()]
        assert [row[f"{name}_first"] for name in "abcd"] == counted
        assert all(row[f"{name}_first"] <= row[name] for name in "abcd")


def test_the_split_is_seeded() -> None:
    active, present = noise(5, samples=120, latents=200, tokens=40)
    active[:, :20] ^= present[:, :20]
    first, again, other = (associate(active, present, seed=seed) for seed in (0, 0, 1))
    assert first.equals(again)
    of_halves = ["replicated", *(f"{name}_first" for name in "abcd")]
    assert first.drop(of_halves).equals(other.drop(of_halves))
    assert not first["replicated"].equals(other["replicated"])


@pytest.mark.parametrize("preset", PRESETS)
def test_degenerate_columns_are_listed_nowhere(preset: str) -> None:
    active = np.array([[True, False], [True, False]] * 20)
    present = np.array([[True, False], [False, False]] * 20)
    assert len(associate(active, present, preset=preset)) == 0
    assert len(associate(active[:, :0], present, preset=preset)) == 0
    assert len(associate(active, present[:, :0], preset=preset)) == 0


@pytest.mark.parametrize(
    ("active", "present", "words"),
    [
        (np.ones((3, 2), bool), np.ones((4, 2), bool), "not of the same samples"),
        (np.ones((0, 2), bool), np.ones((0, 2), bool), "too few"),
        (np.ones(3, bool), np.ones((3, 2), bool), "no matrix"),
        (np.full((3, 2), np.nan), np.ones((3, 2), bool), "not boolean"),
        (np.full((3, 2), "x"), np.ones((3, 2), bool), "not boolean"),
    ],
)
def test_bad_matrices_are_named(active: np.ndarray, present: np.ndarray, words: str) -> None:
    with pytest.raises(DataError, match=words):
        associate(active, present)


def test_another_preset_is_refused() -> None:
    with pytest.raises(ConfigError, match="preset"):
        associate(*matrices(5, 5, 5, 5), preset="strict")  # type: ignore[arg-type]


def _tail(a: int, row: int, column: int, n: int) -> float:
    from scipy.stats import hypergeom

    return float(hypergeom.sf(a - 1, n, row, column))
