"""Asking a model which examples an explanation fits: one text a request, or several as a numbered list.

The surprising choice: the order of a latent's examples is shuffled with a seed of its own before it is cut into
requests. It does not depend on the explanation, so that sides stay paired, and neither order nor number says which
examples are the true ones.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from saeinterp.config import ScorerConfig
from saeinterp.explain.llm import Reply, Request
from saeinterp.explain.prompts import fill
from saeinterp.explain.verdicts import parse_verdicts

CHOICES = ("Yes", "No")
ORDER_SEED = 0
"""Of the order of examples, with the latent; fixed, so that equal example sets are asked about alike."""
_ANSWER = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)


class Judgement(NamedTuple):
    """One verdict: what was said, P(match) where known, and whether it is usable (`ok`, `unusable`, `error`)."""

    verdict: bool | None
    probability: float | None
    status: str


class Question(NamedTuple):
    """One request: the latent, the positions of its examples in the table in the order asked, and what is sent."""

    latent: int
    rows: tuple[int, ...]
    request: Request


def prompt_name(config: ScorerConfig) -> str:
    """The prompt file of a scorer."""
    return f"{config.kind}-list" if config.kind != "simulation" and config.together > 1 else config.kind


def questions(
    latents: Sequence[int], texts: Sequence[str], explanations: Mapping[int, str], *, config: ScorerConfig
) -> list[Question]:
    """The requests that judge all examples, latent by latent.

    Args:
        latents: Latent of each example [n]; those of one latent are neighbours.
        texts: Text of each example [n].
        explanations: What is said of each latent.
        config: The scorer; at most `config.together` examples share a request, the last of a latent may have fewer.
    """
    return [
        Question(latent, rows, question_request(latent, rows, texts, explanations[latent], config=config))
        for latent, rows in examples_asked(latents, together=config.together)
    ]


def examples_asked(latents: Sequence[int], *, together: int) -> list[tuple[int, tuple[int, ...]]]:
    """The latent of each request, and the positions of its examples in the order asked.

    Args:
        latents: Latent of each example [n]; those of one latent are neighbours.
        together: Most examples of a request.
    """
    rows_of: dict[int, list[int]] = {}
    for row, latent in enumerate(latents):
        rows_of.setdefault(latent, []).append(row)
    found = []
    for latent, rows in rows_of.items():
        order = np.random.default_rng([ORDER_SEED, latent]).permutation(len(rows))
        for start in range(0, len(rows), together):
            found.append((latent, tuple(rows[index] for index in order[start : start + together])))
    return found


def question_request(
    latent: int, rows: Sequence[int], texts: Sequence[str], explanation: str, *, config: ScorerConfig
) -> Request:
    """The request about some examples of one latent."""
    return _request(latent, [" ".join(texts[row].split()) for row in rows], explanation, config)


def _request(latent: int, texts: Sequence[str], explanation: str, config: ScorerConfig) -> Request:
    name = prompt_name(config)
    if config.together == 1:
        return Request(
            messages=fill(name, {"explanation": explanation, "text": texts[0]}),
            max_tokens=config.llm.max_tokens,
            temperature=config.llm.temperature,
            seed=config.llm.seed,
            choices=CHOICES,
            group=str(latent),
        )
    numbered = "\n".join(f"Text {number}: {text}" for number, text in enumerate(texts, start=1))
    values = {"explanation": explanation, "texts": numbered, "count": str(len(texts))}
    return Request(
        messages=fill(name, values),
        max_tokens=max(config.llm.max_tokens, list_tokens(len(texts))),
        temperature=config.llm.temperature,
        seed=config.llm.seed,
        verdicts=len(texts),
        schema=verdicts_schema(len(texts)),
        group=str(latent),
    )


def list_tokens(count: int) -> int:
    """Tokens that a list of `count` verdicts takes at most, with spaces and line ends."""
    return 24 + 6 * count


def verdicts_schema(count: int) -> str:
    """JSON schema of a reply with `count` verdicts, as JSON text."""
    entries = {"type": "array", "items": {"type": "integer", "enum": [0, 1]}, "minItems": count, "maxItems": count}
    schema = {
        "type": "object",
        "properties": {"verdicts": entries},
        "required": ["verdicts"],
        "additionalProperties": False,
    }
    return json.dumps(schema)


def judgements(reply: Reply, *, num_examples: int, config: ScorerConfig) -> list[Judgement]:
    """The verdicts in the reply to one question, in the order in which its examples were shown."""
    if config.together == 1:
        return [judge(reply, threshold=config.threshold)]
    return judge_list(reply, num_examples=num_examples, threshold=config.threshold)


def judge(reply: Reply, *, threshold: float) -> Judgement:
    """The verdict in a reply: from the log-probabilities of the choices, else from a reply that starts with one."""
    if reply.status != "ok":
        return Judgement(None, None, "error")
    if reply.choice_logprobs is not None:
        yes, no = reply.choice_logprobs
        return _from_probability(_share(yes, no), threshold)
    found = _ANSWER.match(reply.text)
    if found is None:
        return Judgement(None, None, "unusable")
    return Judgement(found[1].lower() == "yes", None, "ok")


def judge_list(reply: Reply, *, num_examples: int, threshold: float) -> list[Judgement]:
    """The verdicts in a reply that lists them: entries as written, from their log-probabilities where known.

    A reply without a list of `num_examples` entries leaves all of them unusable.
    """
    if reply.status != "ok":
        return [Judgement(None, None, "error")] * num_examples
    found = []
    logprobs = reply.verdict_logprobs or (None,) * num_examples
    for written, pair in zip(parse_verdicts(reply.text, num_examples=num_examples), logprobs, strict=True):
        if written is None:
            found.append(Judgement(None, None, "unusable"))
        elif pair is None:
            found.append(Judgement(written, None, "ok"))
        else:
            no, yes = pair
            found.append(_from_probability(_share(yes, no), threshold))
    return found


def _from_probability(probability: float, threshold: float) -> Judgement:
    return Judgement(probability >= threshold, probability, "ok")


def _share(yes: float, no: float) -> float:
    # exp() of a difference up to 745 is finite, and log-probabilities of listed tokens differ by far less.
    return 1.0 / (1.0 + math.exp(min(no - yes, 700.0)))
