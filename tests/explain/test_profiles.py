"""Profiles of latents: how they fire, what they write, checked against the cache and the weights by plain loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from explain.conftest import HOOKPOINT, Road

from saeinterp.artifacts import Artifact, ArtifactStore, read_json
from saeinterp.explain import describe_latents
from saeinterp.explain.profiles.firing import Occurrences, histogram, token_rates
from saeinterp.latents import LatentCache
from saeinterp.latents.entries import Entries
from saeinterp.sae import TopKSae
from saeinterp.subject import load_subject


@pytest.fixture
def profiles(road: Road, store: ArtifactStore) -> Artifact:
    return describe_latents(road.latents, road.examples, road.subject, road.sae, hookpoint=HOOKPOINT, store=store)


def rows_of(profiles: Artifact) -> list[dict[str, Any]]:
    return pl.read_parquet(profiles.file("profiles.parquet")).to_dicts()


def fired(cache: LatentCache, latent: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and values of one latent, read straight from the cache."""
    parts = [(part.rows[part.latents == latent], part.values[part.latents == latent]) for part in cache.firings()]
    rows, values = zip(*parts, strict=True)
    return np.concatenate(rows), np.concatenate(values)


def test_every_selected_latent_is_described_and_counts_are_those_of_the_cache(road: Road, profiles: Artifact) -> None:
    cache = LatentCache.open(road.latents)
    known = pl.read_parquet(road.examples.file("latents.parquet"))
    found = rows_of(profiles)
    assert [row["latent"] for row in found] == sorted(known["latent"].to_list())
    assert any(not row["firings"] for row in found)
    for row in found:
        rows, values = fired(cache, row["latent"])
        assert row["firings"] == len(rows) == sum(row["histogram"])
        assert row["density"] == len(rows) / cache.rows
        assert row["density_score"] == (rows >= cache.split_rows("score").start).sum() / len(cache.split_rows("score"))
        assert row["peak"] == pytest.approx(np.abs(values).max(initial=0))


def test_tokens_are_counted_on_documents_they_were_not_chosen_on(road: Road, profiles: Artifact) -> None:
    cache = LatentCache.open(road.latents)
    tokenizer = load_subject(road.subject, device="cpu").tokenizer
    tokens, documents = cache.column("token_id"), cache.column("doc_id")
    score = cache.split_rows("score")
    checked = 0
    for row in rows_of(profiles):
        rows, _ = fired(cache, row["latent"])
        for item in row["tokens"]:
            here = [place for place in score if tokenizer.decode([int(tokens[place])]) == item["token"]]
            assert item["seen"] == len(here)
            assert item["fired"] == len(set(here) & set(rows.tolist()))
            assert item["documents"] == len({int(documents[place]) for place in here})
            assert item["low"] is None or item["low"] <= item["fired"] / item["seen"] <= item["high"]
            checked += 1
    assert checked > 10


def test_the_logits_are_the_decoder_through_the_unembedding(road: Road, profiles: Artifact) -> None:
    sae, subject = TopKSae.load(road.sae.path), load_subject(road.subject, device="cpu")
    weight = subject.model.get_output_embeddings().weight.detach().float()
    row = rows_of(profiles)[3]
    logits = weight @ (sae.W_dec[row["latent"]] - sae.W_dec.mean(0)).float()
    best = torch.argsort(-logits)[:10].tolist()
    assert [item["token"] for item in row["promoted"]] == [subject.tokenizer.decode([token]) for token in best]
    assert row["promoted"][0]["logit"] == pytest.approx(float(logits.max()), abs=1e-5)
    assert row["suppressed"][0]["logit"] == pytest.approx(float(logits.min()), abs=1e-5)
    assert sum(row["logit_histogram"]) == len(logits)
    assert (row["logit_low"], row["logit_high"]) == (
        pytest.approx(float(logits.min()), abs=1e-5),
        pytest.approx(float(logits.max()), abs=1e-5),
    )


def test_neighbours_are_nearest_first_and_their_null_is_named(road: Road, profiles: Artifact) -> None:
    unit = torch.nn.functional.normalize(TopKSae.load(road.sae.path).W_dec.double(), dim=1)
    for row in rows_of(profiles):
        cosines = unit @ unit[row["latent"]]
        cosines[row["latent"]] = -2
        assert [item["latent"] for item in row["neighbours"]] == torch.argsort(-cosines)[:10].tolist()
        assert row["neighbours"][0]["cosine"] == pytest.approx(float(cosines.max()), abs=1e-6)
    assert 0 < read_json(profiles.file("profiles.json"))["nearest_by_chance"] < 1


def test_the_same_inputs_give_the_same_bytes(road: Road, profiles: Artifact, store: ArtifactStore) -> None:
    other = ArtifactStore(store.root / "again")
    again = describe_latents(road.latents, road.examples, road.subject, road.sae, hookpoint=HOOKPOINT, store=other)
    assert again.file("profiles.parquet").read_bytes() == profiles.file("profiles.parquet").read_bytes()


def test_a_latent_of_one_token_is_found_and_a_latent_of_none_has_rates_at_its_density() -> None:
    """Planted truth and planted nothing, each counted on unseen documents."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 50, 40_000).astype(np.int32)
    documents = (np.arange(40_000) // 200).astype(np.int32)
    explain, score = (Occurrences.of(tokens, rows, vocabulary=50) for rows in (range(20_000), range(20_000, 40_000)))

    def rates(fires: np.ndarray) -> Any:
        rows = np.flatnonzero(fires).astype(np.int32)
        return token_rates(Entries(rows, np.ones(len(rows), np.float32)), tokens, documents, explain, score)

    of_one = rates((tokens == 17) & (rng.random(40_000) < 0.9) | (rng.random(40_000) < 0.001))
    assert of_one[0].token == 17
    assert of_one[0].low < 0.9 < of_one[0].high
    assert of_one[0].share > 0.9
    of_none = rates(rng.random(40_000) < 0.05)
    contained = [rate.low <= 0.05 <= rate.high for rate in of_none]
    assert len(contained) == 10
    assert sum(contained) >= 8  # chosen on other documents, their rates are no higher than any token's


def test_a_histogram_of_nothing_is_empty_and_of_equal_values_lies_in_the_last_bin() -> None:
    assert histogram(np.zeros(0, np.float32)) == (0.0, [])
    assert histogram(np.full(4, -2.5, np.float32)) == (2.5, [0] * 19 + [4])
