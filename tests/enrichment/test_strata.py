"""Strata of steps, and association within them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saeinterp.enrichment.strata import mantel_haenszel, strata_of
from saeinterp.errors import ConfigError


def pair(*tables: tuple[int, int, int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One latent and one token with a table (both, latent, token, neither) per stratum."""
    active = np.concatenate([np.repeat([True, True, False, False], table) for table in tables])
    present = np.concatenate([np.repeat([True, False, True, False], table) for table in tables])
    strata = np.repeat(np.arange(len(tables)), [sum(table) for table in tables])
    return active[:, None], present[:, None], strata


def test_strata_by_hand() -> None:
    counts = [3, 1, 2, 1, 1, 2, 3, 1, 2, 1]  # five, three and two of ten
    assert strata_of(counts, at_most=8).tolist() == [2, 0, 1, 0, 0, 1, 2, 0, 1, 0]
    assert strata_of(counts, at_most=2).tolist() == [1, 0, 1, 0, 0, 1, 1, 0, 1, 0]
    assert strata_of(counts, at_most=1).tolist() == [0] * 10
    assert strata_of([], at_most=3).tolist() == []
    assert np.bincount(strata_of(np.arange(1000)[::-1], at_most=8)).tolist() == [125] * 8


@given(st.lists(st.integers(0, 12), min_size=1, max_size=60), st.integers(1, 9))
def test_strata_are_few_ordered_and_never_part_equal_counts(counts: list[int], at_most: int) -> None:
    strata = strata_of(counts, at_most=at_most)
    assert sorted(set(strata.tolist())) == list(range(strata.max() + 1))
    assert strata.max() < at_most
    by_count = sorted(zip(counts, strata.tolist(), strict=True))
    for (count, stratum), (next_count, next_stratum) in itertools.pairwise(by_count):
        assert stratum <= next_stratum
        assert count != next_count or stratum == next_stratum


def test_no_strata_is_refused() -> None:
    with pytest.raises(ConfigError, match="strata"):
        strata_of([1, 2], at_most=0)


def test_mantel_haenszel_by_hand() -> None:
    # a − E = 4 − 5·6/12 and 3 − 5·4/10; V = 5·7·6·6/(12²·11) and 5·5·4·6/(10²·9); z = 2/√1.46212 = 1.65402.
    assert mantel_haenszel(*pair((4, 1, 2, 5), (3, 2, 1, 4)))[0] == pytest.approx(0.049063, abs=1e-6)


def test_mantel_haenszel_of_a_published_table() -> None:
    # Admissions at Berkeley by sex and department (Bickel et al. 1975); R's mantelhaen.test: 1.4269, p = 0.2323.
    departments = [
        (89, 19, 512, 313),
        (17, 8, 353, 207),
        (202, 391, 120, 205),
        (131, 244, 138, 279),
        (94, 299, 53, 138),
        (24, 317, 22, 351),
    ]
    assert mantel_haenszel(*pair(*departments))[0] == pytest.approx(0.2323 / 2, abs=5e-5)


def test_strata_that_say_nothing_give_nothing() -> None:
    # Everything within one stratum each: the latent and the token both know the stratum, and nothing more.
    assert mantel_haenszel(*pair((20, 0, 0, 0), (0, 0, 0, 20)))[0] == 1.0
    assert mantel_haenszel(*pair((1, 0, 0, 0), (0, 0, 0, 1)))[0] == 1.0
    without = mantel_haenszel(*pair((4, 1, 2, 5)))
    beside = mantel_haenszel(*pair((4, 1, 2, 5), (0, 30, 0, 0), (9, 0, 9, 0), (1, 0, 0, 0)))
    assert beside[0] == without[0]


def test_a_pair_that_avoids_each_other_is_not_significant() -> None:
    assert mantel_haenszel(*pair((0, 20, 20, 0)))[0] > 0.999


def test_pairs_are_judged_one_by_one() -> None:
    rng = np.random.default_rng(0)
    active, present = rng.random((200, 30)) < 0.3, rng.random((200, 30)) < 0.3
    strata = rng.integers(0, 5, 200)
    together = mantel_haenszel(active, present, strata)
    alone = [mantel_haenszel(active[:, [i]], present[:, [i]], strata)[0] for i in range(30)]
    assert together.tolist() == alone


def test_under_chance_one_in_twenty_pairs_is_significant_at_most() -> None:
    rng = np.random.default_rng(1)
    strata = rng.integers(0, 6, 400)
    chance = np.linspace(0.05, 0.9, 6)[strata][:, None]  # both know the stratum
    active, present = rng.random((400, 3000)) < chance, rng.random((400, 3000)) < chance
    share = (mantel_haenszel(active, present, strata) <= 0.05).mean()
    assert 0.02 < share < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 3000)
