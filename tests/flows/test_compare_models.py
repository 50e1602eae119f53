"""`compare-models` on planted subjects: what it plans, what it runs, and what one side may lack."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import httpx
import pytest
import yaml
from planted_health import write_repetitive_corpus

from saeinterp.artifacts import ArtifactStore
from saeinterp.config import CompareExplainersConfig, CompareModelsConfig, load_config, parse_config
from saeinterp.errors import ConfigError

Cli = Callable[..., "CompletedProcess[str]"]
HOOKPOINTS = ("layers.0", "layers.1", "layers.2")
PRESETS = Path(__file__).resolve().parents[2] / "deployments" / "presets"


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("texts")
    return {
        "corpus": write_repetitive_corpus(folder / "documents.jsonl"),
        "more": write_repetitive_corpus(folder / "more.jsonl", count=40, seed=5),
    }


@pytest.fixture(scope="module")
def variant(planted_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The planted subject with other weights, as fine-tuning leaves it: equal but for the weights."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("variant") / "tuned"
    shutil.copytree(planted_folder, folder)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["lm_head.weight"] * 1.5
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def short(planted_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The planted subject without its last layer."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("short") / "short"
    shutil.copytree(planted_folder, folder)
    AutoModelForCausalLM.from_pretrained(planted_folder, num_hidden_layers=2).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def reordered(planted_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The planted subject with its vocabulary in another order: the same words are other tokens."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("reordered") / "reordered"
    shutil.copytree(planted_folder, folder)
    rules = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = rules["model"]["vocab"]
    last = len(vocabulary) - 1
    order = {index: index if index < 3 else last + 3 - index for index in vocabulary.values()}
    rules["model"]["vocab"] = {word: order[index] for word, index in vocabulary.items()}
    (folder / "tokenizer.json").write_text(json.dumps(rules))
    weights = load_file(folder / "model.safetensors")
    inverse = sorted(order, key=lambda index: order[index])
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = weights[name][inverse].contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def config(planted_folder: Path, texts: dict[str, Path]) -> Callable[..., CompareModelsConfig]:
    def make(**changes: Any) -> CompareModelsConfig:
        return parse_config(CompareModelsConfig, settings(planted_folder, texts, **changes))

    return make


def settings(folder: Path, texts: dict[str, Path], **changes: Any) -> dict[str, Any]:
    values = {
        "subject_a": {"model": str(folder), "dtype": "float32"},
        "subject_b": {"model": str(folder), "dtype": "float32", "weights": "random"},
        "corpus": {"sources": [{"name": str(texts["corpus"])}], "context_length": 32},
        "capture": {"hookpoints": list(HOOKPOINTS)},
        "training": {"num_latents": 24, "k": 2, "epochs": 2, "batch_rows": 256, "dead_after_rows": 2000},
        "launch": {"threads": 1, "together": 3},
        "health": {"bootstrap": 200, "datasets": [{"name": "more", "source": {"name": str(texts["more"])}}]},
        "absorption": {"words": 50},
        "comparison": {"bootstrap": 200},
    }
    return {**values, **changes}


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Any], Any]:
    """The plan of a configuration over an empty folder."""

    def make(settings: Any) -> Any:
        from flows.compare_explainers import compare_explainers
        from flows.compare_models import compare_models
        from flows.plan import make_plan

        monkeypatch.setenv("SAEINTERP_ROOT", str(tmp_path / "runs"))
        flow = compare_models if isinstance(settings, CompareModelsConfig) else compare_explainers
        return make_plan(flow, settings, store=ArtifactStore())

    return make


def kinds(plan: Any) -> Counter[str]:
    return Counter(step.recipe.kind for step in plan.steps)


def test_a_side_with_random_weights_is_the_others_control_and_trained_once(
    config: Callable[..., CompareModelsConfig], planned: Callable[[Any], Any]
) -> None:
    found = kinds(planned(config()))
    assert (found["subject"], found["corpus"], found["activations"], found["sae"]) == (2, 2, 2, 6)
    # Two texts; absorption and grades of both sides.
    assert (found["health"], found["letter-probes"], found["absorption"], found["grades"]) == (12, 6, 6, 2)


def test_a_model_and_its_fine_tuned_variant_share_one_control(
    config: Callable[..., CompareModelsConfig], planned: Callable[[Any], Any], variant: Path, planted_folder: Path
) -> None:
    tuned = {"model": str(variant), "dtype": "float32"}
    found = kinds(planned(config(subject_b=tuned)))
    assert (found["activations"], found["sae"], found["health"]) == (3, 9, 18)
    assert found["absorption"] == 6
    without = kinds(planned(config(subject_b=tuned, random_weights_control=False)))
    assert (without["activations"], without["sae"], without["health"]) == (2, 6, 12)


def test_every_recipe_of_a_sweep_is_trained_with_every_seed_and_the_control_with_one(
    config: Callable[..., CompareModelsConfig], planned: Callable[[Any], Any], planted_folder: Path
) -> None:
    same = {"model": str(planted_folder), "dtype": "float32"}
    wide = config(subject_b=same, training_b={"num_latents": 40}, sweep=[{"k": 1}, {"k": 2}], seeds=[0, 1, 2])
    plan = planned(wide)
    found = kinds(plan)
    # Two recipes of three seeds at three layers a side; the controls of both recipes with one seed.
    assert found["sae"] == 2 * 3 * 3 * 2 + 2 * 3 * 2
    assert found["activations"] == 2
    trained = Counter(
        (step.recipe.config["training"]["num_latents"], step.recipe.config["training"]["k"])
        for step in plan.steps
        if step.recipe.kind == "sae"
    )
    assert trained == {(width, k): 12 for width in (24, 40) for k in (1, 2)}
    assert any("num_latents-40" in step.recipe.name for step in plan.steps if step.recipe.kind == "model-comparison")


def test_other_training_text_is_judged_on_the_common_held_out_text(
    config: Callable[..., CompareModelsConfig], planned: Callable[[Any], Any], planted_folder: Path
) -> None:
    same = {"model": str(planted_folder), "dtype": "float32"}
    plan = planned(config(subject_b=same, corpus_b={"max_tokens": {"train": 3000}}, random_weights_control=False))
    assert kinds(plan)["corpus"] == 3
    held_out = {
        ref.hash
        for step in plan.steps
        if step.recipe.kind == "health" and step.recipe.config["dataset"] == "held-out"
        for ref in step.recipe.inputs
        if ref.kind == "corpus"
    }
    assert len(held_out) == 1
    assert kinds(plan)["health"] == 12


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sweep": [{"kk": 3}]}, r"sweep.0: no field 'kk'; did you mean k\?"),
        ({"sweep": [{"k": 3}, {"k": 3}]}, r"sweep.1: .*comes twice"),
        ({"sweep": [{"seed": 3}]}, "sweep.0: seeds of SAE training are listed under seeds"),
        ({"training_b": {"k": 9999}}, "training_b: k = 9999 exceeds num_latents = 24"),
        ({"corpus_b": {"contextlength": 3}}, "corpus_b.contextlength"),
        ({"seeds": [1, 1]}, "names one twice"),
        ({"subject_b": None}, "nothing to compare"),
        ({"grading": {"dataset": "less"}}, "grading.dataset: 'less' is none of worst-case, held-out, more"),
        ({"names": ["x", "x"]}, "both sides are called 'x'"),
    ],
)
def test_a_configuration_that_cannot_mean_anything_is_refused(
    config: Callable[..., CompareModelsConfig], planted_folder: Path, changes: dict[str, Any], words: str
) -> None:
    if "subject_b" in changes:
        changes = {"subject_b": {"model": str(planted_folder), "dtype": "float32"}}
    with pytest.raises(ConfigError, match=words):
        config(**changes)


def test_two_texts_of_one_name_are_refused(config: Callable[..., CompareModelsConfig], texts: dict[str, Path]) -> None:
    twice = {"name": "more", "datasets": [{"name": "more", "source": {"name": str(texts["more"])}}]}
    with pytest.raises(ConfigError, match="two datasets are called 'more'"):
        config(health=twice)


def test_the_plan_of_the_full_size_preset_names_all_that_is_missing(planned: Callable[[Any], Any]) -> None:
    plan = planned(load_config(CompareModelsConfig, PRESETS / "llama2-finance.yaml"))
    lines = "\n".join(plan.missing)
    for name in ("meta-llama/Llama-2-7b-hf", "cxllin/Llama2-7b-Finance", "Salesforce/wikitext", "rajpurkar/squad"):
        assert name in lines
    assert not plan.whole


def test_the_demo_runs_no_letter_prompts(planned: Callable[[Any], Any]) -> None:
    plan = planned(load_config(CompareExplainersConfig, PRESETS / "demo.yaml"))
    assert kinds(plan)["letter-probes"] == kinds(plan)["absorption"] == 0
    assert kinds(plan)["health"] == 6


@pytest.fixture(scope="module")
def story(
    tmp_path_factory: pytest.TempPathFactory, planted_folder: Path, texts: dict[str, Path], short: Path
) -> tuple[Path, Path]:
    """Configuration and artifact folder of the runs below: side b lacks a layer."""
    folder = tmp_path_factory.mktemp("story")
    values = settings(
        planted_folder, texts, subject_b={"model": str(short), "dtype": "float32"}, random_weights_control=False
    )
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path, folder / "runs"


def run(cli: Cli, story: tuple[Path, Path]) -> CompletedProcess[str]:
    return cli("run", "compare-models", "--config", str(story[0]), "--root", str(story[1]))


def states(url: str) -> dict[str, str]:
    """Task run name -> state name of the latest flow run, once the server has heard of all their ends."""
    latest = httpx.post(f"{url}/flow_runs/filter", json={"limit": 1, "sort": "START_TIME_DESC"}).json()[0]
    query = {"flow_runs": {"id": {"any_": [latest["id"]]}}, "limit": 200}
    for _ in range(60):
        items = httpx.post(f"{url}/task_runs/filter", json=query).json()
        if all(item["state_type"] in ("COMPLETED", "FAILED", "CRASHED") for item in items):
            break
        time.sleep(0.5)
    return {item["name"]: item["state_name"] for item in items}


@pytest.mark.slow
def test_a_layer_that_one_side_lacks_is_named_and_the_others_are_compared(
    cli: Cli, story: tuple[Path, Path], prefect_url: str
) -> None:
    done = run(cli, story)
    assert done.returncode == 1, done.stderr
    assert "layer 2 does not exist: short has layers.0 to layers.1" in " ".join(done.stderr.split())
    assert "measure-together subject, more" in states(prefect_url)
    root = story[1]
    comparison = json.loads(next(root.glob("model-comparison/*/comparison.json")).read_text())
    compared = {(row["hookpoint"], row["dataset"]) for row in comparison["layers"] if row["missing"] is None}
    assert compared == {(layer, name) for layer in HOOKPOINTS[:2] for name in ("held-out", "more")}
    text = next(root.glob("report/*/report.md")).read_text()
    assert "layer 2 does not exist" in text
    # One tokenizer, one corpus; two texts at the layers that each side has.
    assert len(list(root.glob("corpus/documents*/manifest.json"))) == 1
    assert len(list(root.glob("health/*/health.json"))) == 2 * (3 + 2)


@pytest.mark.slow
def test_running_again_makes_nothing_twice(cli: Cli, story: tuple[Path, Path], prefect_url: str) -> None:
    run(cli, story)
    assert set(states(prefect_url).values()) == {"Cached"}


@pytest.mark.slow
def test_models_with_other_tokenizers_are_measured_each_on_its_own_tokens(
    cli: Cli, tmp_path: Path, planted_folder: Path, texts: dict[str, Path], reordered: Path
) -> None:
    other = {"model": str(reordered), "dtype": "float32"}
    off = {"enabled": False}
    path, root = tmp_path / "config.yaml", tmp_path / "runs"
    values = settings(planted_folder, texts, subject_b=other, random_weights_control=False, absorption=off)
    path.write_text(yaml.safe_dump(values))
    done = cli("run", "compare-models", "--config", str(path), "--root", str(root))
    assert done.returncode == 0, done.stderr
    assert len(list(root.glob("corpus/documents*/manifest.json"))) == 2
    # The models differ in nothing but the numbers of their tokens, so they lose the same on the same words.
    clean: dict[tuple[str, str], list[float]] = {}
    for file in root.glob("health/*/health.json"):
        found = json.loads(file.read_text())
        clean.setdefault((found["hookpoint"], found["dataset"]), []).append(found["ce_clean"])
    assert len(clean) == 6
    assert all(a == pytest.approx(b, abs=1e-5) for a, b in clean.values())


@pytest.mark.slow
def test_a_hookpoint_that_no_side_has_ends_the_run_with_the_nearest(cli: Cli, story: tuple[Path, Path]) -> None:
    override = "capture.hookpoints=[layers.1.mpl]"
    done = cli("run", "compare-models", "--config", str(story[0]), "--root", str(story[1]), "--set", override)
    assert done.returncode != 0
    assert "did you mean 'model.layers.1.mlp'" in " ".join(done.stderr.split())


@pytest.mark.slow
def test_text_seen_in_training_fails_its_own_rows_only(
    cli: Cli, story: tuple[Path, Path], texts: dict[str, Path]
) -> None:
    override = f"health.datasets=[{{name: seen, source: {{name: {texts['corpus']}}}}}]"
    done = cli("run", "compare-models", "--config", str(story[0]), "--root", str(story[1]), "--set", override)
    assert done.returncode == 1
    assert "documents are training documents" in " ".join(done.stderr.split())
    latest = max(story[1].glob("report/*/results.json"), key=lambda path: path.stat().st_mtime)
    rows = json.loads(latest.read_text())["layers"]
    assert {row["dataset"] for row in rows} == {"held-out"}


@pytest.mark.slow
def test_smollm2_is_told_from_its_random_weights_on_two_texts(cli: Cli, tmp_path: Path, smollm2: Path) -> None:
    values = {
        "subject_a": {"model": str(smollm2)},
        "subject_b": {"model": str(smollm2), "weights": "random"},
        "corpus": {
            "sources": [{"name": "builtin:python-reference"}],
            "context_length": 64,
            "max_tokens": {"train": 6000, "health": 5000, "explain": 100, "score": 100},
        },
        "capture": {"hookpoints": ["layers.10"]},
        "training": {"num_latents": 576, "k": 32, "epochs": 2},
        "health": {
            "bootstrap": 400,
            "datasets": [{"name": "problems", "source": {"name": "builtin:word-problems", "limit": 20}}],
        },
        "absorption": {"enabled": False},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    root = tmp_path / "runs"
    done = cli("run", "compare-models", "--config", str(path), "--root", str(root))
    assert done.returncode == 0, done.stderr
    found = [json.loads(file.read_text()) for file in root.glob("health/*/health.json")]
    assert len(found) == 4
    for values in found:
        assert values["ce_zero"] == pytest.approx(10.80267, abs=1e-4)
        assert values["l0_max"] <= 32
        assert all(check["passed"] for check in values["checks"]), values["checks"]
    recovered = [values["loss_recovered"] for values in found]
    assert sorted(item["value"] is None for item in recovered) == [False, False, True, True]
    assert all("must exceed 0.1" in item["reason"] for item in recovered if item["value"] is None)
    assert all(0 < item["value"] < 1 for item in recovered if item["value"] is not None)
