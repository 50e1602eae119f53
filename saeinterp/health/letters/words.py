"""The first-letter task: which words of a vocabulary it asks for, and the prompts that ask.

A prompt ends with its word. The template goes on ("... has the first letter: X") only in the solved examples before
it: what follows a word cannot change a causal model's activations there, so it is not run. The surprising choice:
whether a word is one token is found out in its place within a prompt, never by looking at the token, so tokenizers
that mark the beginning of a word, its continuation, or neither, all go the same way.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from saeinterp.config import AbsorptionConfig
from saeinterp.subject.contexts import bos_prefix, special_ids

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
TASK = " has the first letter:"
_WORD = re.compile(r" ?[A-Za-z]+")
_BLOCK = 1024  # words tokenised at once
TRAIN_PROMPTS, TEST_PROMPTS, FRESH_PROMPTS = range(3)


class Words(NamedTuple):
    """A sample of the vocabulary: training words first, test words after them."""

    texts: list[str]
    """As they stand in a prompt, some with a leading space."""
    token_ids: np.ndarray
    """`[n]` int64: the token of each word."""
    letters: np.ndarray
    """`[n]` int64: its first letter, 0 to 25, upper and lower case alike."""
    train: int
    """How many are training words."""


class Prompt(NamedTuple):
    """One question."""

    word: int
    """Index of the word."""
    text: str
    """A text that ends with the word."""


def choose_words(tokenizer: Any, *, config: AbsorptionConfig) -> Words:
    """Draw words and split them; fewer than `config.words` where the vocabulary has no more, maybe none.

    Letters are drawn equally often as far as they have words, since each counts equally in the end: a plain sample of
    5,000 would leave two test words in X. Entries with a leading space go first: the others are mostly pieces.

    A word is a vocabulary entry of ASCII letters, with or without a leading space, that is one token in its place in
    a prompt. "cat" and " cat" are one word, taken with the space; "Cat" is another, on the same side of the split.
    """
    rng = np.random.default_rng([config.seed, 0])
    entries = _vocabulary(tokenizer)
    chosen: list[tuple[str, int]] = []
    order = _by_turns(entries, rng.permutation(len(entries)))
    for start in range(0, len(order), _BLOCK):
        block = [entries[index] for index in order[start : start + _BLOCK]]
        chosen.extend(entry for entry, fits in zip(block, _single_tokens(tokenizer, block), strict=True) if fits)
        if len(chosen) >= config.words:
            break
    chosen = chosen[: config.words]
    bare = [text.strip().lower() for text, _ in chosen]
    sizes = Counter(bare)
    spellings = list(sizes)
    test, held = set[str](), 0
    for index in rng.permutation(len(sizes)):
        if held >= config.test_fraction * len(chosen):
            break
        word = spellings[index]
        test.add(word)
        held += sizes[word]
    sides = [[entry for entry, word in zip(chosen, bare) if (word in test) is side] for side in (False, True)]
    ordered = [*sides[0], *sides[1]]
    return Words(
        texts=[text for text, _ in ordered],
        token_ids=np.array([token for _, token in ordered], np.int64),
        letters=np.array([ord(text.strip()[0].upper()) - ord("A") for text, _ in ordered], np.int64),
        train=len(sides[0]),
    )


def why_unusable(words: Words, *, config: AbsorptionConfig) -> str | None:
    """Why no task can be made of these words; None where it can."""
    count, test = len(words.texts), len(words.texts) - words.train
    if not count:
        return "not applicable: no vocabulary entry is a word of letters that is one token in a prompt"
    if min(words.train, test) <= config.context_examples:
        return (
            f"not applicable: {words.train} training and {test} test words of one token are too few for prompts "
            f"with {config.context_examples} examples"
        )
    return None


def make_prompts(words: Words, *, config: AbsorptionConfig) -> Iterator[Prompt]:
    """One prompt for every training word, one for every test word, and a second, fresh one for every test word.

    Examples are drawn without replacement, never the word itself: from the training words for training prompts, from
    the test words for test prompts, from all words for fresh ones. The draws of a prompt depend on nothing but the
    seed, the kind of prompt and the word's index.
    """
    everything, middle = len(words.texts), words.train
    plan = (
        (TRAIN_PROMPTS, range(middle), range(middle)),
        (TEST_PROMPTS, range(middle, everything), range(middle, everything)),
        (FRESH_PROMPTS, range(middle, everything), range(everything)),
    )
    lines = [f"{text}{TASK} {LETTERS[letter]}" for text, letter in zip(words.texts, words.letters, strict=True)]
    for kind, members, pool in plan:
        for word in members:
            rng = np.random.default_rng([config.seed, 1 + kind, word])
            drawn = pool.start + rng.choice(len(pool), size=config.context_examples + 1, replace=False)
            others = [int(index) for index in drawn if index != word][: config.context_examples]
            yield Prompt(word, "\n" + "".join(f"{lines[index]}\n" for index in others) + words.texts[word])


def tokenise_prompts(tokenizer: Any, prompts: Sequence[Prompt], words: Words) -> list[np.ndarray]:
    """Token ids of each prompt, int32 `[T]`, after what the tokenizer puts before any text (often BOS)."""
    prefix = bos_prefix(tokenizer)
    ids = _encode(tokenizer, [prompt.text for prompt in prompts])
    for prompt, found in zip(prompts, ids, strict=True):
        if found[-1] != words.token_ids[prompt.word]:
            raise AssertionError(f"{words.texts[prompt.word]!r} is not one token at the end of its prompt")
    return [np.array([*prefix, *found], np.int32) for found in ids]


def _vocabulary(tokenizer: Any) -> list[tuple[str, int]]:
    """Entries that read as words, one for each spelling, in order of their ids."""
    special = set(special_ids(tokenizer))
    found: dict[str, tuple[str, int]] = {}
    for token, index in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        if index in special:
            continue
        text = tokenizer.convert_tokens_to_string([token])
        # Decoders of SentencePiece vocabularies drop the space that the mark of a text's first token stands for.
        if token.startswith("▁") and not text.startswith(" "):
            text = f" {text}"
        if _WORD.fullmatch(text) and (text.startswith(" ") or text not in found):
            found[text.strip()] = (text, index)
    return sorted(found.values(), key=lambda entry: entry[1])


def _by_turns(entries: Sequence[tuple[str, int]], order: np.ndarray) -> list[int]:
    """The same indices, one of each letter in turn until it has no more; those with a leading space first.

    Where a vocabulary marks beginnings of words, entries without the mark are mostly pieces of words ("ilitating").
    """
    turn = Counter[str]()
    keys = []
    for position, index in enumerate(sorted(order, key=lambda index: not entries[index][0].startswith(" "))):
        letter = entries[index][0].strip()[0].upper()
        keys.append((turn[letter], position, int(index)))
        turn[letter] += 1
    return [index for _, _, index in sorted(keys)]


def _single_tokens(tokenizer: Any, entries: Sequence[tuple[str, int]]) -> list[bool]:
    """Whether each entry is its one token after a line end, alone and before the task's text."""
    head = f"\nword{TASK} W\n"
    before = _encode(tokenizer, [head])[0]
    at = len(before)
    alone = _encode(tokenizer, [head + text for text, _ in entries])
    within = _encode(tokenizer, [head + text + TASK for text, _ in entries])
    return [
        one == [*before, index] and full[: at + 1] == one
        for (_, index), one, full in zip(entries, alone, within, strict=True)
    ]


def _encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    encoded: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return encoded
