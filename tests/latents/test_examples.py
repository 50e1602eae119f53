"""Example sets: disjoint, silent where they say so, stratified, byte-exact, independent of the selection."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from latents.conftest import Road
from planted import CLASSES, class_of

from saeinterp.artifacts import Artifact, ArtifactStore, Recipe, read_json
from saeinterp.config import ExamplesConfig, LaunchConfig, TrainingConfig
from saeinterp.errors import ConfigError, DamagedArtifactError, DataError
from saeinterp.latents import LatentCache, build_examples, cache_latents, select_latents
from saeinterp.sae import TopKSae, train_sae
from saeinterp.subject import ActivationCache, documents

HOOKPOINT = "layers.1"


def build(road: Road, **options: object) -> pl.DataFrame:
    config = ExamplesConfig(**{"latents": "all", "window": 16, **options})
    return pl.read_parquet(frozen(road, config) / "examples.parquet")


def frozen(road: Road, config: ExamplesConfig) -> Path:
    return build_examples(
        road.latents, road.corpus, road.sae, hookpoint=HOOKPOINT, config=config, store=road.store
    ).path


def test_the_cache_holds_what_the_sae_encodes_and_nothing_of_masked_tokens(road: Road) -> None:
    cache = LatentCache.open(road.latents)
    dense = ActivationCache.open(road.activations, HOOKPOINT)
    sae = TopKSae.load(road.sae.path)
    code = sae.encode(dense.read(0, dense.rows).float())
    expected = np.zeros((dense.rows, sae.num_latents), np.float32)
    np.put_along_axis(expected, code.indices.numpy(), code.values.numpy(), axis=1)
    expected[~dense.mask()] = 0
    found = np.zeros_like(expected)
    for chunk in cache.firings():
        found[chunk.rows, chunk.latents] = chunk.values
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-3)
    assert not found[dense.positions == 0].any()


def test_explainer_and_scorer_never_share_a_document(road: Road) -> None:
    frame = build(road)
    assert frame.height > 100
    shared = set(frame.filter(role="explain")["doc_id"]) & set(frame.filter(role="score")["doc_id"])
    assert shared == set()


def test_positives_fire_negatives_are_silent_and_none_is_drawn_twice(road: Road) -> None:
    frame = build(road).with_columns(peak=pl.col("activations").list.eval(pl.element().abs()).list.max())
    assert (frame.filter(kind="activating")["peak"] > 0).all()
    assert (frame.filter(pl.col("kind") != "activating")["peak"] == 0).all()
    assert frame.height == frame.unique(["latent", "role", "context_id", "start"]).height


def test_negatives_that_do_not_exist_are_counted_and_replaced(road: Road) -> None:
    # Every planted word always fires its own latent, so no window holds a silent top token.
    folder = frozen(road, ExamplesConfig(latents="all", window=16))
    outcome = pl.read_parquet(folder / "latents.parquet").filter(status="ok")
    assert (outcome["missing_near_miss"] == 5).all()
    frame = pl.read_parquet(folder / "examples.parquet").filter(role="score")
    assert (frame.filter(kind="random").group_by("latent").len()["len"] >= 10).any()
    assert "similar" in set(frame["kind"])


def test_near_misses_hold_a_top_token_while_the_latent_is_silent(road: Road) -> None:
    # Fewer latents than planted directions: words compete, and lose in some contexts.
    small = TrainingConfig(num_latents=9, k=3, epochs=2, batch_rows=256, activation="abs_topk")
    sae = train_sae(road.training, hookpoint=HOOKPOINT, config=small, launch=LaunchConfig(threads=1), store=road.store)
    latents = cache_latents(road.activations, sae, hookpoint=HOOKPOINT, store=road.store)
    config = ExamplesConfig(latents="all", window=4, max_share=1.0)
    folder = build_examples(latents, road.corpus, sae, hookpoint=HOOKPOINT, config=config, store=road.store).path
    outcome = pl.read_parquet(folder / "latents.parquet")
    frame = pl.read_parquet(folder / "examples.parquet").filter(kind="near-miss")
    assert frame.height > 0
    for row in frame.iter_rows(named=True):
        top = outcome.filter(latent=row["latent"])["top_tokens"].item()
        assert any(token.strip() in (piece.strip() for piece in row["tokens"]) for token in top[:3])
        assert not any(row["activations"])


def test_positives_are_spread_over_quantiles(road: Road) -> None:
    frame = build(road, score_activating=10, quantiles=5).filter(role="score", kind="activating")
    spread = frame.group_by("latent").agg(pl.col("quantile").n_unique(), pl.len().alias("n"))
    assert (spread.filter(pl.col("n") == 10)["quantile"] == 5).all()


def test_the_text_is_the_documents_own_and_its_tokens_add_up(road: Road) -> None:
    texts = documents(road.corpus)
    for row in build(road).head(200).iter_rows(named=True):
        assert "".join(row["tokens"]) == row["text"]
        assert row["text"] in texts[row["doc_id"]]
        assert len(row["tokens"]) == len(row["token_ids"]) == len(row["activations"]) == row["end"] - row["start"]


def test_a_latent_has_the_same_examples_whatever_else_was_selected(road: Road) -> None:
    every = build(road)
    latent = int(every["latent"][0])
    alone = build(road, latents=(latent,))
    assert alone.equals(every.filter(latent=latent))


def test_planted_latents_show_their_class(road: Road) -> None:
    folder = frozen(road, ExamplesConfig(latents="all", window=16))
    outcome = pl.read_parquet(folder / "latents.parquet")
    classes = {
        class_of(tokens[0])
        for tokens in outcome["top_tokens"]
        if len(tokens) >= 4 and class_of(tokens[0]) and len({class_of(token) for token in tokens[:4]}) == 1
    }
    # The decoder's bias may stand for one direction: with k = 1, sixteen need only fifteen latents.
    assert len(classes & set(CLASSES)) >= len(CLASSES) - 1


def test_rare_dense_and_dead_latents_are_outcomes_not_gaps(road: Road) -> None:
    folder = frozen(road, ExamplesConfig(latents="all", window=16, min_windows=60, max_share=0.1))
    outcome = pl.read_parquet(folder / "latents.parquet")
    assert outcome.height == 20
    assert "too_rare" in set(outcome["status"])
    assert sum(read_json(folder / "examples.json")["statuses"].values()) == 20


def test_content_is_hashed_and_the_same_in_another_store(road: Road, tmp_path: Path) -> None:
    config = ExamplesConfig(latents="sample:5", window=16)
    here = read_json(frozen(road, config) / "examples.json")["content_hash"]
    elsewhere = ArtifactStore(tmp_path)
    latents = cache_latents(road.activations, road.sae, hookpoint=HOOKPOINT, store=elsewhere)
    again = build_examples(latents, road.corpus, road.sae, hookpoint=HOOKPOINT, config=config, store=elsewhere)
    assert read_json(again.path / "examples.json")["content_hash"] == here


def test_a_damaged_cache_is_refused_by_name(road: Road, tmp_path: Path) -> None:
    elsewhere = ArtifactStore(tmp_path)
    latents = cache_latents(road.activations, road.sae, hookpoint=HOOKPOINT, store=elsewhere)
    path = latents.path / "rows.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DamagedArtifactError, match=latents.path.name):
        list(LatentCache.open(latents).firings())


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("10-20", "not a selection"),
        ("5:5", "selects no latent"),
        ("sample:0", "selects no latent"),
        ((3, 99), "outside"),
        ("30:40", "outside"),
        ("0:99999999999", "outside"),
    ],
)
def test_a_bad_selection_is_named(wanted: str | tuple[int, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        select_latents(wanted, alive=np.ones(32, bool), seed=0)


def test_selections() -> None:
    alive = np.arange(32) % 2 == 0
    assert select_latents("10:13", alive=alive, seed=0) == [10, 11, 12]
    assert select_latents([7, 3, 7], alive=alive, seed=0) == [3, 7]
    sample = select_latents("sample:6", alive=alive, seed=1)
    assert sample == select_latents("sample:6", alive=alive, seed=1)
    assert len(set(sample)) == 6
    assert all(alive[sample])
    assert select_latents("all", alive=alive, seed=0) == list(range(32))


def test_a_sample_larger_than_the_alive_is_said_to_be_short(caplog: pytest.LogCaptureFixture) -> None:
    alive = np.arange(32) % 2 == 0
    assert select_latents("sample:99", alive=alive, seed=1) == np.flatnonzero(alive).tolist()
    assert "99 latents; only 16 fire" in caplog.text
    with pytest.raises(DataError, match="no latent fires"):
        select_latents("sample:3", alive=np.zeros(32, bool), seed=1)


def test_a_value_too_small_for_float16_still_fires(road: Road, tmp_path: Path) -> None:
    trained = TopKSae.load(road.sae.path)
    faint = dataclasses.replace(trained, W_enc=trained.W_enc * 1e-10, b_enc=trained.b_enc * 1e-10)
    elsewhere = ArtifactStore(tmp_path)
    recipe = Recipe(kind="sae", name="faint", version=1, config={})
    sae = elsewhere.build(recipe, lambda space: faint.save(space.out))
    latents = cache_latents(road.activations, sae, hookpoint=HOOKPOINT, store=elsewhere)

    def fires(artifact: Artifact) -> set[tuple[int, int]]:
        chunks = LatentCache.open(artifact).firings()
        return {pair for chunk in chunks for pair in zip(chunk.rows.tolist(), chunk.latents.tolist(), strict=True)}

    assert len(fires(latents)) > 1000
    assert fires(latents) == fires(road.latents)
