"""What a latent says about tokens, step by step, against entropies counted one by one."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from saeinterp.enrichment import information
from saeinterp.enrichment.information import Steps, stepwise_information


def entropy(*columns: np.ndarray) -> float:
    """Joint entropy in nats with Miller's correction: (occupied cells − 1) / 2N."""
    cells = Counter(zip(*(column.tolist() for column in columns), strict=True))
    n = sum(cells.values())
    return -sum(count / n * math.log(count / n) for count in cells.values()) + (len(cells) - 1) / (2 * n)


def halves(samples: int) -> np.ndarray:
    """Every other sample."""
    return np.arange(samples) % 2 == 0


def steps_of(active: np.ndarray, present: np.ndarray, first: list[int], seed: int = 0) -> list[Steps]:
    """All tokens may be selected."""
    return stepwise_information(
        active,
        present,
        np.array(first),
        selectable=np.arange(present.shape[1]),
        selecting=halves(len(active)),
        seed=seed,
    )


def noisy(rng: np.random.Generator, signal: np.ndarray, *, miss: float = 0.05, alarm: float = 0.02) -> np.ndarray:
    """Active where the signal is, up to noise."""
    return np.where(signal, rng.random(len(signal)) >= miss, rng.random(len(signal)) < alarm)


def test_information_is_what_entropies_say() -> None:
    rng = np.random.default_rng(0)
    present = rng.random((600, 12)) < rng.uniform(0.05, 0.6, 12)
    present[:, 11] &= present[:, 0]  # cells that stay empty
    active = np.stack([noisy(rng, present[:, [0, 1, 2]].any(1)), noisy(rng, present[:, 0] & ~present[:, 11])], axis=1)
    other = ~halves(600)
    for latent, found in enumerate(steps_of(active, present, [0, 0])):
        assert len(found.tokens) >= 2
        for step, (token, value) in enumerate(zip(found.tokens, found.information, strict=True)):
            known = [present[other, index] for index in found.tokens[:step]]
            fires, holds = active[other, latent], present[other, token]
            expected = entropy(fires, *known) + entropy(holds, *known) - entropy(fires, holds, *known)
            expected -= entropy(*known) if known else 0.0
            assert value == pytest.approx(expected, abs=1e-12)


def test_a_perfect_latent_by_hand() -> None:
    # In each half 5 of 20 samples hold the token, and the latent fires there alone: the information is its entropy,
    # with a correction of (2 + 2 − 2 − 1) / 2N.
    present = np.repeat([True, False], [10, 30])[:, None]
    (found,) = steps_of(present.copy(), present, [0])
    expected = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75)) + 1 / 40
    assert found == Steps((0,), (pytest.approx(expected),))
    assert found.share == 1.0


def test_tokens_that_make_up_a_latent_are_selected_and_others_are_not() -> None:
    rng = np.random.default_rng(1)
    present = rng.random((1000, 60)) < np.linspace(0.05, 0.5, 60)
    groups = [(20,), (20, 22), (20, 25, 28), (24,), (24, 20)]
    active = np.stack([noisy(rng, present[:, list(group)].any(1)) for group in groups], axis=1)
    found = steps_of(active, present, [group[0] for group in groups])
    assert [set(steps.tokens) for steps in found] == [set(group) for group in groups]
    assert [steps.tokens[0] for steps in found] == [group[0] for group in groups]
    assert [steps.share > 0.5 for steps in found] == [True, False, False, True, False]


def test_a_token_that_goes_with_the_first_adds_nothing() -> None:
    rng = np.random.default_rng(2)
    present = rng.random((1000, 30)) < 0.2
    present[:, 1] = np.where(present[:, 0], rng.random(1000) < 0.8, rng.random(1000) < 0.05)
    active = np.stack([noisy(rng, present[:, 0]) for _ in range(20)], axis=1)
    assert sum(1 in steps.tokens for steps in steps_of(active, present, [0] * 20)) <= 3
    # Begun at the wrong token, the right one is found, and holds what there is.
    assert all(steps.tokens[:2] == (1, 0) for steps in steps_of(active, present, [1] * 20))


def test_one_latent_in_twenty_goes_on_where_there_is_nothing_more() -> None:
    rng = np.random.default_rng(3)
    present = rng.random((400, 40)) < rng.beta(0.8, 3.0, 40)
    present[:, 0] = rng.random(400) < 0.3
    active = np.stack([noisy(rng, present[:, 0], miss=0.2, alarm=0.1) for _ in range(800)], axis=1)
    further = np.mean([len(steps.tokens) > 1 for steps in steps_of(active, present, [0] * 800)])
    # Latents share the tokens and the permutations, so the rate is of more than binomial spread.
    assert further == pytest.approx(0.05, abs=0.03)


def test_stopping_early_decides_as_all_permutations_do() -> None:
    rng = np.random.default_rng(4)
    present = rng.random((120, 15)) < rng.uniform(0.1, 0.5, 15)
    weak = np.clip(rng.normal(0.15, 0.1, 60), 0, 1)
    active = np.stack(
        [noisy(rng, present[:, 0] | (present[:, 1] & (rng.random(120) < chance))) for chance in weak], axis=1
    )
    found = steps_of(active, present, [0] * 60, seed=9)
    chosen = halves(120)
    keys = np.random.default_rng(9).random((information.PERMUTATIONS, 60))
    fires, holds = active[chosen], present[chosen]
    decided = []
    for latent in range(60):
        observed = max(_given_first(fires[:, latent], holds, token) for token in range(1, 15))
        above = 0
        for key in keys:
            permuted = fires[:, latent].copy()
            for value in (False, True):
                rows = np.flatnonzero(holds[:, 0] == value)
                permuted[rows] = permuted[rows[np.argsort(key[rows])]]
            above += max(_given_first(permuted, holds, token) for token in range(1, 15)) >= observed - 1e-12
        decided.append((1 + above) / (information.PERMUTATIONS + 1) <= 0.05)
    assert [len(steps.tokens) > 1 for steps in found] == decided
    assert 5 < sum(decided) < 55


def test_a_latent_is_judged_whatever_is_judged_beside_it() -> None:
    rng = np.random.default_rng(5)
    present = rng.random((300, 40)) < 0.15
    active = np.stack([noisy(rng, present[:, [i % 7, i % 5 + 7]].any(1), miss=0.2) for i in range(30)], axis=1)
    first = [i % 7 for i in range(30)]
    together = steps_of(active, present, first)
    alone = [steps_of(active[:, [i]], present, [first[i]])[0] for i in range(30)]
    assert together == alone
    assert steps_of(active, present, first) == together


def test_pieces_give_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    present = rng.random((200, 20)) < 0.2
    active = np.stack([noisy(rng, present[:, [0, 1]].any(1), miss=0.2) for _ in range(40)], axis=1)
    whole = steps_of(active, present, [0] * 40)
    monkeypatch.setattr(information, "_AT_ONCE", 5_000)
    assert steps_of(active, present, [0] * 40) == whole


def test_only_selectable_tokens_follow_and_no_more_than_five() -> None:
    rng = np.random.default_rng(7)
    present = rng.random((4000, 9)) < 0.12
    active = noisy(rng, present[:, :8].any(1), miss=0.0, alarm=0.0)[:, None]
    (free,) = steps_of(active, present, [8])
    assert len(free.tokens) == information.MOST_STEPS
    (bound,) = stepwise_information(
        active, present, np.array([8]), selectable=np.array([2, 5]), selecting=halves(4000), seed=0
    )
    assert set(bound.tokens) == {8, 2, 5}


def test_a_share_of_nothing_is_none() -> None:
    assert math.isnan(Steps((0,), (-0.001,)).share)
    assert Steps((0, 1), (0.3, 0.1)).share == pytest.approx(0.75)
    silent = np.zeros((40, 1), bool)
    (found,) = steps_of(silent, np.repeat([True, False], 20)[:, None], [0])
    assert found.information == (pytest.approx(0.0),)


def _given_first(fires: np.ndarray, holds: np.ndarray, token: int) -> float:
    """Information about a token given the first one, uncorrected."""
    total = 0.0
    for value in (False, True):
        rows = holds[:, 0] == value
        for fire, hold in itertools.product((False, True), repeat=2):
            joint = ((fires[rows] == fire) & (holds[rows, token] == hold)).sum()
            expected = (fires[rows] == fire).sum() * (holds[rows, token] == hold).sum() / max(rows.sum(), 1)
            total += joint * math.log(joint / expected) if joint else 0.0
    return total / len(fires)
