"""What a 2×2 table of a latent and a token says: sizes of effect, and the corrected chi-square of a published analysis.

a: samples with both; b: latent alone; c: token alone; d: neither.
"""

from __future__ import annotations

import numpy as np
from scipy.special import log_ndtr

from saeinterp.enrichment.contingency import Counts
from saeinterp.stats.intervals import Floats

_Z = 1.959963984540054


def describe(a: Counts, firing: Counts, holding: Counts, n: int) -> dict[str, Floats]:
    """Effect sizes of tables with margins `firing` (a + b) and `holding` (a + c) of `n` samples.

    Returns:
        `enrichment`: a/(a+b) over c/(c+d); infinite at c = 0.
        `odds_ratio`, `odds_ratio_low`, `odds_ratio_high`: ad/bc with 1/2 added to every count (Haldane 1956) and its
        95% interval (Gart 1966).
        `precision`: a/(a+b); `recall`: a/(a+c); `f1`; `mcc` (phi); `npmi`: pointwise mutual information over -ln P(a).
        NaN where undefined.
    """
    x, row, column = (item.astype(np.float64) for item in (a, firing, holding))
    b, c = row - x, column - x
    d = n - row - c
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall = x / row, x / column
        log_odds = np.log((x + 0.5) * (d + 0.5) / ((b + 0.5) * (c + 0.5)))
        error = np.sqrt(1 / (x + 0.5) + 1 / (b + 0.5) + 1 / (c + 0.5) + 1 / (d + 0.5))
        return {
            "enrichment": precision / (c / (c + d)),
            "odds_ratio": np.exp(log_odds),
            "odds_ratio_low": np.exp(log_odds - _Z * error),
            "odds_ratio_high": np.exp(log_odds + _Z * error),
            "precision": precision,
            "recall": recall,
            "f1": 2 * x / (row + column),
            "mcc": (x * n - row * column) / np.sqrt(row * (n - row) * column * (n - column)),
            "npmi": np.where(x == n, np.nan, np.log(x * n / (row * column)) / -np.log(x / n)),
        }


def log_corrected_chi2(a: Counts, firing: Counts, holding: Counts, n: int) -> Floats:
    """ln p of Pearson's chi-square with Yates' correction (Yates 1934), one degree of freedom; 0 at an empty margin."""
    x, row, column = (item.astype(np.float64) for item in (a, firing, holding))
    excess = np.maximum(np.abs(x * n - row * column) - n / 2, 0.0)
    margins = row * (n - row) * column * (n - column)
    # Squared after the division: the product of the margins alone is near 1e20 at a hundred thousand samples.
    root = np.divide(excess * np.sqrt(n), np.sqrt(margins), out=np.zeros(x.shape), where=margins > 0)
    return np.asarray(np.minimum(np.log(2.0) + log_ndtr(-root), 0.0))


def critical_chi2(rows: Counts, columns: Counts, n: int, *, alpha: float) -> tuple[Counts, Counts]:
    """`[R, C]` each: the smallest count above, and the largest below, the expected one with p <= alpha.

    One past the largest count, and -1, where there is none.
    """
    row, column = np.broadcast_arrays(rows[:, None], columns[None])
    low, high = np.maximum(row + column - n, 0), np.minimum(row, column)
    limit = np.log(alpha)
    z = np.sqrt(_chi2_at(alpha))
    spread = z * np.sqrt(row.astype(np.float64) * (n - row) * column * (n - column) / n)
    above = np.clip(np.floor((row * column + n / 2 + spread) / n).astype(np.int64) - 1, low, high + 1)
    below = np.clip(np.ceil((row * column - n / 2 - spread) / n).astype(np.int64) + 1, low - 1, high)
    for _ in range(4):  # the guess is within two of the count, whatever is rounded
        short = (above <= high) & ((log_corrected_chi2(above, row, column, n) > limit) | (above * n <= row * column))
        above = above + short
        beyond = (below >= low) & ((log_corrected_chi2(below, row, column, n) > limit) | (below * n >= row * column))
        below = below - beyond
    return above, np.where(below < low, -1, below)


def _chi2_at(alpha: float) -> float:
    from scipy.stats import chi2

    return float(chi2.isf(alpha, 1))
