"""`decoder_top_cosine` by hand and against brute force; its null against random dictionaries."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saeinterp.errors import DataError
from saeinterp.health import decoder_cosine
from saeinterp.health.decoder_cosine import decoder_top_cosine, random_top_cosines, top_cosine


def random_dictionary(m: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(m, d, generator=torch.Generator().manual_seed(seed))


def test_by_hand() -> None:
    # Angles 0, 60 and 90 degrees: cosines 0.5 (0-60), 0 (0-90), 0.866 (60-90); lengths do not matter.
    rows = torch.tensor([[2.0, 0.0], [0.5, 3**0.5 / 2], [0.0, 7.0]])
    assert decoder_top_cosine(rows, top=1) == pytest.approx(3**0.5 / 2)
    assert decoder_top_cosine(rows, top=2) == pytest.approx((3**0.5 / 2 + 0.5) / 2)
    assert decoder_top_cosine(rows) == pytest.approx((3**0.5 / 2 + 0.5) / 3)


@pytest.mark.parametrize("block", [1, 700, 2**24])
def test_blocks_give_what_the_whole_matrix_gives(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = random_dictionary(137, 24)
    unit = torch.nn.functional.normalize(rows, dim=1)
    whole = (unit @ unit.T)[torch.triu_indices(137, 137, 1).unbind()]
    monkeypatch.setattr(decoder_cosine, "_BLOCK_ELEMENTS", block)
    assert decoder_top_cosine(rows) == pytest.approx(float(whole.topk(50).values.mean()), abs=1e-6)


def test_rows_without_length_are_left_out() -> None:
    rows = random_dictionary(20, 8)
    assert decoder_top_cosine(torch.cat([rows, torch.zeros(5, 8)])) == decoder_top_cosine(rows)


def test_a_dictionary_without_pairs_has_a_reason_instead_of_a_value() -> None:
    lonely = torch.cat([random_dictionary(1, 8), torch.zeros(3, 8)])
    with pytest.raises(DataError, match="two rows with a direction"):
        decoder_top_cosine(lonely)
    found = top_cosine(lonely)
    assert (found.value, found.null_value, found.pairs) == (None, None, 0)
    assert found.reason is not None


@pytest.mark.parametrize(("d", "known"), [(4096, 0.053), (576, 0.146)])
def test_the_null_of_400_latents_holds_the_known_values(d: int, known: float) -> None:
    found = top_cosine(random_dictionary(400, d))
    assert found.pairs == 50
    assert found.null_low is not None
    assert found.null_high is not None
    # Known to three digits, each from a single random dictionary.
    assert found.null_low - 5e-4 <= known <= found.null_high + 5e-4
    assert found.null_value == pytest.approx(known, rel=0.03)


@pytest.mark.parametrize(("m", "d"), [(200, 64), (64, 16), (15, 8)])
def test_the_null_is_that_of_dictionaries_actually_drawn(m: int, d: int) -> None:
    drawn = np.array([decoder_top_cosine(random_dictionary(m, d, seed)) for seed in range(300)])
    null = random_top_cosines(m, d, draws=4000)
    error = drawn.std() / len(drawn) ** 0.5
    assert abs(drawn.mean() - null.mean()) < 4 * error
    low, high = np.quantile(null, [0.025, 0.975])
    inside = ((low <= drawn) & (drawn <= high)).mean()
    assert inside > 0.9


def test_a_repeated_direction_lies_above_the_null() -> None:
    rows = random_dictionary(400, 64)
    twins = torch.cat([rows, rows[:60] + 0.05 * random_dictionary(60, 64, 1)])
    found = top_cosine(twins)
    assert found.value is not None
    assert found.null_high is not None
    assert found.value > 0.98 > found.null_high


def test_the_null_is_seeded_and_cheap_for_large_dictionaries() -> None:
    one, two = (random_top_cosines(65_536, 4096, draws=200, seed=5) for _ in range(2))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, random_top_cosines(65_536, 4096, draws=200, seed=6))
    assert random_top_cosines(400, 4096).mean() < one.mean() < random_top_cosines(65_536, 576).mean()
