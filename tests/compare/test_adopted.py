"""Sides with SAEs that were trained elsewhere: what is compared, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from planted_health import Prepared, random_sae
from planted_models import compare, health

from saeinterp.artifacts import Artifact, ArtifactStore
from saeinterp.config import HealthConfig
from saeinterp.errors import ComparabilityError
from saeinterp.health import evaluate_health
from saeinterp.sae import adopt_sae


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random_sae(64).save(tmp_path / "layers.1")
    return tmp_path / "layers.1"


def adopted_health(store: ArtifactStore, parts: Prepared, folder: Path) -> Artifact:
    """Health of an adopted SAE at layers.1."""
    return evaluate_health(
        parts.artifact,
        parts.corpus,
        parts.activations,
        adopt_sae(folder, hookpoint="layers.1", store=store),
        hookpoint="layers.1",
        config=HealthConfig(bootstrap=200),
        store=store,
    )


def test_the_same_files_on_two_models_are_comparable(
    real: Prepared, control: Prepared, shared_store: ArtifactStore, folder: Path
) -> None:
    a, b = (adopted_health(shared_store, parts, folder) for parts in (real, control))
    found = compare(shared_store, [a], [b])
    assert found.matched
    (row,) = [row for row in found.comparability if row.field == "SAE training"]
    assert row.a == row.b
    assert row.a.startswith("trained elsewhere, sha256 ")


def test_an_adopted_and_a_trained_sae_of_two_models_are_refused_by_name(
    real: Prepared, control: Prepared, shared_store: ArtifactStore, folder: Path
) -> None:
    a, b = adopted_health(shared_store, real, folder), health(shared_store, control)
    with pytest.raises(
        ComparabilityError, match=r"SAE training: trained elsewhere, sha256 .* trained here on the other"
    ):
        compare(shared_store, [a], [b])
    assert not compare(shared_store, [a], [b], allow_unmatched=True).matched


def test_an_adopted_and_a_trained_sae_of_one_model_are_what_is_compared(
    real: Prepared, shared_store: ArtifactStore, folder: Path
) -> None:
    found = compare(shared_store, [adopted_health(shared_store, real, folder)], [health(shared_store, real)])
    assert found.matched
    (row,) = [row for row in found.comparability if row.field == "SAE training"]
    assert (row.severity, row.b) == ("soft", "trained here")
