"""From sums per document to the numbers of `health.json`, each with its interval or the reason for having none.

The surprising choice: "loss recovered" is not a number unless zeroing is shown to hurt. Where the lower 95%
bound of its denominator is no more than 0.1 nat it is not applicable, whatever the quotient says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from saeinterp.health.checks import Check, integrity_checks
from saeinterp.health.documents import DocumentSums
from saeinterp.health.tally import Reconstruction
from saeinterp.stats import Interval, number

MIN_GAP = 0.1
"""Nats that an ablation must cost, with 95% confidence, before a share of it is reported."""

MEANS = ("ce_clean", "ce_spliced", "ce_zero", "ce_mean", "kl_spliced", "kl_zero", "cosine", "l0_mean")
ESTIMATES = ("delta_ce", "explained_variance", "fvu")
RECOVERIES: Mapping[str, tuple[str, str]] = {
    "loss_recovered": ("zero_gap", "the loss added by zeroing (CE zeroed − CE clean)"),
    "loss_recovered_mean_ablation": ("mean_gap", "the loss added by mean ablation (CE mean-ablated − CE clean)"),
    "kl_recovered": ("kl_zero", "KL(clean ‖ zeroed)"),
}
"""Metric -> its denominator, and that denominator in words."""
DECADES_PER_BIN = 0.25


class Estimate(NamedTuple):
    """A number with its 95% interval; `reason` says why value or interval are missing."""

    value: float | None
    low: float | None
    high: float | None
    n_documents: int
    reason: str | None


def health_values(result: Reconstruction, *, draws: int, seed: int) -> dict[str, Any]:
    """The content of `health.json` but for `checks`.

    Estimates are `{value, low, high, n_documents, reason}`; means are plain numbers; `firings` is their total.

    Args:
        draws: Bootstrap draws over documents.
        seed: Their seed.
    """
    documents = result.documents
    names = [*MEANS, *ESTIMATES, *RECOVERIES, "zero_gap", "mean_gap"]
    intervals = documents.intervals(names, draws=draws, seed=seed)
    tokens, latents = int(documents.total("tokens")), len(result.firings)
    dead = int((result.firings == 0).sum())
    values: dict[str, Any] = {
        "hookpoint": result.hookpoint,
        "layer": _layer(result.hookpoint),
        "splice": result.splice,
        "tokens": tokens,
        "predictions": int(documents.total("predictions")),
        "documents": len(documents.doc_ids),
        "rows": result.rows,
        "masked_tokens": dict(result.masked),
        "interval": {"level": 0.95, "method": intervals["fvu"].method, "draws": draws, "seed": seed},
        "l0_max": result.l0_max,
        "l0_preact": result.l0_preact,
        "k": result.k,
        "num_latents": latents,
        "dead": dead,
        "alive": latents - dead,
        "dead_fraction": dead / latents,
        "always_on": int((result.firings == tokens).sum()),
        "firings": int(result.firings.sum()),
        "density_histogram": density_histogram(result.firings, tokens=tokens),
        "uniform_ce": result.uniform_ce,
        "absorption": {"value": None, "reason": "not measured"},
    }
    for name in MEANS:
        values[name] = _finite(documents.value(name))
    for name in ("zero_gap", "mean_gap", *ESTIMATES):
        values[name] = estimate(documents, name, intervals[name])._asdict()
    for name, (denominator, words) in RECOVERIES.items():
        values[name] = recovery(documents, name, intervals[name], gap=intervals[denominator], words=words)._asdict()
    return values


def health_checks(values: Mapping[str, Any], *, mask_difference: int | None = None) -> tuple[Check, ...]:
    """Integrity checks of `health_values`.

    Args:
        mask_difference: Rows masked here but not in the training cache, or the other way round.
    """
    return integrity_checks({**values, "mask_difference": mask_difference})


def estimate(documents: DocumentSums, metric: str, interval: Interval) -> Estimate:
    """A metric over all documents with its interval."""
    value = _finite(documents.value(metric))
    reason = interval.reason if value is not None else "its denominator is 0"
    return Estimate(value, interval.low, interval.high, interval.n, reason)


def recovery(documents: DocumentSums, metric: str, interval: Interval, *, gap: Interval, words: str) -> Estimate:
    """A share of what ablation costs; not applicable unless that cost is surely above `MIN_GAP`."""
    if gap.low is None or gap.low <= MIN_GAP:
        shown = (
            f"has no 95% lower bound ({gap.reason})"
            if gap.low is None
            else f"has 95% lower bound {number(gap.low)} nat"
        )
        reason = f"not applicable: {words} {shown}, it must exceed {MIN_GAP:g}"
        return Estimate(None, None, None, interval.n, reason)
    return estimate(documents, metric, interval)


def density_histogram(firings: Sequence[int] | np.ndarray, *, tokens: int) -> dict[str, list[float] | list[int]]:
    """Alive latents by density (share of tokens), in bins of a quarter of a decade from 1 / `tokens` to 1.

    Returns:
        `log10_edges` (one more than bins, the last is 0) and `counts`.
    """
    alive = np.asarray(firings, dtype=np.float64)
    alive = alive[alive > 0]
    bins = max(1, int(np.ceil(np.log10(tokens) / DECADES_PER_BIN)))
    edges = -DECADES_PER_BIN * np.arange(bins, -1, -1, dtype=np.float64)
    # A density is never below 1 / tokens, so the first bin takes everything that rounding puts before it.
    found = np.clip(np.floor((np.log10(alive / tokens) - edges[0]) / DECADES_PER_BIN), 0, bins - 1).astype(int)
    return {"log10_edges": edges.tolist(), "counts": np.bincount(found, minlength=bins).tolist()}


def _layer(hookpoint: str) -> int | None:
    """The block of `layers.9` or `transformer.h.9.mlp`; None where a name has none."""
    return next((int(part) for part in hookpoint.split(".") if part.isdigit()), None)


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
