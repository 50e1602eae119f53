"""Layer health of two models, layer by layer: differences with joint intervals, and sentences that follow from them.

Difference always means side b minus side a. One set of resampled documents serves both sides and all layers,
since both saw the same text. The surprising choice: the dead fraction gets no interval. It is a count over
the whole dictionary, and a resample holds only 63% of the documents, so it would see more dead latents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from saeinterp.artifacts import Artifact
from saeinterp.compare.results import Result
from saeinterp.errors import ConfigError
from saeinterp.health import DocumentSums, read_health
from saeinterp.health.documents import Floats, Totals, of_documents, ratios
from saeinterp.stats import Interval, bootstrap_intervals, interval_text, number, signed

Side = Literal["a", "b"]
DEAD = "dead_fraction"
MISSING = "this layer is missing"
CENSUS = "a count over the whole dictionary on these tokens: no interval, no test"


class Metric(NamedTuple):
    """A compared metric: its name in sentences and its unit."""

    title: str
    unit: str


RESAMPLED: Mapping[str, Metric] = {
    "loss_recovered": Metric("loss recovered", ""),
    "loss_recovered_mean_ablation": Metric("loss recovered against mean ablation", ""),
    "delta_ce": Metric("ΔCE", " nat"),
    "fvu": Metric("FVU", ""),
}
METRICS: Mapping[str, Metric] = {**RESAMPLED, DEAD: Metric("dead fraction", "")}


class LayerHealth(NamedTuple):
    """One health artifact, read."""

    values: Mapping[str, Any]
    documents: DocumentSums

    @classmethod
    def read(cls, artifact: Artifact) -> LayerHealth:
        """Read `health.json` and `documents.parquet`."""
        return cls(read_health(artifact), DocumentSums.read(artifact.file("documents.parquet")))


Pair = tuple[LayerHealth | None, LayerHealth | None]


class SideValue(Result):
    """One side's value of a metric."""

    value: float | None
    low: float | None = None
    """Lower end of its own 95% interval over documents."""
    high: float | None = None
    reason: str | None = None
    """Why value or interval are missing."""


class MetricDifference(Result):
    """One metric of one layer on both sides."""

    hookpoint: str
    metric: str
    title: str
    a: SideValue
    b: SideValue
    difference: float | None
    """b - a."""
    low: float | None = None
    """Lower end of the joint bootstrap interval of the difference."""
    high: float | None = None
    n_documents: int
    verdict: Literal["different", "inconclusive"] | None = None
    """`different` where the interval excludes 0; null where there is no interval."""
    lower: Side | None = None
    """The side with the lower value, where the verdict is `different`."""
    reason: str | None = None
    """Why difference, interval or verdict are missing."""
    sentence: str


class LayerSummary(Result):
    """One metric over the layers on which both sides have it; descriptive, layers of one model are no sample."""

    metric: str
    title: str
    layers: int
    missing: int
    """Layers on which a side does not have it."""
    mean_difference: float | None
    low: float | None = None
    """Joint bootstrap interval over documents, for these layers."""
    high: float | None = None
    smallest: float | None = None
    largest: float | None = None
    reason: str | None = None


class LayerDifferences(NamedTuple):
    """What `compare_layers` returns; `interval_method` is None without any interval."""

    metrics: dict[str, tuple[MetricDifference, ...]]
    summary: tuple[LayerSummary, ...]
    interval_method: str | None


def compare_layers(
    pairs: Mapping[str, Pair],
    *,
    titles: tuple[str, str],
    same_documents: bool = True,
    draws: int = 2000,
    alpha: float = 0.05,
    seed: int = 0,
) -> LayerDifferences:
    """Compare layers; at least one must be on both sides.

    Args:
        pairs: Hookpoint -> side a, side b, None for a side that lacks it.
        titles: Names of the sides in sentences.
        same_documents: Both sides evaluated one corpus, so their documents are resampled together; else each
            side's own documents are drawn from the union of both.
        draws: Bootstrap draws; `seed` is theirs, `alpha` the two-sided level of the intervals.
    """
    shared = {name: (a, b) for name, (a, b) in pairs.items() if a is not None and b is not None}
    joint = _Joint(shared, same_documents=same_documents)
    keys = [(hookpoint, metric) for hookpoint in shared for metric in RESAMPLED if joint.defined(hookpoint, metric)]
    groups = [[key for key in keys if key[1] == metric] for metric in RESAMPLED]
    intervals = joint.intervals([[key] for key in keys] + groups, draws=draws, alpha=alpha, seed=seed)
    of_key = dict(zip(keys, intervals))
    of_metric = dict(zip(RESAMPLED, intervals[len(keys) :]))
    metrics = {
        hookpoint: tuple(
            _difference(hookpoint, metric, pair, of_key.get((hookpoint, metric)), joint.n, titles, alpha)
            for metric in METRICS
        )
        for hookpoint, pair in pairs.items()
    }
    summary = tuple(
        _summary(metric, [rows[index] for rows in metrics.values()], of_metric.get(metric))
        for index, metric in enumerate(METRICS)
    )
    method = next((interval.method for interval in intervals if interval is not None), None)
    return LayerDifferences(metrics, summary, method)


def pair_layers(a: Mapping[str, LayerHealth], b: Mapping[str, LayerHealth]) -> dict[str, Pair]:
    """Both sides by hookpoint, ordered by layer."""
    known = {**b, **a}
    order = sorted(known, key=lambda name: (known[name].values["layer"] or 0, name))
    return {name: (a.get(name), b.get(name)) for name in order}


def by_hookpoint(artifacts: Sequence[Artifact], *, side: str) -> dict[str, Artifact]:
    """Health artifacts by their hookpoint.

    Raises:
        ConfigError: A hookpoint comes twice.
    """
    found: dict[str, Artifact] = {}
    for artifact in artifacts:
        hookpoint = str(read_health(artifact)["hookpoint"])
        if hookpoint in found:
            raise ConfigError(
                "a hookpoint comes twice on one side",
                field=f"side {side}",
                got=hookpoint,
                expected="one health artifact per hookpoint",
            )
        found[hookpoint] = artifact
    return found


class _Joint:
    """Document sums of all layers and both sides, side by side."""

    def __init__(self, pairs: Mapping[str, tuple[LayerHealth, LayerHealth]], *, same_documents: bool) -> None:
        self._pairs = pairs
        ids = [np.unique(np.concatenate([pair[side].documents.doc_ids for pair in pairs.values()])) for side in (0, 1)]
        blocks = []
        if same_documents:
            union = np.union1d(*ids)
            blocks = [half.documents.aligned(union) for pair in pairs.values() for half in pair]
            self.n = len(union)
        else:
            for pair in pairs.values():
                for side, half in enumerate(pair):
                    block = half.documents.aligned(ids[side])
                    empty = np.zeros((len(ids[1 - side]), block.shape[1]))
                    blocks.append(np.concatenate([block, empty] if side == 0 else [empty, block]))
            self.n = sum(map(len, ids))
        self._columns: Floats = np.concatenate(blocks, axis=1)
        self._width = blocks[0].shape[1]

    def defined(self, hookpoint: str, metric: str) -> bool:
        """Whether both sides have the metric."""
        return all(half.values[metric]["value"] is not None for half in self._pairs[hookpoint])

    def intervals(
        self, groups: Sequence[Sequence[tuple[str, str]]], *, draws: int, alpha: float, seed: int
    ) -> list[Interval | None]:
        """Of the mean difference over each group of (hookpoint, metric); None for an empty group."""
        layers = list(self._pairs)
        filled = [group for group in groups if group]
        if not filled:
            return [None] * len(groups)

        def differences(totals: Floats) -> Floats:
            found: dict[tuple[str, str], Floats] = {}
            for index, hookpoint in enumerate(layers):
                start = 2 * index * self._width
                sides = [totals[..., start + side * self._width :][..., : self._width] for side in (0, 1)]
                a, b = (ratios(half, list(RESAMPLED)) for half in sides)
                found |= {(hookpoint, metric): (b - a)[..., i] for i, metric in enumerate(RESAMPLED)}
            return np.stack([np.mean([found[key] for key in group], axis=0) for group in filled], axis=-1)

        statistic = Totals(self._columns, differences)
        found = iter(bootstrap_intervals(statistic, self.n, draws=draws, alpha=alpha, seed=seed))
        return [of_documents(next(found)) if group else None for group in groups]


def _difference(
    hookpoint: str,
    metric: str,
    pair: Pair,
    interval: Interval | None,
    n: int,
    titles: tuple[str, str],
    alpha: float,
) -> MetricDifference:
    a, b = (_side(half.values[metric]) if half else SideValue(value=None, reason=MISSING) for half in pair)
    row = MetricDifference(
        hookpoint=hookpoint,
        metric=metric,
        title=METRICS[metric].title,
        a=a,
        b=b,
        difference=None if a.value is None or b.value is None else b.value - a.value,
        n_documents=n,
        sentence="",
    )
    update: dict[str, Any] = {}
    if row.difference is None:
        update["reason"] = "; ".join(
            f"{title}: {side.reason}" for title, side in zip(titles, (a, b)) if side.value is None
        )
    elif interval is None:
        update["reason"] = CENSUS
    elif interval.low is None or interval.high is None:
        update["reason"] = f"no interval, so no test: {interval.reason}"
    else:
        different = not interval.contains(0.0)
        update |= {"low": interval.low, "high": interval.high, "verdict": "different" if different else "inconclusive"}
        if different:
            update["lower"] = "a" if row.difference > 0 else "b"
    row = row.model_copy(update=update)
    return row.model_copy(update={"sentence": _sentence(row, titles, alpha)})


def _side(value: Any) -> SideValue:
    if isinstance(value, Mapping):
        return SideValue(value=value["value"], low=value["low"], high=value["high"], reason=value["reason"])
    return SideValue(value=value, reason=CENSUS)


def _sentence(row: MetricDifference, titles: tuple[str, str], alpha: float) -> str:
    title, unit = METRICS[row.metric]
    head = f"{row.hookpoint}, {title}"
    if row.difference is None:
        return f"{head}: not compared ({row.reason})."
    values = f"{number(row.a.value)}{unit} ({titles[0]}) and {number(row.b.value)}{unit} ({titles[1]})"
    change = f"difference {signed(row.difference)}{unit}"
    if row.verdict is None:
        return f"{head}: {values}, {change}; {row.reason}."
    tail = f"{change} ({interval_text(row.low, row.high, alpha=alpha)}), n = {row.n_documents} documents"
    if row.verdict == "inconclusive":
        return f"{head}: no detectable difference: {values}, {tail}."
    lower, higher = titles if row.lower == "a" else titles[::-1]
    return f"{head}: lower for {lower} than for {higher}: {values}, {tail}."


def _summary(metric: str, rows: Sequence[MetricDifference], interval: Interval | None) -> LayerSummary:
    differences = [row.difference for row in rows if row.difference is not None]
    summary = LayerSummary(
        metric=metric,
        title=METRICS[metric].title,
        layers=len(differences),
        missing=len(rows) - len(differences),
        mean_difference=None,
        reason="no layer has it on both sides",
    )
    if not differences:
        return summary
    update = {
        "mean_difference": float(np.mean(differences)),
        "smallest": min(differences),
        "largest": max(differences),
        "low": interval.low if interval else None,
        "high": interval.high if interval else None,
        "reason": interval.reason if interval else CENSUS,
    }
    return summary.model_copy(update=update)
