"""Words and prompts of the first-letter task, for tokenizers of every kind."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planted_letters import write_letter_subject
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from saeinterp.config import AbsorptionConfig
from saeinterp.health.letters.words import LETTERS, choose_words, make_prompts, tokenise_prompts, why_unusable

CONFIG = AbsorptionConfig(words=150, context_examples=4)


def texts() -> list[str]:
    from pydoc_data.topics import topics

    return [text for _, text in sorted(topics.items())][:30]


def byte_level() -> PreTrainedTokenizerFast:
    """As GPT-2 and Llama 3: a space belongs to the word after it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1500, initial_alphabet=alphabet, special_tokens=["<s>", "</s>"])
    tokenizer.train_from_iterator(texts(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


def with_bos() -> PreTrainedTokenizerFast:
    """One that puts BOS before every text, and EOS after it."""
    found = byte_level()
    ids = [("<s>", found.convert_tokens_to_ids("<s>")), ("</s>", found.convert_tokens_to_ids("</s>"))]
    found.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A $B </s>", special_tokens=ids
    )
    return PreTrainedTokenizerFast(tokenizer_object=found.backend_tokenizer, bos_token="<s>", eos_token="</s>")


def metaspace() -> PreTrainedTokenizerFast:
    """As Llama 2: spaces are marks within tokens, one is put before the text, bytes stand in for what is unknown."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    special = ["<unk>", *[f"<0x{byte:02X}>" for byte in range(256)]]
    words = [word for text in texts() for word in text.split()]
    tokenizer.train_from_iterator(words, trainers.BpeTrainer(vocab_size=1500, special_tokens=special))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def word_piece() -> PreTrainedTokenizerFast:
    """As BERT: continuations are marked, spaces and line ends are dropped."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=1500, special_tokens=["[UNK]"])
    tokenizer.train_from_iterator(texts(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


@pytest.fixture(scope="module", params=[byte_level, with_bos, metaspace, word_piece])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return request.param()


def test_every_word_is_one_token_at_the_end_of_its_prompt(tokenizer: Any) -> None:
    words = choose_words(tokenizer, config=CONFIG)
    assert len(words.texts) == CONFIG.words
    assert why_unusable(words, config=CONFIG) is None
    prompts = list(make_prompts(words, config=CONFIG))
    for prompt, ids in zip(prompts, tokenise_prompts(tokenizer, prompts, words), strict=True):
        text, letter = words.texts[prompt.word], LETTERS[words.letters[prompt.word]]
        assert text.strip().isalpha()
        assert text.strip()[0].upper() == letter
        assert prompt.text.endswith("\n" + text)
        assert ids[-1] == words.token_ids[prompt.word]
        # The whole sentence begins with the tokens of the prompt: nothing that follows changes them.
        whole = tokenizer(prompt.text + " has the first letter: X", add_special_tokens=False)["input_ids"]
        bare = ids[1:] if tokenizer.bos_token else ids
        assert whole[: len(bare)] == bare.tolist()


def test_a_prompt_begins_with_bos_where_the_tokenizer_adds_it_and_never_ends_with_eos() -> None:
    tokenizer = with_bos()
    words = choose_words(tokenizer, config=CONFIG)
    prompts = list(itertools.islice(make_prompts(words, config=CONFIG), 5))
    ids = tokenise_prompts(tokenizer, prompts, words)
    assert {found[0] for found in ids} == {tokenizer.bos_token_id}
    assert all(tokenizer.eos_token_id not in found for found in ids)
    without = tokenise_prompts(byte_level(), prompts, words)
    assert all(found[1:].tolist() == bare.tolist() for found, bare in zip(ids, without, strict=True))


def test_words_are_split_by_spelling_and_examples_come_from_the_right_side(tokenizer: Any) -> None:
    words = choose_words(tokenizer, config=CONFIG)
    bare = [text.strip() for text in words.texts]
    assert len(set(bare)) == len(bare)
    train, test = bare[: words.train], bare[words.train :]
    assert len(test) / len(bare) == pytest.approx(CONFIG.test_fraction, abs=0.03)
    assert not {word.lower() for word in train} & {word.lower() for word in test}
    seen: dict[int, list[list[str]]] = {}
    for number, prompt in enumerate(make_prompts(words, config=CONFIG)):
        lines = prompt.text.split("\n")
        assert lines[0] == ""
        assert len(lines) == 2 + CONFIG.context_examples
        examples = [line.split(" has the first letter: ") for line in lines[1:-1]]
        shown = [word.strip() for word, _ in examples]
        assert len(set(shown)) == len(shown)
        assert bare[prompt.word] not in shown
        assert all(word[0].upper() == letter for word, letter in zip(shown, (letter for _, letter in examples)))
        if number < len(bare):
            assert set(shown) <= set(train if number < len(train) else test)
        seen.setdefault(prompt.word, []).append(shown)
    # A test word is asked for twice, with other examples.
    assert all(len(found) == (1 if word < words.train else 2) for word, found in seen.items())
    assert all(found[0] != found[1] for word, found in seen.items() if word >= words.train)


def test_a_seed_gives_the_same_words_and_prompts_and_another_does_not(tokenizer: Any) -> None:
    one, two = (choose_words(tokenizer, config=CONFIG) for _ in range(2))
    assert one.texts == two.texts
    assert one.train == two.train
    assert list(make_prompts(one, config=CONFIG)) == list(make_prompts(two, config=CONFIG))
    other = CONFIG.model_copy(update={"seed": 1})
    assert choose_words(tokenizer, config=other).texts != one.texts
    assert [p.text for p in make_prompts(one, config=other)] != [p.text for p in make_prompts(one, config=CONFIG)]


def test_letters_are_drawn_equally_often_as_far_as_they_have_words(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(
        write_letter_subject(tmp_path / "subject")
    )  # 400 words in A, 40 in others
    few = choose_words(tokenizer, config=CONFIG.model_copy(update={"words": 260}))
    assert np.bincount(few.letters).tolist() == [10] * 26
    many = choose_words(tokenizer, config=CONFIG.model_copy(update={"words": 1200}))
    assert np.bincount(many.letters).tolist() == [200] + [40] * 25


def test_entries_that_begin_a_word_are_drawn_before_pieces_of_words() -> None:
    tokenizer = byte_level()
    everything = choose_words(tokenizer, config=CONFIG.model_copy(update={"words": 5000}))
    spaced = [text for text in everything.texts if text.startswith(" ")]
    assert 0 < len(spaced) < len(everything.texts)
    most = min(Counter(text[1].upper() for text in spaced).values())
    few = choose_words(tokenizer, config=CONFIG.model_copy(update={"words": 26 * most}))
    assert sum(text.startswith(" ") for text in few.texts) >= 0.8 * len(few.texts)
    assert sum(text.startswith(" ") for text in everything.texts) < 0.8 * len(everything.texts)


def test_entries_that_are_several_tokens_in_a_prompt_are_left_out() -> None:
    entries = ["<unk>", "\n", "a", "b", "c", "bc", "abc", "ab"]
    merges = [("b", "c"), ("a", "bc")]  # nothing makes "ab": it is in the vocabulary, and never in a text
    vocabulary = {entry: index for index, entry in enumerate(entries)}
    model = models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), unk_token="<unk>")
    words = choose_words(tokenizer, config=CONFIG)
    assert sorted(words.texts) == ["a", "abc", "b", "bc", "c"]


def test_a_vocabulary_without_words_says_so(planted_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(planted_folder)  # its words end in digits
    words = choose_words(tokenizer, config=CONFIG)
    assert words.texts == []
    assert "no vocabulary entry is a word" in str(why_unusable(words, config=CONFIG))


def test_too_few_words_for_the_examples_says_so(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(write_letter_subject(tmp_path / "subject", letters="X"))
    words = choose_words(tokenizer, config=AbsorptionConfig())
    assert 0 < len(words.texts) <= 40
    assert "too few for prompts with 10 examples" in str(why_unusable(words, config=AbsorptionConfig()))


def test_all_words_of_smollm2(smollm2: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    words = choose_words(tokenizer, config=AbsorptionConfig(words=10**6))
    assert len(words.texts) == 39_002
    assert set(np.unique(words.letters)) == set(range(26))
    assert sum(text.startswith(" ") for text in words.texts) > 30_000
