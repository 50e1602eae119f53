"""Sentences: numbers rounded once, verdict words earned by their tests."""

import numpy as np
import pytest

from saeinterp.stats import compare_paired, interval_text, number, p_text, paired_sentence, signed

METRIC = "per-latent F1, averaged over latents"


def sentence(a: list[float] | np.ndarray, b: list[float] | np.ndarray, **options: float) -> str:
    result = compare_paired(a, b, **options)  # type: ignore[arg-type]
    return paired_sentence(result, title_a="large", title_b="small", metric=METRIC)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.26409, "0.264"), (-0.0738, "−0.074"), (-0.0001, "0.000"), (None, "n/a"), (1.0, "1.000")],
)
def test_numbers_have_three_decimals_and_a_true_minus(value: float | None, shown: str) -> None:
    assert number(value) == shown


def test_only_values_above_zero_get_a_plus() -> None:
    assert [signed(x) for x in (0.0235, -0.0235, 0.0, 0.0001)] == ["+0.024", "−0.024", "0.000", "0.000"]
    assert signed(0.0234545, digits=4) == "+0.0235"


def test_a_small_p_is_bounded_and_a_missing_one_named() -> None:
    assert p_text(0.634766) == "p = 0.635"
    assert p_text(0.0004) == "p < 0.001"
    assert p_text(None) == "p not available"


def test_a_missing_interval_is_said_to_be_missing() -> None:
    assert interval_text(None, None) == "no 95% CI"
    assert interval_text(0.1, 0.2, alpha=0.1) == "90% CI 0.100 to 0.200"


def test_p_above_the_level_is_never_called_no_difference() -> None:
    rng = np.random.default_rng(0)
    text = sentence(rng.uniform(size=11), rng.uniform(size=11))
    assert "no detectable difference" in text
    assert "n = 11" in text
    assert "smallest detectable 0." in text
    assert "better" not in text
    assert "outperform" not in text


def test_a_difference_names_the_higher_side() -> None:
    a = np.linspace(0.1, 0.4, 11)
    assert sentence(a, a + 0.2).startswith("small is higher than large: per-latent F1, averaged over latents")
    assert sentence(a + 0.2, a).startswith("large is higher than small")


def test_equivalence_names_its_margin() -> None:
    assert "are equivalent within ±0.1:" in sentence([0.2] * 11, [0.2] * 11, margin=0.1)


def test_a_difference_inside_the_margin_says_so() -> None:
    a = np.linspace(0.1, 0.4, 11)
    assert "within the margin of ±0.05" in sentence(a, a + 0.01)


def test_too_few_latents_are_said_to_be_too_few() -> None:
    text = sentence([0.1, 0.2, 0.3], [0.5, 0.9, 0.9])
    assert "With n = 3 no difference, however large, can reach p < 0.05" in text
    assert "no 95% CI" in text
