"""Planted truth and planted nothing: rejection rates and coverage, each held against its binomial tolerance."""

import numpy as np
import pytest
from scipy import stats

from saeinterp.stats import (
    OfTotals,
    SignFlips,
    bootstrap_intervals,
    classification,
    compare_paired,
    holm,
    mcnemar_exact,
    min_detectable,
    paired_power,
    swap_p_values,
)
from saeinterp.stats.intervals import Floats


def plausible(hits: int, trials: int, rate: float) -> bool:
    """Whether `hits` could have come from a true rate of `rate` (two-sided binomial, one in a thousand)."""
    return stats.binomtest(hits, trials, rate).pvalue > 1e-3


def not_above(hits: int, trials: int, rate: float) -> bool:
    """Whether `hits` could have come from a true rate of at most `rate`."""
    return stats.binomtest(hits, trials, rate, alternative="greater").pvalue > 1e-3


def f1(totals: Floats) -> Floats:
    return classification(totals[..., 0], totals[..., 1], totals[..., 2], totals[..., 3]).f1[..., None]


def scored_latents(rng: np.random.Generator, n: int) -> Floats:
    """Confusion counts of `n` latents whose true and false positive rates vary from latent to latent."""
    tp, fp = rng.binomial(15, rng.beta(1.2, 2.5, n)), rng.binomial(15, rng.beta(1, 6, n))
    return np.stack([tp, fp, 15 - fp, 15 - tp], axis=1).astype(float)


@pytest.mark.parametrize("n", [6, 11])
def test_with_nothing_planted_the_sign_flip_test_rejects_at_its_level(n: int) -> None:
    rng = np.random.default_rng(n)
    trials = 2000
    rejected = sum(SignFlips(row).p_value() < 0.05 for row in rng.laplace(size=(trials, n)))
    attainable = (np.ceil(0.05 * 2 ** (n - 1)) - 1) / 2 ** (n - 1)  # the largest level below 0.05 that 2^n signs allow
    assert plausible(rejected, trials, attainable)


@pytest.mark.parametrize(("n", "power"), [(11, 0.8), (20, 0.8), (11, 0.5)])
def test_a_planted_difference_is_found_with_the_nominal_power(n: int, power: float) -> None:
    rng = np.random.default_rng(100 + n)
    trials = 2000
    planted = min_detectable(sd=0.15, n=n, power=power)
    assert planted is not None
    rows = rng.normal(planted, 0.15, size=(trials, n))
    by_t = stats.ttest_1samp(rows, 0.0, axis=1).pvalue < 0.05
    assert paired_power(planted, sd=0.15, n=n) == pytest.approx(power)
    assert plausible(int(by_t.sum()), trials, power)
    # The sign-flip test, whose p values are reported, keeps up with the t test whose power is.
    by_flips = np.array([SignFlips(row).p_value() < 0.05 for row in rows[:250]])
    assert abs(by_flips.mean() - by_t[:250].mean()) < 0.03
    assert plausible(int(by_flips.sum()), 250, power)


def test_holm_over_pairs_of_explainers_keeps_the_error_of_the_whole_family() -> None:
    rng = np.random.default_rng(7)
    trials = 800
    alone = family = 0
    for _ in range(trials):
        # Latents differ, explainers do not: four columns around the same latent means.
        columns = rng.normal(0.5, 0.2, size=10) + rng.normal(0, 0.1, size=(4, 10))
        p = [SignFlips(columns[b] - columns[a]).p_value() for a in range(4) for b in range(a)]
        alone += min(p) < 0.05
        family += min(holm(p)) < 0.05
    assert not_above(family, trials, 0.05)
    assert alone / trials > 0.12


def test_with_nothing_planted_exchangeable_scores_are_rarely_called_different() -> None:
    rng = np.random.default_rng(0)
    trials = 600
    rejected = 0
    for _ in range(trials):
        columns = f1(np.stack([scored_latents(rng, 12), scored_latents(rng, 12)]))[..., 0]
        rejected += compare_paired(columns[0], columns[1]).verdict == "different"
    assert not_above(rejected, trials, 0.05)


def test_a_difference_at_the_margin_is_called_equivalent_at_most_at_the_level() -> None:
    rng = np.random.default_rng(1)
    trials = 2000
    rejected = sum(SignFlips(row).equivalence_p(0.05) < 0.05 for row in rng.normal(0.05, 0.03, size=(trials, 11)))
    assert plausible(rejected, trials, 51 / 1024)


def test_planted_equality_is_found_equivalent_and_a_planted_difference_different() -> None:
    rng = np.random.default_rng(2)
    same = [compare_paired(np.zeros(14), row).verdict for row in rng.normal(0.0, 0.02, size=(40, 14))]
    apart = [compare_paired(np.zeros(14), row).verdict for row in rng.normal(0.2, 0.1, size=(40, 14))]
    assert same.count("equivalent") >= 30
    assert apart.count("different") == 40


@pytest.mark.parametrize("n", [8, 11])
def test_the_interval_of_a_difference_covers_the_truth(n: int) -> None:
    rng = np.random.default_rng(n)
    trials = 2000
    covered = sum(SignFlips(row).interval().contains(0.3) for row in rng.normal(0.3, 1, size=(trials, n)))
    assert plausible(covered, trials, 1 - (np.ceil(0.05 * 2 ** (n - 1)) - 1) / 2 ** (n - 1))


def test_the_interval_from_drawn_signs_covers_the_truth() -> None:
    rng = np.random.default_rng(3)
    trials = 600
    covered = sum(
        SignFlips(row, seed=index, draws=1000).interval().contains(0.3)
        for index, row in enumerate(rng.normal(0.3, 1, size=(trials, 25)))
    )
    assert plausible(covered, trials, 0.95)


@pytest.mark.parametrize("n", [8, 11, 25])
def test_the_interval_of_pooled_f1_covers_the_truth_where_percentiles_would_not(n: int) -> None:
    truth = float(f1(scored_latents(np.random.default_rng(99), 1_000_000).sum(axis=0))[0])
    rng = np.random.default_rng(n)
    trials = 500
    covered = made = 0
    for index in range(trials):
        interval = bootstrap_intervals(OfTotals(scored_latents(rng, n), f1), n, bounds=[(0, 1)], draws=600, seed=index)[
            0
        ]
        if interval.low is not None:
            made += 1
            covered += interval.contains(truth)
    assert made > 0.98 * trials
    assert stats.binomtest(covered, made, 0.93, alternative="less").pvalue > 1e-3


def test_with_nothing_planted_the_swap_test_rejects_at_most_at_its_level() -> None:
    rng = np.random.default_rng(4)
    trials = 600
    rejected = 0
    for _ in range(trials):
        columns = np.concatenate([scored_latents(rng, 10), scored_latents(rng, 10)])
        p = swap_p_values(OfTotals(columns, f1), 10)[0]
        rejected += p is not None and p < 0.05
    assert not_above(rejected, trials, 0.05)


def test_verdicts_of_one_latent_are_not_independent_and_flipping_whole_latents_respects_it() -> None:
    rng = np.random.default_rng(5)
    trials, latents, examples = 800, 11, 30
    by_latent = pooled = 0
    for _ in range(trials):
        # Both explainers are equally good on average, but each latent favours one of them.
        favour = rng.normal(0, 1.0, size=latents)
        share = 1 / (1 + np.exp(-favour))
        discordant = rng.binomial(examples, 0.4, size=latents)
        only_b = rng.binomial(discordant, share)
        only_a = discordant - only_b
        by_latent += SignFlips((only_b - only_a).astype(float)).p_value() < 0.05
        pooled += mcnemar_exact(int(only_a.sum()), int(only_b.sum())) < 0.05
    assert not_above(by_latent, trials, 0.05)
    assert pooled / trials > 0.2
