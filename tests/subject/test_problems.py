"""Reading problems: which are samples, what the model reads, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tiny_models import write_problems, write_tiny_model

from saeinterp.artifacts import Artifact, ArtifactStore, Recipe, read_json
from saeinterp.config import CorpusSource, ProblemsConfig, SubjectConfig
from saeinterp.errors import ConfigError, DamagedArtifactError, DataError
from saeinterp.subject import (
    Problems,
    build_problems,
    build_problems_recipe,
    load_subject,
    load_tokenizer,
    prepare_subject,
    read_problems,
)
from saeinterp.subject.problem_sources import find_problems, id_prefix

GSM8K = Path(__file__).parents[3] / "shared" / "data" / "gsm8k-train.jsonl"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model", "llama")


@pytest.fixture
def subject(folder: Path, store: ArtifactStore) -> Artifact:
    return prepare_subject(SubjectConfig(model=str(folder), dtype="float32"), store=store)


def config(path: Path | str, *, limit: int | None = None, **options: Any) -> ProblemsConfig:
    values = {"samples": 10, **options}
    return ProblemsConfig(source=CorpusSource(name=str(path), limit=limit), **values)


def build(subject: Artifact, store: ArtifactStore, path: Path | str, **options: Any) -> Problems:
    return read_problems(build_problems(subject, config=config(path, **options), store=store))


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def rows(count: int = 20) -> list[dict[str, Any]]:
    return [{"question": f"Q{index}?", "answer": f"A{index}."} for index in range(count)]


@pytest.mark.skipif(not GSM8K.exists(), reason="GSM8K is not here")
def test_the_first_thousand_of_gsm8k_by_id_are_those_of_the_published_analysis() -> None:
    found = find_problems(config(GSM8K, samples=1000, order="id"))
    ids = [problem.id for problem in found.splits["health"]]
    assert ids[:5] == ["train_0", "train_1", "train_10", "train_100", "train_1000"]
    assert ids[-1] == sorted(f"train_{index}" for index in range(7473))[999]
    assert (len(ids), len(found.splits["train"]), found.duplicates) == (1000, 6473, 0)


def test_samples_and_training_problems_share_nothing(subject: Artifact, store: ArtifactStore, tmp_path: Path) -> None:
    problems = build(subject, store, write_problems(tmp_path / "my-test.jsonl"), training=30)
    assert problems.samples.tolist() == list(range(40))
    assert problems.splits == ["train"] * 30 + ["health"] * 10
    assert len(set(problems.ids)) == 40
    assert all(name.startswith("test_") for name in problems.ids)


def test_order_by_hash_depends_on_the_seed_and_on_nothing_else(tmp_path: Path) -> None:
    path = write_problems(tmp_path / "a.jsonl")
    # The same texts in another order, and under other ids.
    lines = path.read_text().splitlines(keepends=True)
    turned = tmp_path / "b-turned.jsonl"
    turned.write_text("".join(reversed(lines)))

    def samples(path: Path, seed: int) -> list[str]:
        return [problem.question for problem in find_problems(config(path, seed=seed)).splits["health"]]

    assert samples(path, 0) == samples(turned, 0)
    assert samples(path, 0) != samples(path, 1)


def test_the_model_reads_question_and_reasoning_and_knows_where_the_reasoning_is(
    subject: Artifact, store: ArtifactStore, tmp_path: Path
) -> None:
    texts = [
        {"question": f"Wie viel kostet {index} €?\nBitte", "answer": f"“{index}” – 漢字\nund 😀"} for index in range(20)
    ]
    problems = build(subject, store, write_rows(tmp_path / "a.jsonl", texts))
    tokenizer = load_tokenizer(subject)
    for index in range(len(problems)):
        ids, cot = problems.token_ids[index], problems.cot[index]
        assert tokenizer.decode(ids) == f"{problems.questions[index]}\n{problems.reasonings[index]}"
        assert tokenizer.decode(ids[cot.start : cot.stop]) == problems.reasonings[index]


def test_annotations_are_taken_from_what_the_model_reads_only(
    subject: Artifact, store: ArtifactStore, tmp_path: Path
) -> None:
    path = write_rows(
        tmp_path / "a.jsonl", [{"question": f"{i}?", "answer": f"2*{i}=<<2*{i}={2 * i}>>{2 * i}"} for i in range(20)]
    )
    problems = build(subject, store, path, annotations="strip")
    read = load_tokenizer(subject).decode(problems.token_ids[0])
    number = int(problems.questions[0].rstrip("?"))
    assert read == f"{number}?\n2*{number}={2 * number}"
    assert problems.reasonings[0] == f"2*{number}=<<2*{number}={2 * number}>>{2 * number}"


def test_long_problems_are_left_out_and_counted_and_move_no_other(
    subject: Artifact, store: ArtifactStore, tmp_path: Path
) -> None:
    path = write_problems(tmp_path / "a.jsonl")
    whole = build_problems(subject, config=config(path), store=store)
    short = build_problems(subject, config=config(path, max_tokens=60), store=store)
    all_of, some = read_problems(whole), read_problems(short)
    where = dict(zip(all_of.ids, all_of.splits, strict=True))
    assert [where[name] for name in some.ids] == some.splits
    assert max(len(ids) for ids in some.token_ids) <= 60
    facts = read_json(short.file("problems.json"))
    assert sum(facts["left_out"]["too_long"].values()) == len(all_of) - len(some) > 0
    assert facts["problems"] == {split: some.splits.count(split) for split in ("train", "health")}


def test_a_problem_that_is_there_twice_is_taken_once(tmp_path: Path) -> None:
    found = find_problems(config(write_rows(tmp_path / "a.jsonl", rows() + rows(3))))
    assert found.duplicates == 3
    assert sum(len(some) for some in found.splits.values()) == 20


def test_ids_and_tags_of_the_users_own(subject: Artifact, store: ArtifactStore, tmp_path: Path) -> None:
    path = write_problems(tmp_path / "a.jsonl", key=lambda i: 1000 + i, topic=lambda i: ["even", "x"][: 2 - i % 2])
    problems = build(subject, store, path, id_column="key", tags_column="topic", order="id")
    assert problems.ids[-10:] == [str(1000 + index) for index in range(10)]
    assert problems.tags[-10:-8] == [["even", "x"], ["even"]]


def test_parquet_and_texts_without_a_question(subject: Artifact, store: ArtifactStore, tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": [f"Text {index}" for index in range(20)], "n": range(20)}), tmp_path / "a.parquet")
    options: dict[str, Any] = {"question_column": None, "reasoning_column": "body"}
    problems = build(subject, store, tmp_path / "a.parquet", id_column="n", **options)
    assert set(problems.questions) == {""}
    assert [range(len(ids)) for ids in problems.token_ids] == problems.cot
    (tmp_path / "b.txt").write_text("\n\n\n".join(f"= Title {i} =\n\nText {i} of a document." for i in range(20)))
    with pytest.raises(ConfigError, match=r"corpus\.question_column: .*b\.txt has no columns.*question_column: null"):
        build(subject, store, tmp_path / "b.txt")


def test_generated_word_problems_have_questions_and_worked_answers(subject: Artifact, store: ArtifactStore) -> None:
    problems = build(subject, store, "builtin:word-problems", limit=40)
    assert all(text.endswith("?") or "?" in text for text in problems.questions)
    assert all("<<" in text and "####" in text for text in problems.reasonings)
    assert all("\n" not in text for text in problems.questions)


@pytest.mark.parametrize(
    ("name", "split", "prefix"),
    [
        ("openai/gsm8k", "train", "train"),
        ("openai/gsm8k", "test[:5%]", "test"),
        ("data/gsm8k-train.jsonl", "train", "train"),
        ("gsm8k_test.parquet", "train", "test"),
        ("mine.jsonl", "train", "mine"),
        ("builtin:word-problems", "train", "problems"),
    ],
)
def test_numbered_ids_begin_with_the_split(name: str, split: str, prefix: str) -> None:
    assert id_prefix(CorpusSource(name=name, split=split)) == prefix


def test_two_problems_with_one_id_are_refused(tmp_path: Path) -> None:
    path = write_problems(tmp_path / "a.jsonl", key=lambda i: f"k{i % 7}")
    with pytest.raises(DataError, match=r"corpus\.id_column: two problems have the same id \(got 'k0'\)"):
        find_problems(config(path, id_column="key"))


def test_a_missing_column_is_named_with_the_nearest(tmp_path: Path) -> None:
    path = write_problems(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match=r"corpus\.reasoning_column: has no column 'answers'.*reasoning_column: answer"):
        find_problems(config(path, reasoning_column="answers"))


@pytest.mark.parametrize("answer", [None, "", "  \n"])
def test_a_problem_without_reasoning_is_refused(tmp_path: Path, answer: str | None) -> None:
    path = write_rows(tmp_path / "a.jsonl", [*rows(), {"question": "Q?", "answer": answer}])
    with pytest.raises(DataError, match=r"corpus\.reasoning_column: problem a_20 has no reasoning .*a\.jsonl:21"):
        find_problems(config(path))


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [*rows(), {"question": "Q?", "answer": 3}])
    with pytest.raises(DataError, match=r"corpus\.reasoning_column: column 'answer' holds int, not text"):
        find_problems(config(path))
    path = write_rows(tmp_path / "b.jsonl", [{**row, "id": [1]} for row in rows()])
    with pytest.raises(DataError, match=r"corpus\.id_column: column 'id' holds list, no id"):
        find_problems(config(path, id_column="id"))
    with pytest.raises(DataError, match=r"corpus\.tags_column: column 'id' holds list, no tags"):
        find_problems(config(path, tags_column="id"))
    path = write_rows(tmp_path / "c.jsonl", [*rows(), {"question": "\ud800?", "answer": "x"}])
    with pytest.raises(DataError, match=r"problem c_20 holds half a surrogate pair"):
        find_problems(config(path))


def test_too_few_problems_say_how_many_are_needed(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", rows(20))
    with pytest.raises(DataError, match=r"corpus\.samples: there are too few problems: 20 in .*at least 21 problems"):
        find_problems(config(path, samples=20))
    with pytest.raises(DataError, match=r"at least 25 problems: 10 samples, and 15 that"):
        find_problems(config(path, training=15))


def test_a_missing_file_is_named_by_the_field_it_came_from() -> None:
    with pytest.raises(DataError, match=r"corpus\.source\.name: no such file"):
        find_problems(config("nowhere.jsonl"))
    with pytest.raises(DataError, match=r"corpus\.source\.name: no such file"):
        build_problems_recipe(Recipe("subject", "subject", 1, {}), config=config("nowhere.jsonl"))


def test_problems_that_are_all_too_long_are_refused(subject: Artifact, store: ArtifactStore, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"corpus\.max_tokens: every problem of split 'train' has more than 8 tokens"):
        build(subject, store, write_problems(tmp_path / "a.jsonl"), max_tokens=8)
    with pytest.raises(ConfigError, match=r"corpus\.max_tokens: .* takes at most 4096 tokens"):
        build(subject, store, tmp_path / "a.jsonl", max_tokens=5000)


def test_equal_content_elsewhere_is_the_same_artifact(subject: Artifact, store: ArtifactStore, tmp_path: Path) -> None:
    path = write_problems(tmp_path / "a.jsonl")
    (tmp_path / "other").mkdir()
    shutil.copy(path, tmp_path / "other" / "a.jsonl")
    first, second = (
        build_problems(subject, config=config(place), store=store) for place in (path, tmp_path / "other" / "a.jsonl")
    )
    assert first == second


def test_a_damaged_table_is_named_with_the_remedy(subject: Artifact, store: ArtifactStore, tmp_path: Path) -> None:
    made = build_problems(subject, config=config(write_problems(tmp_path / "a.jsonl")), store=store)
    made.file("problems.parquet").write_bytes(b"cut short")
    with pytest.raises(DamagedArtifactError, match=r"unreadable table of problems.*run again; it will be rebuilt"):
        read_problems(made)


def test_one_split_can_be_read_alone(subject: Artifact, store: ArtifactStore, tmp_path: Path) -> None:
    made = build_problems(subject, config=config(write_problems(tmp_path / "a.jsonl")), store=store)
    whole, samples = read_problems(made), read_problems(made, split="health")
    assert samples.ids == whole.ids[-10:]
    assert samples.samples.tolist() == list(range(50, 60))
    assert all((a == b).all() for a, b in zip(samples.token_ids, whole.token_ids[-10:], strict=True))


@pytest.fixture
def writer(folder: Path, store: ArtifactStore, tmp_path: Path) -> Artifact:
    """The tiny model with settings of its own: sampled, with penalties."""
    own = shutil.copytree(folder, tmp_path / "writer")
    settings = {"do_sample": True, "temperature": 5.0, "repetition_penalty": 9.0, "eos_token_id": 0}
    (own / "generation_config.json").write_text(json.dumps(settings))
    return prepare_subject(SubjectConfig(model=str(own), dtype="float32"), store=store)


def test_the_model_writes_its_own_reasoning_greedily(writer: Artifact, store: ArtifactStore, tmp_path: Path) -> None:
    path = write_problems(tmp_path / "a.jsonl", 24)
    problems = build(writer, store, path, samples=4, generate=True, max_new_tokens=6)
    model, tokenizer = load_subject(writer, device="cpu").model, load_tokenizer(writer)
    for index in range(len(problems)):
        ids, cot = problems.token_ids[index], problems.cot[index]
        assert tokenizer.decode(ids[: cot.start]) == f"{problems.questions[index]}\n"
        written: list[int] = ids[: cot.start].tolist()
        for _ in range(6):  # one at a time, without padding or cache
            with torch.inference_mode():
                best = int(model(torch.tensor([written])).logits[0, -1].argmax())
            if best == tokenizer.eos_token_id:
                break
            written.append(best)
        assert written == ids.tolist()
        assert problems.generated[index] == tokenizer.decode(ids[cot.start :])
        assert problems.reasonings[index].startswith("It is ")


def test_a_killed_generation_goes_on_after_its_last_batch(
    writer: Artifact, store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from saeinterp.subject import generation

    path = write_problems(tmp_path / "a.jsonl", 24)
    asked = config(path, samples=4, generate=True, max_new_tokens=3)
    monkeypatch.setattr(generation, "_BATCH", 8)
    step, calls = generation._continue, []

    def dying(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(generation, "_continue", dying)
    with pytest.raises(KeyboardInterrupt):
        build_problems(writer, config=asked, store=store)
    resumed = build_problems(writer, config=asked, store=store)
    assert len(calls) == 4
    fresh = build_problems(writer, config=asked, store=ArtifactStore(tmp_path / "fresh"))
    assert resumed.manifest()["files"] == fresh.manifest()["files"]
