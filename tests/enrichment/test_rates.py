"""Rates from counts of draws, worked by hand."""

from __future__ import annotations

import math
from typing import Any

import polars as pl
import pytest

from saeinterp.enrichment.rates import summarise_rates

SITES = [("layers.3", 0), ("layers.3", 1), ("layers.9", 0), ("layers.9", 1)]


def row(draw: str, number: int, site: int, interpretable: int, monosemantic: int | None, **more: Any) -> dict[str, Any]:
    given = {"latents": 60, "alive": 50, "max_enrichment": 3.0, "category_number": interpretable, "category_word": 0}
    counts = {"interpretable": interpretable, "monosemantic": monosemantic}
    return {"draw": draw, "number": number, "site": site, **given, **counts, **more}


def table(*rows: dict[str, Any]) -> pl.DataFrame:
    return pl.DataFrame(list(rows), schema_overrides={"monosemantic": pl.Int32, "max_enrichment": pl.Float64})


def one_site(**kinds: list[tuple[int, int | None]]) -> pl.DataFrame:
    """Interpretable and monosemantic latents of 50 alive ones, per draw."""
    return table(
        *(
            row(draw, number, 0, interpretable, monosemantic)
            for draw, values in kinds.items()
            for number, (interpretable, monosemantic) in enumerate(values)
        )
    )


def rates_of(draws: pl.DataFrame, *, preset: str = "robust", **of: Any) -> dict[str, dict[str, Any]]:
    """The rates of one scope by name."""
    where = {"scope": "model", "hookpoint": None, "position": None} | of
    sites = SITES[: draws["site"].max() + 1]
    found = summarise_rates(draws, preset=preset, sites=sites, vocabulary={"number": 0.8, "word": 0.2})
    return {item["rate"]: item for item in found if all(item[name] == value for name, value in where.items())}


def test_rates_by_hand() -> None:
    halves = [(24, 9), (26, 11)] * 15
    free = [(1, 0), (3, 0), (40, 20)]
    rates = rates_of(one_site(observed=[(30, 12)], free=free, strata=[(20, 5), (30, 9)], half=halves))
    flagged = rates["interpretable"]
    assert (flagged["count"], flagged["of"], flagged["value"]) == (30, 50, 0.6)
    # Half-samples of 0.48 and 0.52, fifteen each: standard deviation 0.02 · √(30/29).
    reach = 1.959964 * 0.02 * math.sqrt(30 / 29)
    assert (flagged["low"], flagged["high"]) == pytest.approx((0.6 - reach, 0.6 + reach), rel=1e-6)
    assert flagged["halves"] == 30
    null = flagged["nulls"]["free"]
    assert null["mean"] == pytest.approx(44 / 150)
    assert null["p"] == pytest.approx(2 / 4)
    assert null["excess"] == pytest.approx((0.6 - 44 / 150) / (1 - 44 / 150))
    assert null["permutations"] == 3
    # A permutation with as many counts against the observed.
    assert flagged["nulls"]["strata"] == pytest.approx(
        {"mean": 0.5, "sd": 0.1 * math.sqrt(2), "p": 2 / 3, "excess": 0.2, "permutations": 2}
    )
    assert rates["monosemantic"]["value"] == 12 / 50
    assert rates["monosemantic_of_interpretable"]["value"] == 12 / 30
    assert rates["monosemantic_of_interpretable"]["nulls"]["strata"]["excess"] is None
    numbers = rates["category_number_of_interpretable"]
    assert (numbers["value"], numbers["vocabulary_share"], numbers["over_vocabulary"]) == (1.0, 0.8, 1.25)
    assert rates["category_word_of_interpretable"]["over_vocabulary"] == 0
    assert rates_of(one_site(observed=[(30, 12)]), preset="seed-gsm8k-chi2")["interpretable"]["of"] == 60


def test_scopes_are_never_pooled_unsaid() -> None:
    observed = [
        row("observed", 0, site, 10 * site, site, max_enrichment=[None, 7.0, 9.0, 8.0][site]) for site in range(4)
    ]
    found = summarise_rates(table(*observed), preset="robust", sites=SITES, vocabulary={})
    flagged = [item for item in found if item["rate"] == "interpretable"]
    assert [(item["scope"], item["hookpoint"], item["position"], item["count"]) for item in flagged] == [
        ("model", None, None, 60),
        ("layer", "layers.3", None, 10),
        ("layer", "layers.9", None, 50),
        ("position", None, 0, 20),
        ("position", None, 1, 40),
        ("site", "layers.3", 0, 0),
        ("site", "layers.3", 1, 10),
        ("site", "layers.9", 0, 20),
        ("site", "layers.9", 1, 30),
    ]
    assert [item["of"] for item in flagged] == [200, 100, 100, 100, 100, 50, 50, 50, 50]
    largest = [item["value"] for item in found if item["rate"] == "max_enrichment"]
    assert largest == [9.0, 7.0, 9.0, 9.0, 8.0, None, 7.0, 9.0, 8.0]
    everywhere = summarise_rates(table(*observed[:2]), preset="robust", sites=[("h.2", None)] * 2, vocabulary={})
    assert {item["scope"] for item in everywhere} == {"model", "layer", "site"}


def test_few_interpretable_latents_have_no_shares() -> None:
    rates = rates_of(one_site(observed=[(19, 12)], free=[(30, 3), (30, 3), (2, 1)], half=[(30, 1)] * 30))
    share = rates["monosemantic_of_interpretable"]
    assert (share["count"], share["of"], share["value"], share["low"]) == (12, 19, None, None)
    assert share["reason"] == "fewer than 20 interpretable latents"
    # Two of three permutations define it; there is nothing to compare with them.
    assert share["nulls"]["free"] == pytest.approx(
        {"mean": 0.1, "sd": 0.0, "p": None, "excess": None, "permutations": 2}
    )
    assert rates["category_number_of_interpretable"]["over_vocabulary"] is None
    rates = rates_of(
        one_site(observed=[(30, 12)], strata=[(2, 0), (3, 1), (30, 1)], half=[(30, 10), (31, 9), (3, 0)] * 10)
    )
    share = rates["monosemantic_of_interpretable"]
    assert share["nulls"]["strata"]["reason"] == "undefined in 2 of 3 permutations"
    assert share["reason"] == "fewer than 20 interpretable latents in 10 of 30 half-samples"
    assert rates["monosemantic"]["low"] is not None


def test_labels_made_in_some_halves_give_the_interval_of_those() -> None:
    halves = [(25, 10), (25, 14)] * 12 + [(25, None)] * 30
    rates = rates_of(one_site(observed=[(30, 12)], half=halves))
    assert rates["monosemantic"]["halves"] == 24
    reach = 1.959964 * 0.04 * math.sqrt(24 / 23)
    assert rates["monosemantic"]["high"] == pytest.approx(0.24 + reach, rel=1e-6)
    assert rates["interpretable"]["halves"] == 54
    two = table(*(row("half", number, site, 9, None if site else 4) for number in range(30) for site in (0, 1)))
    both = pl.concat([table(row("observed", 0, 0, 9, 4), row("observed", 0, 1, 9, 4)), two])
    assert rates_of(both)["monosemantic"]["reason"] == "fewer than 20 half-samples"


def test_intervals_stay_within_shares_or_say_why_there_is_none() -> None:
    rates = rates_of(one_site(observed=[(49, 1)], half=[(40, 0), (50, 2)] * 15))
    assert (rates["interpretable"]["high"], rates["monosemantic"]["low"]) == (1.0, 0.0)
    same = rates_of(one_site(observed=[(30, 12)], half=[(20, 9)] * 40))["interpretable"]
    assert (same["low"], same["reason"]) == (None, "the rate is the same in every half-sample")
    none = rates_of(one_site(observed=[(30, 12)]))["interpretable"]
    assert (none["low"], none["reason"]) == (None, "fewer than 20 half-samples")
    assert none["nulls"]["free"]["reason"] == "no permutations were drawn"


def test_an_infinite_enrichment_is_above_all_and_has_no_mean() -> None:
    draws = table(
        row("observed", 0, 0, 30, 12, max_enrichment=40.0),
        *(row("free", number, 0, 1, 0, max_enrichment=value) for number, value in enumerate([30.0, 50.0, None])),
        *(row("strata", number, 0, 1, 0, max_enrichment=value) for number, value in enumerate([math.inf, 1.0])),
    )
    nulls = rates_of(draws)["max_enrichment"]["nulls"]
    assert (nulls["free"]["mean"], nulls["free"]["p"], nulls["free"]["permutations"]) == (40.0, 2 / 3, 2)
    assert (nulls["strata"]["mean"], nulls["strata"]["p"]) == (None, 2 / 3)
    infinite = draws.with_columns(max_enrichment=pl.when(pl.col("draw") == "observed").then(math.inf).otherwise(2.0))
    found = rates_of(infinite)["max_enrichment"]
    assert (found["value"], found["nulls"]["free"]["p"]) == (None, 1 / 4)
    assert "infinite" in found["reason"]


def test_nothing_is_ever_active() -> None:
    draws = table(row("observed", 0, 0, 0, 0, alive=0), *(row("half", n, 0, 0, 0, alive=0) for n in range(30)))
    found = rates_of(draws)["interpretable"]
    assert (found["value"], found["low"], found["reason"]) == (None, None, "no latent is ever active")
