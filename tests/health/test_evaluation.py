"""The step: what it writes, what it refuses, that it repeats itself byte for byte."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import polars as pl
import pytest
from planted_health import HOOKPOINTS, Prepared, prepare, random_sae, sae_artifact, signed_identity

from saeinterp.artifacts import Artifact, ArtifactStore
from saeinterp.config import CorpusConfig, CorpusSource, HealthConfig, HealthDataset
from saeinterp.errors import DataError
from saeinterp.health import (
    METRICS,
    DocumentSums,
    EvaluatedLayers,
    evaluate_health,
    evaluate_health_recipe,
    evaluate_layers,
    read_health,
)
from saeinterp.report.collect import layer_health
from saeinterp.sae import TopKSae, adopt_sae
from saeinterp.subject import build_corpus

HOOKPOINT = "layers.1"
CONFIG = HealthConfig(bootstrap=200)


def evaluate(parts: Prepared, sae: TopKSae, store: ArtifactStore, *, config: HealthConfig = CONFIG) -> Artifact:
    trained = sae_artifact(store, sae, parts.activations, hookpoint=HOOKPOINT)
    return evaluate_health(
        parts.artifact, parts.corpus, parts.activations, trained, hookpoint=HOOKPOINT, config=config, store=store
    )


def test_every_number_of_the_table_can_be_made_again_from_the_documents(
    planted: Prepared, store: ArtifactStore
) -> None:
    artifact = evaluate(planted, random_sae(64), store)
    values = read_health(artifact)
    documents = DocumentSums.read(artifact.file("documents.parquet"))
    assert values["hookpoint"] == HOOKPOINT
    assert values["layer"] == 1
    for metric in METRICS:
        stored = values[metric]
        expected = stored["value"] if isinstance(stored, dict) else stored
        if expected is not None:
            assert documents.value(metric) == pytest.approx(expected)
    density = pl.read_parquet(artifact.file("density.parquet"))
    assert density["latent"].to_list() == list(range(48))
    assert density["firings"].sum() == values["firings"]
    assert int((density["firings"] == 0).sum()) == values["dead"]


def test_all_integrity_checks_pass_and_the_masks_are_those_of_training(planted: Prepared, store: ArtifactStore) -> None:
    values = read_health(evaluate(planted, random_sae(64), store))
    checks = {check["name"]: check for check in values["checks"]}
    assert len(checks) >= 11
    assert all(check["passed"] for check in checks.values()), checks
    assert checks["masked rows are those masked in training"]["detail"].startswith("0 of")


def test_absorption_is_said_to_be_unmeasured(planted: Prepared, store: ArtifactStore) -> None:
    assert read_health(evaluate(planted, random_sae(64), store))["absorption"] == {
        "value": None,
        "reason": "not measured",
    }


def test_the_control_with_random_weights_goes_through(control: Prepared, store: ArtifactStore) -> None:
    values = read_health(evaluate(control, random_sae(64), store))
    assert values["loss_recovered"]["value"] is None
    assert values["delta_ce"]["value"] is not None
    assert all(check["passed"] for check in values["checks"])


def test_the_same_recipe_gives_the_same_bytes(planted: Prepared, tmp_path: Path) -> None:
    made = [evaluate(planted, random_sae(64), ArtifactStore(tmp_path / name)) for name in ("one", "two")]
    files = [artifact.manifest()["files"] for artifact in made]
    assert files[0] == files[1]
    assert set(files[0]) == {"health.json", "documents.parquet", "density.parquet"}


def test_the_result_is_plain_json_with_reasons_in_place_of_missing_numbers(
    planted: Prepared, store: ArtifactStore
) -> None:
    text = evaluate(planted, signed_identity(64), store).file("health.json").read_text(encoding="utf-8")
    values = json.loads(text)
    assert "NaN" not in text
    assert values["loss_recovered"]["value"] == 1.0
    assert values["loss_recovered"]["reason"] == "the documents do not vary"


def test_splicing_only_unmasked_positions_is_another_recipe_with_another_result(
    control: Prepared, store: ArtifactStore
) -> None:
    everywhere = read_health(evaluate(control, random_sae(64), store))
    unmasked = read_health(
        evaluate(control, random_sae(64), store, config=HealthConfig(bootstrap=200, splice="unmasked"))
    )
    assert (everywhere["splice"], unmasked["splice"]) == ("all", "unmasked")
    assert everywhere["ce_clean"] == unmasked["ce_clean"]
    assert everywhere["ce_spliced"] != unmasked["ce_spliced"]
    assert unmasked["uniform_ce"] is None


def test_an_sae_of_another_width_is_refused_before_anything_runs(planted: Prepared, store: ArtifactStore) -> None:
    with pytest.raises(DataError, match=r"layers\.1: the SAE does not fit.*d_in = 32.*d_in = 64"):
        evaluate(planted, random_sae(32), store)


def test_the_recipe_needs_no_artifact_to_exist(planted: Prepared) -> None:
    parts = (planted.artifact, planted.corpus, planted.activations, planted.activations)
    recipe = evaluate_health_recipe(*parts, hookpoint=HOOKPOINT, config=CONFIG)
    other = evaluate_health_recipe(*parts, hookpoint="layers.0", config=CONFIG)
    assert recipe.kind == "health"
    assert recipe.name.endswith("layers.1")
    assert recipe.hash != other.hash


def evaluate_several(
    parts: Prepared, store: ArtifactStore, *, config: HealthConfig = CONFIG, seeds: int = 2
) -> EvaluatedLayers:
    """Two hookpoints, several SAEs each, all handed over at once."""
    saes = [
        (name, sae_artifact(store, random_sae(64, seed=seed), parts.activations, hookpoint=name, seed=seed))
        for name in HOOKPOINTS
        for seed in range(seeds)
    ]
    return evaluate_layers(parts.artifact, parts.corpus, parts.activations, saes, config=config, store=store)


def timing(artifact: Artifact) -> dict[str, float]:
    return pl.read_parquet(artifact.file("timing.parquet")).row(0, named=True)


def test_saes_measured_together_get_the_bytes_they_get_alone_in_fewer_passes(control: Prepared, tmp_path: Path) -> None:
    together = evaluate_several(control, ArtifactStore(tmp_path / "together"))
    alone = evaluate_several(control, ArtifactStore(tmp_path / "alone"), config=HealthConfig(bootstrap=200, together=1))
    assert together.failures == alone.failures == {}
    assert len(together.health) == 4
    for name, artifact in together.health.items():
        assert artifact.hash == alone.health[name].hash
        assert artifact.manifest()["files"] == alone.health[name].manifest()["files"]
        assert artifact.manifest()["counts"] == alone.health[name].manifest()["counts"]
    shared, own = timing(next(iter(together.health.values()))), timing(next(iter(alone.health.values())))
    assert (shared["saes"], own["saes"]) == (4, 1)
    assert shared["clean_passes"] == own["clean_passes"]
    assert shared["spliced_passes"] == 4 * own["spliced_passes"]
    assert shared["full_passes"] < sum(timing(item)["full_passes"] for item in alone.health.values())


def test_measuring_again_measures_only_what_is_missing(planted: Prepared, store: ArtifactStore) -> None:
    first = evaluate_several(planted, store, seeds=1)
    again = evaluate_several(planted, store, seeds=2)
    assert all(again.health[name] == artifact for name, artifact in first.health.items())
    fresh = [item for name, item in again.health.items() if name not in first.health]
    assert [timing(item)["saes"] for item in fresh] == [2, 2]


def test_one_sae_that_does_not_fit_fails_alone(planted: Prepared, store: ArtifactStore) -> None:
    good = sae_artifact(store, random_sae(64), planted.activations, hookpoint=HOOKPOINT)
    bad = sae_artifact(store, random_sae(32, num_latents=40), planted.activations, hookpoint=HOOKPOINT)
    found = evaluate_layers(
        planted.artifact,
        planted.corpus,
        planted.activations,
        [(HOOKPOINT, bad), (HOOKPOINT, good)],
        config=CONFIG,
        store=store,
    )
    assert set(found.health) == {good.id}
    assert "d_in = 64" in str(found.failures[bad.id])


def dataset_corpus(parts: Prepared, texts: list[str], path: Path, store: ArtifactStore, **options: int) -> Artifact:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    dataset = HealthDataset(name="other", source=CorpusSource(name=str(path)), **options)
    base = CorpusConfig(sources=(CorpusSource(name="unused.txt"),), context_length=24)
    return build_corpus(parts.artifact, config=dataset.corpus(base), store=store)


def on_dataset(parts: Prepared, corpus: Artifact, store: ArtifactStore, *, config: HealthConfig = CONFIG) -> Artifact:
    trained = sae_artifact(store, random_sae(64), parts.activations, hookpoint=HOOKPOINT)
    return evaluate_health(
        parts.artifact,
        corpus,
        parts.activations,
        trained,
        hookpoint=HOOKPOINT,
        config=config,
        dataset="other",
        store=store,
    )


def test_another_dataset_is_measured_whole_under_its_own_name(
    control: Prepared, shared_store: ArtifactStore, tmp_path: Path
) -> None:
    texts = [f"w{index} " * (10 + index) for index in range(9)]  # shorter and longer than the context of 24
    other = on_dataset(control, dataset_corpus(control, texts, tmp_path / "t.jsonl", shared_store), shared_store)
    values = read_health(other)
    own = read_health(evaluate(control, random_sae(64), shared_store))
    assert (values["dataset"], own["dataset"]) == ("other", "held-out")
    assert values["documents"] == 9
    assert values["training_overlap"] == {"shared": 0, "documents": 9}
    # The cache knows nothing of this text, so there is no mask to compare with.
    names = {check["name"] for check in values["checks"]}
    assert "masked rows are those masked in training" not in names
    assert "masked rows are those masked in training" in {check["name"] for check in own["checks"]}


def test_text_seen_in_training_is_refused_unless_allowed_and_then_counted(
    planted: Prepared, shared_store: ArtifactStore, tmp_path: Path
) -> None:
    table = pl.read_parquet(planted.corpus.file("documents.parquet"))
    seen = table.filter(pl.col("split") == "train")["text"].to_list()[:3]
    corpus = dataset_corpus(planted, [*seen, "w1 " * 30], tmp_path / "t.jsonl", shared_store)
    with pytest.raises(DataError, match=r"3 of 4 documents are training documents.*allow_overlap"):
        on_dataset(planted, corpus, shared_store)
    allowed = HealthConfig(bootstrap=200, allow_overlap=True)
    artifact = on_dataset(planted, corpus, shared_store, config=allowed)
    assert read_health(artifact)["training_overlap"] == {"shared": 3, "documents": 4}
    row = layer_health("model", artifact, title="layers.1")
    assert "training overlap: 3 of 4 documents were trained on" in row.failed_checks


def test_seen_text_fails_the_sae_trained_on_it_and_is_not_known_of_one_trained_elsewhere(
    planted: Prepared, store: ArtifactStore, tmp_path: Path
) -> None:
    table = pl.read_parquet(planted.corpus.file("documents.parquet"))
    seen = table.filter(pl.col("split") == "train")["text"].to_list()[:3]
    corpus = dataset_corpus(planted, seen, tmp_path / "t.jsonl", store)
    trained = sae_artifact(store, random_sae(64), planted.activations, hookpoint=HOOKPOINT)
    random_sae(64, seed=1).save(tmp_path / "elsewhere")
    adopted = adopt_sae(tmp_path / "elsewhere", hookpoint=HOOKPOINT, store=store)
    both = [(HOOKPOINT, trained), (HOOKPOINT, adopted)]
    found = evaluate_layers(planted.artifact, corpus, planted.activations, both, config=CONFIG, store=store)
    assert "3 of 3 documents are training documents" in str(found.failures[trained.id])
    assert read_health(found.health[adopted.id])["training_overlap"] == {"shared": None, "documents": 3}


def test_a_dataset_shorter_than_one_context_is_refused_by_name(
    planted: Prepared, shared_store: ArtifactStore, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"too short: 1 documents give 0 usable tokens.*short\.jsonl"):
        dataset_corpus(planted, ["w1 w2 w3"], tmp_path / "short.jsonl", shared_store)
    with pytest.raises(DataError, match=r"max_tokens\.health: split 'health' is empty: none of 1 documents"):
        dataset_corpus(planted, ["w1 " * 30], tmp_path / "short.jsonl", shared_store, max_tokens=10)


def test_a_tokenizer_without_special_tokens_still_leaves_position_0_out(
    planted_folder: Path, documents: Path, store: ArtifactStore, tmp_path: Path
) -> None:
    folder = tmp_path / "bare"
    shutil.copytree(planted_folder, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    bare = {key: value for key, value in settings.items() if key not in ("bos_token", "eos_token", "pad_token")}
    (folder / "tokenizer_config.json").write_text(json.dumps(bare))
    for extra in ("special_tokens_map.json", "generation_config.json"):
        (folder / extra).unlink(missing_ok=True)
    parts = prepare(store, folder, documents)
    assert parts.subject.tokenizer.bos_token_id is None
    values = read_health(evaluate(parts, random_sae(64), store))
    assert values["masked_tokens"]["position0"] == len(parts.contexts)
    assert all(check["passed"] for check in values["checks"]), values["checks"]
