"""Main latents by hand, and k-sparse probes on codes whose latents are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saeinterp.config import AbsorptionConfig
from saeinterp.health.letters.sparse_latents import SparseProbes, columns, probe_code
from saeinterp.sae import TopKCode

CONFIG = AbsorptionConfig(max_k=4, sparse_batch=32)


@pytest.mark.parametrize(
    ("f1", "count"),
    [
        ((0.50, 0.54, 0.56, 0.90), 2),  # 0.56 is no gain of 0.03: what comes after it is not looked at
        ((0.50, 0.55, 0.60, 0.65), 4),
        ((0.50, 0.40, 0.90, 0.95), 1),
        ((0.0, 0.0, 0.0, 0.0), 1),
        ((np.nan,) * 4, 1),
    ],
)
def test_main_latents_grow_while_each_adds_enough(f1: tuple[float, ...], count: int) -> None:
    probes = SparseProbes(np.array([[7, 3, 9, 1]]), np.array([f1]))
    assert probes.main_latents(0, gain=0.03) == [7, 3, 9, 1][:count]


def code(rows: list[dict[int, float]], k: int = 2) -> TopKCode:
    """The code of rows given as latent -> value."""
    slots = [[*row.items(), *[(0, 0.0)] * (k - len(row))] for row in rows]
    values = torch.tensor([[value for _, value in row] for row in slots])
    return TopKCode(values, torch.tensor([[latent for latent, _ in row] for row in slots]))


def test_columns_hold_the_activations_of_chosen_latents() -> None:
    some = code([{3: 1.5, 0: 2.0}, {5: 0.5}, {}])
    found = columns(some, np.array([[0, 3], [5, 1]]))
    assert found.tolist() == [[[2.0, 1.5], [0.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.5, 0.0], [0.0, 0.0]]]


def test_a_letter_split_over_two_latents_has_both_as_main_latents() -> None:
    # Letter 0 fires latent 4 on three of five words and latent 5 on the others; letter 1 fires latent 6; latent 7 fires
    # on everything, which says nothing. With latent 4 alone, recall is 0.6: F1 = 2 × 0.6 / 1.6 = 0.75.
    letters = np.arange(200) % 2
    rows = [{7: 1.0, (6 if letter else 4 if (index // 2) % 5 < 3 else 5): 2.0} for index, letter in enumerate(letters)]
    probes = probe_code(code(rows), letters, code(rows), letters, num_latents=9, config=CONFIG)
    assert probes.ranked.shape == (26, 4)
    assert set(probes.main_latents(0, gain=0.03)) == {4, 5}
    assert probes.f1[0, :2].tolist() == pytest.approx([0.75, 1.0])
    assert probes.main_latents(1, gain=0.03) == [6]
    assert probes.f1[1, 0] == 1.0
    assert np.isnan(probes.f1[2:]).all()


def test_a_latent_that_fires_on_other_letters_is_not_ranked_first_however_well_it_tells() -> None:
    # Latent 2 is silent on letter 0 alone: it tells letter 0 apart, but with a negative weight.
    letters = np.arange(120) % 3
    rows = [{2: 3.0} if letter else {1: 0.1} for letter in letters]
    probes = probe_code(code(rows), letters, code(rows), letters, num_latents=4, config=CONFIG)
    assert probes.ranked[0, 0] == 1
    assert probes.ranked[0, -1] == 2


def test_a_dictionary_smaller_than_max_k_is_probed_as_far_as_it_goes() -> None:
    letters = np.arange(40) % 2
    rows = [{int(letter): 1.0} for letter in letters]
    probes = probe_code(code(rows), letters, code(rows), letters, num_latents=2, config=CONFIG)
    assert probes.f1.shape == (26, 2)
    assert probes.f1[:2, 0].tolist() == [1.0, 1.0]
