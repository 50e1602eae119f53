"""Scores of a table of verdicts: worked by hand, planted, and from bad tables."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from saeinterp.errors import DataError
from saeinterp.explain import score_verdicts

T, F = True, False


def table(*latents: tuple[int, list[bool], list[bool | None]], **columns: list[float]) -> pl.DataFrame:
    rows = [(latent, *pair) for latent, truth, said in latents for pair in zip(truth, said, strict=True)]
    frame = pl.DataFrame(rows, schema={"latent": pl.Int64, "truth": pl.Boolean, "prediction": pl.Boolean}, orient="row")
    return frame.with_columns(**{name: pl.Series(values) for name, values in columns.items()})


def test_two_latents_worked_by_hand() -> None:
    found = score_verdicts(
        table(
            (7, [T, T, F, F], [T, F, F, T]),  # TP 1, FN 1, TN 1, FP 1: F1 = 1/2
            (9, [T, T, F, F], [T, T, F, None]),  # TP 2, TN 1, one missing negative: F1 = 1
            firings=[10.0] * 4 + [30.0] * 4,
            probability=[0.9, 0.2, 0.1, 0.6, 0.8, 0.7, 0.7, 0.5],
        )
    )
    assert found.micro_f1 == pytest.approx(2 * 3 / (2 * 3 + 1 + 1))
    assert found.macro_f1 == pytest.approx(0.75)
    assert (found.micro_precision, found.micro_recall) == (pytest.approx(3 / 4), pytest.approx(3 / 4))
    assert found.balanced_accuracy == pytest.approx((3 / 4 + 2 / 3) / 2)
    assert found.frequency_weighted_f1 == pytest.approx((0.5 * 10 + 1 * 30) / 40)
    # Latent 7: 3 of 4 pairs in order; latent 9: 0.8 above 0.7, 0.7 ties with 0.7; the missing one is left out.
    assert found.auroc == pytest.approx((0.75 + 0.75) / 2)
    assert found.coverage == pytest.approx(7 / 8)
    assert found.micro_f1_worst == pytest.approx(6 / 9)
    assert found.micro_f1_best == found.micro_f1
    assert found.micro_f1_always_yes == pytest.approx(8 / 12)
    assert (found.num_latents, found.num_examples) == (2, 8)
    assert found.micro_f1_low is None
    assert found.micro_f1_high is None
    assert "below 6 latents" in found.interval


def test_what_is_not_in_the_table_is_none() -> None:
    found = score_verdicts(table((1, [T, F], [T, F])))
    assert (found.auroc, found.frequency_weighted_f1) == (None, None)
    nothing = score_verdicts(table((1, [T, F], [None, None])))
    assert (nothing.micro_f1, nothing.macro_f1, nothing.coverage) == (None, None, 0.0)
    assert (nothing.micro_f1_worst, nothing.micro_f1_best) == (0.0, 1.0)


def test_the_interval_holds_the_planted_f1_as_often_as_it_says() -> None:
    """Latents differ in how well they are explained, so examples are not independent."""
    rng = np.random.default_rng(0)
    truth = np.tile([T, F], 20)

    def draw(latents: int) -> pl.DataFrame:
        skill = rng.beta(4, 2, latents)
        said = np.where(rng.random((latents, 40)) < skill[:, None], truth, ~truth)
        return pl.DataFrame(
            {"latent": np.repeat(np.arange(latents), 40), "truth": np.tile(truth, latents), "prediction": said.ravel()}
        )

    planted = 4 / 6  # TPR = TNR = mean skill: precision = recall = F1 = mean skill
    held, width = 0, []
    for seed in range(60):
        found = score_verdicts(draw(60), seed=seed)
        assert found.micro_f1_low is not None
        assert found.micro_f1_high is not None
        held += found.micro_f1_low <= planted <= found.micro_f1_high
        width.append(found.micro_f1_high - found.micro_f1_low)
    assert held >= 51  # 95% of 60 is 57; fewer than 51 has probability 0.002
    # As wide as the spread of skill asks for, which is wider than 2,400 independent examples would be.
    assert np.mean(width) > 1.5 * 2 * 1.96 * (planted * (1 - planted) / 2400) ** 0.5


def test_one_seed_one_result() -> None:
    rng = np.random.default_rng(1)
    frame = pl.DataFrame(
        {"latent": np.repeat(np.arange(8), 10), "truth": rng.random(80) < 0.5, "prediction": rng.random(80) < 0.5}
    )
    assert score_verdicts(frame, seed=3) == score_verdicts(frame, seed=3)
    assert score_verdicts(frame, seed=3).micro_f1_low != score_verdicts(frame, seed=4).micro_f1_low


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda frame: frame.drop("truth"), "truth"),
        (lambda frame: frame.with_columns(prediction=pl.lit(0.5)), "prediction"),
        (lambda frame: frame.clear(), "frame"),
        (lambda frame: frame.with_columns(truth=pl.lit(None, pl.Boolean)), "truth"),
        (lambda frame: frame.with_columns(probability=pl.lit(1.5)), "probability"),
        (lambda frame: frame.with_columns(firings=pl.Series([1, 2])), "firings"),
        (lambda frame: frame.with_columns(firings=pl.lit(-1)), "firings"),
    ],
)
def test_a_bad_table_is_refused_by_the_name_of_the_column(change: object, field: str) -> None:
    with pytest.raises(DataError) as caught:
        score_verdicts(change(table((1, [T, F], [T, F]))))  # type: ignore[operator]
    assert caught.value.field == field
