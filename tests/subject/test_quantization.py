"""Subjects in 8 and 4 bits, by the real bitsandbytes on the CPU."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from saeinterp.artifacts import ArtifactStore
from saeinterp.config import Placement, SubjectConfig, TrainSaesConfig, parse_config
from saeinterp.errors import BudgetError, ConfigError, MissingDependencyError, SubjectError
from saeinterp.subject import capture, load_subject, prepare_subject, prepare_subject_recipe, splice, subject_info

IDS = torch.arange(3, 40)[None]
KINDS = pytest.mark.parametrize("kind", ["int8", "nf4"])
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed: extra `quantized`"
)


@pytest.fixture(scope="module")
def busy_folder(planted_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The planted subject's architecture with blocks that do something."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("busy") / "subject"
    model = AutoModelForCausalLM.from_pretrained(planted_folder, dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for block in model.model.layers:
            for weight in block.parameters():
                if weight.ndim == 2:
                    weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(planted_folder).save_pretrained(folder)
    return folder


def config(folder: Path, **options: Any) -> SubjectConfig:
    return SubjectConfig(model=str(folder), **{"dtype": "float32", "device": "cpu", **options})


def weight_bytes(model: Any) -> int:
    return sum(weight.numel() * weight.element_size() for weight in model.model.layers.parameters())


@needs_bitsandbytes
@KINDS
def test_blocks_take_a_fraction_of_the_memory_and_stay_near_the_full_ones(
    kind: str, busy_folder: Path, store: ArtifactStore
) -> None:
    full = load_subject(config(busy_folder), store=store)
    small = load_subject(config(busy_folder, quantization=kind), store=store)
    assert weight_bytes(small.model) < weight_bytes(full.model) / (3.5 if kind == "int8" else 7)
    assert torch.equal(small.model.get_output_embeddings().weight, full.model.get_output_embeddings().weight)
    names = ["layers.0", "layers.2"]
    found, expected = (capture(loaded.model, IDS, None, names) for loaded in (small, full))
    for name in names:
        error = (found[name] - expected[name]).norm() / expected[name].norm()
        # Rounding a Gaussian weight errs by about 1% in int8 and 10% in nf4, and a few stand in a row; weights in
        # wrong places would err by more than 100%.
        assert 0 < error < (0.03 if kind == "int8" else 0.3)


@needs_bitsandbytes
@KINDS
@pytest.mark.parametrize("placement", [Placement(device="cpu"), Placement(device_map="auto", device="cpu")])
def test_loading_again_and_elsewhere_gives_the_same_numbers(
    kind: str, placement: Placement, busy_folder: Path, store: ArtifactStore
) -> None:
    made = prepare_subject(config(busy_folder, quantization=kind), store=store)
    again = [load_subject(made, device=where) for where in (Placement(device="cpu"), placement)]
    found = [capture(loaded.model, IDS, None, ["layers.1"])["layers.1"] for loaded in again]
    assert torch.equal(*found)
    assert again[0].name == f"subject ({kind})"


@needs_bitsandbytes
@KINDS
def test_a_quantised_subject_can_be_spliced(kind: str, busy_folder: Path, store: ArtifactStore) -> None:
    model = load_subject(config(busy_folder, quantization=kind), store=store).model

    def logits() -> torch.Tensor:
        with torch.inference_mode():
            return model(input_ids=IDS, use_cache=False).logits

    clean = logits()
    kept = capture(model, IDS, None, ["layers.1"])["layers.1"]
    with splice(model, "layers.1", lambda _: kept, skip_before=True):
        assert torch.allclose(logits(), clean, atol=1e-5)
    with splice(model, "layers.1", torch.zeros_like):
        assert not torch.allclose(logits(), clean, atol=1e-2)


@needs_bitsandbytes
def test_the_bits_are_part_of_the_recipe_and_full_precision_keeps_its_own(busy_folder: Path) -> None:
    recipes = [prepare_subject_recipe(config(busy_folder, quantization=kind)) for kind in ("none", "int8", "nf4")]
    assert len({recipe.hash for recipe in recipes}) == 3
    assert "quantization" not in recipes[0].config  # artifacts made before there was a choice stay valid
    assert recipes[2].config["quantization"] == "nf4"


@needs_bitsandbytes
@KINDS
def test_a_checkpoint_that_is_quantised_already_loads_by_its_own_configuration(
    kind: str, busy_folder: Path, store: ArtifactStore, tmp_path: Path
) -> None:
    loaded = load_subject(config(busy_folder, quantization=kind), store=store)
    loaded.model.save_pretrained(tmp_path / "quantised")
    loaded.tokenizer.save_pretrained(tmp_path / "quantised")
    again = load_subject(config(tmp_path / "quantised"), store=store)
    assert weight_bytes(again.model) == weight_bytes(loaded.model)
    found = [capture(item.model, IDS, None, ["layers.2"])["layers.2"] for item in (again, loaded)]
    assert torch.equal(*found)
    with pytest.raises(
        ConfigError, match=r"quantization: .*is quantised already \(bitsandbytes\).*got 'nf4'.*Next: set"
    ):
        prepare_subject(config(tmp_path / "quantised", quantization="nf4"), store=store)


@needs_bitsandbytes
def test_the_control_of_a_quantised_checkpoint_is_drawn_in_full(
    busy_folder: Path, store: ArtifactStore, tmp_path: Path
) -> None:
    loaded = load_subject(config(busy_folder, quantization="nf4"), store=store)
    loaded.model.save_pretrained(tmp_path / "quantised")
    loaded.tokenizer.save_pretrained(tmp_path / "quantised")
    control = load_subject(config(tmp_path / "quantised", weights="random"), store=store)
    other = load_subject(config(busy_folder, weights="random"), store=store)
    assert torch.equal(control.model.lm_head.weight, other.model.lm_head.weight)


@needs_bitsandbytes
def test_what_does_not_fit_on_gpus_is_refused_with_the_choices(busy_folder: Path, store: ArtifactStore) -> None:
    half = {"": "cpu", "model.layers.1": "disk"}
    with pytest.raises(BudgetError, match=r"device_map: .*does not fit on the GPUs in nf4.*Next: add GPUs"):
        load_subject(
            SubjectConfig(model=str(busy_folder), dtype="float32", quantization="nf4", device_map=half), store=store
        )


def test_without_bitsandbytes_the_error_says_what_to_install(
    planted_folder: Path, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if "bits" in name else find(name, *rest))
    with pytest.raises(MissingDependencyError, match=r"bitsandbytes is not installed.*saeinterp\[quantized\]"):
        prepare_subject(config(planted_folder, quantization="int8"), store=store)


def test_a_kind_of_quantisation_whose_package_is_missing_is_named(
    busy_folder: Path, store: ArtifactStore, tmp_path: Path
) -> None:
    if importlib.util.find_spec("optimum") is not None:
        pytest.skip("optimum is installed")
    folder = tmp_path / "gptq"
    folder.mkdir()
    for file in busy_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    settings = json.loads((folder / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False}
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(SubjectError, match=r"cannot be loaded: .*GPTQ.*requires optimum.*Next: install the package"):
        load_subject(config(folder), store=store)


def test_random_weights_are_not_quantised(planted_folder: Path, store: ArtifactStore) -> None:
    with pytest.raises(ConfigError, match=r"'nf4' with random weights.*set quantization: none"):
        parse_config(TrainSaesConfig, {"subject": {"weights": "random", "quantization": "nf4"}})
    # A copy is not validated.
    changed = config(planted_folder, weights="random").model_copy(update={"quantization": "nf4"})
    with pytest.raises(ConfigError, match=r"no checkpoint to quantise.*set subject\.quantization: none"):
        prepare_subject(changed, store=store)


def test_the_facts_of_an_unquantised_subject_are_what_they_were(planted_folder: Path, store: ArtifactStore) -> None:
    made = prepare_subject(config(planted_folder), store=store)
    assert "quantization" not in subject_info(made)
    assert json.loads(made.file("subject.json").read_text())["title"] == "subject"
