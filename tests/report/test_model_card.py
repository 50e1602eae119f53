"""The model card of an SAE release: every number from an artifact, and what no artifact says is called unknown."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from planted_reports import CONTROL, SUBJECT, World, build_world, put

from saeinterp.artifacts import Artifact, ArtifactStore, write_json
from saeinterp.errors import ConfigError, DataError
from saeinterp.report import write_model_card
from saeinterp.report.format import with_interval
from saeinterp.sae import TopKSae, adopt_sae
from saeinterp.sae.formats import convert


def front(text: str) -> dict[str, Any]:
    """The YAML at the head of a card."""
    head, _, _ = text.removeprefix("---\n").partition("\n---\n")
    loaded: dict[str, Any] = yaml.safe_load(head)
    return loaded


def test_a_card_holds_the_health_of_its_saes_with_intervals(world: World, tmp_path: Path) -> None:
    path = write_model_card(world.saes[SUBJECT], tmp_path, store=world.store)
    text = path.read_text(encoding="utf-8")
    assert path.name == "README.md"
    for item in world.health[SUBJECT]:
        data = json.loads(item.file("health.json").read_text())["loss_recovered"]
        shown, bounds = with_interval(data["value"], data["low"], data["high"], "score")
        assert f"{shown} {bounds}" in text
    for sae in world.saes[SUBJECT]:
        assert sae.id in text
    assert "random weights" not in text
    assert "95% CI" in text
    assert not re.search(r"\b(nan|NaN|None|null|undefined)\b", text)


def test_what_is_not_known_is_left_out_above_and_said_below(world: World, tmp_path: Path) -> None:
    text = write_model_card(world.saes[SUBJECT], tmp_path, store=world.store).read_text(encoding="utf-8")
    head = front(text)
    assert head["library_name"] == "saeinterp"
    assert "sparse-autoencoder" in head["tags"]
    assert {"license", "base_model", "datasets"} & head.keys() == set()
    assert "SmolLM2-135M-Instruct, 30 layers, width 576, run in bfloat16. Its id on the hub is not recorded." in text
    assert str(world.store.root) not in text
    assert "Not stated." in text
    assert "This folder holds no SAE yet" in text


def test_a_hub_model_and_a_stated_licence_are_in_the_front_matter(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "runs")
    facts = {"model": "EleutherAI/pythia-70m", "title": "pythia-70m", "revision": "a" * 40, "dtype": "float32"}
    facts |= {"num_layers": 6, "d_model": 8}

    def subject(space: Any) -> None:
        write_json(space.out / "subject.json", facts)

    def corpus(space: Any) -> None:
        write_json(
            space.out / "corpus.json",
            {
                "sources": [{"name": "monology/pile", "documents": 3}],
                "tokens": {"train": 10},
                "documents": {"train": 3},
            },
        )

    model = put(store, "subject", "pythia-70m", subject)
    sources = [{"title": "monology/pile", "hub_config": None, "split": "train", "revision": None}]
    text = put(store, "corpus", "pile", corpus, model, sources=sources)

    def sae(space: Any) -> None:
        write_json(space.out / "training.json", {"hookpoint": "layers.3", "d_in": 8, "num_latents": 16, "k": 2})

    made = put(store, "sae", "layers.3", sae, text, training={"seed": 4})
    card = write_model_card([made], tmp_path / "out", store=store, licence="apache-2.0", repository="me/saes")
    head = front(card.read_text(encoding="utf-8"))
    assert head["base_model"] == "EleutherAI/pythia-70m"
    assert head["datasets"] == ["monology/pile"]
    assert head["license"] == "apache-2.0"
    assert "Not measured" in card.read_text(encoding="utf-8")


@pytest.fixture
def adopted(tmp_path: Path) -> tuple[Artifact, ArtifactStore]:
    """A real SAE that was taken over from a folder."""
    store = ArtifactStore(tmp_path / "runs")
    torch.manual_seed(0)
    weights = torch.randn(16, 8)
    TopKSae(weights, torch.zeros(16), weights.clone(), torch.zeros(8), k=2).save(tmp_path / "layers.3")
    return adopt_sae(tmp_path / "layers.3", hookpoint="layers.3", store=store), store


def test_folders_of_the_release_are_named_with_the_lines_that_load_them(
    adopted: tuple[Artifact, ArtifactStore], tmp_path: Path
) -> None:
    sae, store = adopted
    out = tmp_path / "release"
    convert(sae.path, out / "layers.3", "sparsify")
    convert(sae.path, out / "lens" / "layers.3", "sae-lens", hookpoint="layers.3")
    text = write_model_card([sae], out, store=store, repository="me/saes").read_text(encoding="utf-8")
    assert "| `layers.3` | sparsify | layers.3 |" in text
    assert str(tmp_path) not in text
    assert "| `lens/layers.3` | sae-lens | layers.3 |" in text
    assert 'SparseCoder.load_from_hub("me/saes", hookpoint="layers.3")' in text
    assert 'SAE.from_pretrained("me/saes", "lens/layers.3")' in text
    assert front(text)["library_name"] == "saelens"
    assert "was trained elsewhere" in text
    loaded = TopKSae.load(out / "layers.3")
    assert loaded.k == 2
    again = write_model_card([sae], out, store=store)
    assert "me/saes" not in again.read_text(encoding="utf-8")


def test_a_readme_of_another_hand_is_not_replaced(world: World, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# mine\n")
    with pytest.raises(ConfigError, match="was not written by this command"):
        write_model_card(world.saes[SUBJECT], tmp_path, store=world.store)
    assert (tmp_path / "README.md").read_text() == "# mine\n"


def test_a_card_needs_an_sae_and_a_hub_id_that_can_be_one(world: World, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="OWNER/NAME"):
        write_model_card(world.saes[SUBJECT], tmp_path, store=world.store, repository="https://example.invalid")
    with pytest.raises(DataError, match="no SAE"):
        write_model_card([], tmp_path, store=world.store)


def test_models_of_one_card_are_told_apart_and_graded(tmp_path: Path) -> None:
    small = build_world(ArtifactStore(tmp_path / "runs"), compare=False, hookpoints=("layers.5",), graded=True)
    both = [*small.saes[SUBJECT], *small.saes[CONTROL], *small.grades.values()]
    text = write_model_card([*both, *small.health[SUBJECT]], tmp_path / "out", store=small.store).read_text()
    assert "(random weights) | layers.5 |" in text
    assert "| Model | Layer | Grade |" in text
    assert "4/4 healthy" in text
