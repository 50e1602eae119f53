"""Other corpora of the same text, other tokenizers: documents paired by text, losses in bits per byte."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from planted import vocabulary
from planted_health import HOOKPOINTS, Prepared, prepare
from planted_models import compare, health, layer, side
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from saeinterp.artifacts import ArtifactStore
from saeinterp.compare.comparability import lineage
from saeinterp.compare.evaluated import EvaluatedText
from saeinterp.compare.layers import compare_layers
from saeinterp.compare.sides import Place
from saeinterp.config import CorpusConfig, CorpusSource, SplitFractions
from saeinterp.errors import ComparabilityError
from saeinterp.health import DocumentSums
from saeinterp.subject import build_corpus, read_contexts
from saeinterp.subject import documents as document_texts


def write_splitting_subject(folder: Path) -> Path:
    """A subject of random weights whose tokenizer splits the number off a word: more tokens for the same text."""
    words = sorted({word.rstrip("0123456789") for word in vocabulary()[3:]}) + [str(digit) for digit in range(10)]
    tokens = ["<unk>", "<bos>", "<eos>", *words]
    tokenizer = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Digits(individual_digits=True)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<bos>", eos_token="<eos>", pad_token="<eos>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokens), hidden_size=64, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=4, max_position_embeddings=256, tie_word_embeddings=False, initializer_range=0.2,
            bos_token_id=1, eos_token_id=2, pad_token_id=2,
        )
    ).save_pretrained(folder)  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def splitting(shared_store: ArtifactStore, tmp_path_factory: pytest.TempPathFactory, documents: Path) -> Prepared:
    folder = write_splitting_subject(tmp_path_factory.mktemp("splitting") / "subject")
    return prepare(shared_store, folder, documents)


def text_of(parts: Prepared) -> EvaluatedText:
    found = EvaluatedText.read(lineage(parts.corpus))
    assert found is not None
    return found


def test_bytes_and_tokens_are_those_of_the_contexts(real: Prepared) -> None:
    text = text_of(real)
    sizes: dict[str, int] = {}
    counts: dict[str, int] = {}
    texts = document_texts(real.corpus)
    for context in read_contexts(real.corpus, splits="health"):
        key = text.keys[int(context.doc_ids[-1])]
        sizes[key] = sizes.get(key, 0) + len(context.text(0, len(context.token_ids), texts).encode())
        counts[key] = counts.get(key, 0) + int((context.char_ends > context.char_starts).sum())
    assert dict(text.sizes) == sizes
    assert {key: len(tokens) for key, tokens in text.tokens.items()} == counts


def test_bytes_of_text_beyond_ascii(real: Prepared, shared_store: ArtifactStore, tmp_path: Path) -> None:
    line = "naïve 日本 🙂 word " * 6
    path = tmp_path / "documents.jsonl"
    path.write_text("".join(json.dumps({"text": f"{line}{n}"}, ensure_ascii=False) + "\n" for n in range(10, 40)))
    fractions = SplitFractions(train=0, health=1, explain=0, score=0)
    config = CorpusConfig(sources=(CorpusSource(name=str(path)),), context_length=64, fractions=fractions)
    corpus = build_corpus(real.artifact, config=config, store=shared_store)
    text = EvaluatedText.read(lineage(corpus))
    assert text is not None
    assert len(text.sizes) == 30
    assert set(text.sizes.values()) == {len(line.encode()) + 2}


def test_tokenizers_are_told_apart_by_what_they_do(real: Prepared, control: Prepared, splitting: Prepared) -> None:
    assert text_of(real).same_tokens(text_of(control)) is True
    assert text_of(real).same_tokens(text_of(splitting)) is False


def test_other_tokenizers_are_compared_in_bits_per_byte(
    real: Prepared, splitting: Prepared, shared_store: ArtifactStore
) -> None:
    a, b = health(shared_store, real), health(shared_store, splitting)
    found = compare(shared_store, [a], [b])
    assert found.matched  # a tokenizer is named, not refused
    rows = {row.field: row for row in found.comparability}
    assert rows["corpus"].ok
    assert (rows["tokenizer"].ok, rows["tokenizer"].severity) == (False, "soft")
    metrics = {row.metric: row for row in found.layers[0].metrics}
    assert metrics["delta_ce"].difference is None
    assert "bits per byte" in str(metrics["delta_ce"].reason)
    bits = metrics["delta_ce_bits_per_byte"]
    for value, artifact, parts in ((bits.a, a, real), (bits.b, b, splitting)):
        sums, text = DocumentSums.read(artifact.file("documents.parquet")), text_of(parts)
        added = sums.total("ce_spliced") - sums.total("ce_clean")
        scored = sum(
            text.sizes[text.keys[doc]] * count / len(text.tokens[text.keys[doc]])
            for doc, count in zip(sums.doc_ids.tolist(), sums.sums[:, 1].tolist())
        )
        assert value.value == pytest.approx(added / math.log(2) / scored)
    assert bits.verdict is not None
    assert bits.n_documents == len(set(text_of(real).keys.values()))
    assert "bit/byte" in bits.sentence
    assert metrics["fvu"].flag is not None
    assert metrics["fvu"].flag in metrics["fvu"].sentence
    assert "ΔCE in bits per byte" in found.sentence
    assert "ΔCE: not tested" not in found.sentence


def test_a_layer_that_one_side_lacks_is_missing_under_other_tokenizers_too(
    real: Prepared, splitting: Prepared, shared_store: ArtifactStore
) -> None:
    a = [health(shared_store, real, name) for name in HOOKPOINTS]
    found = compare(shared_store, a, [health(shared_store, splitting)])
    assert [item.missing for item in found.layers] == ["b", None]
    assert all(row.difference is None for row in found.layers[0].metrics)
    assert next(row for row in found.summary if row.metric == "delta_ce_bits_per_byte").layers == 1


def test_documents_are_paired_by_text_whatever_their_numbers(
    real: Prepared, planted_folder: Path, documents: Path, shared_store: ArtifactStore
) -> None:
    # Longer contexts: another corpus of the same documents and tokens. Settings differ, so it has to be allowed.
    other = prepare(shared_store, planted_folder, documents, context_length=32, control=True)
    a, b = [health(shared_store, real)], [health(shared_store, other)]
    with pytest.raises(ComparabilityError, match="corpus context_length: 24 on one side, 32 on the other"):
        compare(shared_store, a, b)
    found = compare(shared_store, a, b, allow_unmatched=True)
    rows = {row.metric: row for row in found.layers[0].metrics}
    assert rows["fvu"].n_documents == len(text_of(real).keys)
    assert "delta_ce_bits_per_byte" not in rows
    assert {row.field: row.ok for row in found.comparability}["tokenizer"]


def test_bits_per_byte_by_hand() -> None:
    # Side a adds 1 nat a token on 4 bytes a token, side b 0.5 nat on 2 bytes: the same bits per byte.
    def sae(added: float, size: float, seed: int):  # type: ignore[no-untyped-def]
        sums = side(seed, noise=0.0, spliced=3.0 + added)
        return layer(sums)._replace(scored_bytes=size * sums.sums[:, 1])

    place = Place("layers.1")
    pair = ((sae(1.0, 4.0, 0),), (sae(0.5, 2.0, 1),))
    rows = {row.metric: row for row in compare_layers({place: pair}, titles=("A", "B"), draws=200).metrics[place]}
    bits = rows["delta_ce_bits_per_byte"]
    assert bits.a.value == pytest.approx(0.25 / math.log(2))
    assert bits.difference == pytest.approx(0.0, abs=1e-12)
    assert np.isclose(rows["delta_ce"].a.value or 0, 1.0)
