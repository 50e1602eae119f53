"""Which latents are about one token: planted ones of every kind, and each gate on its own."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pytest
from scipy import sparse
from scipy.stats import fisher_exact

from saeinterp.enrichment import associate, parse_annotation_tokens
from saeinterp.enrichment.concepts import count_annotations
from saeinterp.enrichment.contingency import Incidence
from saeinterp.enrichment.monosemantic import LABEL_SCHEMA, first_tokens, label_latents, monosemantic_latents
from saeinterp.enrichment.strata import strata_of

SAMPLES, TOKENS = 1000, 150
WORDS = [f"t{token}" for token in range(TOKENS)]
GSM8K = Path(__file__).parents[3] / "shared" / "data" / "gsm8k-train.jsonl"


class Planted(NamedTuple):
    """Problems like worked answers: longer ones hold more tokens, of which few are frequent."""

    steps: np.ndarray
    present: np.ndarray
    strata: np.ndarray
    rng: np.random.Generator

    def tokens(self, low: float, high: float) -> np.ndarray:
        """Those with a frequency in between."""
        share = self.present.mean(axis=0)
        return np.flatnonzero((share >= low) & (share <= high))

    def latents(self, groups: list[tuple[int, ...]], *, miss: float = 0.1, alarm: float = 0.02) -> np.ndarray:
        """Latents that fire where a token of their group is, up to noise."""
        signal = np.stack([self.present[:, list(group)].any(axis=1) for group in groups], axis=1)
        draw = self.rng.random(signal.shape)
        return np.where(signal, draw >= miss, draw < alarm)


@pytest.fixture
def planted() -> Planted:
    rng = np.random.default_rng(0)
    steps = rng.integers(1, 9, SAMPLES)
    rate = 0.25 / np.arange(1, TOKENS + 1) ** 0.7
    present = rng.random((SAMPLES, TOKENS)) < 1 - (1 - rate[None]) ** steps[:, None]
    return Planted(steps, present, strata_of(steps, at_most=8), rng)


def labelled(planted: Planted, active: np.ndarray, vocabulary: Sequence[str] = WORDS) -> pl.DataFrame:
    """Labels of latents, the category of a token being its column's parity."""
    return label_latents(
        associate(active, planted.present),
        Incidence.of(active, planted.present, seed=0),
        strata=planted.strata,
        vocabulary=vocabulary,
        categories=["even" if token % 2 == 0 else "odd" for token in range(len(vocabulary))],
    )


def kinds(labels: pl.DataFrame, latents: int) -> list[str | None]:
    """The kind of every latent; None where it has no kept pair."""
    of = dict(labels.select("latent", "kind").iter_rows())
    return [of.get(latent) for latent in range(latents)]


def test_latents_of_one_token_are_monosemantic(planted: Planted) -> None:
    groups = [(int(token),) for token in planted.rng.choice(planted.tokens(0.03, 0.7), 200)]
    labels = labelled(planted, planted.latents(groups))
    right = labels.filter("monosemantic").filter(
        pl.col("token") == pl.Series([groups[i][0] for i in labels.filter("monosemantic")["latent"]])
    )
    assert right.height >= 190
    assert right["share"].min() > 0.5
    assert right["reason"].null_count() == right.height
    row = right.row(0, named=True)
    assert row["label"] == f"{row['category']}_t{row['token']}"


@pytest.mark.parametrize("size", [2, 3])
def test_latents_of_several_tokens_are_polysemantic(planted: Planted, size: int) -> None:
    near = planted.tokens(0.06, 0.12)
    groups = [tuple(planted.rng.choice(near, size, replace=False).tolist()) for _ in range(200)]
    labels = labelled(planted, planted.latents(groups))
    assert kinds(labels, 200).count("polysemantic") >= 190
    assert kinds(labels, 200).count("monosemantic") <= 4
    row = labels.filter(kind="polysemantic").row(0, named=True)
    assert set(row["label"].removeprefix("polysemantic_").split("_")) >= {f"t{row['token']}"}
    assert row["tokens_selected"] >= 2
    assert "holds" in row["reason"]


def test_latents_that_know_only_the_number_of_steps_are_not_monosemantic(planted: Planted) -> None:
    middle = planted.rng.uniform(2, 7, 200)
    chance = 1 / (1 + np.exp(-planted.rng.uniform(0.7, 2.5, 200) * (planted.steps[:, None] - middle)))
    active = planted.rng.random((SAMPLES, 200)) < chance
    labels = labelled(planted, active)
    assert labels.height >= 100  # they go with many tokens
    assert labels["monosemantic"].sum() <= 2
    assert labels.filter(pl.col("reason").str.contains("number of steps")).height >= labels.height / 2


def test_a_token_in_nearly_every_sample_takes_more_than_chance(planted: Planted) -> None:
    present = planted.present.copy()
    present[:, 0] = planted.rng.random(SAMPLES) < 0.9
    planted = planted._replace(present=present)
    # Hardly more often with the token than without: F1 is far above a half, by chance alone.
    chance = np.where(present[:, :1], 0.7, 0.3)
    labels = labelled(planted, planted.rng.random((SAMPLES, 100)) < chance).filter(token=0)
    assert labels.height >= 50
    assert labels["f1"].min() > 0.7
    assert labels["monosemantic"].sum() == 0
    true = labelled(planted, planted.latents([(0,)] * 50, miss=0.02, alarm=0.05))
    assert kinds(true, 50).count("monosemantic") >= 48


def test_the_first_of_two_tokens_that_go_together_is_the_right_one(planted: Planted) -> None:
    present = planted.present.copy()
    tokens = planted.tokens(0.1, 0.3)[:20]
    for token in tokens:  # a companion that is mostly there when the token is
        held = present[:, token]
        present[:, TOKENS - 1 - token] = np.where(
            held, planted.rng.random(SAMPLES) < 0.7, planted.rng.random(SAMPLES) < 0.05
        )
    planted = planted._replace(present=present)
    groups = [(int(token),) for token in tokens for _ in range(5)]
    labels = labelled(planted, planted.latents(groups)).filter("monosemantic")
    assert labels.height >= 95
    assert [groups[latent][0] for latent in labels["latent"]] == labels["token"].to_list()


def test_calls_are_right_on_real_problems() -> None:
    if not GSM8K.exists():
        pytest.skip("GSM8K is not on this machine")
    answers = [json.loads(line)["answer"] for line in GSM8K.read_text(encoding="utf-8").splitlines()[:1000]]
    held = [set(parse_annotation_tokens(answer, grammar="canonical")) for answer in answers]
    vocabulary = sorted(set().union(*held))
    present = np.array([[token in tokens for token in vocabulary] for tokens in held])
    steps = np.array([count_annotations(answer) for answer in answers])
    planted = Planted(steps, present, strata_of(steps, at_most=8), np.random.default_rng(0))
    middle = [token for token in planted.tokens(0.03, 0.6).tolist() if vocabulary[token] not in "()"]  # a pair is one
    share = present.mean(axis=0)
    groups = [(int(token),) for token in planted.rng.choice(middle, 150)]
    while len(groups) < 450:
        group = planted.rng.choice(middle, 2 + len(groups) % 2, replace=False)
        if share[group].max() <= 2 * share[group].min():  # else it is mostly about one of them
            groups.append(tuple(group.tolist()))
    found = kinds(labelled(planted, planted.latents(groups), vocabulary=vocabulary), 450)
    assert found[:150].count("monosemantic") >= 0.95 * 150
    assert found[150:].count("polysemantic") >= 0.95 * 300


def test_latents_without_any_relation_have_no_label(planted: Planted) -> None:
    active = planted.rng.random((SAMPLES, 500)) < planted.rng.beta(0.5, 1.5, 500)
    assert labelled(planted, active).height <= 3


def test_draws_make_the_same_calls_from_fewer_latents(planted: Planted) -> None:
    near = planted.tokens(0.06, 0.2)
    groups = [tuple(planted.rng.choice(near, size, replace=False).tolist()) for size in (1, 2, 1, 3) for _ in range(15)]
    active = planted.latents(groups, miss=0.3, alarm=0.05)
    pairs = associate(active, planted.present)
    incidence = Incidence.of(active, planted.present, seed=0)
    labels = labelled(planted, active).filter("monosemantic").select("latent", "token")
    assert 10 < labels.height < 50
    assert monosemantic_latents(pairs, incidence, strata=planted.strata).equals(labels)
    some = pairs.filter(pl.col("latent") < 20)
    assert monosemantic_latents(some, incidence, strata=planted.strata).equals(labels.filter(pl.col("latent") < 20))
    as_sparse = dataclasses.replace(
        incidence, active=sparse.csr_array(incidence.active), present=sparse.csr_array(planted.present)
    )
    assert monosemantic_latents(pairs, as_sparse, strata=planted.strata).equals(labels)


def test_nothing_kept_gives_an_empty_table(planted: Planted) -> None:
    active = np.zeros((SAMPLES, 3), bool)
    labels = labelled(planted, active)
    assert (labels.height, labels.schema) == (0, pl.Schema(LABEL_SCHEMA))
    incidence = Incidence.of(active, planted.present, seed=0)
    empty = monosemantic_latents(associate(active, planted.present), incidence, strata=planted.strata)
    assert (empty.height, empty.columns) == (0, ["latent", "token"])


def test_the_first_token_is_sure_rather_than_extreme() -> None:
    pairs = pl.DataFrame(
        {
            "latent": [0, 0, 0, 1, 1, 1, 2],
            "token": [4, 7, 9, 2, 3, 8, 1],
            # Token 7 is always with the latent, but rare; its odds ratio is the largest, its lower limit is not.
            "a": [80, 6, 40, 30, 30, 29, 50],
            "b": [60, 134, 100, 20, 20, 21, 50],
            "c": [20, 0, 60, 5, 5, 5, 50],
            "d": [840, 860, 800, 945, 945, 945, 850],
            "kept": [True, True, True, True, True, True, False],
        }
    )
    assert first_tokens(pairs.reverse()).select("latent", "token").rows() == [(0, 4), (1, 2)]


def test_the_odds_ratio_is_of_the_half_that_confirms(planted: Planted) -> None:
    active = planted.latents([(int(planted.tokens(0.1, 0.2)[0]),)] * 10)
    row = labelled(planted, active).row(3, named=True)
    first = Incidence.of(active, planted.present, seed=0).first
    found = []
    for half in (first, ~first):
        fires, holds = active[half, row["latent"]], planted.present[half, row["token"]]
        table = np.array(
            [[(fires & holds).sum(), (fires & ~holds).sum()], [(~fires & holds).sum(), (~fires & ~holds).sum()]]
        )
        corrected = table + 0.5
        odds = corrected[0, 0] * corrected[1, 1] / (corrected[0, 1] * corrected[1, 0])
        found.append((fisher_exact(table, alternative="greater").pvalue, odds))
    assert row["odds_ratio"] == pytest.approx(max(found)[1])


def test_a_pair_that_does_not_replicate_is_unclear(planted: Planted) -> None:
    token = int(planted.tokens(0.1, 0.2)[0])
    active = planted.latents([(token,)])
    pairs = associate(active, planted.present).with_columns(replicated=pl.lit(False))
    incidence = Incidence.of(active, planted.present, seed=0)
    (row,) = label_latents(
        pairs, incidence, strata=planted.strata, vocabulary=WORDS, categories=["number"] * TOKENS
    ).iter_rows(named=True)
    assert (row["label"], row["kind"], row["monosemantic"], row["token"]) == ("unclear", "unclear", False, token)
    assert "not replicated" in row["reason"]
    assert (row["share"], row["tokens_selected"]) == (None, None)
    assert monosemantic_latents(pairs, incidence, strata=planted.strata).height == 0
