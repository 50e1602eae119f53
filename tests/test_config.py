"""Configuration: frozen, strict, with errors that name the field and the nearest valid name."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from saeinterp.config import (
    CompareExplainersConfig,
    CompareModelsConfig,
    ExplainFeaturesConfig,
    LaunchConfig,
    SubjectConfig,
    TrainSaesConfig,
    dump_config,
    load_config,
    parse_config,
    recipe_of,
)
from saeinterp.errors import ConfigError
from saeinterp.ids import LatentId, layer_of


def test_an_unknown_key_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("training:\n  num_latent: 64\n")
    with pytest.raises(ConfigError, match=r"unknown key 'training.num_latent' \(did you mean 'num_latents'\?\)"):
        load_config(TrainSaesConfig, path)


def test_an_unknown_key_inside_a_list_is_named_with_its_place() -> None:
    with pytest.raises(ConfigError, match=r"corpus.sources.0.nmae.*did you mean 'name'"):
        parse_config(TrainSaesConfig, {"corpus": {"sources": [{"nmae": "x"}]}})


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ({"layers.5": {"num_latent": 8}}, r"overrides.layers.5: no field 'num_latent'; did you mean num_latents\?"),
        ({"layers.5": {"epochs": "many"}}, r"overrides.layers.5.epochs: .*valid integer.* \(got 'many'\)"),
        ({"layers.5": {"k": 5000}}, r"overrides.layers.5: k = 5000 exceeds num_latents = 1152"),
        ({"layers.5": {"overrides": {}}}, r"overrides.layers.5: no field 'overrides'"),
        ({"layers.7": {"k": 8}}, r"'layers.7' is not among capture.hookpoints \(layers.5, layers.10, layers.15\)"),
    ],
)
def test_an_override_that_cannot_apply_is_refused_by_name(override: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_config(TrainSaesConfig, {"training": {"overrides": override}})


@pytest.mark.parametrize(
    ("scorer", "metric", "words"),
    [
        ("simulation", "f1", r"comparison.metric: 'f1' comes from verdicts.*set 'correlation'"),
        ("detection", "correlation", r"comparison.metric: 'correlation' .* scorer.kind is 'detection'"),
        ("fuzz", "correlation", r"comparison.metric: 'correlation' .* scorer.kind is 'fuzz'"),
    ],
)
def test_a_primary_metric_that_the_scorer_does_not_give_is_refused(scorer: str, metric: str, words: str) -> None:
    values = {"scorer": {"kind": scorer}, "comparison": {"metric": metric}}
    with pytest.raises(ConfigError, match=words):
        parse_config(CompareExplainersConfig, values)


def test_a_simulation_is_compared_by_its_correlation() -> None:
    values = {"scorer": {"kind": "simulation"}, "comparison": {"metric": "correlation"}}
    assert parse_config(CompareExplainersConfig, values).comparison.metric == "correlation"


SAES = {"layers.5": "/data/layers.5"}


@pytest.mark.parametrize(
    ("model", "values", "words"),
    [
        (TrainSaesConfig, {"training": {"saes": {"layers.7": "x"}}}, r"training.saes: 'layers.7' is not among capture"),
        (
            TrainSaesConfig,
            {"training": {"saes": SAES, "overrides": {"layers.5": {"k": 8}}}},
            r"training: overrides: layers.5 is not trained, saes names its SAE",
        ),
        (TrainSaesConfig, {"training": {"overrides": {"layers.5": {"saes": {}}}}}, r"layers.5: no field 'saes'"),
        (CompareExplainersConfig, {"training": {"saes": SAES}}, r"set random_weights_control: false"),
        (CompareModelsConfig, {"training_b": {"saes": SAES}}, r"set random_weights_control: false"),
        (CompareModelsConfig, {"training_b": {"saes": {"layers.7": "x"}}}, r"training_b.saes: 'layers.7' is not among"),
        (CompareModelsConfig, {"training": {"saes": SAES}, "seeds": [0, 1]}, r"seeds: SAEs that .* are not trained"),
        (CompareModelsConfig, {"training": {"saes": SAES}, "sweep": [{"k": 4}]}, r"sweep: SAEs that .* not trained"),
        (CompareModelsConfig, {"sweep": [{"saes": SAES}]}, r"sweep: saes is no setting of training"),
    ],
)
def test_saes_that_exist_are_refused_where_they_would_do_nothing(
    model: type[BaseModel], values: dict[str, object], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_config(model, values)


def test_the_place_of_an_sae_enters_no_recipe() -> None:
    config = TrainSaesConfig.model_validate({"training": {"saes": SAES}})
    assert recipe_of(config) == recipe_of(TrainSaesConfig())
    assert config.training.at("layers.5").saes == {}


def test_an_override_changes_its_own_hookpoint_and_no_other() -> None:
    training = TrainSaesConfig.model_validate(
        {"training": {"overrides": {"layers.5": {"k": 64, "lr": 0.002}}}}
    ).training
    plain = TrainSaesConfig().training
    assert (training.at("layers.5").k, training.at("layers.5").lr) == (64, 0.002)
    assert recipe_of(training.at("layers.10")) == recipe_of(plain)
    assert recipe_of(training.at("layers.5")) != recipe_of(plain)


def test_k_above_the_dictionary_is_refused_with_both_values() -> None:
    with pytest.raises(ConfigError, match="k = 128 exceeds num_latents = 64"):
        load_config(TrainSaesConfig, None, ["training.k=128", "training.num_latents=64"])


@pytest.mark.parametrize(
    ("override", "message"),
    [("training.k", "not an assignment"), ("training.k.x=1", "is a value"), ("training.k=many", "training.k")],
)
def test_a_bad_override_is_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(TrainSaesConfig, None, ["training.k=8", override])


def test_an_override_changes_one_of_the_sections_that_share_an_anchor(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "explainer_a: {label: A, llm: &same {provider: openai, base_url: http://one/v1}}\n"
        "explainer_b: {label: B, llm: *same}\n"
    )
    config = load_config(CompareExplainersConfig, path, ["explainer_a.llm.base_url=http://two/v1"])
    assert config.explainer_a.llm.base_url == "http://two/v1"
    assert config.explainer_b.llm.base_url == "http://one/v1"


@pytest.mark.parametrize(
    ("latents", "words"),
    [
        ("10:99", r"examples.latents: 20 is outside 0 to 19, the latents of layers.5"),
        ([3, 999], r"examples.latents: 999 is outside"),
        ([-1], r"examples.latents: -1 is outside"),
        ("10-20", r"examples.latents: expected '10:21'"),
    ],
)
def test_latents_that_no_sae_will_have_are_refused_before_training(latents: object, words: str) -> None:
    values = {"training": {"num_latents": 20, "k": 1}, "examples": {"latents": latents}}
    with pytest.raises(ConfigError, match=words):
        parse_config(CompareExplainersConfig, values)


def test_latents_of_an_adopted_sae_are_known_from_its_files_only() -> None:
    values = {
        "capture": {"hookpoints": ["layers.5"]},
        "training": {"num_latents": 20, "k": 1, "saes": {"layers.5": "folder"}},
        "examples": {"latents": "10:99"},
        "random_weights_control": False,
    }
    assert parse_config(CompareExplainersConfig, values).examples.named_latents == range(10, 99)


def test_a_missing_or_malformed_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_config(TrainSaesConfig, tmp_path / "nowhere.yaml")
    bad = tmp_path / "bad.yaml"
    bad.write_text("a: [1")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(TrainSaesConfig, bad)
    bad.write_text("- 1\n")
    with pytest.raises(ConfigError, match="no mapping"):
        load_config(TrainSaesConfig, bad)


def test_yaml_round_trips(tmp_path: Path) -> None:
    config = load_config(CompareExplainersConfig, None, ["training.k=7", "explainer_a.label=Grüße"])
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    assert load_config(CompareExplainersConfig, path) == config


def test_where_and_how_fast_stay_out_of_recipes() -> None:
    assert recipe_of(SubjectConfig(device="cuda:1")) == recipe_of(SubjectConfig(device="cpu"))
    assert recipe_of(LaunchConfig(parallel=1)) == recipe_of(LaunchConfig(parallel=8))
    assert recipe_of(SubjectConfig(weights="random")) != recipe_of(SubjectConfig())


def test_every_field_has_a_description() -> None:
    schema = CompareExplainersConfig.model_json_schema()
    bare = [
        f"{name}.{field}"
        for name, model in schema["$defs"].items()
        for field, info in model.get("properties", {}).items()
        if "description" not in info and "$ref" not in str(info)
    ]
    assert bare == []


@given(st.integers(0, 200), st.none() | st.integers(0, 30), st.integers(0, 10**6))
def test_latent_ids_round_trip(layer: int, position: int | None, latent: int) -> None:
    ident = LatentId(layer, position, latent)
    assert LatentId.parse(str(ident)) == ident


@pytest.mark.parametrize("text", ["", "F3", "L1_F", "L1_F3 ", "L-1_F3", "L1_P_F3", "l1_f3"])
def test_other_text_is_no_latent_id(text: str) -> None:
    with pytest.raises(ConfigError, match="not a latent id"):
        LatentId.parse(text)


def test_hookpoints_name_their_block() -> None:
    assert [layer_of(name) for name in ("layers.9", "model.layers.12", "transformer.h.3")] == [9, 12, 3]
    with pytest.raises(ConfigError, match="names no block"):
        layer_of("embed")


@pytest.mark.parametrize(
    ("second", "problem"),
    [
        ({}, "is the scorer again"),
        ({"llm": {"model": "other", "max_tokens": 1}, "kind": "simulation"}, "does not give comparison.metric"),
    ],
)
@pytest.mark.parametrize("model", [CompareExplainersConfig, ExplainFeaturesConfig])
def test_a_second_scorer_is_another_one_that_gives_the_metric(
    model: type[BaseModel], second: dict[str, object], problem: str
) -> None:
    with pytest.raises(ValidationError, match=problem):
        model(second_scorer=second)
    assert model(second_scorer={"kind": "fuzz"}) != model()
