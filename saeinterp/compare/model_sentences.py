"""What is said of two models' layers: each layer against its control, the headline, one sentence per number.

Every sentence is made from stored numbers and verdicts. The surprising choice: "beats" is said per metric and
only of a model against its own random-weights control; between two real models a value is "lower", not better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from saeinterp.compare.layers import METRICS, LayerSummary, MetricDifference, Pair, Side
from saeinterp.compare.results import Result, Sentence
from saeinterp.stats import interval_text, number, signed

CONDITION = "conditional on these SAEs (one SAE each)"
ADJUSTMENT = "intervals are per layer and metric, not adjusted for their number"
CONTROL_METRICS = ("fvu", "delta_ce")

Outcome = Literal["beats", "worse", "no detectable difference", "not tested"]


class ControlOutcome(Result):
    """The real model against its random-weights control on one metric of one layer; lower is better."""

    metric: str
    outcome: Outcome
    difference: float | None
    """Control - real."""


class LayerResult(Result):
    """One layer of both models."""

    hookpoint: str
    layer: int | None
    missing: Side | None
    """The side that lacks this layer."""
    metrics: tuple[MetricDifference, ...]
    control: tuple[ControlOutcome, ...]
    """Empty unless one side is the random-weights control."""
    control_sentence: str | None


def layer_results(
    pairs: Mapping[str, Pair],
    metrics: Mapping[str, tuple[MetricDifference, ...]],
    *,
    control: Side | None,
    names: tuple[str, str],
    alpha: float,
) -> tuple[LayerResult, ...]:
    """Every layer with its metrics and, where one side is the control, what the other is against it."""
    layers = []
    for hookpoint, (a, b) in pairs.items():
        rows = metrics[hookpoint]
        outcomes: tuple[ControlOutcome, ...] = ()
        sentence = None
        if control and a is not None and b is not None:
            outcomes = _outcomes(rows, control)
            values = (a if control == "a" else b).values
            sentence = _control_sentence(hookpoint, rows, outcomes, values, control=control, names=names, alpha=alpha)
        known = a or b
        assert known is not None
        layers.append(
            LayerResult(
                hookpoint=hookpoint,
                layer=known.values["layer"],
                missing="a" if a is None else "b" if b is None else None,
                metrics=rows,
                control=outcomes,
                control_sentence=sentence,
            )
        )
    return tuple(layers)


def _outcomes(rows: Sequence[MetricDifference], control: Side) -> tuple[ControlOutcome, ...]:
    outcomes = []
    by_metric = {row.metric: row for row in rows}
    for metric in CONTROL_METRICS:
        row = by_metric[metric]
        outcome: Outcome = "not tested"
        if row.verdict == "inconclusive":
            outcome = "no detectable difference"
        elif row.verdict == "different":
            outcome = "worse" if row.lower == control else "beats"
        difference = row.difference
        if difference is not None and control == "a":
            difference = -difference
        outcomes.append(ControlOutcome(metric=row.metric, outcome=outcome, difference=difference))
    return tuple(outcomes)


def _control_sentence(
    hookpoint: str,
    rows: Sequence[MetricDifference],
    outcomes: Sequence[ControlOutcome],
    values: Mapping[str, Any],
    *,
    control: Side,
    names: tuple[str, str],
    alpha: float,
) -> str:
    by_metric = {row.metric: row for row in rows}
    words: Mapping[Outcome, str] = {
        "beats": "beats its control",
        "worse": "is worse than its control",
        "no detectable difference": "shows no detectable difference from its control",
        "not tested": "is not tested against its control",
    }
    real = names[1] if control == "a" else names[0]
    parts = []
    for outcome in outcomes:
        row = by_metric[outcome.metric]
        own, other = (row.b, row.a) if control == "a" else (row.a, row.b)
        low, high = (row.low, row.high) if control == "b" else _negated(row.low, row.high)
        unit = METRICS[row.metric].unit
        shown = f"{number(own.value)}{unit} against {number(other.value)}{unit}"
        if outcome.outcome == "not tested":
            shown += f"; {row.reason}"
        else:
            shown += f", control − real {signed(outcome.difference)}{unit}, {interval_text(low, high, alpha=alpha)}"
        parts.append(f"{words[outcome.outcome]} on {row.title} ({shown})")
    text = f"{hookpoint}: {real} " + " and ".join(parts) + "."
    if values["loss_recovered"]["value"] is None:
        text += (
            " Loss recovered does not apply to the control: zeroing this layer changes its CE by"
            f" {signed(values['zero_gap']['value'])} nat, so ΔCE there does not measure its SAE."
        )
    return text


def headline(layers: Sequence[LayerResult], *, control: Side | None, names: tuple[str, str]) -> str:
    """How many layers went which way, per metric."""
    compared = [layer for layer in layers if layer.missing is None]
    total = f"{len(compared)} layer" + ("s" if len(compared) > 1 else "")
    if control:
        real = names[1] if control == "a" else names[0]
        parts = []
        for metric in CONTROL_METRICS:
            outcomes = [outcome for layer in compared for outcome in layer.control if outcome.metric == metric]
            title = next(row.title for row in compared[0].metrics if row.metric == metric)
            parts.append(f"{title}: " + _counted([outcome.outcome for outcome in outcomes]))
        return f"{real} against its random-weights control on {total}: {'; '.join(parts)}; {CONDITION}."
    parts = []
    for index, first in enumerate(compared[0].metrics):
        rows = [layer.metrics[index] for layer in compared]
        if first.metric not in CONTROL_METRICS:
            continue
        outcome = [
            f"lower for {names[0] if row.lower == 'a' else names[1]}"
            if row.lower
            else "no detectable difference"
            if row.verdict
            else "not tested"
            for row in rows
        ]
        parts.append(f"{first.title}: {_counted(outcome)}")
    return f"{names[0]} and {names[1]} on {total}: {'; '.join(parts)}; {CONDITION}."


def _counted(outcomes: Sequence[str]) -> str:
    return ", ".join(f"{outcome} on {outcomes.count(outcome)}" for outcome in dict.fromkeys(outcomes))


def sentences(
    layers: Sequence[LayerResult], summary: Sequence[LayerSummary], *, names: tuple[str, str], alpha: float
) -> tuple[Sentence, ...]:
    found = []
    for layer in layers:
        if layer.missing is not None:
            side = names[0] if layer.missing == "a" else names[1]
            found.append(Sentence(id=f"missing.{layer.hookpoint}", text=f"{layer.hookpoint}: missing for {side}."))
            continue
        found += [Sentence(id=f"{row.metric}.{row.hookpoint}", text=row.sentence) for row in layer.metrics]
        if layer.control_sentence:
            found.append(Sentence(id=f"control.{layer.hookpoint}", text=layer.control_sentence))
    for row in summary:
        if row.mean_difference is None or row.layers < 2:
            continue
        unit = METRICS[row.metric].unit
        spread = f"smallest {signed(row.smallest)}{unit}, largest {signed(row.largest)}{unit}"
        shown = "" if row.low is None else f" ({interval_text(row.low, row.high, alpha=alpha)} over documents)"
        text = (
            f"Mean difference of {row.title} over {row.layers} layers: "
            f"{signed(row.mean_difference)}{unit}{shown}, {spread}; descriptive, no test over layers."
        )
        found.append(Sentence(id=f"summary.{row.metric}", text=text))
    return tuple(found)


def _negated(low: float | None, high: float | None) -> tuple[float | None, float | None]:
    return (None if high is None else -high), (None if low is None else -low)
