"""Simulation scoring (Bills et al. 2023): a model predicts from the explanation the activation of each token.

All tokens of a window are predicted in one request: beside every token stands a slot, and the log-probabilities of the
ten digits there give an expected activation. The surprising choice: nothing is generated. It takes log-probabilities
of prompts, which vLLM and a model in this process give and most public services do not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from saeinterp.config import ScorerConfig
from saeinterp.explain.labels import one_line
from saeinterp.explain.llm import Reply, Request
from saeinterp.explain.prompts import fill
from saeinterp.explain.rendering import visible
from saeinterp.stats.paired import correlation

SLOT = "<?>"
"""Stands for the digit of one token."""
CONSTANT = 1e-9
"""Predictions that differ by less are one prediction."""

SIMULATION_SCHEMA: dict[str, Any] = {
    "latent": pl.Int32,
    "example_id": pl.Int32,
    "kind": pl.String,
    "quantile": pl.Int8,
    "doc_id": pl.Int32,
    "predicted": pl.List(pl.Float32),
    "status": pl.String,
    "error": pl.String,
}


def simulation_requests(
    latents: Sequence[int], tokens: Sequence[Sequence[str]], explanations: Mapping[int, str], *, config: ScorerConfig
) -> list[Request]:
    """One request per window.

    Args:
        latents: Latent of each window [n].
        tokens: Tokens of each window [n].
        explanations: What is said of each latent.
        config: The scorer.
    """
    return [
        Request(
            messages=fill(config.kind, {"explanation": _plain(explanations[latent]), "lines": _lines(window)}),
            max_tokens=1,
            seed=config.llm.seed,
            slot=SLOT,
            group=str(latent),
        )
        for latent, window in zip(latents, tokens, strict=True)
    ]


def predicted_activations(reply: Reply, *, num_tokens: int) -> list[float] | None:
    """Expected activation of each token, from 0 to 9; None where the reply does not give all of them."""
    if reply.status != "ok" or reply.slot_logprobs is None or len(reply.slot_logprobs) != num_tokens:
        return None
    logs = np.array(reply.slot_logprobs, dtype=np.float64)
    weights = np.exp(logs - logs.max(axis=1, keepdims=True))
    expected = weights @ np.arange(10) / weights.sum(axis=1)
    return [float(value) for value in expected]


def simulations(rows: pl.DataFrame, replies: Sequence[Reply]) -> pl.DataFrame:
    """The table of predictions: one row per window, in the order of `rows`."""
    sizes = rows["tokens"].list.len().to_list()
    predicted = [predicted_activations(reply, num_tokens=size) for reply, size in zip(replies, sizes, strict=True)]
    said = {
        "predicted": predicted,
        "status": [
            "error" if reply.status != "ok" else "unusable" if values is None else "ok"
            for reply, values in zip(replies, predicted, strict=True)
        ],
        "error": [reply.error for reply in replies],
    }
    known = rows.select("latent", "example_id", "kind", "quantile", "doc_id")
    frame = pl.DataFrame(said, schema={name: SIMULATION_SCHEMA[name] for name in said})
    return pl.concat([known, frame], how="horizontal").select(list(SIMULATION_SCHEMA))


def simulation_correlation(
    activations: Sequence[Sequence[float]], predicted: Sequence[Sequence[float]]
) -> float | None:
    """Pearson r of true and predicted activations over all tokens of a latent's windows (the correlation score).

    Magnitudes count, as everywhere. Predictions that are the same on all tokens tell nothing and score 0, as MCC does
    where every answer is the same. None below three tokens, or where the activations are the same on all of them.
    """
    if not predicted:
        return None
    true, said = (np.concatenate([np.asarray(row, np.float64) for row in part]) for part in (activations, predicted))
    magnitudes = np.abs(true)
    if np.ptp(said) < CONSTANT:
        return 0.0 if len(said) > 2 and np.ptp(magnitudes) > 0 else None
    return correlation(magnitudes, said)


def _lines(tokens: Sequence[str]) -> str:
    return "\n".join(f"{_plain(one_line(visible(token)))}\t{SLOT}" for token in tokens)


def _plain(text: str) -> str:
    """A text in which nothing is taken for a slot."""
    return text.replace(SLOT, "< ?>")
