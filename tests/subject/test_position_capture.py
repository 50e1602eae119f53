"""Activations at chosen places of problems, as a cache that SAEs are trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import D_MODEL, write_problems, write_tiny_model

from saeinterp.artifacts import Artifact, ArtifactStore, read_json
from saeinterp.config import CaptureConfig, CorpusSource, PositionsConfig, ProblemsConfig, SubjectConfig, ThoughtsConfig
from saeinterp.errors import BudgetError, ConfigError, DataError
from saeinterp.ids import parse_site
from saeinterp.sae.rows import Rows
from saeinterp.subject import (
    ActivationCache,
    build_problems,
    capture,
    collect_positions,
    collect_positions_recipe,
    load_subject,
    parse_select,
    position_capture,
    prepare_subject,
    read_problems,
    shards,
)
from saeinterp.subject.positions import places
from saeinterp.subject.thoughts import Thinker, identity, think, thought_prompts

HOOKPOINTS = ("layers.0", "layers.2", "layers.1.mlp")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model", "llama")


@pytest.fixture
def subject(folder: Path, store: ArtifactStore) -> Artifact:
    return prepare_subject(SubjectConfig(model=str(folder), dtype="float32"), store=store)


@pytest.fixture
def problems(subject: Artifact, store: ArtifactStore, tmp_path: Path) -> Artifact:
    return make_problems(subject, store, tmp_path)


def make_problems(subject: Artifact, store: ArtifactStore, folder: Path, **options: Any) -> Artifact:
    path = write_problems(folder / "problems-train.jsonl")
    config = ProblemsConfig(source=CorpusSource(name=str(path)), samples=20, **options)
    return build_problems(subject, config=config, store=store)


def config(**options: Any) -> CaptureConfig:
    return CaptureConfig(**{"hookpoints": HOOKPOINTS, "batch_contexts": 4, "norm_multiple": 1e6, **options})


def at(select: str, **options: Any) -> PositionsConfig:
    return PositionsConfig(select=select, pool="any" if select.startswith("all") else "none", **options)


def collect(
    subject: Artifact, problems: Artifact, store: ArtifactStore, positions: PositionsConfig, **options: Any
) -> Artifact:
    return collect_positions(
        subject, problems, capture=config(**options), positions=positions, store=store, device="cpu"
    )


@pytest.mark.parametrize("select", ["even:3@cot", "last:2", "last:40@cot", "token:51", "all", "all@cot"])
def test_each_row_is_what_the_model_gives_there_when_it_reads_that_problem_alone(
    subject: Artifact, problems: Artifact, store: ArtifactStore, select: str
) -> None:
    made = collect(subject, problems, store, at(select))
    model, read = load_subject(subject, device="cpu").model, read_problems(problems)
    facts = read_json(made.file("cache.json"))
    caches = {site: ActivationCache.open(made, site) for site in facts["sites"]}
    seen = dict.fromkeys(caches, 0)
    for index, (ids, cot) in enumerate(zip(read.token_ids, read.cot, strict=True)):
        alone = capture(model, torch.from_numpy(ids).long()[None], None, HOOKPOINTS)
        chosen = places(parse_select(select), ids, cot=cot)
        for site, cache in caches.items():
            hookpoint, slot = parse_site(site)
            where = chosen[slot or 0]
            rows = range(seen[site], seen[site] + len(where))
            expected = alone[hookpoint][0, where.astype(np.int64)]
            assert torch.allclose(cache.read(rows.start, rows.stop).float(), expected, rtol=0.01, atol=0.005)
            assert (cache.doc_ids[rows.start : rows.stop] == read.samples[index]).all()
            assert cache.token_ids[rows.start : rows.stop].tolist() == ids[where].tolist()
            seen[site] = rows.stop
    assert seen == {site: cache.rows for site, cache in caches.items()}


def test_a_problem_without_the_place_has_no_row_there(
    subject: Artifact, problems: Artifact, store: ArtifactStore
) -> None:
    made = collect(subject, problems, store, at("last:40@cot"))
    read = read_problems(problems)
    facts = read_json(made.file("cache.json"))
    for slot in (0, 39):
        cache = ActivationCache.open(made, f"layers.0@{slot}")
        has_it = [len(cot) >= 40 - slot for cot in read.cot]
        assert cache.doc_ids.tolist() == read.samples[has_it].tolist()
        for split in ("train", "health"):
            here = np.array([name == split for name in read.splits])
            rows = cache.split_rows(split)
            assert cache.doc_ids[rows.start : rows.stop].tolist() == read.samples[here & has_it].tolist()
            assert facts["positions"]["missing"][str(slot)][split] == int((here & ~np.array(has_it)).sum())
    assert facts["positions"]["missing"]["0"]["train"] > 0
    assert facts["sites"]["layers.2@39"] == {
        "hookpoint": "layers.2",
        "slot": 39,
        "title": "last token of the reasoning",
    }
    assert facts["positions"]["samples"] == {"train": 40, "health": 20}


def test_a_chosen_place_counts_at_the_first_token_and_at_special_ones(
    folder: Path, subject: Artifact, store: ArtifactStore, tmp_path: Path
) -> None:
    # All texts as long as the selector reaches back, so that slot 0 is the first token.
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(f'{{"answer": "{index:02d} is short"}}\n' for index in range(60)))
    corpus = ProblemsConfig(source=CorpusSource(name=str(path)), question_column=None, samples=20)
    texts = build_problems(subject, config=corpus, store=store)
    made = collect(subject, texts, store, at("last:11"))
    first = ActivationCache.open(made, "layers.0@0")
    assert set(first.positions.tolist()) == {1}  # the place plus one
    assert first.mask().all()
    assert len(Rows(first, "train", memory_bytes=0)) == 40
    whole = ActivationCache.open(collect(subject, texts, store, at("all")), "layers.0")
    assert whole.positions.min() == 0
    assert whole.mask_counts()["position0"] == 60


def test_one_pass_serves_all_places(
    subject: Artifact, problems: Artifact, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from saeinterp.subject import forwarding

    step, batches = forwarding.capture, []

    def counted(model: Any, input_ids: torch.Tensor, *arguments: Any) -> Any:
        batches.append(len(input_ids))
        return step(model, input_ids, *arguments)

    monkeypatch.setattr(forwarding, "capture", counted)
    collect(subject, problems, store, at("even:6@cot"))
    # One more to learn the widths, over a single token.
    assert sum(batches) == 60 + 1


def test_a_killed_run_goes_on_and_gives_the_same_bytes(
    subject: Artifact, problems: Artifact, store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD_ROWS", 1000)
    monkeypatch.setattr(shards, "_WINDOW_BATCHES", 2)
    step, done = position_capture.forward_window, []

    def dying(*arguments: Any, **options: Any) -> Any:
        done.append(len(arguments[1]))
        if len(done) == 4:
            raise KeyboardInterrupt
        return step(*arguments, **options)

    monkeypatch.setattr(position_capture, "forward_window", dying)
    with pytest.raises(KeyboardInterrupt):
        collect(subject, problems, store, at("last:3"))
    work = next((store.root / ".work" / "activations").glob("*/layers.0@0"))
    kept = len(list(work.glob("*.parquet")))
    assert kept > 0
    done.clear()
    monkeypatch.setattr(position_capture, "forward_window", lambda *a, **o: (done.append(len(a[1])), step(*a, **o))[1])
    resumed = collect(subject, problems, store, at("last:3"))
    assert 0 < sum(done) < 60
    fresh = collect(subject, problems, ArtifactStore(tmp_path / "fresh"), at("last:3"))
    assert resumed.manifest()["files"] == fresh.manifest()["files"]
    assert ActivationCache.open(resumed, "layers.0@2").rows == 60


@pytest.mark.parametrize(("select", "first"), [("latent:4", 1), ("latent:4@bot", 0)])
def test_thoughts_are_places_too(
    subject: Artifact, problems: Artifact, store: ArtifactStore, select: str, first: int
) -> None:
    thoughts = ThoughtsConfig(feedback="identity", bot=7)
    made = collect(subject, problems, store, at(select, thoughts=thoughts))
    loaded, read = load_subject(subject, device="cpu"), read_problems(problems)
    prompts = thought_prompts(loaded.tokenizer, read.questions, config=thoughts, bot=7)
    for index in (0, 17, 59):
        alone = think(Thinker(loaded, identity), [prompts[index]], thoughts=4, hookpoints=HOOKPOINTS)
        for slot in range(4):
            cache = ActivationCache.open(made, f"layers.2@{slot}")
            assert cache.rows == 60
            step = first + slot
            assert torch.allclose(
                cache.read(index, index + 1)[0].float(), alone["layers.2"][0, step], rtol=0.01, atol=0.005
            )
            assert cache.doc_ids[index] == read.samples[index]
            assert cache.token_ids[index] == (7 if step == 0 else -1)
            assert cache.positions[index] == len(prompts[index]) + step
    titles = [site["title"] for site in read_json(made.file("cache.json"))["sites"].values()]
    assert titles[:4] == parse_select(select).titles


def test_without_a_token_to_begin_with_thoughts_follow_the_question(
    subject: Artifact, problems: Artifact, store: ArtifactStore
) -> None:
    made = collect(subject, problems, store, at("latent:2@bot", thoughts=ThoughtsConfig(feedback="identity")))
    assert read_json(made.file("cache.json"))["positions"]["titles"] == ["end of the question", "thought 1"]
    assert set(ActivationCache.open(made, "layers.0@0").token_ids.tolist()) == {0}  # the end token


def test_facts_of_a_site_are_its_own(subject: Artifact, problems: Artifact, store: ArtifactStore) -> None:
    made = collect(subject, problems, store, at("last:2"))
    caches = [ActivationCache.open(made, f"layers.2@{slot}", verify=True) for slot in range(2)]
    for cache in caches:
        rows = cache.read(0, cache.rows).float()
        assert cache.d_in == D_MODEL
        assert np.allclose(cache.norms, rows.norm(dim=1).numpy(), rtol=1e-5)
        assert cache.median_norm == pytest.approx(float(np.median(cache.norms)))
        train = cache.split_rows("train")
        assert torch.allclose(cache.mean, rows[train.start : train.stop].mean(0), atol=1e-5)
    assert caches[0].median_norm != caches[1].median_norm


def test_places_that_too_few_problems_have_are_refused(
    subject: Artifact, problems: Artifact, store: ArtifactStore
) -> None:
    with pytest.raises(
        DataError, match=r"positions\.select: too few problems have the place 'token 3000 from the end'"
    ):
        collect(subject, problems, store, at("last:3000"))
    with pytest.raises(DataError, match=r"'token 0': 0 rows in the 40 to train on, 0 in the 20 samples"):
        collect(subject, problems, store, at("token:0"))
    assert not list(store.root.glob("activations/*/manifest.json"))


def test_ways_of_capturing_that_places_do_not_take_are_refused(
    subject: Artifact, problems: Artifact, store: ArtifactStore
) -> None:
    with pytest.raises(ConfigError, match=r"capture\.source: .*\(got 'stream'\)"):
        collect(subject, problems, store, at("last:1"), source="stream")
    with pytest.raises(ConfigError, match=r"capture\.processes: .*\(got 2\)"):
        collect(subject, problems, store, at("last:1"), processes=2)
    with pytest.raises(ConfigError, match=r"layer 9 does not exist"):
        collect(subject, problems, store, at("last:1"), hookpoints=("layers.9",))


def test_more_than_the_disk_budget_is_refused_before_anything_runs(
    subject: Artifact, problems: Artifact, store: ArtifactStore
) -> None:
    with pytest.raises(BudgetError, match=r"540 rows of 9 sites with 32 values take .*corpus\.training"):
        collect(subject, problems, store, at("last:3"), disk_budget_gb=1e-6)


def test_problems_of_another_tokenizer_are_refused(
    planted_folder: Path, problems: Artifact, store: ArtifactStore
) -> None:
    other = prepare_subject(SubjectConfig(model=str(planted_folder), dtype="float32"), store=store)
    with pytest.raises(DataError, match=r"corpus: the problems were tokenised for another model"):
        collect(other, problems, store, at("last:1"))


def test_thoughts_beyond_the_longest_text_of_the_subject_are_refused(
    subject: Artifact, problems: Artifact, store: ArtifactStore
) -> None:
    with pytest.raises(ConfigError, match=r"takes at most 4096 tokens, and the longest question with its thoughts"):
        collect(subject, problems, store, at("latent:4096", thoughts=ThoughtsConfig(feedback="identity")))


def test_the_recipe_holds_what_changes_the_bytes(subject: Artifact, problems: Artifact) -> None:
    def of(positions: PositionsConfig, **options: Any) -> str:
        return collect_positions_recipe(subject, problems, capture=config(**options), positions=positions).hash

    assert of(at("last:1")) == of(at("last:1"), disk_budget_gb=9.0)
    assert of(at("last:1")) != of(at("last:2"))
    thoughts = ThoughtsConfig(feedback="identity")
    assert of(at("latent:1", thoughts=thoughts)) != of(
        at("latent:1", thoughts=thoughts.model_copy(update={"remove_eos": True}))
    )
