"""Collecting activations of a subject over a corpus."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from planted import vocabulary
from safetensors.torch import load_file, save_file

from saeinterp.artifacts import Artifact, ArtifactStore
from saeinterp.config import SPLITS, CaptureConfig, CorpusConfig, CorpusSource, SubjectConfig
from saeinterp.errors import BudgetError, ConfigError, DataError
from saeinterp.subject import (
    ActivationCache,
    activation_bytes,
    activations,
    build_corpus,
    collect_activations,
    collect_activations_recipe,
    forwarding,
    load_subject,
    prepare_subject,
    read_contexts,
    shards,
)

HOOKPOINTS = ("layers.0", "layers.2")


def make_corpus(subject: Artifact, path: Path, store: ArtifactStore) -> Artifact:
    config = CorpusConfig(sources=(CorpusSource(name=str(path)),), context_length=32)
    return build_corpus(subject, config=config, store=store)


@pytest.fixture
def subject(planted_folder: Path, store: ArtifactStore) -> Artifact:
    return prepare_subject(SubjectConfig(model=str(planted_folder), dtype="float32"), store=store)


@pytest.fixture
def corpus(subject: Artifact, planted_corpus: Path, store: ArtifactStore) -> Artifact:
    return make_corpus(subject, planted_corpus, store)


def capture_config(**options: Any) -> CaptureConfig:
    return CaptureConfig(**{"hookpoints": HOOKPOINTS, **options})


def changed_subject(
    folder: Path, target: Path, store: ArtifactStore, *, factor: float, word: str | None = None
) -> Artifact:
    """The planted subject with its embedding (or one word's) multiplied by `factor`."""
    shutil.copytree(folder, target)
    weights = load_file(target / "model.safetensors")
    rows = slice(None) if word is None else vocabulary().index(word)
    weights["model.embed_tokens.weight"][rows] *= factor
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return prepare_subject(SubjectConfig(model=str(target), dtype="float32"), store=store)


def test_each_row_is_what_the_model_gives_at_that_token(
    planted_folder: Path, corpus: Artifact, store: ArtifactStore
) -> None:
    # The control, because the planted blocks add nothing: every layer of it would look right.
    config = SubjectConfig(model=str(planted_folder), dtype="float32", weights="random")
    control = prepare_subject(config, store=store)
    capture = CaptureConfig(hookpoints=("layers.0", "layers.1"))
    made = collect_activations(control, corpus, config=capture, store=store, device="cpu")
    contexts, model = read_contexts(corpus), load_subject(control, device="cpu").model
    caches = [ActivationCache.open(made, name) for name in capture.hookpoints]
    assert [cache.rows for cache in caches] == [contexts.tokens] * 2
    start = 0
    for index, context in enumerate(contexts):
        stop = start + len(context.token_ids)
        if index % 40 == 0:
            with torch.no_grad():
                ids = torch.from_numpy(context.token_ids.astype(np.int64))[None]
                hidden = model(input_ids=ids, output_hidden_states=True).hidden_states
            assert not torch.allclose(hidden[1], hidden[2], rtol=0.02, atol=1e-3)
            for layer, cache in enumerate(caches):
                assert torch.allclose(cache.read(start, stop).float(), hidden[layer + 1][0], rtol=0.01, atol=1e-4)
        assert np.array_equal(caches[0].token_ids[start:stop], context.token_ids)
        assert np.array_equal(caches[0].doc_ids[start:stop], context.doc_ids)
        assert np.array_equal(caches[0].positions[start:stop], np.arange(stop - start))
        start = stop


def test_splits_lie_behind_each_other(subject: Artifact, corpus: Artifact, store: ArtifactStore) -> None:
    made = collect_activations(subject, corpus, config=capture_config(), store=store, device="cpu")
    cache, contexts = ActivationCache.open(made, "layers.0"), read_contexts(corpus)
    start = 0
    for split in SPLITS:
        assert cache.split_rows(split) == range(start, start + contexts.tokens_of(split))
        start += contexts.tokens_of(split)
    assert start == cache.rows


def test_only_the_splits_asked_for_are_collected(subject: Artifact, corpus: Artifact, store: ArtifactStore) -> None:
    splits = ("score", "health")
    made = collect_activations(subject, corpus, config=capture_config(), store=store, splits=splits, device="cpu")
    cache = ActivationCache.open(made, "layers.0")
    assert cache.rows == read_contexts(corpus, splits=splits).tokens
    assert cache.split_rows("health").start == 0
    # The order in which splits are named does not matter.
    again = collect_activations_recipe(subject, corpus, config=capture_config(), splits=("health", "score"))
    assert again.hash == made.hash


def test_rows_beyond_a_multiple_of_the_median_norm_are_masked(
    planted_folder: Path, planted_corpus: Path, store: ArtifactStore, tmp_path: Path
) -> None:
    subject = changed_subject(planted_folder, tmp_path / "changed", store, factor=1000, word="w17")
    corpus = make_corpus(subject, planted_corpus, store)
    made = collect_activations(subject, corpus, config=capture_config(norm_multiple=8), store=store, device="cpu")
    cache = ActivationCache.open(made, "layers.2")
    values = cache.read(0, cache.rows).float()
    norms = values.norm(dim=1).numpy()
    ordinary = (cache.positions > 0) & ~np.isin(cache.token_ids, cache.special_ids)
    assert np.allclose(cache.norms, norms, rtol=1e-5)
    assert cache.median_norm == pytest.approx(np.median(norms[ordinary]), rel=1e-5)
    assert cache.norm_limit == pytest.approx(8 * cache.median_norm)
    outliers = ordinary & (cache.token_ids == vocabulary().index("w17"))
    assert cache.mask_counts()["norm"] == outliers.sum() > 50
    assert np.array_equal(cache.mask(), ordinary & ~outliers)
    train = np.arange(cache.rows) < cache.split_rows("train").stop
    assert torch.allclose(cache.mean, values[torch.from_numpy(cache.mask() & train)].mean(0), atol=1e-5)


def test_the_same_recipe_gives_the_same_bytes_whatever_the_device_setting(
    planted_folder: Path, planted_corpus: Path, tmp_path: Path
) -> None:
    def files(root: Path, **options: Any) -> dict[str, Any]:
        store = ArtifactStore(root)
        subject = prepare_subject(SubjectConfig(model=str(planted_folder), dtype="float32"), store=store)
        corpus = make_corpus(subject, planted_corpus, store)
        made = collect_activations(subject, corpus, config=capture_config(**options), store=store, device="cpu")
        return made.manifest()["files"]

    assert files(tmp_path / "a") == files(tmp_path / "b", disk_budget_gb=3)


def test_a_killed_run_resumes_after_its_last_whole_shard(
    subject: Artifact,
    corpus: Artifact,
    planted_folder: Path,
    planted_corpus: Path,
    store: ArtifactStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shards, "SHARD_ROWS", 2_000)
    config = capture_config(batch_contexts=4)
    other = ArtifactStore(tmp_path / "other")
    whole = collect_activations(
        prepare_subject(SubjectConfig(model=str(planted_folder), dtype="float32"), store=other),
        make_corpus(subject, planted_corpus, other),
        config=config,
        store=other,
        device="cpu",
    )
    assert len(list((whole.path / "layers.0").glob("*.parquet"))) > 5
    calls = 0
    original = forwarding.capture

    def dies(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 60:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(forwarding, "capture", dies)
    with pytest.raises(KeyboardInterrupt):
        collect_activations(subject, corpus, config=config, store=store, device="cpu")
    resumed = collect_activations(subject, corpus, config=config, store=store, device="cpu")
    assert resumed.manifest()["files"] == whole.manifest()["files"]
    batches = -(-len(read_contexts(corpus)) // 4)
    assert calls < 60 + batches  # the second run did not start over


def test_progress_counts_tokens_up_to_all(subject: Artifact, corpus: Artifact, store: ArtifactStore) -> None:
    seen: list[tuple[int, int, str]] = []
    made = collect_activations(
        subject, corpus, config=capture_config(), store=store, device="cpu", progress=lambda *now: seen.append(now)
    )
    rows = made.counts()["rows"]
    assert seen[-1] == (rows, rows, "tokens")
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)


def test_bytes_are_known_beforehand(subject: Artifact, corpus: Artifact, store: ArtifactStore) -> None:
    made = collect_activations(subject, corpus, config=capture_config(), store=store, device="cpu")
    size = sum(file["bytes"] for file in made.manifest()["files"].values())
    assert size == pytest.approx(activation_bytes(made.counts()["rows"], 64, HOOKPOINTS), rel=0.02)


def test_a_cache_beyond_the_budget_is_refused_before_anything_runs(
    subject: Artifact, corpus: Artifact, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(activations, "load_subject", never)
    tokens = corpus.counts()["tokens"]
    needed = activation_bytes(tokens, 64, HOOKPOINTS)
    with pytest.raises(BudgetError) as caught:
        collect_activations(subject, corpus, config=capture_config(disk_budget_gb=0.001), store=store, device="cpu")
    text = str(caught.value)
    assert text.startswith("capture.disk_budget_gb: ")
    assert f"{needed:,} bytes" in text
    assert f"{tokens:,} tokens × 2 hookpoints × 64 values" in text
    assert "train[:5%]" in text
    assert "fewer hookpoints" in text
    assert "raise capture.disk_budget_gb" in text


def test_a_cache_beyond_the_free_disk_is_refused(
    subject: Artifact, corpus: Artifact, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(shards.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(BudgetError, match=r"SAEINTERP_ROOT: .*0\.00 GB free.*larger disk"):
        collect_activations(subject, corpus, config=capture_config(), store=store, device="cpu")


def test_a_layer_out_of_range_offers_the_nearest(subject: Artifact, corpus: Artifact, store: ArtifactStore) -> None:
    with pytest.raises(
        ConfigError, match=r"layer 7 does not exist: the subject has 3 layers.*did you mean 'layers\.2'"
    ):
        collect_activations(subject, corpus, config=capture_config(hookpoints=("layers.7",)), store=store, device="cpu")


def test_a_hookpoint_named_twice_is_refused(subject: Artifact, corpus: Artifact) -> None:
    with pytest.raises(ConfigError, match=r"capture\.hookpoints: must name each entry once"):
        collect_activations_recipe(subject, corpus, config=capture_config(hookpoints=("layers.1", "layers.1")))


def test_float16_overflow_names_the_hookpoint_and_the_way_out(
    planted_folder: Path, planted_corpus: Path, store: ArtifactStore, tmp_path: Path
) -> None:
    subject = changed_subject(planted_folder, tmp_path / "changed", store, factor=1e6)
    corpus = make_corpus(subject, planted_corpus, store)
    with pytest.raises(
        DataError, match=r"layers\.\d: activations overflow float16.*Next: set capture\.dtype: bfloat16"
    ):
        collect_activations(subject, corpus, config=capture_config(dtype="float16"), store=store, device="cpu")
    made = collect_activations(subject, corpus, config=capture_config(dtype="bfloat16"), store=store, device="cpu")
    assert ActivationCache.open(made, "layers.0").median_norm > 65504


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_nan_and_infinite_activations_name_the_hookpoint(
    planted_folder: Path, planted_corpus: Path, store: ArtifactStore, tmp_path: Path, factor: float
) -> None:
    subject = changed_subject(planted_folder, tmp_path / "changed", store, factor=factor)
    corpus = make_corpus(subject, planted_corpus, store)
    with pytest.raises(
        DataError, match=r"layers\.0: the subject produced NaN or infinite activations.*context 0, document 0.*Next"
    ):
        collect_activations(subject, corpus, config=capture_config(), store=store, device="cpu")


def test_smollm2_has_attention_sinks_at_position_0_and_they_are_masked(smollm2: Path, store: ArtifactStore) -> None:
    subject = prepare_subject(SubjectConfig(model=str(smollm2)), store=store)
    config = CorpusConfig(
        sources=(CorpusSource(name="builtin:word-problems", limit=60),), context_length=64, fractions={"train": 0.7}
    )
    corpus = build_corpus(subject, config=config, store=store)
    capture = CaptureConfig(hookpoints=("layers.15",))
    made = collect_activations(subject, corpus, config=capture, store=store, splits=("health",), device="cpu")
    cache = ActivationCache.open(made, "layers.15")
    first = cache.norms[cache.positions == 0]
    assert first.min() > 10 * cache.median_norm
    assert not cache.mask()[cache.positions == 0].any()
    assert cache.mask().mean() > 0.9
    assert (cache.norms[cache.mask()] <= cache.norm_limit).all()
