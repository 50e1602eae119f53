"""The problems of the published analysis, and latents that have nothing to do with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest

from saeinterp.enrichment import parse_annotation_tokens
from saeinterp.enrichment.concepts import category

FILE = Path(__file__).parents[2] / "shared" / "data" / "gsm8k-train.jsonl"
Booleans = npt.NDArray[np.bool_]


class Problems(NamedTuple):
    """The first problems by their ids as strings, as published.

    Attributes:
        present: `[problems, tokens]`.
        vocabulary: The token of each column.
        categories: Its category.
        annotations: `[problems]`: how many each has.
        ids: `train_0`, `train_1`, `train_10`, …
    """

    present: Booleans
    vocabulary: list[str]
    categories: list[str]
    annotations: npt.NDArray[np.int64]
    ids: list[str]


def first_problems(number: int = 1000) -> Problems:
    """Skips the test where GSM8K is not on this machine."""
    if not FILE.exists():
        pytest.skip("GSM8K is not on this machine")
    answers = [json.loads(line)["answer"] for line in FILE.read_text(encoding="utf-8").splitlines()]
    first = sorted(range(len(answers)), key=lambda index: f"train_{index}")[:number]
    tokens = [set(parse_annotation_tokens(answers[index], grammar="seed")) for index in first]
    vocabulary = sorted(set().union(*tokens))
    return Problems(
        np.array([[token in held for token in vocabulary] for held in tokens]),
        vocabulary,
        [category(token) for token in vocabulary],
        np.array([answers[index].count("<<") for index in first]),
        [f"train_{index}" for index in first],
    )


def independent_latents(seed: int, *, samples: int, latents: int) -> Booleans:
    """`[samples, latents]` as active as those published: mean 20%, four of ten below 20 of 1,000."""
    rng = np.random.default_rng(seed)
    return rng.random((samples, latents)) < rng.beta(0.263, 1.082, latents)
