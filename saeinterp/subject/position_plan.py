"""What a capture at chosen places reads and keeps, known before any model is loaded.

The surprising choice: continuous thoughts are planned like tokens. A pass over a prompt gives one row at its last token
and one per thought, and slots choose among these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from saeinterp.artifacts import Artifact
from saeinterp.config import PositionsConfig
from saeinterp.errors import ConfigError, DataError
from saeinterp.ids import site_name
from saeinterp.subject.contexts import CONTEXTS_SCHEMA, Contexts
from saeinterp.subject.models import load_tokenizer, subject_info
from saeinterp.subject.positions import Selector, parse_select, places
from saeinterp.subject.problems import PROBLEM_SPLITS, Problems
from saeinterp.subject.thought_checkpoints import find_bot
from saeinterp.subject.thoughts import thought_prompts

MIN_TRAIN_ROWS = 16
_NO_TOKEN = -1  # of a thought


class Kept(NamedTuple):
    """What is kept of one slot of one problem: int32 `[k]` each.

    Attributes:
        row: Among those that a pass gives for the problem.
        position: As it is stored.
        token: The token there, -1 for a thought.
    """

    row: np.ndarray
    position: np.ndarray
    token: np.ndarray


@dataclass(frozen=True)
class Plan:
    """What runs, and what is kept of it.

    Attributes:
        selector: The chosen places.
        bot: The token before the thoughts, where there are thoughts and such a token.
        contexts: What the model reads, one per problem: the problems, or the prompts of their thoughts.
        splits: Of each problem.
        kept: Per problem and slot.
        sites: Site -> hookpoint and slot.
    """

    selector: Selector
    bot: int | None
    contexts: Contexts
    splits: Sequence[str]
    kept: Sequence[Sequence[Kept]]
    sites: Mapping[str, tuple[str, int | None]]

    @property
    def shift(self) -> int:
        """What is added to stored positions: 1 where places are chosen, so that no mask takes them for position 0."""
        return 0 if self.selector.slots is None else 1

    @property
    def titles(self) -> list[str]:
        """A title for each slot."""
        if self.selector.part == "bot" and self.bot is None:
            return ["end of the question", *self.selector.titles[1:]]
        return self.selector.titles

    @property
    def thoughts(self) -> int:
        """How many thoughts are needed for the slots."""
        return self.selector.number - (self.selector.part == "bot")

    @cached_property
    def counts(self) -> np.ndarray:
        """`[slots, problems]`: rows kept."""
        return np.array([[len(slot.row) for slot in kept] for kept in self.kept]).T

    def problems(self) -> dict[str, int]:
        """How many there are in each split."""
        return {split: int(self._of(split).sum()) for split in PROBLEM_SPLITS}

    def rows(self, slot: int | None) -> dict[str, int]:
        """The rows of one slot in each split."""
        return {split: int(self.counts[slot or 0, self._of(split)].sum()) for split in PROBLEM_SPLITS}

    def missing(self, slot: int) -> dict[str, int]:
        """How many problems of each split lack a slot."""
        return {split: int((self.counts[slot, self._of(split)] == 0).sum()) for split in PROBLEM_SPLITS}

    def refuse_empty(self, select: str) -> None:
        """Refuse places that too few problems have.

        Raises:
            DataError: Naming the place and how many problems have it.
        """
        problems = self.problems()
        for slot, title in enumerate(self.titles):
            rows = self.rows(slot)
            if rows["train"] < MIN_TRAIN_ROWS or rows["health"] < 1:
                raise DataError(
                    f"too few problems have the place '{title}': {rows['train']} rows in the {problems['train']} to "
                    f"train on, {rows['health']} in the {problems['health']} samples",
                    field="positions.select",
                    got=select,
                    expected=f"at least {MIN_TRAIN_ROWS} rows to train on and 1 in the samples",
                    next_step="choose other places, or take more or longer problems",
                )

    def _of(self, split: str) -> np.ndarray:
        return np.array([name == split for name in self.splits], dtype=bool)


def plan_positions(
    subject: Artifact, problems: Problems, *, hookpoints: Sequence[str], positions: PositionsConfig
) -> Plan:
    """Choose the places of every problem.

    Raises:
        DataError: The problems hold tokens that the subject does not know.
        ConfigError: No such selector; thoughts without a question, an end token or a token to begin with, or beyond the
            subject's longest text.
    """
    selector = parse_select(positions.select)
    info = subject_info(subject)
    bot = None
    if positions.thoughts is None:
        texts = problems.token_ids
        _refuse_unknown(texts, info)
        shift = 0 if selector.slots is None else 1
        kept = [
            [Kept(index, index + shift, ids[index]) for index in places(selector, ids, cot=cot)]
            for ids, cot in zip(texts, problems.cot, strict=True)
        ]
    else:
        tokenizer = load_tokenizer(subject)
        bot = find_bot(positions.thoughts, tokenizer=tokenizer, vocab_size=info["vocab_size"])
        texts = thought_prompts(tokenizer, problems.questions, config=positions.thoughts, bot=bot)
        _refuse_longer(texts, selector, info)
        kept = [_thoughts(ids, selector) for ids in texts]
    slots: list[int | None] = [None] if selector.slots is None else list(range(selector.slots))
    sites = {site_name(name, slot): (name, slot) for name in hookpoints for slot in slots}
    return Plan(selector, bot, _contexts(problems, texts), problems.splits, kept, sites)


def _thoughts(prompt: np.ndarray, selector: Selector) -> list[Kept]:
    """Row 0 is the prompt's last token, row i is thought i."""
    first = 0 if selector.part == "bot" else 1
    result = []
    for step in range(first, first + selector.number):
        place = (step, len(prompt) - 1 + step + 1, _NO_TOKEN if step else int(prompt[-1]))
        result.append(Kept(*(np.array([value], np.int32) for value in place)))
    return result


def _refuse_unknown(texts: Sequence[np.ndarray], info: Mapping[str, Any]) -> None:
    largest = max((int(ids.max(initial=0)) for ids in texts), default=0)
    if largest >= info["vocab_size"]:
        raise DataError(
            "the problems were tokenised for another model",
            field="corpus",
            got=f"token {largest}",
            expected=f"tokens below {info['vocab_size']}, the vocabulary of {info['title']}",
            next_step="build the problems with this subject's tokenizer",
        )


def _refuse_longer(prompts: Sequence[np.ndarray], selector: Selector, info: Mapping[str, Any]) -> None:
    longest = max((len(ids) for ids in prompts), default=0) + selector.number
    if info["max_positions"] is not None and longest > info["max_positions"]:
        raise ConfigError(
            f"{info['title']} takes at most {info['max_positions']} tokens, and the longest question with its thoughts "
            f"has {longest}",
            field="corpus.max_tokens",
            got=longest,
            next_step="lower corpus.max_tokens: longer problems are left out and counted",
        )


def _contexts(problems: Problems, texts: Sequence[np.ndarray]) -> Contexts:
    """The texts as contexts, one per problem, whose document is the sample."""
    blank = [np.zeros(len(ids), np.int32) for ids in texts]
    columns = {
        "context_id": problems.samples,
        "split": problems.splits,
        "token_ids": list(texts),
        "doc_ids": [np.full(len(ids), sample, np.int32) for sample, ids in zip(problems.samples, texts, strict=True)],
        "char_starts": blank,
        "char_ends": blank,
    }
    return Contexts(pa.table(columns, schema=CONTEXTS_SCHEMA))
