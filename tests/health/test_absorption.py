"""Absorption of whole SAEs on planted letters, worked by hand, and of a real one."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
import torch
from planted_health import sae_artifact
from planted_letters import D_MODEL, absorbing_sae, directions, family_of, letter_sae, write_letter_subject

from saeinterp.artifacts import Artifact, ArtifactStore
from saeinterp.config import AbsorptionConfig, SubjectConfig
from saeinterp.errors import DataError
from saeinterp.health import (
    LetterProbes,
    letter_probes,
    measure_absorption,
    measure_absorption_recipe,
    read_absorption,
    read_letter_probes,
)
from saeinterp.health.letters.absorption import random_sae_like
from saeinterp.sae import TopKSae
from saeinterp.subject import prepare_subject

CONFIG = AbsorptionConfig(words=1400, context_examples=3, bootstrap=200)
HOOKPOINT = "layers.1"
SMOLLM2_HOOKPOINT = "layers.10"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    return ArtifactStore(tmp_path_factory.mktemp("absorption") / "runs")


def probed(folder: Path, store: ArtifactStore, *, config: AbsorptionConfig = CONFIG) -> Artifact:
    subject = prepare_subject(SubjectConfig(model=str(folder), dtype="float32"), store=store)
    return letter_probes(subject, hookpoints=[HOOKPOINT], config=config, store=store)[HOOKPOINT]


@pytest.fixture(scope="module")
def probes(shared: ArtifactStore, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return probed(write_letter_subject(tmp_path_factory.mktemp("absorption") / "subject"), shared)


def measure(
    probes: Artifact, sae: TopKSae, store: ArtifactStore, *, config: AbsorptionConfig = CONFIG, name: str = "sae"
) -> Artifact:
    trained = sae_artifact(store, sae, probes, hookpoint=HOOKPOINT, name=name)
    return measure_absorption(probes, trained, hookpoint=HOOKPOINT, config=config, store=store)


def test_the_absorbed_share_is_the_share_of_words_in_the_absorbed_family(
    probes: Artifact, store: ArtifactStore
) -> None:
    artifact = measure(probes, absorbing_sae(), store)
    values, letters = read_absorption(artifact), pl.read_parquet(artifact.file("letters.parquet"))
    content = read_letter_probes(probes)
    assert isinstance(content, LetterProbes)
    test = content.words.filter(pl.col("split") == "test")
    words = test.filter(pl.col("letter") == "A")["word"].to_list()
    absorbed = sum(family_of(word) is not None for word in words)
    assert absorbed > 3
    # With w the probe of A and x a family's word (see `absorbing_sae`): p = 4 w · (L + u), the main latent is silent
    # (M = 0), and the family's latent carries A = 2.12 w · (L + u) = 0.53 p >= 0.4 p: fraction 1, full absorption.
    # Any other word x = 4 L has p = 4 w · L and M = 3 w · L < p, but no other latent fires (A = 0): fraction 0.
    share = absorbed / len(words)
    rows = {row["letter"]: row for row in letters.to_dicts()}
    a = rows["A"]
    assert a["words"] == len(words)
    assert a["main_latents"] == [0]
    assert a["fraction"] == pytest.approx(share)
    assert a["full_absorption"] == pytest.approx(share)
    for letter, row in rows.items():
        if letter != "A":
            assert row["main_latents"] == [ord(letter) - 65]
            assert (row["fraction"], row["full_absorption"]) == (0, 0)
    assert values["letters"] == 26
    assert values["value"] == pytest.approx(share / 26)
    assert values["full_absorption"] == pytest.approx(share / 26)
    assert values["reason"] is None
    # One letter of 26 differs from the others: nothing to make an interval of.
    assert (values["low"], values["high"]) == (None, None)
    assert "too few letters vary" in values["interval"]["reason"]
    assert values["probe_f1"] > 0.95
    assert values["sparse_f1"] > 0.95


def test_nothing_is_absorbed_where_families_have_latents_of_their_own_beside_the_letters(
    probes: Artifact, store: ArtifactStore
) -> None:
    values = read_absorption(measure(probes, letter_sae(), store))
    assert (values["value"], values["full_absorption"]) == (0, 0)
    assert (values["low"], values["high"]) == (None, None)
    assert values["interval"]["reason"] == "the letters do not vary"


def test_a_random_sae_is_printed_beside_and_judged_by_the_same_rule(probes: Artifact, store: ArtifactStore) -> None:
    strict = CONFIG.model_copy(update={"min_sparse_f1": 0.9})
    values = read_absorption(measure(probes, letter_sae(), store, config=strict))
    control = values["random_control"]
    assert values["value"] == 0
    assert control["sparse_f1"] < 0.9 < values["sparse_f1"]
    assert (control["value"], control["low"], control["high"]) == (None, None, None)
    assert "below 0.9: no first-letter latents that others could absorb" in control["reason"]
    assert control["mean_fraction"] is not None


def test_the_control_does_not_depend_on_the_weights_it_stands_beside(probes: Artifact, store: ArtifactStore) -> None:
    controls = []
    for sae in (letter_sae(), absorbing_sae()):
        values = read_absorption(measure(probes, sae, store, name=f"sae-{len(controls)}"))
        controls.append(values["random_control"])
    assert controls[0] == controls[1]


def test_too_few_letters_are_not_applicable_and_the_control_is_still_printed(
    tmp_path: Path, store: ArtifactStore
) -> None:
    few = probed(write_letter_subject(tmp_path / "subject", letters="ABCDEFGHIJ"), store)
    values = read_absorption(measure(few, absorbing_sae(), store))
    assert values["value"] is None
    assert values["reason"] == ("not applicable: 10 of 26 letters have a probe with F1 above 0.6, 20 are needed")
    assert values["letters_used"] == "ABCDEFGHIJ"
    assert values["mean_fraction"] > 0
    assert values["random_control"]["letters"] == 10


def test_a_subject_that_knows_no_letters_is_not_applicable(tmp_path: Path, store: ArtifactStore) -> None:
    blank = probed(write_letter_subject(tmp_path / "subject", planted=False), store)
    values = read_absorption(measure(blank, letter_sae(), store))
    assert values["value"] is None
    assert "letters have a probe with F1 above 0.6" in values["reason"]


def test_a_latent_that_shares_the_work_absorbs_its_share(probes: Artifact, store: ArtifactStore) -> None:
    # Letter i is carried by two latents along its direction, with shares s and 1 - s of the projection. Either alone
    # tells the letter, so one is the main latent and the other absorbs what it carries.
    rows = directions()[:26]
    share = torch.linspace(0.45, 0.55, 26)[:, None]
    encoder = torch.cat([share * rows, (1 - share) * rows])
    sae = TopKSae(encoder, torch.zeros(52), torch.cat([rows, rows]), torch.zeros(D_MODEL), k=2)
    artifact = measure(probes, sae, store)
    values, letters = read_absorption(artifact), pl.read_parquet(artifact.file("letters.parquet")).to_dicts()
    for index, row in enumerate(letters[1:], start=1):  # A's families have activations of their own
        (main,) = row["main_latents"]
        assert main in (index, 26 + index)
        absorbs = 1 - float(share[index]) if main < 26 else float(share[index])
        assert row["fraction"] == pytest.approx(absorbs, abs=0.02)
        assert row["full_absorption"] == 0
    assert values["value"] == pytest.approx(sum(row["fraction"] for row in letters) / 26)
    assert 0.44 < values["low"] < values["value"] < values["high"] < 0.56
    assert values["interval"]["method"].endswith("over letters, 200 draws")
    assert values["main_latents"] == 1


def test_a_subject_without_words_still_gets_its_decoder_cosine(planted_folder: Path, store: ArtifactStore) -> None:
    values = read_absorption(measure(probed(planted_folder, store), letter_sae(), store))
    assert (values["value"], values["random_control"]["value"]) == (None, None)
    assert "no vocabulary entry is a word" in values["reason"]
    assert "no vocabulary entry is a word" in values["random_control"]["reason"]
    assert values["decoder_top_cosine"]["value"] == pytest.approx(0, abs=1e-6)
    assert values["decoder_top_cosine"]["null_value"] > 0.1


def test_the_absorbing_decoder_shows_in_its_top_cosines(probes: Artifact, store: ArtifactStore) -> None:
    found = read_absorption(measure(probes, absorbing_sae(), store))["decoder_top_cosine"]
    # Three families with cosine 1/√2 to latent A and 1/2 to each other; the other 44 pairs are orthogonal.
    assert found["value"] == pytest.approx((3 / 2**0.5 + 3 / 2) / 50, abs=1e-6)
    assert found["null_low"] < found["null_value"] < found["null_high"]


def test_the_same_recipe_gives_the_same_bytes_in_plain_json(probes: Artifact, tmp_path: Path) -> None:
    made = [measure(probes, absorbing_sae(), ArtifactStore(tmp_path / name)) for name in ("one", "two")]
    files = [artifact.manifest()["files"] for artifact in made]
    assert files[0] == files[1]
    assert set(files[0]) == {"absorption.json", "letters.parquet", "random_letters.parquet"}
    text = made[0].file("absorption.json").read_text(encoding="utf-8")
    json.loads(text, parse_constant=lambda name: pytest.fail(name))


def test_codes_with_signs_and_saes_in_bfloat16_are_measured(probes: Artifact, store: ArtifactStore) -> None:
    signed = TopKSae(**{**vars(absorbing_sae()), "activation": "abs_topk"}).to(dtype=torch.bfloat16)
    values = read_absorption(measure(probes, signed, store))
    assert values["letters"] == 26
    assert 0 <= values["mean_fraction"] <= 1


def test_an_sae_of_another_width_or_hookpoint_is_refused(probes: Artifact, store: ArtifactStore) -> None:
    narrow = TopKSae(torch.eye(8), torch.zeros(8), torch.eye(8), torch.zeros(8), k=2)
    with pytest.raises(DataError, match=rf"layers\.1: the SAE does not fit.*d_in = 8.*d_in = {D_MODEL}"):
        measure(probes, narrow, store)
    trained = sae_artifact(store, letter_sae(), probes, hookpoint=HOOKPOINT)
    with pytest.raises(DataError, match=r"another hookpoint.*'layers\.1'.*layers\.0"):
        measure_absorption(probes, trained, hookpoint="layers.0", config=CONFIG, store=store)


def test_the_recipe_needs_no_artifact_and_counts_what_matters(probes: Artifact) -> None:
    def recipe(**changes: object) -> str:
        config = CONFIG.model_copy(update=changes)
        return measure_absorption_recipe(probes, probes, hookpoint=HOOKPOINT, config=config).hash

    assert recipe() == recipe(enabled=False) == recipe(words=7)  # the words are in the probes' recipe
    assert len({recipe(), recipe(max_k=3), recipe(min_letters=3), recipe(f1_gain=0.1), recipe(seed=1)}) == 5


@pytest.mark.slow
def test_smollm2_knows_its_letters_and_an_sae_of_few_latents_does_not(smollm2: Path, store: ArtifactStore) -> None:
    # Fewer words and shorter prompts than the defaults, which find 26 letters (see the method page).
    config = CONFIG.model_copy(update={"words": 2500, "context_examples": 4})
    subject = prepare_subject(SubjectConfig(model=str(smollm2)), store=store)
    found = letter_probes(subject, hookpoints=[SMOLLM2_HOOKPOINT], config=config, store=store)[SMOLLM2_HOOKPOINT]
    content = read_letter_probes(found)
    assert isinstance(content, LetterProbes)
    assert sum(value is not None and value > 0.6 for value in content.f1) >= 20
    random = TopKSae(torch.zeros(400, 576), torch.zeros(400), torch.zeros(400, 576), torch.zeros(576), k=32)
    random = random_sae_like(random, seed=3)
    trained = sae_artifact(store, random, found, hookpoint=SMOLLM2_HOOKPOINT)
    values = read_absorption(
        measure_absorption(found, trained, hookpoint=SMOLLM2_HOOKPOINT, config=config, store=store)
    )
    assert values["value"] is None
    assert "no first-letter latents that others could absorb" in values["reason"]
    assert values["letters"] >= 20
    assert values["random_control"]["sparse_f1"] < 0.3
