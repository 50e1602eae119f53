"""Texts for fuzz scoring (Paulo et al. 2024): in true ones the tokens are marked on which the latent fires.

A false text is one in which the latent is silent, as in delphi. The surprising choice: its marks are those of one of
the latent's own true texts, put on the same positions, so that neither number, length nor place of the marks tells true
from false (delphi draws as many tokens as the mean true text has, with one seed: always the same positions).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl
from numpy.typing import NDArray

from saeinterp.explain.rendering import marked_text

MARK_SEED = 0
"""Of the marks of false texts, with the latent; fixed, so that equal example sets are marked alike."""


def fuzz_texts(examples: pl.DataFrame) -> list[str]:
    """The marked text of every example.

    Args:
        examples: Score examples with `latent`, `kind`, `tokens`, `activations`; those of one latent are neighbours.
    """
    texts: list[str] = []
    for rows in examples.partition_by("latent", maintain_order=True):
        tokens: list[list[str]] = rows["tokens"].to_list()
        firing = [np.asarray(activations) != 0 for activations in rows["activations"].to_list()]
        true = rows["kind"] == "activating"
        marks = _borrowed([mark for mark, own in zip(firing, true) if own], latent=rows["latent"][0])
        texts += [
            marked_text(words, mark if own else _placed(next(marks), len(words)))
            for words, mark, own in zip(tokens, firing, true, strict=True)
        ]
    return texts


def _borrowed(donors: list[NDArray[np.bool_]], *, latent: int) -> Iterator[NDArray[np.bool_]]:
    """Marks of true texts without end: each once in a seeded order, then all in another."""
    rng = np.random.default_rng([MARK_SEED, latent])
    while donors:
        for index in rng.permutation(len(donors)):
            yield donors[index]


def _placed(marks: NDArray[np.bool_], size: int) -> NDArray[np.bool_]:
    """Marks on a text of `size` tokens; where it is shorter they move to the left, as far as the last one fits."""
    positions = np.flatnonzero(marks)
    positions = positions - max(0, int(positions[-1]) - size + 1)
    placed = np.zeros(size, dtype=bool)
    placed[positions[positions >= 0]] = True
    return placed
