"""From text to split, tokenised contexts."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from planted import planted_documents

from saeinterp.artifacts import Artifact, ArtifactStore
from saeinterp.config import SPLITS, CorpusConfig, CorpusSource, SplitFractions, SplitTokens, SubjectConfig
from saeinterp.errors import ConfigError, DamagedArtifactError, DataError
from saeinterp.subject import (
    build_corpus,
    build_corpus_recipe,
    documents,
    estimate_tokens,
    load_tokenizer,
    prepare_subject,
    read_contexts,
)

SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture
def subject(planted_folder: Path, store: ArtifactStore) -> Artifact:
    return prepare_subject(SubjectConfig(model=str(planted_folder), dtype="float32"), store=store)


def corpus_config(*paths: Path, **options: Any) -> CorpusConfig:
    options.setdefault("context_length", 32)
    return CorpusConfig(sources=tuple(CorpusSource(name=str(path)) for path in paths), **options)


def write(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def facts(corpus: Artifact) -> dict[str, Any]:
    return json.loads((corpus.path / "corpus.json").read_text())


def test_every_context_decodes_from_its_document(subject: Artifact, planted_corpus: Path, store: ArtifactStore) -> None:
    corpus = build_corpus(subject, config=corpus_config(planted_corpus), store=store)
    tokenizer, texts = load_tokenizer(subject), documents(corpus)
    for context in read_contexts(corpus):
        pieces = context.pieces(0, len(context.token_ids), texts)
        assert [piece.strip() for piece in pieces] == tokenizer.convert_ids_to_tokens(context.token_ids.tolist())
        assert "".join(pieces) in texts[int(context.doc_ids[0])]


def test_contexts_come_in_order_and_counts_agree(subject: Artifact, planted_corpus: Path, store: ArtifactStore) -> None:
    corpus = build_corpus(subject, config=corpus_config(planted_corpus), store=store)
    contexts, told = read_contexts(corpus), facts(corpus)
    assert [context.context_id for context in contexts] == list(range(len(contexts)))
    assert [context.split for context in contexts] == sorted((c.split for c in contexts), key=SPLITS.index)
    assert {split: contexts.tokens_of(split) for split in SPLITS} == told["tokens"]
    assert contexts.tokens == corpus.counts()["tokens"] == sum(told["tokens"].values())
    some = read_contexts(corpus, splits=["health", "score"])
    assert [c.context_id for c in some] == [c.context_id for c in contexts if c.split in ("health", "score")]
    assert some.tokens == told["tokens"]["health"] + told["tokens"]["score"]
    assert len(read_contexts(corpus, splits="explain")) == told["contexts"]["explain"]


def test_splits_share_no_document_and_keep_to_their_fractions(
    subject: Artifact, store: ArtifactStore, tmp_path: Path
) -> None:
    path = write(tmp_path / "many.jsonl", planted_documents(800, words=20))
    corpus = build_corpus(subject, config=corpus_config(path), store=store)
    owners: dict[int, set[str]] = {}
    for context in read_contexts(corpus):
        for doc in set(context.doc_ids.tolist()):
            owners.setdefault(doc, set()).add(context.split)
    assert all(len(splits) == 1 for splits in owners.values())
    counts = facts(corpus)["documents"]
    assert sum(counts.values()) == 800
    assert counts["train"] / 800 == pytest.approx(0.7, abs=0.05)
    assert all(counts[split] / 800 == pytest.approx(0.1, abs=0.04) for split in SPLITS[1:])


def split_of(corpus: Artifact) -> dict[str, str]:
    table = pq.read_table(corpus.path / "documents.parquet")
    return dict(zip(table["sha256"].to_pylist(), table["split"].to_pylist(), strict=True))


def test_a_document_keeps_its_split_when_others_are_added(
    subject: Artifact, store: ArtifactStore, tmp_path: Path
) -> None:
    texts = planted_documents(120, words=30)
    few = build_corpus(subject, config=corpus_config(write(tmp_path / "few.jsonl", texts[:60])), store=store)
    many = build_corpus(subject, config=corpus_config(write(tmp_path / "many.jsonl", texts)), store=store)
    assert split_of(few).items() <= split_of(many).items()
    other = build_corpus(subject, config=corpus_config(tmp_path / "many.jsonl", seed=1), store=store)
    assert split_of(other) != split_of(many)


def test_the_hash_of_a_document_is_of_its_text(subject: Artifact, planted_corpus: Path, store: ArtifactStore) -> None:
    corpus = build_corpus(subject, config=corpus_config(planted_corpus), store=store)
    expected = {hashlib.sha256(text.encode()).hexdigest() for text in planted_documents()}
    assert set(split_of(corpus)) == expected


def test_duplicated_and_blank_documents_are_dropped_and_counted(
    subject: Artifact, store: ArtifactStore, tmp_path: Path
) -> None:
    texts = planted_documents(60, words=30)
    one = write(tmp_path / "one.jsonl", [*texts, "  ", texts[0]])
    two = write(tmp_path / "two.jsonl", [texts[1], *planted_documents(40, words=30, seed=9)])
    told = facts(build_corpus(subject, config=corpus_config(one, two), store=store))
    assert told["sources"] == [
        {"name": "one.jsonl", "documents": 60, "duplicates": 1, "empty": 1},
        {"name": "two.jsonl", "documents": 40, "duplicates": 1, "empty": 0},
    ]


def test_a_token_limit_keeps_whole_contexts_of_every_source(
    subject: Artifact, store: ArtifactStore, tmp_path: Path
) -> None:
    one = write(tmp_path / "one.jsonl", planted_documents(200, words=40))
    two = write(tmp_path / "two.jsonl", planted_documents(200, words=40, seed=9))
    limits = SplitTokens(train=1000, health=200, explain=200, score=200)
    corpus = build_corpus(subject, config=corpus_config(one, two, max_tokens=limits), store=store)
    tokens = facts(corpus)["tokens"]
    assert 1000 - 32 < tokens["train"] <= 1000
    assert 200 - 32 < tokens["score"] <= 200
    sources = Counter(pq.read_table(corpus.path / "documents.parquet")["source"].to_pylist())
    assert min(sources["one.jsonl"], sources["two.jsonl"]) > 10
    # Only documents that have a context are kept.
    assert set(documents(corpus)) == {int(doc) for context in read_contexts(corpus) for doc in context.doc_ids}


def test_the_same_recipe_gives_the_same_bytes(planted_folder: Path, planted_corpus: Path, tmp_path: Path) -> None:
    def payload(root: Path) -> dict[str, Any]:
        store = ArtifactStore(root)
        subject = prepare_subject(SubjectConfig(model=str(planted_folder), dtype="float32"), store=store)
        return build_corpus(subject, config=corpus_config(planted_corpus), store=store).manifest()["files"]

    assert payload(tmp_path / "a") == payload(tmp_path / "b")


def test_the_recipe_follows_content_and_settings(subject: Artifact, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", planted_documents(5))
    before = build_corpus_recipe(subject, config=corpus_config(path)).hash
    assert build_corpus_recipe(subject, config=corpus_config(path, context_length=64)).hash != before
    assert build_corpus_recipe(subject, config=corpus_config(path, packing=True)).hash != before
    write(path, planted_documents(6))
    assert build_corpus_recipe(subject, config=corpus_config(path)).hash != before


def test_packing_joins_documents_with_the_end_token(
    subject: Artifact, planted_corpus: Path, store: ArtifactStore
) -> None:
    corpus = build_corpus(subject, config=corpus_config(planted_corpus, packing=True), store=store)
    contexts, texts = read_contexts(corpus), documents(corpus)
    assert 2 in facts(corpus)["special_ids"]
    mixed = [context for context in contexts if len(set(context.doc_ids.tolist())) > 1]
    assert mixed
    for context in mixed:
        change = int((context.doc_ids[1:] != context.doc_ids[:-1]).argmax())
        assert context.token_ids[change] == 2
        assert context.pieces(change, change + 1, texts) == [""]
    lengths = [len(context.token_ids) for context in contexts]
    assert sum(length < 32 for length in lengths) <= len(SPLITS)


def test_the_chat_template_wraps_each_document(smollm2: Path, store: ArtifactStore, tmp_path: Path) -> None:
    subject = prepare_subject(SubjectConfig(model=str(smollm2)), store=store)
    texts = [f"Question number {index}: what is {index} plus {index}?" for index in range(60)]
    config = corpus_config(write(tmp_path / "a.jsonl", texts), chat_template=True, context_length=64)
    corpus = build_corpus(subject, config=config, store=store)
    rendered = documents(corpus)
    assert all("<|im_start|>user\nQuestion number" in text for text in rendered.values())
    assert set(split_of(corpus)) == {hashlib.sha256(text.encode()).hexdigest() for text in texts}
    first = read_contexts(corpus)[0]
    assert first.token_ids[0] == 1
    assert first.text(0, len(first.token_ids), rendered) == rendered[int(first.doc_ids[0])]


def test_the_builtin_corpora_need_no_network(smollm2: Path, store: ArtifactStore) -> None:
    subject = prepare_subject(SubjectConfig(model=str(smollm2)), store=store)
    sources = (CorpusSource(name="builtin:python-reference"), CorpusSource(name="builtin:word-problems", limit=100))
    corpus = build_corpus(subject, config=CorpusConfig(sources=sources), store=store)
    told = facts(corpus)
    assert told["sources"][1]["documents"] == 100
    assert told["tokens"]["train"] > 40_000
    assert all(told["documents"][split] >= 15 for split in SPLITS)
    estimate = estimate_tokens(CorpusConfig(sources=sources), splits=["train"])
    assert estimate == pytest.approx(told["tokens"]["train"], rel=0.4)


def test_estimates_know_files_and_limits_and_admit_ignorance(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("word " * 4000)
    assert estimate_tokens(corpus_config(path)) == 5000
    assert estimate_tokens(corpus_config(path), splits=["train", "score"]) == 4000
    assert estimate_tokens(corpus_config(path, max_tokens=SplitTokens(train=100))) == 1600
    hub = CorpusConfig(sources=(CorpusSource(name="org/data"),), max_tokens=SplitTokens(train=1000, health=10))
    assert estimate_tokens(hub) is None
    assert estimate_tokens(hub, splits=["train", "health"]) == 1010


def test_too_little_text_is_refused(subject: Artifact, store: ArtifactStore, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ["w1 w2 w3 w4 w5 w6 w7 w8 w9"])
    with pytest.raises(
        DataError, match=r"too short: 1 documents give 9 usable tokens.*at least 32 tokens.*Next: add text"
    ):
        build_corpus(subject, config=corpus_config(path), store=store)


def test_a_needed_split_without_a_context_is_refused(subject: Artifact, store: ArtifactStore, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", planted_documents(2))
    with pytest.raises(
        DataError, match=r"corpus\.fractions: split '\w+' is empty: none of 2 documents.*Next: add documents"
    ):
        build_corpus(subject, config=corpus_config(path), store=store)
    only = corpus_config(path, fractions=SplitFractions(train=1, health=0, explain=0, score=0))
    assert facts(build_corpus(subject, config=only, store=store))["contexts"]["train"] > 0


def test_a_limit_below_one_context_is_refused(subject: Artifact, planted_corpus: Path, store: ArtifactStore) -> None:
    config = corpus_config(planted_corpus, max_tokens=SplitTokens(health=5))
    with pytest.raises(DataError, match=r"corpus\.max_tokens\.health: split 'health' is empty.*got 5"):
        build_corpus(subject, config=config, store=store)


def test_a_source_of_blank_lines_is_refused(subject: Artifact, store: ArtifactStore, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n \n\n")
    with pytest.raises(DataError, match=r"holds no text.*a\.txt"):
        build_corpus(subject, config=corpus_config(tmp_path / "a.txt"), store=store)


def test_half_a_surrogate_pair_is_refused(subject: Artifact, store: ArtifactStore, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n{"text": "bad \\ud83d"}\n')
    with pytest.raises(DataError, match=r"document 1 holds half a surrogate pair \(U\+D83D\)"):
        build_corpus(subject, config=corpus_config(tmp_path / "a.jsonl"), store=store)


def test_a_context_longer_than_the_model_takes_is_refused(
    subject: Artifact, planted_corpus: Path, store: ArtifactStore
) -> None:
    with pytest.raises(ConfigError, match=r"corpus\.context_length: .* takes at most 256 tokens.*got 512"):
        build_corpus(subject, config=corpus_config(planted_corpus, context_length=512), store=store)


def test_a_corpus_without_sources_is_refused(subject: Artifact) -> None:
    with pytest.raises(ConfigError, match=r"corpus\.sources: names no source"):
        build_corpus_recipe(subject, config=CorpusConfig(sources=()))


def test_an_unknown_split_is_refused(subject: Artifact, planted_corpus: Path, store: ArtifactStore) -> None:
    corpus = build_corpus(subject, config=corpus_config(planted_corpus), store=store)
    with pytest.raises(ConfigError, match=r"unknown split.*'test'.*train, health, explain, score"):
        read_contexts(corpus, splits=["test"])  # type: ignore[list-item]


def test_a_damaged_table_is_refused(subject: Artifact, planted_corpus: Path, store: ArtifactStore) -> None:
    corpus = build_corpus(subject, config=corpus_config(planted_corpus), store=store)
    (corpus.path / "contexts.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(DamagedArtifactError, match=r"unreadable corpus table.*contexts\.parquet.*Next: remove"):
        read_contexts(corpus)


def test_wikitext2_becomes_contexts(smollm2: Path, store: ArtifactStore) -> None:
    path = SHARED / "wikitext2-valid.txt"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    subject = prepare_subject(SubjectConfig(model=str(smollm2)), store=store)
    limits = SplitTokens(train=20_000, health=3_000, explain=3_000, score=3_000)
    config = corpus_config(path, context_length=128, max_tokens=limits)
    told = facts(build_corpus(subject, config=config, store=store))
    assert told["sources"][0]["documents"] == 60
    assert 19_800 < told["tokens"]["train"] <= 20_000
