"""Tokens and the characters they cover."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from saeinterp.subject.contexts import Context, Cutter, Encoded, batches, bos_prefix, encode, special_ids

TEXT = "  Hello wörld 🤖🤖 yes\n\n\tfoo — naïve 日本語 end "


def byte_level(*, trim: bool) -> PreTrainedTokenizerFast:
    """A byte-level BPE like GPT-2's; `trim` leaves spaces out of the offsets, as GPT-2's does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        ["hello world hello"] * 3, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


BYTE_LEVEL = {trim: byte_level(trim=trim) for trim in (False, True)}


class SlowTokenizer:
    """A tokenizer without offsets: every UTF-8 byte is a token."""

    is_fast = False

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": list(text.encode())}

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode("utf-8", errors="replace")


def pieces_of(encoded: Encoded) -> list[str]:
    count = len(encoded.token_ids)
    context = Context(0, "train", encoded.token_ids, np.zeros(count, np.int32), encoded.starts, encoded.ends)
    return context.pieces(0, count, {0: encoded.text})


@pytest.mark.parametrize("trim", [False, True])
@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=60))
def test_the_pieces_of_the_tokens_add_up_to_the_text(trim: bool, text: str) -> None:
    encoded = encode(BYTE_LEVEL[trim], text)
    assert "".join(pieces_of(encoded)) == text[: encoded.ends[-1] if len(encoded.ends) else 0]
    assert not text[encoded.ends[-1] if len(encoded.ends) else 0 :].strip()


@pytest.mark.parametrize("trim", [False, True])
def test_parts_of_one_character_share_its_span(trim: bool) -> None:
    encoded = encode(BYTE_LEVEL[trim], "a🤖b")
    pieces = pieces_of(encoded)
    assert len(pieces) == 6
    assert [piece for piece in pieces if piece] == ["a", "🤖", "b"]
    assert (encoded.starts[2], encoded.ends[2]) == (1, 2)


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"), max_size=40))
def test_a_tokenizer_without_offsets_is_decoded_piece_by_piece(text: str) -> None:
    encoded = encode(SlowTokenizer(), text)
    assert encoded.text == text
    assert len(encoded.token_ids) == len(text.encode())
    assert "".join(pieces_of(encoded)) == text


def test_smollm2_windows_decode_from_the_document_text(smollm2: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    encoded = encode(tokenizer, TEXT)
    assert "".join(pieces_of(encoded)) == TEXT
    assert tokenizer.decode(encoded.token_ids) == TEXT
    assert bos_prefix(tokenizer) == []
    assert special_ids(tokenizer) == list(range(17))


def test_the_tokens_put_before_any_text_are_found() -> None:
    tokenizer = byte_level(trim=False)
    assert bos_prefix(tokenizer) == []
    eos = tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<eos> $A <eos>", special_tokens=[("<eos>", eos)]
    )
    assert bos_prefix(tokenizer) == [eos]


def document(length: int, first: int = 100) -> Encoded:
    """A document whose token i is `first + i` and covers character i."""
    steps = np.arange(length, dtype=np.int32)
    return Encoded(first + steps, steps, steps + 1, "x" * length)


def test_a_document_is_cut_at_multiples_of_the_length_and_its_rest_kept_from_8_tokens() -> None:
    cutter = Cutter(length=16, prefix=[], separator=None)
    assert [len(run.token_ids) for run in cutter.add(0, document(40))] == [16, 16, 8]
    assert [len(run.token_ids) for run in cutter.add(1, document(39))] == [16, 16]
    assert [len(run.token_ids) for run in cutter.add(2, document(8))] == [8]
    assert cutter.finish() == []


def test_every_context_starts_with_the_prefix_and_stays_within_the_length() -> None:
    cutter = Cutter(length=16, prefix=[1], separator=None)
    runs = cutter.add(5, document(30))
    assert [len(run.token_ids) for run in runs] == [16, 16]
    assert [run.token_ids[0] for run in runs] == [1, 1]
    assert runs[1].token_ids[1] == 115
    assert runs[1].starts[0] == runs[1].ends[0] == 15
    assert set(runs[1].doc_ids) == {5}


def test_packing_fills_contexts_and_separates_documents() -> None:
    cutter = Cutter(length=16, prefix=[], separator=2)
    first = cutter.add(0, document(10))
    assert first == []
    assert cutter.pending_documents == {0}
    (run,) = cutter.add(1, document(12, first=200))
    assert list(run.token_ids) == [*range(100, 110), 2, *range(200, 205)]
    assert list(run.doc_ids) == [0] * 11 + [1] * 5
    assert run.starts[10] == run.ends[10] == 10
    assert cutter.pending_documents == {1}
    (rest,) = cutter.finish()
    assert list(rest.token_ids) == [*range(205, 212), 2]


def test_batches_are_padded_on_the_right() -> None:
    contexts = [
        Context(index, "train", np.arange(1, length + 1, dtype=np.int32), *(np.zeros(length, np.int32),) * 3)
        for index, length in enumerate([3, 5, 2])
    ]
    first, second = batches(contexts, 2)
    assert first.input_ids.tolist() == [[1, 2, 3, 0, 0], [1, 2, 3, 4, 5]]
    assert first.attention_mask.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert second.input_ids.tolist() == [[1, 2]]
