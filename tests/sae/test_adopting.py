"""SAEs that were trained elsewhere become artifacts: what they keep, what their recipe holds, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from planted_health import random_sae
from safetensors.torch import load_file, save_file

from saeinterp.artifacts import ArtifactStore
from saeinterp.config import TrainingConfig
from saeinterp.errors import ConfigError, DataError
from saeinterp.sae import TopKSae, adopt_sae, adopt_sae_recipe, adopted_from, train_sae_recipe
from saeinterp.sae.formats import save_sae_lens

HOOKPOINT = "layers.4"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run folder of sparsify's layout with one SAE of width 16."""
    random_sae(16).save(tmp_path / "run" / HOOKPOINT)
    return tmp_path / "run" / HOOKPOINT


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "cfg.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_an_adopted_sae_has_the_bytes_it_had_and_says_where_it_is_from(folder: Path, store: ArtifactStore) -> None:
    sae = adopt_sae(folder, hookpoint=HOOKPOINT, d_in=16, store=store)
    assert sae.file("sae.safetensors").read_bytes() == (folder / "sae.safetensors").read_bytes()
    summary = json.loads(sae.file("training.json").read_text())
    assert (summary["hookpoint"], summary["d_in"], summary["num_latents"], summary["k"]) == (HOOKPOINT, 16, 48, 6)
    sums = sae.manifest()["files"]
    assert adopted_from(summary) == f"sha256 {sums['sae.safetensors']['sha256']}"
    assert adopted_from(sae.manifest()["config"]) == adopted_from(summary)
    assert sae.manifest()["inputs"] == []
    assert str(folder.parent.parent) not in sae.file("manifest.json").read_text()


def test_weights_in_bfloat16_stay_so(folder: Path, store: ArtifactStore) -> None:
    random_sae(16).to(dtype=torch.bfloat16).save(folder)
    sae = adopt_sae(folder, hookpoint=HOOKPOINT, store=store)
    assert TopKSae.load(sae.path).W_enc.dtype == torch.bfloat16


def test_the_same_files_elsewhere_are_the_same_artifact_and_others_are_not(folder: Path, tmp_path: Path) -> None:
    recipe = adopt_sae_recipe(folder, hookpoint=HOOKPOINT)
    copy = tmp_path / "copied" / "under-another-name"
    shutil.copytree(folder, copy)
    assert adopt_sae_recipe(copy, hookpoint=HOOKPOINT).hash == recipe.hash
    assert adopt_sae_recipe(copy, hookpoint="layers.5").hash != recipe.hash
    random_sae(16, seed=1).save(copy)
    assert adopt_sae_recipe(copy, hookpoint=HOOKPOINT).hash != recipe.hash


def test_a_saelens_folder_is_adopted_in_sparsifys_layout(tmp_path: Path, store: ArtifactStore) -> None:
    made = random_sae(16)
    save_sae_lens(made, tmp_path / "lens")
    sae = adopt_sae(tmp_path / "lens", hookpoint=HOOKPOINT, store=store)
    again = TopKSae.load(sae.path)
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        assert torch.equal(getattr(again, name), getattr(made, name))
    assert json.loads(sae.file("training.json").read_text())["adopted"]["layout"] == "sae-lens"


def test_a_layer_whose_sae_exists_is_not_trained(folder: Path) -> None:
    config = TrainingConfig(saes={HOOKPOINT: str(folder)})
    with pytest.raises(ConfigError, match=r"training.saes, layers.4: this layer's SAE exists.*adopt_sae"):
        train_sae_recipe(adopt_sae_recipe(folder, hookpoint=HOOKPOINT), hookpoint=HOOKPOINT, config=config)


def no_folder(folder: Path) -> None:
    shutil.rmtree(folder)


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def no_config(folder: Path) -> None:
    (folder / "cfg.json").unlink()


def pickled(folder: Path) -> None:
    (folder / "sae.safetensors").unlink()
    (folder / "ae.pt").write_bytes(b"\x80\x04never opened")


def jump_relu(folder: Path) -> None:
    shutil.rmtree(folder)
    save_sae_lens(random_sae(16), folder)
    change_config(folder, architecture="jumprelu")


def group_max(folder: Path) -> None:
    change_config(folder, activation="groupmax")


def transcoder(folder: Path) -> None:
    change_config(folder, transcode=True)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (no_folder, "no such folder"),
        (empty, "no sae.safetensors, no sae_weights.safetensors and no cfg.json"),
        (no_config, "no cfg.json"),
        (pickled, r"pickled weights are not read: they can run code \(got 'ae.pt'\)"),
        (jump_relu, r"architecture has no counterpart here \(got 'jumprelu'\)"),
        (group_max, r"unknown activation \(got 'groupmax'\)"),
        (transcoder, "transcode is set"),
    ],
)
def test_what_is_no_sae_of_ours_is_refused_before_anything_runs(folder: Path, spoil: Any, words: str) -> None:
    spoil(folder)
    with pytest.raises(DataError, match=words) as refused:
        adopt_sae_recipe(folder, hookpoint=HOOKPOINT)
    assert str(refused.value).startswith(f"training.saes, {HOOKPOINT}: {folder}")


def test_a_run_folder_is_refused_with_what_lies_in_it(folder: Path) -> None:
    with pytest.raises(DataError, match=r"got \['layers.4'\]"):
        adopt_sae_recipe(folder.parent, hookpoint=HOOKPOINT)


def test_an_sae_of_another_width_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match=r"another width than the model.*got 'd_in = 16'.*Expected d_in = 64"):
        adopt_sae_recipe(folder, hookpoint=HOOKPOINT, d_in=64)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_and_leave_nothing(
    folder: Path, store: ArtifactStore, value: float
) -> None:
    tensors = load_file(folder / "sae.safetensors")
    tensors["W_dec"][3, 2] = value
    save_file(tensors, folder / "sae.safetensors")
    with pytest.raises(DataError, match=r"training.saes, layers.4: .*W_dec holds NaN or infinite values"):
        adopt_sae(folder, hookpoint=HOOKPOINT, store=store)
    assert not list(store.root.glob("sae/*"))


def test_weights_that_contradict_their_configuration_are_refused(folder: Path, store: ArtifactStore) -> None:
    change_config(folder, num_latents=64)
    with pytest.raises(DataError, match=r"training.saes, layers.4: .*encoder.weight has the wrong shape"):
        adopt_sae(folder, hookpoint=HOOKPOINT, store=store)
