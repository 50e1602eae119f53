"""Learning rates and updates."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saeinterp.sae.optimizers import default_lr, lr_factor


@given(st.integers(1, 500), st.floats(0, 0.99), st.floats(0, 1))
def test_the_rate_rises_then_falls_and_is_never_zero(steps: int, warmup: float, decay: float) -> None:
    rates = [lr_factor(step, steps=steps, warmup_fraction=warmup, decay_fraction=decay) for step in range(steps)]
    assert all(0 < rate <= 1 for rate in rates)
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_a_run_of_one_step_has_its_full_rate_and_longer_runs_reach_it() -> None:
    assert lr_factor(0, steps=1, warmup_fraction=0.9, decay_fraction=0) == 1
    rates = [lr_factor(step, steps=100, warmup_fraction=0.1, decay_fraction=0.2) for step in range(100)]
    assert rates[9] < 1 == rates[10] == rates[79]
    assert rates[99] == pytest.approx(1 / 21)


def test_the_default_rate_grows_with_the_batch_and_falls_with_the_width() -> None:
    def rate(num_latents: int = 1024, d_in: int = 576, batch_rows: int = 1024) -> float:
        return default_lr(num_latents, d_in=d_in, batch_rows=batch_rows, optimizer="adam")

    assert rate() == pytest.approx(5e-3)
    assert rate(batch_rows=256) == pytest.approx(2.5e-3)
    assert rate(d_in=64) == pytest.approx(1.5e-2)
    assert rate(num_latents=400) == rate() > rate(num_latents=2**17) == pytest.approx(5e-3 / 4)
