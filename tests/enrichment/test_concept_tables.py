"""Which samples hold which tokens: every grammar through the artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from tiny_models import write_tiny_model

from saeinterp.artifacts import Artifact, ArtifactStore, Recipe, read_json
from saeinterp.config import CorpusSource, ProblemsConfig, SubjectConfig
from saeinterp.config.enrichment import ConceptsConfig
from saeinterp.enrichment.concept_tables import Concepts, build_concepts, build_concepts_recipe, read_concepts
from saeinterp.errors import DamagedArtifactError, DataError
from saeinterp.subject import build_problems, load_tokenizer, prepare_subject

GSM8K = Path(__file__).parents[3] / "shared" / "data" / "gsm8k-train.jsonl"
ANSWERS = [
    "She sold <<48/2=24>>24, then <<24+1.50=25.50>>25.5. Cats!",
    "Nothing to count, said the cat: 'NOTHING'.",
    "All <<12-1.5=10.5>>10.5 of 48 cats.",
]


def problems(store: ArtifactStore, reasoning: list[str], **columns: list[Any]) -> Artifact:
    """Problems as the builder of problems leaves them; the last one is for training."""
    count = len(reasoning)
    frame = pl.DataFrame(
        {
            "sample": np.arange(count, dtype=np.int32),
            "id": [f"train_{index}" for index in range(count)],
            "split": ["health"] * (count - 1) + ["train"],
            "question": [""] * count,
            "reasoning": reasoning,
            "generated": [None] * count,
            "tags": columns.get("tags", [None] * count),
            "token_ids": columns.get("token_ids", [[0]] * count),
            "cot_start": np.zeros(count, np.int32) + columns.get("cot_start", [0] * count),
            "cot_stop": np.zeros(count, np.int32) + columns.get("cot_stop", [1] * count),
        },
        schema_overrides={"generated": pl.String, "tags": pl.List(pl.String), "token_ids": pl.List(pl.Int32)},
    )
    recipe = Recipe("problems", "made", 1, {"texts": reasoning, **columns})
    return store.build(recipe, lambda space: frame.write_parquet(space.out / "problems.parquet"))


def built(store: ArtifactStore, table: Artifact, subject: Artifact | None = None, **config: Any) -> Artifact:
    """The concepts of some problems; most grammars need no subject."""
    return build_concepts(table, subject or table, config=ConceptsConfig(**config), store=store)


def held(concepts: Concepts) -> list[set[str]]:
    """The tokens of each sample."""
    return [{concepts.vocabulary[token] for token in row.nonzero()[0]} for row in concepts.present.toarray()]


def test_a_token_counts_once_per_sample_and_training_problems_not_at_all(store: ArtifactStore) -> None:
    artifact = built(store, problems(store, [*ANSWERS, "<<7*7=49>>"]))
    concepts = read_concepts(artifact)
    assert held(concepts) == [{"48", "/", "2", "=", "24", "+", "1.5", "25.5"}, set(), {"12", "-", "1.5", "=", "10.5"}]
    assert concepts.vocabulary[:2] == ["1.5", "="]  # those that most samples hold first, then by text
    assert concepts.categories[:3] == ["number", "operator", "operator"]
    assert concepts.counts.tolist() == [2, 0, 1]  # calculations, not tokens
    assert concepts.samples.tolist() == [0, 1, 2]
    assert concepts.ids == ["train_0", "train_1", "train_2"]
    facts = read_json(artifact.file("concepts.json"))
    assert facts["unique_tokens"] == 11
    assert facts["tokens_per_problem"] == pytest.approx((10 + 0 + 5) / 3)
    assert facts["distinct_per_problem"] == pytest.approx((8 + 0 + 5) / 3)
    assert (facts["without_tokens"], facts["counted"]) == (1, "annotations")
    assert facts["categories"] == {"number": 7, "operator": 4}


def test_a_pattern_gives_tokens_of_the_categories_it_names(store: ArtifactStore) -> None:
    table = problems(store, ["7 cats, 7 dogs", "cats or 12", "unused"])
    concepts = read_concepts(built(store, table, grammar="regex", pattern=r"(?P<number>\d+)|(?P<word>[a-z]+)"))
    assert dict(zip(concepts.vocabulary, concepts.categories, strict=True)) == {
        "cats": "word",
        "12": "number",
        "7": "number",
        "dogs": "word",
        "or": "word",
    }
    assert concepts.counts.tolist() == [4, 3]
    plain = read_concepts(built(store, table, grammar="regex", pattern=r"\d*"))
    assert (plain.vocabulary, plain.categories) == (["12", "7"], ["match", "match"])


def test_words_are_bare_and_lower_case(store: ArtifactStore) -> None:
    table = problems(store, ["“Nothing,” she said… $5 for C++ -- nothing!", "(don't) SAID", "unused"])
    concepts = read_concepts(built(store, table, grammar="words"))
    assert held(concepts) == [{"nothing", "she", "said", "$5", "for", "c++"}, {"don't", "said"}]
    assert concepts.counts.tolist() == [7, 2]


def test_tags_of_your_own(store: ArtifactStore) -> None:
    table = problems(
        store, ["a", "b", "c", "unused"], tags=[["geometry", "hard"], None, ["geometry", "geometry"], None]
    )
    concepts = read_concepts(built(store, table, grammar="column"))
    assert held(concepts) == [{"geometry", "hard"}, set(), {"geometry"}]
    assert set(concepts.categories) == {"tag"}
    with pytest.raises(DataError, match="tags_column"):
        built(store, problems(store, ["a", "b"]), grammar="column")


def test_tokens_are_those_of_the_reasoning_that_the_model_reads(store: ArtifactStore, planted_folder: Path) -> None:
    subject = prepare_subject(SubjectConfig(model=str(planted_folder)), store=store)
    # Ids 3, 4, 5: metal0, metal1, metal2.
    table = problems(store, ["-"] * 3, token_ids=[[3, 4, 5, 4], [5, 5], [3]], cot_start=[1, 0, 0], cot_stop=[4, 2, 1])
    concepts = read_concepts(built(store, table, subject, grammar="tokens"))
    assert held(concepts) == [{"metal1", "metal2"}, {"metal2"}]
    assert concepts.counts.tolist() == [3, 2]


def test_tokens_that_are_parts_of_a_character_stay_apart(store: ArtifactStore, tmp_path: Path) -> None:
    subject = prepare_subject(SubjectConfig(model=str(write_tiny_model(tmp_path / "bytes", "llama"))), store=store)
    ids = load_tokenizer(subject).encode("aé")
    table = problems(store, ["-", "-"], token_ids=[ids, ids], cot_stop=[3, 3])
    concepts = read_concepts(built(store, table, subject, grammar="tokens"))
    assert len(set(concepts.vocabulary)) == 3
    assert "a" in concepts.vocabulary
    assert not any("\ufffd" in text for text in concepts.vocabulary)


def test_tokens_that_decode_alike_stay_apart(store: ArtifactStore, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    folder = write_tiny_model(tmp_path / "model", "llama")
    tokenizer = Tokenizer(models.WordLevel({"▁the": 0, "the": 1, "<unk>": 2}, unk_token="<unk>"))
    tokenizer.decoder = decoders.Metaspace()  # drops the space before a text
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder)
    subject = prepare_subject(SubjectConfig(model=str(folder)), store=store)
    table = problems(store, ["-", "-", "-"], token_ids=[[0], [1], [0]])
    concepts = read_concepts(built(store, table, subject, grammar="tokens"))
    first, second = held(concepts)
    assert len(first) == len(second) == 1
    assert first != second


def test_a_vocabulary_keeps_what_most_samples_hold(store: ArtifactStore) -> None:
    table = problems(store, ["a b c", "b c", "c d", "unused"])
    artifact = built(store, table, grammar="words", max_vocabulary=2)
    concepts = read_concepts(artifact)
    assert concepts.vocabulary == ["c", "b"]
    assert concepts.present.toarray().tolist() == [[True, True], [True, True], [True, False]]
    assert concepts.counts.tolist() == [3, 2, 2]
    assert read_json(artifact.file("concepts.json"))["unique_tokens"] == 4


@pytest.mark.parametrize(("grammar", "words"), [("canonical", "<<48/2=24>>"), ("words", "a token in one sample")])
def test_samples_without_any_token_are_refused(store: ArtifactStore, grammar: str, words: str) -> None:
    with pytest.raises(DataError, match="no sample holds a token") as caught:
        built(store, problems(store, ["--", "?", "unused"]), grammar=grammar)
    assert words in str(caught.value)


def test_a_table_that_names_other_samples_is_damaged(store: ArtifactStore) -> None:
    artifact = built(store, problems(store, ["a b", "b", "unused"]), grammar="words")
    other = pl.DataFrame({"sample": [7], "token": [0]}, schema={"sample": pl.Int32, "token": pl.Int32})
    other.write_parquet(artifact.path / "present.parquet")
    with pytest.raises(DamagedArtifactError, match="not there"):
        read_concepts(artifact)


def test_the_recipe_follows_the_grammar_and_nothing_else(store: ArtifactStore) -> None:
    table = problems(store, ANSWERS)
    one, same, other = (
        build_concepts_recipe(table, table, config=ConceptsConfig(grammar=grammar))
        for grammar in ("canonical", "canonical", "seed")
    )
    assert one.hash == same.hash != other.hash


def test_the_published_vocabulary_through_the_artifact(store: ArtifactStore, tmp_path: Path) -> None:
    if not GSM8K.exists():
        pytest.skip("GSM8K is not on this machine")
    subject = prepare_subject(SubjectConfig(model=str(write_tiny_model(tmp_path / "model", "llama"))), store=store)
    source = CorpusSource(name=str(GSM8K), limit=None)
    config = ProblemsConfig(source=source, samples=1000, training=1, order="id", max_tokens=4096)
    artifact = built(store, build_problems(subject, config=config, store=store), subject, grammar="seed")
    facts = read_json(artifact.file("concepts.json"))
    assert (facts["unique_tokens"], facts["tokens_per_problem"], facts["distinct_per_problem"]) == (628, 16.913, 9.778)
    assert facts["categories"] == {"number": 621, "operator": 7}
    concepts = read_concepts(artifact)
    assert concepts.ids[:3] == ["train_0", "train_1", "train_10"]
    assert concepts.present.shape == (1000, 628)
    assert (concepts.present.sum(axis=0) == 1).sum() == 350
