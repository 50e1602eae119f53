"""Tables of scores: a row per verdict, a row per latent, and their summary.

The surprising choice: every selected latent has a row, whether it could be scored or not, and what stands beside a
number belongs to it: always-yes beside every F1, bounds beside what unusable verdicts leave open, the reason beside an
interval that could not be made.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import polars as pl

from saeinterp.explain.intervals import (
    OVER_DOCUMENTS,
    Estimate,
    document_intervals,
    macro_estimate,
    pooled_auroc,
    pooled_estimates,
)
from saeinterp.explain.judging import Judgement
from saeinterp.explain.metrics import VerdictMetrics, match_rates, natural_precision, verdict_metrics
from saeinterp.progress import Progress

MACRO = ("precision", "recall", "f1", "accuracy", "balanced_accuracy", "mcc", "auroc", "natural_precision")
"""Metrics of one latent whose mean over latents is in the summary."""
RANDOM = "random"
"""The kind of negative that stands for silent windows as they come."""

VERDICT_SCHEMA: dict[str, Any] = {
    "latent": pl.Int32,
    "example_id": pl.Int32,
    "kind": pl.String,
    "quantile": pl.Int8,
    "doc_id": pl.Int32,
    "truth": pl.Boolean,
    "verdict": pl.Boolean,
    "probability": pl.Float64,
    "request": pl.Int32,
    "reply": pl.String,
    "status": pl.String,
}
_COUNTS = ("n", "usable", "tp", "fp", "tn", "fn")
SCORE_SCHEMA: dict[str, Any] = {
    "latent": pl.Int32,
    "hookpoint": pl.String,
    "status": pl.String,
    "explanation": pl.String,
    **{name: pl.Int32 if name in _COUNTS else pl.Float64 for name in VerdictMetrics._fields},
    **{f"{name}_ci_{end}": pl.Float64 for name in OVER_DOCUMENTS for end in ("low", "high")},
    "false_positives": pl.Float64,
    "prevalence": pl.Float64,
    "natural_precision": pl.Float64,
    "correlation": pl.Float64,
    "firings": pl.Int64,
    "density": pl.Float64,
}


class Judged(NamedTuple):
    """What the scorer was told of one latent, and whether its explanation had failed."""

    explanation: str
    status: str


def verdict_table(
    rows: pl.DataFrame, judgements: Sequence[Judgement], *, requests: Sequence[int], replies: Sequence[str]
) -> pl.DataFrame:
    """`verdicts.parquet`.

    Args:
        rows: The scored examples [n].
        judgements: One per example [n].
        requests: Which request each example was part of [n].
        replies: What came back for it, or the error [n].
    """
    said = {
        "verdict": [item.verdict for item in judgements],
        "probability": [item.probability for item in judgements],
        "request": requests,
        "reply": replies,
        "status": [item.status for item in judgements],
    }
    known = rows.select("latent", "example_id", "kind", "quantile", "doc_id", truth=pl.col("kind") == "activating")
    frame = pl.DataFrame(said, schema={name: VERDICT_SCHEMA[name] for name in said})
    return pl.concat([known, frame], how="horizontal").select(list(VERDICT_SCHEMA))


def outcome_rows(
    latents: pl.DataFrame, judged: Mapping[int, Judged], *, hookpoint: str, windows: int | None
) -> pl.DataFrame:
    """What is known of every selected latent before any metric: keys, outcome, how often it fires.

    Args:
        latents: `latents.parquet`.
        judged: What was said of those with examples.
        hookpoint: Of all of them.
        windows: Windows of the score split, where known.
    """
    rows = []
    for row in latents.iter_rows(named=True):
        text = judged.get(row["latent"])
        rows.append(
            {
                "latent": row["latent"],
                "hookpoint": hookpoint,
                "status": text.status if text else row["status"],
                "explanation": text.explanation if text and text.status == "scored" else None,
                "prevalence": row["windows_score"] / windows if windows else None,
                "firings": row["firings"],
                "density": row["density"],
            }
        )
    return score_rows(rows)


def score_rows(rows: Iterable[Mapping[str, Any]]) -> pl.DataFrame:
    """Rows of `scores.parquet`; columns that they lack are null."""
    return pl.DataFrame([{name: row.get(name) for name in SCORE_SCHEMA} for row in rows], schema=SCORE_SCHEMA)


def score_table(outcomes: pl.DataFrame, verdicts: pl.DataFrame, *, progress: Progress | None = None) -> pl.DataFrame:
    """`scores.parquet` of verdicts: the outcomes with metrics; counts of latents without examples are 0."""
    of_latent = verdicts.partition_by("latent", as_dict=True)
    limits = {row["latent"]: row for row in document_intervals(verdicts, progress=progress).iter_rows(named=True)}
    rows = []
    for row in outcomes.iter_rows(named=True):
        mine = of_latent.get((row["latent"],), verdicts.clear())
        found = _metrics(mine)
        chance = match_rates(mine["kind"].to_list(), mine["verdict"].to_list()).get(RANDOM)
        wrong = chance.rate if chance else None
        values = {
            "false_positives": wrong,
            "natural_precision": natural_precision(found.recall, wrong, row["prevalence"]),
        }
        rows.append({**row, **found._asdict(), **limits.get(row["latent"], {}), **values})
    return score_rows(rows)


def verdict_summary(verdicts: pl.DataFrame, scores: pl.DataFrame) -> dict[str, Any]:
    """Counts, coverage, pooled and mean metrics with intervals, rates per kind of example and per quantile."""
    pooled = _metrics(verdicts)
    judged = scores.filter(pl.col("n") > 0)
    micro = {name: item._asdict() for name, item in pooled_estimates(judged).items()}
    micro["f1"] |= {"always_yes": pooled.f1_always_yes, "worst": pooled.f1_low, "best": pooled.f1_high}
    micro["frequency_weighted_f1"] |= {"always_yes": _weighted_mean(judged["f1_always_yes"], judged["firings"])}
    micro["pooled_auroc"] = _pooled_auroc(verdicts)._asdict()
    macro = {name: macro_estimate(scores[name], bootstrap=name == "auroc")._asdict() for name in MACRO}
    beside = {"always_yes": "f1_always_yes", "worst": "f1_low", "best": "f1_high"}
    macro["f1"] |= {title: macro_estimate(scores[name]).value for title, name in beside.items()}
    positives = verdicts.filter("truth").sort("quantile")
    quantiles = match_rates(positives["quantile"].to_list(), positives["verdict"].to_list())
    return {
        **coverage_summary(scores["status"].to_list(), verdicts["status"].to_list()),
        "counts": {name: getattr(pooled, name) for name in ("tp", "fp", "tn", "fn")},
        "micro": micro,
        "macro": macro,
        "kinds": _kinds(verdicts),
        "quantiles": [{"quantile": quantile, **rate._asdict()} for quantile, rate in quantiles.items()],
    }


def coverage_summary(latents: Sequence[str], found: Sequence[str], *, answers: str = "verdicts") -> dict[str, Any]:
    """Counts per status of latents and of answers, and the share of usable answers."""
    usable = sum(status == "ok" for status in found)
    return {
        "latents": dict(sorted(Counter(latents).items())),
        answers: dict(sorted(Counter(found).items())),
        "n": len(found),
        "usable": usable,
        "coverage": usable / len(found) if found else None,
    }


def _kinds(verdicts: pl.DataFrame) -> dict[str, dict[str, Any]]:
    """Per kind of example the rate of "match"; for a kind of negative also how it is told from all positives."""
    rates = match_rates(verdicts["kind"].to_list(), verdicts["verdict"].to_list())
    found: dict[str, dict[str, Any]] = {}
    for kind, rate in sorted(rates.items()):
        found[kind] = rate._asdict()
        against = verdicts.filter(pl.col("truth") | (pl.col("kind") == kind))
        if not against["truth"].all():
            metrics = _metrics(against)
            found[kind] |= {
                name: getattr(metrics, name) for name in ("f1", "f1_always_yes", "balanced_accuracy", "coverage")
            }
    return found


def _pooled_auroc(verdicts: pl.DataFrame) -> Estimate:
    usable = verdicts.filter(pl.col("verdict").is_not_null())
    if not len(usable) or usable["probability"].null_count():
        return Estimate(None, 0, None, None, "the scorer gave no probabilities")
    grouped = usable.group_by("latent", maintain_order=True).agg("truth", "probability")
    return pooled_auroc(grouped["truth"].to_list(), grouped["probability"].to_list())


def _metrics(verdicts: pl.DataFrame) -> VerdictMetrics:
    return verdict_metrics(*(verdicts[name].to_list() for name in ("truth", "verdict", "probability")))


def _weighted_mean(values: pl.Series, weights: pl.Series) -> float | None:
    pairs = [(value, weight) for value, weight in zip(values, weights) if value is not None]
    total = math.fsum(weight for _, weight in pairs)
    return math.fsum(value * weight for value, weight in pairs) / total if total else None
