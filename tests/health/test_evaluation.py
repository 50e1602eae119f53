"""The step: what it writes, what it refuses, that it repeats itself byte for byte."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from planted_health import Prepared, random_sae, sae_artifact, signed_identity

from saeinterp.artifacts import Artifact, ArtifactStore
from saeinterp.config import HealthConfig
from saeinterp.errors import DataError
from saeinterp.health import METRICS, DocumentSums, evaluate_health, evaluate_health_recipe, read_health
from saeinterp.sae import TopKSae

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
    assert len(checks) == 11
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
