"""What is said of two models' layers: each layer against its control, the headline, one sentence per number.

Every sentence is made from stored numbers and verdicts. The surprising choice: "beats" is said per metric and
only of a model against its own random-weights control; between two real models a value is "lower", not better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from saeinterp.compare.joint import BITS
from saeinterp.compare.layer_rows import METRICS, LayerSummary, MetricDifference
from saeinterp.compare.layers import Pair
from saeinterp.compare.results import Result, Sentence
from saeinterp.compare.sides import DATASET, MIN_SEEDS, Place, Side, saes_words
from saeinterp.stats import interval_text, number, signed

ADJUSTMENT = "intervals are per layer and metric, not adjusted for their number"
CONTROL_METRICS = ("fvu", "delta_ce")

Outcome = Literal["beats", "worse", "no detectable difference", "not tested", "not applicable"]


class Judged(NamedTuple):
    """A difference b - a as it is spoken of."""

    verdict: str | None
    lower: Side | None
    low: float | None
    high: float | None


class ControlOutcome(Result):
    """The real model against its random-weights control on one metric of one layer; lower is better."""

    metric: str
    outcome: Outcome
    difference: float | None
    """Control - real."""


class LayerResult(Result):
    """One layer of both models on one dataset."""

    hookpoint: str
    layer: int | None
    dataset: str = DATASET
    recipe: str = ""
    """Settings of the SAEs, where a side has several recipes at this hookpoint."""
    seeds_a: tuple[int | None, ...] = ()
    """Training seeds of side a's SAEs; null where it is not known."""
    seeds_b: tuple[int | None, ...] = ()
    missing: Side | None
    """The side that lacks this layer, dataset or recipe."""
    metrics: tuple[MetricDifference, ...]
    control: tuple[ControlOutcome, ...]
    """Empty unless one side is the random-weights control."""
    control_sentence: str | None

    @property
    def place(self) -> Place:
        """What is compared here."""
        return Place(self.hookpoint, self.dataset, self.recipe)


def layer_results(
    pairs: Mapping[Place, Pair],
    metrics: Mapping[Place, tuple[MetricDifference, ...]],
    *,
    seeds: Mapping[Place, tuple[tuple[int | None, ...], tuple[int | None, ...]]],
    control: Side | None,
    names: tuple[str, str],
    alpha: float,
) -> tuple[LayerResult, ...]:
    """Every place with its metrics and, where one side is the control, what the other is against it."""
    layers = []
    datasets = len({place.dataset for place in pairs})
    for place, (a, b) in pairs.items():
        rows = metrics[place]
        outcomes: tuple[ControlOutcome, ...] = ()
        sentence = None
        if control and a and b:
            values = (a if control == "a" else b)[0].values
            outcomes = _outcomes(rows, control, applies=values["loss_recovered"]["value"] is not None)
            head = place.shown(datasets=datasets)
            sentence = _control_sentence(head, rows, outcomes, values, control=control, names=names, alpha=alpha)
        layers.append(
            LayerResult(
                hookpoint=place.hookpoint,
                layer=(a or b)[0].values["layer"],
                dataset=place.dataset,
                recipe=place.recipe,
                seeds_a=seeds[place][0],
                seeds_b=seeds[place][1],
                missing=None if a and b else "b" if a else "a",
                metrics=rows,
                control=outcomes,
                control_sentence=sentence,
            )
        )
    return tuple(layers)


def condition(layers: Sequence[LayerResult], *, names: tuple[str, str]) -> str:
    """What every interval is conditional on: these SAEs, unless each side has enough of them everywhere."""
    counts = [(len(layer.seeds_a), len(layer.seeds_b)) for layer in layers if layer.missing is None]
    if not counts:
        return "no SAE of one side meets one of the other"
    words = saes_words((a for a, _ in counts), (b for _, b in counts), names=names)
    enough = [min(pair) >= MIN_SEEDS for pair in counts]
    if all(enough):
        return f"SAE training seeds included ({words})"
    but = (
        f", but for layers with {MIN_SEEDS} or more a side: there SAE training seeds are included"
        if any(enough)
        else ""
    )
    return f"conditional on these SAEs ({words}){but}"


def headline(
    layers: Sequence[LayerResult], *, control: Side | None, names: tuple[str, str], several: bool | None = None
) -> str:
    """How many layers went which way, per metric; one sentence for each dataset and recipe.

    Args:
        several: Whether datasets are named; by default where there are several here.
    """
    compared = [layer for layer in layers if layer.missing is None]
    if not compared:
        return f"{names[0]} and {names[1]}: no SAE of one side meets one of the other."
    groups: dict[tuple[str, str], list[LayerResult]] = {}
    for layer in compared:
        groups.setdefault((layer.dataset, layer.recipe), []).append(layer)
    if several is None:
        several = len({dataset for dataset, _ in groups}) > 1
    found = []
    for (dataset, recipe), some in groups.items():
        where = ", ".join(part for part in (dataset if several else "", recipe) if part)
        total = f"{len(some)} layer" + ("s" if len(some) > 1 else "") + (f" ({where})" if where else "")
        head = f"{names[0]} and {names[1]} on {total}"
        if control:
            head = f"{names[1] if control == 'a' else names[0]} against its random-weights control on {total}"
        metrics = CONTROL_METRICS if control else _headline_metrics(some[0])
        parts = [_tally(some, metric, control, names) for metric in metrics]
        found.append(f"{head}: {'; '.join(parts)}; {condition(some, names=names)}.")
    return " ".join(found)


def sentences(
    layers: Sequence[LayerResult], summary: Sequence[LayerSummary], *, names: tuple[str, str], alpha: float
) -> tuple[Sentence, ...]:
    """One sentence per number, in the order of the layers; `id` is kind or metric, then the place."""
    found = []
    datasets = len({layer.dataset for layer in layers})
    for layer in layers:
        place = layer.place
        if layer.missing is not None:
            side = names[0] if layer.missing == "a" else names[1]
            text = f"{place.shown(datasets=datasets)}: missing for {side}."
            found.append(Sentence(id=f"missing.{place.id}", text=text))
            continue
        for row in layer.metrics:
            found.append(Sentence(id=f"{row.metric}.{place.id}", text=row.sentence))
            if row.models is not None:
                found.append(Sentence(id=f"models.{row.metric}.{place.id}", text=row.models.sentence))
        if layer.control_sentence:
            found.append(Sentence(id=f"control.{place.id}", text=layer.control_sentence))
    for item in summary:
        if item.mean_difference is None or item.layers < 2:
            continue
        unit = METRICS[item.metric].unit
        spread = f"smallest {signed(item.smallest)}{unit}, largest {signed(item.largest)}{unit}"
        shown = "" if item.low is None else f" ({interval_text(item.low, item.high, alpha=alpha)} over documents)"
        where = "".join(f", {part}" for part in (item.dataset if datasets > 1 else "", item.recipe) if part)
        text = (
            f"Mean difference of {item.title} over {item.layers} layers{where}: "
            f"{signed(item.mean_difference)}{unit}{shown}, {spread}; descriptive, no test over layers."
        )
        found.append(Sentence(id=f"summary.{item.metric}{Place('', item.dataset, item.recipe).id}", text=text))
    return tuple(found)


def _headline_metrics(layer: LayerResult) -> list[str]:
    known = [row.metric for row in layer.metrics]
    # Losses per token of two tokenizers have no difference to count.
    loss = BITS if BITS in known else "delta_ce"
    return [metric for metric in known if metric in ("fvu", loss)]


def _tally(layers: Sequence[LayerResult], metric: str, control: Side | None, names: tuple[str, str]) -> str:
    rows = [row for layer in layers for row in layer.metrics if row.metric == metric]
    if control:
        words: list[str] = [item.outcome for layer in layers for item in layer.control if item.metric == metric]
    else:
        words = []
        for row in rows:
            found = _judged(row)
            if found.lower:
                words.append(f"lower for {names[0] if found.lower == 'a' else names[1]}")
            else:
                words.append("no detectable difference" if found.verdict else "not tested")
    return f"{rows[0].title}: " + ", ".join(f"{word} on {words.count(word)}" for word in dict.fromkeys(words))


def _judged(row: MetricDifference) -> Judged:
    """The difference of the models where there are enough seeds, else of these SAEs."""
    found = row.models or row
    return Judged(found.verdict, found.lower, found.low, found.high)


def _outcomes(rows: Sequence[MetricDifference], control: Side, *, applies: bool) -> tuple[ControlOutcome, ...]:
    """What the real side is against its control, per metric.

    Where loss recovered does not apply to the control (`applies`), its CE hardly depends on the layer: any SAE has a
    small ΔCE there, and nothing follows from it.
    """
    outcomes = []
    by_metric = {row.metric: row for row in rows}
    for metric in CONTROL_METRICS:
        row = by_metric[metric]
        found = _judged(row)
        outcome: Outcome = "not tested"
        if metric == "delta_ce" and not applies:
            outcome = "not applicable"
        elif found.verdict == "inconclusive":
            outcome = "no detectable difference"
        elif found.verdict == "different":
            outcome = "worse" if found.lower == control else "beats"
        difference = row.difference
        if difference is not None and control == "a":
            difference = -difference
        outcomes.append(ControlOutcome(metric=row.metric, outcome=outcome, difference=difference))
    return tuple(outcomes)


def _control_sentence(
    head: str,
    rows: Sequence[MetricDifference],
    outcomes: Sequence[ControlOutcome],
    values: Mapping[str, Any],
    *,
    control: Side,
    names: tuple[str, str],
    alpha: float,
) -> str:
    by_metric = {row.metric: row for row in rows}
    words = {
        "beats": "beats its control",
        "worse": "is worse than its control",
        "no detectable difference": "shows no detectable difference from its control",
        "not tested": "is not tested against its control",
    }
    real = names[1] if control == "a" else names[0]
    parts = []
    unjudged = ""
    for outcome in outcomes:
        row = by_metric[outcome.metric]
        own, other = (row.b, row.a) if control == "a" else (row.a, row.b)
        found = _judged(row)
        low, high = (found.low, found.high) if control == "b" else _negated(found.low, found.high)
        unit = METRICS[row.metric].unit
        shown = f"{number(own.value)}{unit} against {number(other.value)}{unit}"
        if outcome.outcome == "not applicable":
            gap = f"{signed(values['zero_gap']['value'])} nat"
            unjudged = f" {row.title} ({shown}) is not judged: zeroing this layer changes the control's CE by {gap}."
            continue
        if outcome.outcome == "not tested":
            shown += f"; {row.models.reason if row.models else row.reason}"
        else:
            shown += f", control − real {signed(outcome.difference)}{unit}, {interval_text(low, high, alpha=alpha)}"
            shown += ", SAE training seeds included" if row.models else ""
        parts.append(f"{words[outcome.outcome]} on {row.title} ({shown})")
    return f"{head}: {real} " + " and ".join(parts) + "." + unjudged


def _negated(low: float | None, high: float | None) -> tuple[float | None, float | None]:
    return (None if high is None else -high), (None if low is None else -low)
