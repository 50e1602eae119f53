"""Per-latent metrics against tables worked by hand, and what unusable verdicts do to them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saeinterp.explain import Rate, Reply, judge, match_rates, verdict_metrics

T, F = True, False


def test_a_table_worked_by_hand() -> None:
    truth = [T, T, T, T, F, F, F, F, F, F]
    said = [T, T, T, F, T, F, F, F, F, F]
    chance = [0.9, 0.8, 0.7, 0.4, 0.6, 0.3, 0.2, 0.1, 0.1, 0.0]
    found = verdict_metrics(truth, said, chance)
    assert (found.tp, found.fp, found.tn, found.fn) == (3, 1, 5, 1)
    assert found.precision == found.recall == found.f1 == pytest.approx(0.75)
    assert found.accuracy == pytest.approx(0.8)
    assert found.balanced_accuracy == pytest.approx((3 / 4 + 5 / 6) / 2)
    assert found.mcc == pytest.approx((3 * 5 - 1 * 1) / (4 * 4 * 6 * 6) ** 0.5)
    assert found.auroc == pytest.approx(23 / 24)
    assert found.f1_always_yes == pytest.approx(8 / 14)
    assert (found.coverage, found.f1_low, found.f1_high) == (1.0, found.f1, found.f1)


def test_unusable_verdicts_lower_coverage_and_set_bounds_but_count_as_nothing() -> None:
    found = verdict_metrics([T, T, F, F], [T, None, F, None], [0.9, None, 0.2, None])
    assert (found.tp, found.fp, found.tn, found.fn) == (1, 0, 1, 0)
    assert (found.n, found.usable, found.coverage) == (4, 2, 0.5)
    assert found.f1 == 1.0
    assert found.f1_low == pytest.approx(2 / 4)
    assert found.f1_high == 1.0
    assert found.f1_always_yes == pytest.approx(2 / 3)


def test_never_saying_yes_is_scored_zero_and_a_missing_class_leaves_metrics_undefined() -> None:
    silent = verdict_metrics([T, F], [F, F], [0.1, 0.1])
    assert (silent.precision, silent.recall, silent.f1, silent.mcc, silent.auroc) == (0.0, 0.0, 0.0, 0.0, 0.5)
    one_class = verdict_metrics([T, T], [T, F], [0.9, 0.1])
    assert (one_class.balanced_accuracy, one_class.auroc) == (None, None)
    nothing = verdict_metrics([], [], [])
    assert (nothing.n, nothing.coverage, nothing.f1, nothing.precision) == (0, None, None, None)


def test_an_auroc_of_some_verdicts_only_is_not_given() -> None:
    assert verdict_metrics([T, F, F], [T, F, F], [0.9, 0.1, None]).auroc is None


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.sampled_from([T, F, None])), min_size=1, max_size=40))
def test_the_bounds_hold_whatever_the_unusable_verdicts_would_have_been(pairs: list[tuple[bool, bool | None]]) -> None:
    truth, said = [label for label, _ in pairs], [verdict for _, verdict in pairs]
    found = verdict_metrics(truth, said, [None] * len(pairs))
    for answer in (True, False):
        filled = verdict_metrics(truth, [answer if v is None else v for v in said], [None] * len(pairs)).f1
        if filled is not None and found.f1_low is not None and found.f1_high is not None:
            assert found.f1_low - 1e-12 <= filled <= found.f1_high + 1e-12
    assert found.tp + found.fp + found.tn + found.fn == found.usable


def test_rates_per_group_are_of_usable_verdicts() -> None:
    rates = match_rates(["a", "b", "a", "a"], [True, None, False, None])
    assert rates == {"a": Rate(3, 2, 1, 0.5), "b": Rate(1, 0, 0, None)}


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (Reply("No", choice_logprobs=(-0.1, -3.0)), (True, "ok")),
        (Reply("Yes", choice_logprobs=(-3.0, -0.1)), (False, "ok")),
        (Reply("Yes."), (True, "ok")),
        (Reply("**no**, it does not"), (False, "ok")),
        (Reply("Not sure"), (None, "unusable")),
        (Reply(""), (None, "unusable")),
        (Reply("", status="refused", error="too long"), (None, "error")),
        (Reply("Yes", status="failed", error="HTTP 500"), (None, "error")),
    ],
)
def test_a_verdict_comes_from_probabilities_else_from_the_word(reply: Reply, expected: tuple) -> None:
    verdict, _, status = judge(reply, threshold=0.5)
    assert (verdict, status) == expected


def test_the_threshold_is_inclusive_and_extreme_log_probabilities_are_survived() -> None:
    assert judge(Reply("", choice_logprobs=(-1.0, -1.0)), threshold=0.5).verdict is True
    assert judge(Reply("", choice_logprobs=(-1.0, -1.0)), threshold=0.51).verdict is False
    assert judge(Reply("", choice_logprobs=(-2000.0, -0.0)), threshold=0.5).probability == pytest.approx(0.0)
    assert judge(Reply("", choice_logprobs=(-0.0, -2000.0)), threshold=0.5).probability == 1.0
