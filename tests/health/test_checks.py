"""Integrity checks on numbers that contradict each other, as those of the seed reports did."""

from __future__ import annotations

from typing import Any

import pytest

from saeinterp.health import integrity_checks
from saeinterp.health.checks import printed_check

SOUND: dict[str, Any] = {
    "tokens": 1000,
    "rows": 1040,
    "masked_tokens": {"position0": 30, "special": 6, "norm": 4},
    "l0_mean": 31.5,
    "l0_max": 32,
    "k": 32,
    "num_latents": 400,
    "dead": 50,
    "alive": 350,
    "dead_fraction": 0.125,
    "always_on": 2,
    "firings": 31500,
    "density_histogram": {"log10_edges": [-0.5, -0.25, 0.0], "counts": [340, 10]},
    "explained_variance": {"value": 0.75},
    "fvu": {"value": 0.25},
    "ce_zero": 10.80267,
    "uniform_ce": 10.802672816507345,
    "mask_difference": 0,
}


def failed(row: dict[str, Any]) -> list[str]:
    return [check.name for check in integrity_checks(row) if not check.passed]


def test_a_sound_table_passes_every_check() -> None:
    assert len(integrity_checks(SOUND)) == 11
    assert failed(SOUND) == []


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"l0_max": 33}, "L0 ≤ k"),
        ({"dead": 51}, "dead + alive = latents"),
        ({"always_on": 32}, "always on ≤ mean L0"),
        ({"firings": 31501}, "firings = tokens × mean L0"),
        (
            {"density_histogram": {"log10_edges": [-0.25, 0.0], "counts": [349]}},
            "density histogram counts every latent",
        ),
        ({"masked_tokens": {"position0": 30, "special": 6, "norm": 5}}, "evaluated + masked = all tokens"),
        ({"fvu": {"value": 0.26}}, "explained variance + FVU = 1"),
        ({"ce_zero": 10.9}, "zeroing makes the output uniform: CE = ln V"),
        ({"mask_difference": 3}, "masked rows are those masked in training"),
    ],
)
def test_one_wrong_number_fails_its_own_rule(change: dict[str, Any], rule: str) -> None:
    assert rule in failed({**SOUND, **change})


@pytest.mark.parametrize("dead_fraction", [0.7845, 0.6532, 0.7218, 0.8912])
def test_dead_fractions_that_400_latents_cannot_have_are_caught(dead_fraction: float) -> None:
    assert failed({"dead_fraction": dead_fraction, "num_latents": 400}) == ["dead fraction × latents is an integer"]


def test_an_l0_above_the_alive_latents_is_caught_from_a_table_of_three_columns() -> None:
    # Seed report 2, Finance layer 28: 54.3 active of 43.5 alive; at k = 32 as well.
    row = {"l0_mean": 54.3, "num_latents": 400, "dead_fraction": 1 - 43.5 / 400, "k": 32}
    assert failed(row)[:2] == ["L0 ≤ k", "L0 ≤ alive latents"]


def test_what_is_not_in_the_table_is_not_checked() -> None:
    assert [check.name for check in integrity_checks({"l0_mean": 30.0, "k": 32})] == ["L0 ≤ k"]
    assert integrity_checks({"uniform_ce": None, "ce_zero": 3.0, "fvu": {"value": None}}) == ()


def test_details_name_the_numbers() -> None:
    (check,) = integrity_checks({"l0_max": 33, "k": 32})
    assert check == ("L0 ≤ k", False, "largest L0 33, k = 32")


def test_an_interval_that_misses_its_value_is_caught_by_name() -> None:
    row = {"fvu": {"value": 0.25, "low": 0.2, "high": 0.3}, "loss_recovered": {"value": 0.9, "low": 0.91, "high": 0.95}}
    (check,) = integrity_checks(row)
    assert check == ("intervals contain their values", False, "loss_recovered 0.9 outside 0.91 to 0.95")
    assert integrity_checks({"fvu": {"value": 0.2, "low": 0.2, "high": 0.3}})[0].passed
    assert integrity_checks({"fvu": {"value": 0.2, "low": None, "high": None}}) == ()


@pytest.mark.parametrize(
    ("row", "rounding", "broken"),
    [
        ({"l0_mean": 32.04, "k": 32}, {"l0_mean": 0.05}, []),
        ({"l0_mean": 32.04, "k": 32}, {"l0_mean": 0.005}, ["L0 ≤ k"]),
        ({"dead_fraction": 0.333, "num_latents": 300}, {"dead_fraction": 0.0005}, []),
        (
            {"dead_fraction": 0.333, "num_latents": 310},
            {"dead_fraction": 0.0005},
            ["dead fraction × latents is an integer"],
        ),
        (
            {"dead_fraction": 0.3325, "num_latents": 300},
            {"dead_fraction": 0.00005},
            ["dead fraction × latents is an integer"],
        ),
        (
            {"l0_mean": 43.58, "dead_fraction": 0.8912, "num_latents": 400},
            {"l0_mean": 0.05, "dead_fraction": 5e-5},
            ["dead fraction × latents is an integer"],
        ),
    ],
)
def test_printed_digits_leave_their_rounding_and_no_more(
    row: dict[str, Any], rounding: dict[str, float], broken: list[str]
) -> None:
    assert [check.name for check in integrity_checks(row, rounding=rounding) if not check.passed] == broken


@pytest.mark.parametrize(
    ("printed", "half_step", "passed"), [(71.28, 0.005, True), (71.1, 0.05, False), (71.3, 0.05, True), (71, 0.5, True)]
)
def test_a_printed_number_is_right_to_its_last_digit(printed: float, half_step: float, passed: bool) -> None:
    check = printed_check("mean", printed, 71.278, half_step=half_step, unit="%")
    assert check.passed == passed
    assert check.detail.endswith("computed 71.28%")
