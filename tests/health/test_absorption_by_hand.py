"""Absorption of single words, worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saeinterp.health.letters.absorption import WordAbsorption, absorbed
from saeinterp.sae import TopKCode

# The probe lies along the first axis. Cosines with it: latent 0 (main) 1, latents 1 and 2 (0.6), latent 3 (0.5),
# latent 4 (0.4), latent 5 (0.05: too little for the fraction, enough for full absorption), latent 6 (0), latent 7
# (0.02: too little for either), latent 8 (another main latent, 0.5), latent 9 (-0.5).
COSINES = (1.0, 0.6, 0.6, 0.5, 0.4, 0.05, 0.0, 0.02, 0.5, -0.5)
MAIN = [0, 8]


def decoder(scale: float = 1.0) -> torch.Tensor:
    rows = torch.zeros(len(COSINES), 12, dtype=torch.float64)
    for index, cosine in enumerate(COSINES):
        rows[index, 0] = cosine
        rows[index, 1 + index] = (1 - cosine**2) ** 0.5
    return scale * rows


def measure(p: float, firing: dict[int, float], *, scale: float = 1.0, main: list[int] = MAIN) -> WordAbsorption:
    """One word whose activation has projection p on the probe, and whose latents fire as given."""
    x = torch.zeros(1, 12, dtype=torch.float64)
    x[0, 0], x[0, 5] = p, 7.0
    slots = [*firing.items(), *[(11, 0.0)] * (6 - len(firing))]
    slots = [(latent if latent < len(COSINES) else 6, value / scale) for latent, value in slots]
    code = TopKCode(
        torch.tensor([[value for _, value in slots]], dtype=torch.float64),
        torch.tensor([[latent for latent, _ in slots]]),
    )
    direction = torch.zeros(12)
    direction[0] = 3.0  # its length must not matter
    return absorbed(x, code, direction=direction, decoder=decoder(scale), main=main)


@pytest.mark.parametrize(
    ("p", "firing", "fraction", "full"),
    [
        # The main latent carries the whole projection: M = 2 >= p = 2.
        (2.0, {0: 2.0, 1: 1.0}, 0.0, False),
        # Main silent, latent 1 carries 0.6 × 2 = 1.2 of 1.5: all of it is absorbed.
        (1.5, {1: 2.0}, 1.0, True),
        # M = 0.5, A = 0.6 × 1.5 = 0.9, p - M = 1: 0.9 / (0.9 + 0.5).
        (1.5, {0: 0.5, 1: 1.5}, 0.9 / 1.4, False),
        # M = 1, A = 0.9, but only p - M = 0.5 is missing: 0.5 / 1.5.
        (1.5, {0: 1.0, 1: 1.5}, 0.5 / 1.5, False),
        # A = 0.6 × 0.9 = 0.54 < 0.4 × 1.5: too little to count, and for full absorption too.
        (1.5, {1: 0.9}, 0.0, False),
        # Three latents count, the largest: 0.6 + 0.5 + 0.4 = 1.5 of A = 1.7; M = 0.5, p - M = 3.5; 1.5 / 2.
        # With the fourth it would be 1.7 / 2.2. The threshold 0.4 × 4 = 1.6 > 1.5, though: nothing.
        (4.0, {0: 0.5, 1: 1.0, 3: 1.0, 4: 1.0, 2: 1 / 3}, 0.0, False),
        # The same with p = 3: 0.4 × 3 = 1.2 <= 1.5; 1.5 / (1.5 + 0.5).
        (3.0, {0: 0.5, 1: 1.0, 3: 1.0, 4: 1.0, 2: 1 / 3}, 0.75, False),
        # Latent 5 (c = 0.05 < 0.1) is no absorber of the fraction, but 0.05 × 20 = 1 is half of p: full absorption.
        (2.0, {5: 20.0}, 0.0, True),
        # Latent 7 (c = 0.02 < 0.025) is none of either.
        (2.0, {7: 50.0}, 0.0, False),
        # The second main latent fires, far too weakly to matter to M, but main latents are not silent.
        (1.5, {8: 1e-3, 1: 2.0}, 1.2 / 1.2005, False),
        # Main latents pull the other way (negative code): M = -0.3 <= 0.
        (1.5, {0: -0.3, 1: 2.0}, 1.0, False),
        # A latent that opposes the probe is no absorber, even where its code is negative: c = -0.5, proj > 0.
        (1.5, {9: -2.0}, 0.0, False),
        # The letter's direction is not there: nothing to absorb.
        (-1.0, {1: 2.0}, 0.0, False),
        (0.0, {1: 2.0}, 0.0, False),
        # Nothing fires.
        (1.5, {}, 0.0, False),
    ],
)
def test_fraction_and_full_absorption_of_one_word(
    p: float, firing: dict[int, float], fraction: float, full: bool
) -> None:
    result = measure(p, firing)
    assert result.fraction[0] == pytest.approx(fraction)
    assert bool(result.full[0]) is full


def test_the_length_of_decoder_rows_changes_nothing_when_codes_make_up_for_it() -> None:
    firing = {0: 0.5, 1: 1.5}
    assert measure(1.5, firing, scale=5.0).fraction == pytest.approx(measure(1.5, firing).fraction)


def test_with_another_main_latent_the_same_word_is_not_absorbed() -> None:
    assert measure(1.2, {1: 2.0}, main=[0, 1]).fraction[0] == 0
    assert not measure(1.2, {1: 2.0}, main=[0, 1]).full[0]


def test_words_are_independent_of_each_other() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 12, generator=generator).abs()
    code = TopKCode(torch.rand(50, 3, generator=generator) * 3, torch.randint(0, 10, (50, 3), generator=generator))
    options = {"direction": torch.eye(12)[0], "decoder": decoder().float(), "main": MAIN}
    together = absorbed(x, code, **options)
    assert 0 < together.fraction.mean() < 1
    for index in range(50):
        alone = absorbed(x[[index]], TopKCode(code.values[[index]], code.indices[[index]]), **options)
        assert np.allclose(alone.fraction[0], together.fraction[index])
        assert alone.full[0] == together.full[index]
    assert together.fraction.min() >= 0
    assert together.fraction.max() <= 1
