"""What layer health is computed from: sums per document, and the ratios of their totals.

Every metric is a ratio of two linear combinations of document sums. The surprising choice: so is explained
variance, since the mean that it is taken about is held at its value over all documents; an interval is then
the same resampling of documents for every metric, alone or jointly with another SAE's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from saeinterp.errors import DamagedArtifactError
from saeinterp.stats import Interval, OfTotals, bootstrap_intervals

Floats = NDArray[np.float64]

COLUMNS = (
    "tokens",
    "predictions",
    "ce_clean",
    "ce_spliced",
    "ce_zero",
    "ce_mean",
    "kl_spliced",
    "kl_zero",
    "squared_error",
    "squared_deviation",
    "cosine",
    "l0",
)
"""`tokens` are unmasked rows, `predictions` those with a next token; `ce_*` and `kl_*` sum over predictions (nats),
the rest over tokens. `squared_deviation` is about the mean of all evaluated rows."""
COUNTS = ("tokens", "predictions", "l0")


class Ratio(NamedTuple):
    """A metric: a combination of column totals over another."""

    top: Mapping[str, float]
    bottom: Mapping[str, float]

    def __call__(self, totals: Floats) -> Floats:
        """From totals [..., c] in the order of `COLUMNS` to values [...]; NaN where the denominator is 0."""
        above, below = totals @ _weights(self.top), totals @ _weights(self.bottom)
        value: Floats = np.divide(above, below, out=np.full(np.shape(below), np.nan), where=below != 0)
        return value


def _per(column: str, *, minus: str | None = None, by: str = "predictions") -> Ratio:
    return Ratio({column: 1.0} if minus is None else {column: 1.0, minus: -1.0}, {by: 1.0})


METRICS: Mapping[str, Ratio] = MappingProxyType(
    {
        "ce_clean": _per("ce_clean"),
        "ce_spliced": _per("ce_spliced"),
        "ce_zero": _per("ce_zero"),
        "ce_mean": _per("ce_mean"),
        "kl_spliced": _per("kl_spliced"),
        "kl_zero": _per("kl_zero"),
        "delta_ce": _per("ce_spliced", minus="ce_clean"),
        "zero_gap": _per("ce_zero", minus="ce_clean"),
        "mean_gap": _per("ce_mean", minus="ce_clean"),
        "loss_recovered": Ratio({"ce_zero": 1.0, "ce_spliced": -1.0}, {"ce_zero": 1.0, "ce_clean": -1.0}),
        "loss_recovered_mean_ablation": Ratio({"ce_mean": 1.0, "ce_spliced": -1.0}, {"ce_mean": 1.0, "ce_clean": -1.0}),
        "kl_recovered": Ratio({"kl_zero": 1.0, "kl_spliced": -1.0}, {"kl_zero": 1.0}),
        "explained_variance": Ratio({"squared_deviation": 1.0, "squared_error": -1.0}, {"squared_deviation": 1.0}),
        "fvu": Ratio({"squared_error": 1.0}, {"squared_deviation": 1.0}),
        "cosine": _per("cosine", by="tokens"),
        "l0_mean": _per("l0", by="tokens"),
    }
)
"""Metric -> ratio of totals (SAEBench's `ce_loss_score` is `loss_recovered`); nats where a loss stands alone."""


@dataclass(frozen=True)
class DocumentSums:
    """Sums per document, ordered by document.

    Attributes:
        doc_ids: int32 `[D]`, ascending.
        sums: float64 `[D, c]` in the order of `COLUMNS`.
    """

    doc_ids: NDArray[np.int32]
    sums: Floats

    @property
    def totals(self) -> Floats:
        """`[c]`: over all documents."""
        total: Floats = self.sums.sum(axis=0)
        return total

    def total(self, column: str) -> float:
        """One column over all documents."""
        return float(self.totals[COLUMNS.index(column)])

    def value(self, metric: str) -> float:
        """A metric over all documents; NaN where its denominator is 0."""
        return float(METRICS[metric](self.totals))

    def intervals(self, metrics: Sequence[str], *, draws: int, seed: int) -> dict[str, Interval]:
        """95% bootstrap intervals over documents, from one set of resamples."""
        statistic = Totals(self.sums, lambda totals: ratios(totals, metrics))
        found = bootstrap_intervals(statistic, len(self.doc_ids), draws=draws, alpha=0.05, seed=seed)
        return {name: of_documents(interval) for name, interval in zip(metrics, found, strict=True)}

    def aligned(self, doc_ids: NDArray[np.int32]) -> Floats:
        """The sums `[len(doc_ids), c]` of these documents, zeros where there are none."""
        rows = np.zeros((len(doc_ids), len(COLUMNS)))
        rows[np.searchsorted(doc_ids, self.doc_ids)] = self.sums
        return rows

    def write(self, path: Path) -> None:
        """Write `documents.parquet`: doc_id int32, then `COLUMNS` (counts int64, else float64)."""
        columns: dict[str, pa.Array] = {"doc_id": pa.array(self.doc_ids, pa.int32())}
        for index, name in enumerate(COLUMNS):
            values = self.sums[:, index]
            columns[name] = pa.array(values.astype(np.int64)) if name in COUNTS else pa.array(values)
        pq.write_table(pa.table(columns), path, compression="zstd")

    @classmethod
    def read(cls, path: Path) -> DocumentSums:
        """Read what `write` wrote.

        Raises:
            DamagedArtifactError: The file is unreadable or lacks a column.
        """
        try:
            table = pq.read_table(path, columns=["doc_id", *COLUMNS])
        except (pa.ArrowException, OSError) as error:
            raise DamagedArtifactError(
                f"unreadable table ({str(error).splitlines()[0]})",
                got=str(path),
                next_step="remove that artifact's folder and run again; it will be rebuilt",
            ) from error
        missing = [name for name in ("doc_id", *COLUMNS) if name not in table.column_names]
        if missing:
            raise DamagedArtifactError(
                f"the table lacks {missing}", got=str(path), next_step="remove that artifact's folder and run again"
            )
        sums = np.stack([table.column(name).to_numpy().astype(np.float64) for name in COLUMNS], axis=1)
        return cls(table.column("doc_id").to_numpy().astype(np.int32), sums)


def ratios(totals: Floats, metrics: Sequence[str]) -> Floats:
    """From totals [..., c] to these metrics [..., m]."""
    return np.stack([METRICS[name](totals) for name in metrics], axis=-1)


class Totals(OfTotals):
    """A function of weighted column totals [n, c] whose columns may be negative, as sums of cosines are."""

    def without_each(self, weights: Floats) -> Floats:
        """Values with one copy of each document left out; totals are not floored at zero."""
        return self.function((weights @ self.columns)[..., None, :] - self.columns)


def of_documents(interval: Interval) -> Interval:
    """The interval in words of documents, which is what its clusters are here."""
    reason = interval.reason.replace("clusters", "documents") if interval.reason else None
    return interval._replace(method=interval.method.replace("clusters", "documents"), reason=reason)


def _weights(combination: Mapping[str, float]) -> Floats:
    weights = np.zeros(len(COLUMNS))
    for name, factor in combination.items():
        weights[COLUMNS.index(name)] = factor
    return weights
