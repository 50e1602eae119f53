"""Fine-tuned subjects: adapters merged into their base, and fine-tuned checkpoints as they are."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from planted_adapters import adapted_logits, write_adapter
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from saeinterp.artifacts import ArtifactStore
from saeinterp.config import SubjectConfig
from saeinterp.errors import ConfigError, MissingDependencyError, SubjectError
from saeinterp.subject import load_subject, load_tokenizer, prepare_subject, prepare_subject_recipe, subject_info

IDS = torch.arange(3, 23)[None]


def config(base: Path, adapter: Path | None, **options: object) -> SubjectConfig:
    name = None if adapter is None else str(adapter)
    return SubjectConfig(model=str(base), adapter=name, dtype=options.pop("dtype", "float32"), **options)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, planted_folder: Path) -> Path:
    return write_adapter(tmp_path_factory.mktemp("adapters") / "lora", planted_folder)


@pytest.fixture
def copy(adapter: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(adapter, tmp_path / "lora"))


@torch.inference_mode()
def logits(subject: SubjectConfig, store: ArtifactStore) -> torch.Tensor:
    loaded = load_subject(subject, store=store, device="cpu")
    result: torch.Tensor = loaded.model(input_ids=IDS).logits
    return result.float()


def settings(folder: Path, **changes: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_the_merged_subject_computes_what_base_and_adapter_compute(
    planted_folder: Path, adapter: Path, store: ArtifactStore
) -> None:
    expected = adapted_logits(planted_folder, adapter, IDS)
    base = logits(config(planted_folder, None), store)
    merged = logits(config(planted_folder, adapter), store)
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-4)
    assert (merged - base).abs().max() > 0.1


def test_it_is_known_by_both_names_and_loads_without_peft(
    planted_folder: Path, adapter: Path, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = prepare_subject(config(planted_folder, adapter), store=store)
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    loaded = load_subject(made, device="cpu")
    assert loaded.name == f"{planted_folder.name} + lora"
    assert load_tokenizer(made)("metal3 w17").input_ids == loaded.tokenizer("metal3 w17").input_ids
    about = subject_info(made)["adapter"]
    assert (about["type"], about["trained_on"], about["trained_on_matches"]) == ("LORA", str(planted_folder), True)
    assert about["changes_logits"] is True


def test_preparing_it_again_gives_the_same_bytes(planted_folder: Path, adapter: Path, tmp_path: Path) -> None:
    stores = [ArtifactStore(tmp_path / name) for name in ("one", "two")]
    files = [prepare_subject(config(planted_folder, adapter), store=store).manifest()["files"] for store in stores]
    assert files[0] == files[1]
    assert "model/model.safetensors" in files[0]


def test_every_type_rounds_the_same_sum_and_says_what_that_leaves_out(
    planted_folder: Path, adapter: Path, store: ArtifactStore
) -> None:
    base, shares, sums = load_file(planted_folder / "model.safetensors"), {}, {}
    for dtype in ("float32", "bfloat16"):
        made = prepare_subject(config(planted_folder, adapter, dtype=dtype), store=store)
        sums[dtype] = load_file(made.file("model/model.safetensors"))
        shares[dtype] = subject_info(made)["adapter"]["rounded_away"]
    lost = size = 0.0
    changed = [name for name in base if not torch.equal(base[name], sums["float32"][name])]
    assert len(changed) == 4 * 3
    for name in changed:
        assert torch.equal(sums["bfloat16"][name], sums["float32"][name].bfloat16())
        update = sums["float32"][name] - base[name]
        remains = sums["bfloat16"][name].float() - base[name].bfloat16().float()
        lost, size = lost + float((remains - update).square().sum()), size + float(update.square().sum())
    assert shares["bfloat16"] == pytest.approx((lost / size) ** 0.5, abs=2e-4)
    assert shares["bfloat16"] > 0.001 > shares["float32"]


def test_what_the_adapter_holds_enters_the_recipe_and_where_it_lies_does_not(
    planted_folder: Path, copy: Path, tmp_path: Path
) -> None:
    def recipe(adapter: Path | None) -> str:
        return prepare_subject_recipe(config(planted_folder, adapter)).hash

    before = recipe(copy)
    assert before != recipe(None)
    (tmp_path / "elsewhere").mkdir()
    moved = Path(shutil.move(copy, tmp_path / "elsewhere" / "lora"))
    (moved / "README.md").write_text("notes")
    assert recipe(moved) == before
    weights = {name: tensor + 1 for name, tensor in load_file(moved / "adapter_model.safetensors").items()}
    save_file(weights, moved / "adapter_model.safetensors")
    assert recipe(moved) != before


def test_a_subject_without_adapter_keeps_the_recipe_it_had(planted_folder: Path) -> None:
    assert "adapter" not in prepare_subject_recipe(config(planted_folder, None)).config


@pytest.mark.parametrize("targets", [["lm_head"], ["embed_tokens", "o_proj"]])
def test_one_of_two_tied_matrices_can_be_adapted(
    planted_folder: Path, store: ArtifactStore, tmp_path: Path, targets: list[str]
) -> None:
    """Merging into a matrix that embedding and unembedding share would change both."""
    base = Path(shutil.copytree(planted_folder, tmp_path / "tied"))
    model = AutoModelForCausalLM.from_pretrained(planted_folder)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(base)
    adapter = write_adapter(tmp_path / "head", base, target_modules=targets)
    expected = adapted_logits(base, adapter, IDS)
    torch.testing.assert_close(logits(config(base, adapter), store), expected, rtol=1e-4, atol=1e-4)


def test_tied_matrices_that_no_adapter_touched_stay_tied(
    planted_folder: Path, store: ArtifactStore, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(planted_folder, tmp_path / "tied"))
    model = AutoModelForCausalLM.from_pretrained(planted_folder)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(base)
    adapter = write_adapter(tmp_path / "body", base)
    loaded = load_subject(config(base, adapter), store=store, device="cpu").model
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_whole_modules_saved_with_the_adapter_are_taken_over(
    planted_folder: Path, store: ArtifactStore, tmp_path: Path
) -> None:
    adapter = write_adapter(tmp_path / "saved", planted_folder, modules_to_save=["lm_head"])
    path = adapter / "adapter_model.safetensors"
    weights = load_file(path)
    (name,) = (name for name in weights if "lm_head" in name)
    save_file({**weights, name: weights[name] * 2}, path)
    expected = adapted_logits(planted_folder, adapter, IDS)
    torch.testing.assert_close(logits(config(planted_folder, adapter), store), expected, rtol=1e-4, atol=1e-4)


def test_another_base_than_the_adapter_names_is_noted(
    planted_folder: Path, copy: Path, store: ArtifactStore, caplog: pytest.LogCaptureFixture
) -> None:
    settings(copy, base_model_name_or_path="meta-llama/Llama-2-7b-hf")
    with caplog.at_level(logging.WARNING):
        made = prepare_subject(config(planted_folder, copy), store=store)
    assert "says it was trained on meta-llama/Llama-2-7b-hf" in caplog.text
    assert subject_info(made)["adapter"]["trained_on_matches"] is False


def test_an_adapter_without_effect_is_noted(
    planted_folder: Path, store: ArtifactStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    adapter = write_adapter(tmp_path / "untrained", planted_folder, zero=True)
    with caplog.at_level(logging.WARNING):
        made = prepare_subject(config(planted_folder, adapter), store=store)
    assert "changes nothing" in caplog.text
    assert subject_info(made)["adapter"]["changes_logits"] is False


def test_a_pickled_adapter_is_refused(planted_folder: Path, copy: Path) -> None:
    (copy / "adapter_model.safetensors").rename(copy / "adapter_model.bin")
    with pytest.raises(SubjectError, match=r"subject\.adapter: the weights are pickled \(adapter_model\.bin\)"):
        prepare_subject_recipe(config(planted_folder, copy))


def test_folders_that_hold_no_adapter_are_refused(planted_folder: Path, copy: Path, tmp_path: Path) -> None:
    with pytest.raises(SubjectError, match=r"subject\.adapter: no such folder.*nowhere"):
        prepare_subject_recipe(config(planted_folder, tmp_path / "nowhere"))
    with pytest.raises(SubjectError, match=r"no adapter_config\.json.*whole checkpoint: name it as subject\.model"):
        prepare_subject_recipe(config(planted_folder, planted_folder))
    (copy / "adapter_model.safetensors").unlink()
    with pytest.raises(SubjectError, match="there are no weights"):
        prepare_subject_recipe(config(planted_folder, copy))
    with pytest.raises(SubjectError, match=r"subject\.adapter: not a folder here, and the Hugging Face hub cannot"):
        prepare_subject_recipe(SubjectConfig(model=str(planted_folder), adapter="some-org/some-lora"))


def test_an_adapter_named_as_the_model_is_told_where_it_belongs(
    planted_folder: Path, copy: Path, tmp_path: Path
) -> None:
    store = ArtifactStore(tmp_path / "runs")
    with pytest.raises(SubjectError, match=r"holds an adapter, no whole.*this folder as subject\.adapter"):
        prepare_subject(config(copy, None), store=store)
    for path in planted_folder.iterdir():
        shutil.copy(path, copy)
    with pytest.raises(SubjectError, match="beside a checkpoint"):
        prepare_subject(config(copy, None), store=store)


def refusal(base: Path, adapter: Path, store: ArtifactStore) -> str:
    with pytest.raises(SubjectError) as caught:
        prepare_subject(config(base, adapter), store=store)
    assert caught.value.field == "subject.adapter"
    assert caught.value.next_step
    return str(caught.value)


def test_an_adapter_of_another_shape_is_refused(planted_folder: Path, copy: Path, store: ArtifactStore) -> None:
    path = copy / "adapter_model.safetensors"
    save_file({name: tensor[..., :2].contiguous() for name, tensor in load_file(path).items()}, path)
    assert "size mismatch" in refusal(planted_folder, copy, store)


def test_modules_that_the_base_lacks_are_named(planted_folder: Path, copy: Path, store: ArtifactStore) -> None:
    settings(copy, target_modules=["query_key_value"])
    assert "query_key_value" in refusal(planted_folder, copy, store)


def test_an_adapter_that_fits_only_in_part_is_refused(planted_folder: Path, copy: Path, store: ArtifactStore) -> None:
    """peft itself loads the first with a warning, the second in silence."""
    path = copy / "adapter_model.safetensors"
    weights = load_file(path)
    lost = next(name for name in weights if "layers.1" in name)
    save_file({name: tensor for name, tensor in weights.items() if name != lost}, path)
    assert "missing adapter keys" in refusal(planted_folder, copy, store)
    save_file({**weights, lost.replace("layers.1", "layers.9"): weights[lost].clone()}, path)
    assert "layers.9" in refusal(planted_folder, copy, store)


def test_a_prompt_tuning_adapter_has_nothing_to_merge(
    planted_folder: Path, store: ArtifactStore, tmp_path: Path
) -> None:
    from peft import PromptTuningConfig, get_peft_model

    model = AutoModelForCausalLM.from_pretrained(planted_folder)
    prompt = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    get_peft_model(model, prompt).save_pretrained(tmp_path / "prompt")
    assert "changes no weights" in refusal(planted_folder, tmp_path / "prompt", store)


def test_damaged_weights_are_refused(planted_folder: Path, copy: Path, store: ArtifactStore) -> None:
    path = copy / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:500])
    assert "cannot be loaded" in refusal(planted_folder, copy, store)


def test_weights_that_are_not_finite_are_refused(planted_folder: Path, copy: Path, store: ArtifactStore) -> None:
    path = copy / "adapter_model.safetensors"
    save_file({name: torch.full_like(tensor, float("nan")) for name, tensor in load_file(path).items()}, path)
    assert "NaN" in refusal(planted_folder, copy, store)


def test_without_peft_its_installation_is_named(
    planted_folder: Path, adapter: Path, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from saeinterp.subject import adapters

    monkeypatch.setattr(adapters.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"subject\.adapter: peft is not installed.*saeinterp\[adapters\]"):
        prepare_subject(config(planted_folder, adapter), store=store)


def test_random_weights_take_no_adapter(planted_folder: Path, adapter: Path) -> None:
    with pytest.raises(ValueError, match="trained for weights that are not there"):
        config(planted_folder, adapter, weights="random")


def test_the_control_of_a_fine_tuned_subject_is_that_of_its_base(planted_folder: Path, adapter: Path) -> None:
    tuned = config(planted_folder, adapter, quantization="int8").control(seed=3)
    base = config(planted_folder, None, weights="random", weights_seed=3)
    assert prepare_subject_recipe(tuned).hash == prepare_subject_recipe(base).hash


def test_a_revision_needs_an_adapter(planted_folder: Path) -> None:
    with pytest.raises(ValueError, match="adapter_revision 'main' without an adapter"):
        config(planted_folder, None, adapter_revision="main")


def test_a_merged_subject_can_be_quantised(planted_folder: Path, adapter: Path, store: ArtifactStore) -> None:
    pytest.importorskip("bitsandbytes")
    merged = logits(config(planted_folder, adapter), store)
    quantised = logits(config(planted_folder, adapter, quantization="int8"), store)
    base = logits(config(planted_folder, None), store)
    assert (quantised - merged).abs().mean() < 0.2 * (merged - base).abs().mean()


def test_a_quantised_base_is_refused(planted_folder: Path, adapter: Path, store: ArtifactStore, tmp_path: Path) -> None:
    base = Path(shutil.copytree(planted_folder, tmp_path / "quantised"))
    path = base / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(ConfigError, match=r"subject\.adapter: .*is quantised \(gptq\).*before quantisation"):
        prepare_subject(config(base, adapter), store=store)


def test_a_fine_tuned_checkpoint_is_a_subject_of_its_own(
    planted_folder: Path, store: ArtifactStore, tmp_path: Path
) -> None:
    """Saved whole by `save_pretrained`: nothing but `model` is needed."""
    tuned = Path(shutil.copytree(planted_folder, tmp_path / "tuned"))
    model = AutoModelForCausalLM.from_pretrained(planted_folder)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(3):
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(tuned)
    assert prepare_subject_recipe(config(tuned, None)).hash != prepare_subject_recipe(config(planted_folder, None)).hash
    with torch.inference_mode():
        expected = model(input_ids=IDS).logits
    torch.testing.assert_close(logits(config(tuned, None), store), expected)
