"""Reasons of missing numbers, folded."""

from __future__ import annotations

from saeinterp.report.reasons import fold_reasons


def test_reasons_that_differ_in_figures_become_one_with_ranges() -> None:
    found = {
        "the lower bound is −0.005 nat, it must exceed 0.1": ["layers.5"],
        "the lower bound is −0.151 nat, it must exceed 0.1": ["layers.10", "layers.15"],
        "no document": ["layers.20"],
        "the lower bound is 0.02 nat, it must exceed 0.1": ["layers.25"],
    }
    assert fold_reasons(found) == [
        (
            "the lower bound is −0.151 to 0.02 nat, it must exceed 0.1",
            ["layers.5", "layers.10", "layers.15", "layers.25"],
        ),
        ("no document", ["layers.20"]),
    ]


def test_figures_within_names_tell_reasons_apart() -> None:
    found = {"layers.5 has 1,024 rows": ["a"], "layers.6 has 2,048 rows": ["b"], "layers.5 has 64 rows": ["c"]}
    assert fold_reasons(found) == [
        ("layers.5 has 64 to 1,024 rows", ["a", "c"]),
        ("layers.6 has 2,048 rows", ["b"]),
    ]
