"""Published labels by hand, and what they say where there is nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from saeinterp.enrichment import associate, parse_annotation_tokens
from saeinterp.enrichment.labels import published_labels, published_rates

GSM8K = Path(__file__).parents[3] / "shared" / "data" / "gsm8k-train.jsonl"
VOCABULARY = ["2", "4", "*", "/", "30"]


def pairs(*rows: tuple[int, int, float, bool]) -> pl.DataFrame:
    """Rows of latent, token, enrichment, kept."""
    return pl.DataFrame(rows, schema=["latent", "token", "enrichment", "kept"], orient="row")


def test_labels_by_hand() -> None:
    table = pairs(
        (0, 1, 5.0, True),
        (0, 0, 3.0, True),
        (1, 0, 4.9, True),
        (1, 1, 4.0, True),
        (1, 4, 3.0, True),
        (1, 2, 2.5, True),
        (2, 2, 4.0, True),
        (2, 4, 3.0, True),
        (3, 0, 4.0, True),
        (3, 1, 3.0, True),
        (4, 2, 9.0, False),
        (5, 3, 7.0, True),
    )
    found = published_labels(table.sample(fraction=1, shuffle=True, seed=1), VOCABULARY)
    assert found.select("latent", "label", "category", "monosemantic", "pairs").rows() == [
        (0, "number_4", "number", True, 2),
        (1, "numbers_2_4_30", "number", True, 4),
        (2, "composite_*_30", "operator", True, 2),
        (3, "polysemantic", "number", False, 2),
        (5, "operator_/", "operator", True, 1),
    ]
    rates = published_rates(found, latents=10)
    assert (rates.interpretable_rate, rates.monosemantic_rate, rates.category_rate("number")) == (0.5, 0.8, 0.6)


def test_no_kept_pair_leaves_rates_undefined() -> None:
    found = published_labels(pairs((0, 0, 9.0, False)), VOCABULARY)
    rates = published_rates(found, latents=3)
    assert (rates.interpretable_rate, rates.monosemantic_rate, rates.category_rate("number")) == (0.0, None, None)


def test_latents_that_know_nothing_are_called_monosemantic_as_often_as_published() -> None:
    if not GSM8K.exists():
        pytest.skip("GSM8K is not on this machine")
    answers = [json.loads(line)["answer"] for line in GSM8K.read_text(encoding="utf-8").splitlines()]
    first = sorted(range(len(answers)), key=lambda index: f"train_{index}")[:1000]
    tokens = [set(parse_annotation_tokens(answers[index], grammar="seed")) for index in first]
    vocabulary = sorted(set().union(*tokens))
    present = np.array([[token in held for token in vocabulary] for held in tokens])
    # Activity like that of the published analysis: mean 20%, four of ten latents below 20 of 1,000.
    rng = np.random.default_rng(0)
    active = rng.random((1000, 6000)) < rng.beta(0.263, 1.082, 6000)
    rates = published_rates(
        published_labels(associate(active, present, preset="seed-gsm8k-chi2"), vocabulary), latents=6000
    )
    assert rates.interpretable_rate == pytest.approx(0.244, abs=0.02)
    assert rates.monosemantic_rate == pytest.approx(0.752, abs=0.04)
    assert rates.category_rate("number") == pytest.approx(0.994, abs=0.01)
