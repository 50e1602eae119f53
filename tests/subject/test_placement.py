"""A subject spread over memory and disk gives the numbers of one that lies in one place."""

from __future__ import annotations

import gc
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from saeinterp.artifacts import Artifact, ArtifactStore
from saeinterp.config import (
    CaptureConfig,
    CorpusConfig,
    CorpusSource,
    Placement,
    SubjectConfig,
    TrainSaesConfig,
    parse_config,
)
from saeinterp.errors import ConfigError
from saeinterp.subject import (
    Subject,
    build_corpus,
    capture,
    collect_activations,
    load_subject,
    prepare_subject,
    prepare_subject_recipe,
    splice,
)

IDS = torch.tensor([[3, 5, 7, 9, 11, 20], [4, 6, 8, 10, 0, 0]])
MASK = (IDS > 0).long()
HOOKPOINTS = ["layers.0", "layers.1.mlp", "layers.2"]
# Two blocks are read from disk at every pass; accelerate's hooks are on every module.
HALF_ON_DISK = Placement(device_map={"": "cpu", "model.layers.1": "disk", "model.layers.2": "disk"})
INSIDE_A_BLOCK = Placement(device_map={"": "disk", "model.layers": "cpu", "model.layers.1.mlp": "disk"})
ALL_ON_DISK = Placement(device_map="auto", max_memory={"cpu": "1KB"})
NONE_ON_DISK = Placement(device_map="balanced", device="cpu")
SPREAD = pytest.mark.parametrize(
    "placement",
    [HALF_ON_DISK, INSIDE_A_BLOCK, ALL_ON_DISK, NONE_ON_DISK],
    ids=["half on disk", "inside a block", "all on disk", "none on disk"],
)


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def busy_folder(request: pytest.FixtureRequest, planted_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The planted subject with blocks that do something, so that a wrong weight anywhere shows."""
    folder = tmp_path_factory.mktemp("busy") / "subject"
    shutil.copytree(planted_folder, folder)
    weights = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    for name, weight in weights.items():
        if "layers" in name and weight.ndim == 2:
            weights[name] = 0.1 * torch.randn(weight.shape, generator=generator)
    if request.param:
        del weights["lm_head.weight"]
        settings = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**settings, "tie_word_embeddings": True}))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(params=["pretrained", "random"])
def subject(request: pytest.FixtureRequest, busy_folder: Path, store: ArtifactStore) -> Artifact:
    config = SubjectConfig(model=str(busy_folder), dtype="float32", weights=request.param)
    return prepare_subject(config, store=store)


def logits(subject: Subject) -> Tensor:
    with torch.inference_mode():
        return subject.model(input_ids=IDS, attention_mask=MASK, use_cache=False).logits


def offloaded(subject: Subject) -> list[str]:
    """Weights that are nowhere in memory between passes."""
    return [name for name, weight in subject.model.named_parameters() if weight.device.type == "meta"]


@SPREAD
def test_a_spread_subject_gives_the_activations_and_logits_of_a_single_one(
    subject: Artifact, placement: Placement
) -> None:
    single, spread = load_subject(subject, device="cpu"), load_subject(subject, device=placement)
    assert bool(offloaded(spread)) == (placement.device != "cpu")
    expected, before = capture(single.model, IDS, MASK, HOOKPOINTS), offloaded(spread)
    assert not torch.allclose(expected["layers.0"], expected["layers.2"], atol=0.1)
    for _ in range(2):  # a pass that is stopped in the middle leaves the next one right
        found = capture(spread.model, IDS.to(spread.device), MASK.to(spread.device), HOOKPOINTS)
        assert all(torch.equal(found[name], expected[name]) for name in HOOKPOINTS)
    assert torch.equal(logits(spread), logits(single))
    assert set(before) <= set(offloaded(spread))  # nothing stays behind in memory
    assert (spread.device, spread.name, spread.d_model) == (single.device, single.name, single.d_model)


@SPREAD
@pytest.mark.parametrize("skip", [True, False], ids=["skipped", "computed"])
def test_splicing_a_spread_subject_has_the_same_effect(subject: Artifact, placement: Placement, skip: bool) -> None:
    found = []
    for where in (Placement(device="cpu"), placement):
        loaded = load_subject(subject, device=where)
        before = logits(loaded)
        with splice(loaded.model, "layers.1", lambda x: torch.full_like(x, 0.5), skip_before=skip):
            found.append(logits(loaded))
        assert not torch.allclose(found[-1], before, atol=1e-3)
        assert torch.equal(logits(loaded), before)
    assert torch.equal(*found)


def test_a_spread_subject_collects_the_same_bytes(
    busy_folder: Path, planted_corpus: Path, store: ArtifactStore, tmp_path: Path
) -> None:
    subject = prepare_subject(SubjectConfig(model=str(busy_folder), dtype="float32"), store=store)
    sources = (CorpusSource(name=str(planted_corpus), limit=60),)
    corpus = build_corpus(subject, config=CorpusConfig(sources=sources, context_length=32), store=store)
    made = []
    for name, device in (("single", "cpu"), ("spread", HALF_ON_DISK)):
        config = CaptureConfig(hookpoints=("layers.0", "layers.2"))
        made.append(
            collect_activations(subject, corpus, config=config, store=ArtifactStore(tmp_path / name), device=device)
        )
    assert made[0].hash == made[1].hash
    assert made[0].manifest()["files"] == made[1].manifest()["files"]


def test_where_weights_lie_is_no_part_of_the_recipe(busy_folder: Path) -> None:
    options: dict[str, Any] = {"model": str(busy_folder), "dtype": "float32"}
    spread = SubjectConfig(**options, device_map="auto", max_memory={"cpu": "1GiB"})
    assert prepare_subject_recipe(spread).hash == prepare_subject_recipe(SubjectConfig(**options)).hash


def test_a_configuration_is_loaded_where_it_says(busy_folder: Path, store: ArtifactStore) -> None:
    config = SubjectConfig(
        model=str(busy_folder), dtype="float32", device_map="auto", device="cpu", max_memory={"cpu": "1KB"}
    )
    assert offloaded(load_subject(config, store=store))
    assert not offloaded(load_subject(config, store=store, device="cpu"))


def test_what_a_control_keeps_on_disk_goes_with_it(
    busy_folder: Path, store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    config = SubjectConfig(model=str(busy_folder), dtype="float32", weights="random")
    loaded = load_subject(prepare_subject(config, store=store), device=HALF_ON_DISK)
    (folder,) = tmp_path.glob("saeinterp-offload-*")
    assert sum(file.stat().st_size for file in folder.iterdir()) > 10_000
    del loaded
    gc.collect()
    assert not folder.exists()


@pytest.mark.parametrize(
    ("device_map", "message"),
    [
        ({"": "cpu", "model.layer.1": "disk"}, r"device_map: no such module.*'model\.layer\.1'.*named_modules"),
        ({"model": "cpu"}, r"leaves a module without a device \(got 'lm_head'\).*'' stands for all"),
        ({"": "gpu"}, r"device_map: not a device \(got ': gpu'\).*'cpu' or 'disk'"),
        ({"": "cpu", "lm_head": 97}, r"device_map: this machine has \d+ CUDA devices \(got 'lm_head: 97'\)"),
    ],
)
def test_a_map_that_does_not_fit_is_refused(
    planted_folder: Path, store: ArtifactStore, device_map: dict[str, int | str], message: str
) -> None:
    for weights in ("pretrained", "random"):
        config = SubjectConfig(model=str(planted_folder), dtype="float32", weights=weights, device_map=device_map)
        with pytest.raises(ConfigError, match=message):
            load_subject(config, store=store)


def test_tied_weights_are_not_torn_apart(busy_folder: Path, store: ArtifactStore) -> None:
    config = SubjectConfig(model=str(busy_folder), dtype="float32", device_map={"": "cpu", "lm_head": "disk"})
    if json.loads((busy_folder / "config.json").read_text())["tie_word_embeddings"]:
        with pytest.raises(ConfigError, match=r"tied weights on disk and elsewhere \(got 'lm_head"):
            load_subject(config, store=store)
    else:
        assert offloaded(load_subject(config, store=store)) == ["lm_head.weight"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"device_map": "automatic"}, r"'automatic' is none of single, auto, balanced"),
        ({"max_memory": {"cpu": "1GB"}}, r"max_memory has no meaning with device_map 'single'"),
        ({"device_map": {"": 0}, "max_memory": {0: "1GB"}}, r"max_memory has no meaning where device_map names"),
        ({"device_map": {"": 0}, "device": "cpu"}, r"device 'cpu' has no meaning where device_map names"),
        ({"device_map": "auto", "device": "cuda:1"}, r"device names one \('cuda:1'\)"),
        ({"device_map": "auto", "max_memory": {0: "20"}}, r"'20' is no amount of memory, such as 20GiB"),
        ({"device_map": "auto", "max_memory": {"gpu": "20GB"}}, r"'gpu' is neither the number of a GPU nor 'cpu'"),
        ({"device_map": "auto", "device": "cpu", "max_memory": {0: "2GB"}}, r"GPU 0 has no meaning with device 'cpu'"),
    ],
)
def test_contradictions_are_refused_at_once(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(TrainSaesConfig, {"subject": values})


def test_memory_may_be_given_by_number_as_yaml_reads_it() -> None:
    config = parse_config(
        TrainSaesConfig, {"subject": {"device_map": "auto", "max_memory": {0: "20GiB", "cpu": "1.5 GB"}}}
    )
    assert config.subject.placement == Placement(device_map="auto", max_memory={"0": "20GiB", "cpu": "1.5 GB"})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_blocks_on_gpus_and_in_memory_give_the_numbers_of_one_gpu(busy_folder: Path, store: ArtifactStore) -> None:
    made = prepare_subject(SubjectConfig(model=str(busy_folder), dtype="float32"), store=store)
    last = torch.cuda.device_count() - 1
    placement = Placement(device_map={"": 0, "model.layers.1": "cpu", "model.layers.2": last})
    single, spread = load_subject(made, device="cuda:0"), load_subject(made, device=placement)
    assert spread.device == "cuda:0"
    ids, mask = IDS.cuda(0), MASK.cuda(0)
    expected, found = (capture(loaded.model, ids, mask, HOOKPOINTS) for loaded in (single, spread))
    assert found["layers.2"].device.index == last
    for name in HOOKPOINTS:
        assert torch.allclose(found[name].cpu(), expected[name].cpu(), atol=1e-5)
