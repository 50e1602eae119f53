"""The probing step on a subject whose first letters are planted: what it finds, writes, resumes and refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from planted_letters import D_MODEL, SCALE, directions, family_of, write_letter_subject

from saeinterp.artifacts import Artifact, ArtifactStore
from saeinterp.config import AbsorptionConfig, SubjectConfig
from saeinterp.errors import ConfigError
from saeinterp.health import LetterProbes, letter_probes, letter_probes_recipe, read_letter_probes
from saeinterp.subject import prepare_subject

CONFIG = AbsorptionConfig(words=1400, context_examples=3, batch_prompts=32)
HOOKPOINTS = ("layers.0", "layers.1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_letter_subject(tmp_path_factory.mktemp("letters") / "subject")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    return ArtifactStore(tmp_path_factory.mktemp("letters") / "runs")


@pytest.fixture(scope="module")
def made(folder: Path, shared: ArtifactStore) -> dict[str, Artifact]:
    subject = prepare_subject(SubjectConfig(model=str(folder), dtype="float32"), store=shared)
    return letter_probes(subject, hookpoints=HOOKPOINTS, config=CONFIG, store=shared)


def prepared(folder: Path, store: ArtifactStore) -> Artifact:
    return prepare_subject(SubjectConfig(model=str(folder), dtype="float32"), store=store)


def opened(artifact: Artifact) -> LetterProbes:
    probes = read_letter_probes(artifact)
    assert not isinstance(probes, str)
    return probes


def test_planted_letters_are_found_at_every_hookpoint(made: dict[str, Artifact]) -> None:
    for hookpoint in HOOKPOINTS:
        probes = opened(made[hookpoint])
        assert probes.hookpoint == hookpoint
        assert all(value is not None and value > 0.95 for value in probes.f1)
        planted = directions()[:26].T
        cosine = torch.nn.functional.normalize(probes.probe.weight, dim=1) @ planted
        assert (cosine.argmax(1) == torch.arange(26)).all()
        # A probe also holds what speaks against its letter: the 25 others' directions and the mean's.
        assert (cosine.diagonal() > 0.4).all()


def test_rows_are_the_activations_at_the_word(made: dict[str, Artifact]) -> None:
    probes = opened(made["layers.1"])
    words, rows = probes.words, directions()
    assert probes.train.dtype is torch.bfloat16
    assert (len(probes.train), len(probes.test)) == (
        int((words["split"] == "train").sum()),
        int((words["split"] == "test").sum()),
    )
    activations = torch.cat([probes.train, probes.test]).float()
    for word, letter, x in zip(words["word"], words["letter"], activations, strict=True):
        family = family_of(word)
        expected = SCALE * rows[ord(letter) - 65] + (0 if family is None else SCALE * rows[26 + family])
        assert float((x - expected).norm()) < 0.15 * SCALE
    # Blocks add nothing, so another prompt for the same word gives the same activation.
    assert torch.allclose(probes.test.float(), probes.fresh.float(), atol=1e-2)


def test_where_context_matters_fresh_prompts_give_other_rows(tmp_path: Path, store: ArtifactStore) -> None:
    folder = write_letter_subject(tmp_path / "subject")
    subject = prepare_subject(SubjectConfig(model=str(folder), dtype="float32", weights="random"), store=store)
    probes = opened(letter_probes(subject, hookpoints=["layers.1"], config=CONFIG, store=store)["layers.1"])
    assert not torch.allclose(probes.test.float(), probes.fresh.float(), atol=1e-2)


def test_without_planted_letters_the_probes_do_not_generalise(tmp_path: Path, store: ArtifactStore) -> None:
    subject = prepared(write_letter_subject(tmp_path / "subject", planted=False), store)
    probes = opened(letter_probes(subject, hookpoints=["layers.0"], config=CONFIG, store=store)["layers.0"])
    # Saying yes at random to a share q of the words has F1 of at most 2 (1/26) / (1 + 1/26) = 0.074.
    assert np.mean([value or 0.0 for value in probes.f1]) < 0.15


def test_a_killed_run_goes_on_to_the_same_bytes_and_so_does_one_hookpoint_alone(
    folder: Path, made: dict[str, Artifact], tmp_path: Path
) -> None:
    store = ArtifactStore(tmp_path / "killed")
    subject = prepared(folder, store)

    class Killed(Exception):  # noqa: N818
        pass

    def kill(done: int, total: int, what: str) -> None:
        assert what == "prompts"
        if done > total / 3:
            raise Killed

    with pytest.raises(Killed):
        letter_probes(subject, hookpoints=HOOKPOINTS, config=CONFIG, store=store, progress=kill)
    assert store.find(letter_probes_recipe(subject, hookpoint="layers.0", config=CONFIG)) is None
    kept = list((store.root / ".work").rglob("prompts-*.safetensors"))
    assert len(kept) >= 2 * len(HOOKPOINTS)
    times = {path: path.stat().st_mtime_ns for path in kept}
    steps: list[int] = []

    def watch(done: int, total: int, what: str) -> None:
        steps.append(done)
        assert all(path.stat().st_mtime_ns == before for path, before in times.items() if path.exists())

    alone = letter_probes(subject, hookpoints=["layers.0"], config=CONFIG, store=store, progress=watch)
    rest = letter_probes(subject, hookpoints=HOOKPOINTS, config=CONFIG, store=store)
    assert steps[-1] == max(steps)
    for hookpoint, artifact in {**rest, **alone}.items():
        assert artifact.manifest()["files"] == made[hookpoint].manifest()["files"]


def test_what_is_there_is_not_made_again_and_settings_of_later_steps_do_not_count(
    folder: Path, made: dict[str, Artifact], shared: ArtifactStore
) -> None:
    def never(done: int, total: int, what: str) -> None:
        raise AssertionError("a pass was made")

    later = {"max_k": 3, "min_letters": 5, "sparse_l1": 0.5, "enabled": False}
    subject = prepared(folder, shared)
    again = letter_probes(
        subject, hookpoints=HOOKPOINTS, config=CONFIG.model_copy(update=later), store=shared, progress=never
    )
    assert again == made
    one = letter_probes_recipe(subject, hookpoint="layers.0", config=CONFIG)
    for change in ({"words": 1000}, {"seed": 1}, {"probe_batch": 32}, {"context_examples": 2}):
        assert (
            letter_probes_recipe(subject, hookpoint="layers.0", config=CONFIG.model_copy(update=change)).hash
            != one.hash
        )


def test_a_subject_without_words_gets_a_reason(planted_folder: Path, store: ArtifactStore) -> None:
    found = letter_probes(prepared(planted_folder, store), hookpoints=HOOKPOINTS, config=CONFIG, store=store)
    assert "no vocabulary entry is a word" in str(read_letter_probes(found["layers.1"]))


def test_prompts_longer_than_the_subject_can_read_are_a_reason(tmp_path: Path, store: ArtifactStore) -> None:
    subject = prepared(write_letter_subject(tmp_path / "subject", positions=16), store)
    found = letter_probes(subject, hookpoints=["layers.0"], config=CONFIG, store=store)
    assert "exceed the subject's 16 positions" in str(read_letter_probes(found["layers.0"]))


def test_a_hookpoint_that_does_not_exist_is_refused(folder: Path, shared: ArtifactStore) -> None:
    with pytest.raises(ConfigError, match=r"layer 9 does not exist"):
        letter_probes(prepared(folder, shared), hookpoints=["layers.9"], config=CONFIG, store=shared)


def test_letters_that_are_not_in_the_vocabulary_have_no_f1(tmp_path: Path, store: ArtifactStore) -> None:
    subject = prepared(write_letter_subject(tmp_path / "subject", letters="BCDEFGH"), store)
    config = CONFIG.model_copy(update={"words": 280})
    probes = opened(letter_probes(subject, hookpoints=["layers.0"], config=config, store=store)["layers.0"])
    assert [value is None for value in probes.f1] == [True] + [False] * 7 + [True] * 18
    assert probes.probe.weight.shape == (26, D_MODEL)
