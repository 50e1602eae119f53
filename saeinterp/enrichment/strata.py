"""Samples with about as many steps, and whether a latent goes with a token among those.

The surprising choice: strata hold whole values, so there may be fewer than asked for: problems with equally many steps
are never told apart.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

from saeinterp.errors import ConfigError
from saeinterp.stats.intervals import Floats

Counts = npt.NDArray[np.int64]


def strata_of(counts: npt.ArrayLike, *, at_most: int) -> Counts:
    """`[n]`: each sample's stratum, 0 for the fewest steps; strata of about equal size.

    A value goes where the middle of its samples falls among `at_most` quantiles.

    Args:
        counts: `[n]` steps of each sample.
        at_most: Strata at most.

    Raises:
        ConfigError: `at_most` is below 1.
    """
    if at_most < 1:
        raise ConfigError("too few", field="strata", got=at_most, expected="1 or more")
    _, value, size = np.unique(np.asarray(counts), return_inverse=True, return_counts=True)
    if not len(size):
        return np.zeros(0, np.int64)
    twice_middle = 2 * np.cumsum(size) - size  # in integers, so that rounding moves nothing
    _, stratum = np.unique(twice_middle * at_most // (2 * size.sum()), return_inverse=True)
    return np.asarray(stratum[value], np.int64)


def mantel_haenszel(active: npt.NDArray[np.bool_], present: npt.NDArray[np.bool_], strata: Counts) -> Floats:
    """One-sided p that latent and token go together more often than their numbers per stratum explain.

    Cochran–Mantel–Haenszel: z = (Σ(a − E) − ½) / √ΣV over strata, with E = nA·k/N and V = nA(N−nA)k(N−k) / N²(N−1);
    p = 1 − Φ(z) (Cochran 1954; Mantel and Haenszel 1959, with their continuity correction).

    Args:
        active: `[n, P]`: for each pair, the samples in which its latent is active.
        present: `[n, P]`: those that hold its token.
        strata: `[n]`.

    Returns:
        `[P]`; 1 where no stratum has samples with and without both.
    """
    excess, variance = np.zeros(active.shape[1]), np.zeros(active.shape[1])
    for stratum in np.unique(strata):
        rows = strata == stratum
        n = int(rows.sum())
        if n < 2:
            continue
        both = (active[rows] & present[rows]).sum(axis=0)
        fires, holds = active[rows].sum(axis=0), present[rows].sum(axis=0)
        excess += both - fires * holds / n
        variance += fires * (n - fires) * (holds * (n - holds)) / (n * n * (n - 1.0))
    z = np.divide(excess - 0.5, np.sqrt(variance), out=np.full(len(excess), -np.inf), where=variance > 0)
    return np.asarray(ndtr(-z), np.float64)
