"""How one latent fires: a histogram of its activations, and the tokens it fires on.

The surprising choice: tokens are chosen on the explain split and counted on the score split, whose documents are
others. A rate of tokens that were picked for their rates would be too high.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from saeinterp.latents.entries import Entries
from saeinterp.stats import clustered_share

BINS = 20
"""Bins of equal width between 0 and the strongest activation."""
TOKENS = 10
"""Tokens kept for a latent."""
LEAST_FIRINGS = 2
"""On the explain split; a token met once says nothing."""

Ints = NDArray[np.int64]


class Occurrences(NamedTuple):
    """Where every token of one split stands: rows sorted by token, rows in order within one.

    Attributes:
        rows: `[n]`: rows of the split.
        offsets: `[vocabulary + 1]`: where each token's begin.
        start: First row of the split.
        stop: One past its last.
    """

    rows: NDArray[np.int32]
    offsets: Ints
    start: int
    stop: int

    @classmethod
    def of(cls, tokens: NDArray[np.int32], rows: range, *, vocabulary: int) -> Occurrences:
        """Index the rows of one split of the cache's tokens."""
        here = tokens[rows.start : rows.stop]
        order = np.argsort(here, kind="stable").astype(np.int32) + rows.start
        counts = np.bincount(here, minlength=vocabulary)
        return cls(order, np.concatenate([[0], np.cumsum(counts)]), rows.start, rows.stop)

    def count(self, token: int | NDArray[Any]) -> Any:
        """How often a token, or each of several, stands in the split."""
        return self.offsets[np.asarray(token) + 1] - self.offsets[token]

    def where(self, token: int) -> NDArray[np.int32]:
        """The rows of one token."""
        return self.rows[self.offsets[token] : self.offsets[token + 1]]


class TokenRate(NamedTuple):
    """On how many occurrences of a token a latent fires, on text that the token was not chosen on."""

    token: int
    seen: int
    """Occurrences."""
    fired: int
    """Of those, where the latent fires."""
    documents: int
    """Documents that hold the token."""
    low: float | None
    """95% interval of fired / seen, over documents."""
    high: float | None
    share: float | None
    """Of the latent's firings, on this token."""


def histogram(values: NDArray[np.float32]) -> tuple[float, list[int]]:
    """The largest magnitude, and counts of magnitudes in `BINS` equal bins from 0 to it."""
    if not len(values):
        return 0.0, []
    sizes = np.abs(values)
    peak = float(sizes.max())
    return peak, np.histogram(sizes, bins=BINS, range=(0, peak))[0].tolist()


def token_rates(
    entries: Entries, tokens: NDArray[np.int32], documents: NDArray[np.int32], explain: Occurrences, score: Occurrences
) -> list[TokenRate]:
    """The tokens that go with a latent on `explain` (largest phi coefficient first), counted on `score`.

    Args:
        entries: Where the latent fires.
        tokens: Token of every row of the cache.
        documents: Document of every row.
    """
    border = int(np.searchsorted(entries.rows, score.start))
    early, late = entries.rows[:border], entries.rows[border:]
    found, fired = np.unique(tokens[early], return_counts=True)
    # A token that the other half lacks has no rate there; whether it occurs says nothing of how the latent fires on it.
    enough = (fired >= LEAST_FIRINGS) & (score.count(found) > 0)
    found, fired = found[enough], fired[enough]
    order = np.argsort(-_phi(fired, explain.count(found), len(early), explain.stop - explain.start), kind="stable")
    return [_rate(int(token), late, documents, score) for token in found[order[:TOKENS]]]


def _phi(both: Ints, holding: Ints, firing: int, total: int) -> NDArray[np.float64]:
    """The phi (Matthews) coefficient of "is this token" with "the latent fires", per token."""
    numerator = both * float(total) - holding * float(firing)
    spread = holding * (total - holding) * float(firing) * (total - firing)
    return np.divide(numerator, np.sqrt(spread), out=np.zeros(len(both)), where=spread > 0)


def _rate(token: int, late: NDArray[np.int32], documents: NDArray[np.int32], score: Occurrences) -> TokenRate:
    rows = score.where(token)
    on = rows[np.isin(rows, late, assume_unique=True)]
    held, place = np.unique(documents[rows], return_inverse=True)
    trials = np.bincount(place, minlength=len(held)).astype(float)
    hits = np.bincount(np.searchsorted(held, documents[on]), minlength=len(held)).astype(float)
    interval = clustered_share(hits, trials, unit="documents")
    return TokenRate(
        token=token,
        seen=len(rows),
        fired=len(on),
        documents=len(held),
        low=interval.low,
        high=interval.high,
        share=len(on) / len(late) if len(late) else None,
    )
