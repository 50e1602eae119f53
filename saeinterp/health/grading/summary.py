"""What follows from the grades of a model's layers: the best one, means, trends, sentences, recommendations.

The surprising choice: a tie is an answer. Layers with equal grades are told apart by loss recovered alone, and only
where their intervals let them be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal

from saeinterp.config import WORST_CASE, GradingConfig, Thresholds
from saeinterp.health.grading.results import (
    Best,
    Counts,
    DatasetGrade,
    GradedMetric,
    Mean,
    Recommendation,
    SaeGrade,
    Trend,
)
from saeinterp.health.grading.rules import GRADED, LABELS, PERCENT, TITLES, Metric, rule_text
from saeinterp.stats import number, p_text, signed, spearman

LEVEL = 0.05
"""Two-sided level below which a correlation with depth gets a word."""
AVERAGED: tuple[Metric, ...] = ("loss_recovered", "l0", "dead_fraction")


def shown(metric: str, value: float | None) -> str:
    """A metric's value in sentences: percent with two decimals, L0 and absorption as they are."""
    if value is None:
        return "NA"
    if metric in PERCENT:
        return f"{number(100 * value, digits=2)}%"
    return number(value, digits=2 if metric == "l0" else 3)


def best_of(saes: Sequence[SaeGrade], config: GradingConfig) -> Best | None:
    """The SAE with most passes; of equal ones that with the highest loss recovered, unless they cannot be told apart.

    Like is compared with like: SAEs that differ in what was measured tie.
    """
    graded = [item for item in saes if item.applicable]
    if not graded:
        return None
    most = max(item.passed for item in graded)
    group = [item for item in graded if item.passed == most]
    titles = tuple(item.title for item in group)
    if len(group) == 1:
        return Best(titles=titles, passed=most, applicable=group[0].applicable, reason="no other passes as many")
    if len({_measured(item) for item in group}) > 1:
        applicable = {item.applicable for item in group}
        return Best(
            titles=titles,
            passed=most,
            applicable=applicable.pop() if len(applicable) == 1 else None,
            reason="they differ in which metrics and datasets were measured, so loss recovered does not decide",
        )
    common = group[0].applicable
    values = [(item, _deciding(item, config)) for item in group]
    known = [(item, metric) for item, metric in values if metric is not None and metric.value is not None]
    if len(known) < len(group):
        return Best(titles=titles, passed=most, applicable=common, reason="loss recovered does not apply to them")
    lead, top = max(known, key=lambda pair: pair[1].value or 0.0)
    tied = [item for item, metric in known if item is lead or _tie(top, metric, config.ties)]
    others = f"among {len(group)} SAEs with {most}/{common}"
    if len(tied) == 1:
        beyond = ""
        if config.ties == "overlap":
            beyond = ", its interval above the others'" if top.low is not None else "; without intervals, by value"
        reason = f"highest loss recovered, {shown('loss_recovered', top.value)}, {others}{beyond}"
    elif config.ties == "overlap" and top.low is not None:
        reason = f"the 95% intervals of their loss recovered overlap that of {lead.title}, the highest {others}"
    else:
        reason = f"equal loss recovered, {shown('loss_recovered', top.value)}, the highest {others}"
    return Best(titles=tuple(item.title for item in tied), passed=most, applicable=common, reason=reason)


def means_of(saes: Sequence[SaeGrade], datasets: Sequence[str]) -> tuple[Mean, ...]:
    """Means over layers of loss recovered, L0 and dead fraction, per dataset."""
    found = []
    for metric in AVERAGED:
        for dataset in datasets:
            values = list(by_layer(saes, metric, dataset).values())
            mixed = _recipes_differ(saes)
            usable = bool(values) and not mixed
            reason = "SAEs of several recipes are not averaged" if mixed else "no layer has it"
            found.append(
                Mean(
                    metric=metric,
                    dataset=dataset,
                    layers=len(values),
                    value=sum(values) / len(values) if usable else None,
                    smallest=min(values) if usable else None,
                    largest=max(values) if usable else None,
                    reason=None if usable else reason,
                )
            )
    return tuple(found)


def trends_of(saes: Sequence[SaeGrade], datasets: Sequence[str]) -> tuple[Trend, ...]:
    """Spearman's correlation with depth, per metric and dataset; a word only where p < 0.05."""
    found = []
    depth = {item.hookpoint: item.layer for item in saes}
    for metric in GRADED:
        for dataset in datasets[:1] if metric == "absorption" else datasets:
            values = by_layer(saes, metric, dataset)
            layers = [name for name in values if depth[name] is not None]
            blank = Trend(
                metric=metric, dataset=dataset, layers=len(layers), rho=None, p=None, direction=None, reason=None
            )
            if _recipes_differ(saes) or len(layers) < 2:
                words = "SAEs of several recipes" if layers else "no layer has it"
                found.append(blank.model_copy(update={"reason": words if len(layers) != 1 else "one layer"}))
                continue
            test = spearman([float(depth[name] or 0) for name in layers], [values[name] for name in layers])
            direction: Literal["rises", "falls", "no detectable trend"] | None = None
            if test.p_value is not None and test.rho is not None:
                direction = "no detectable trend" if test.p_value >= LEVEL else "rises" if test.rho > 0 else "falls"
            update = {"rho": test.rho, "p": test.p_value, "direction": direction, "reason": test.reason}
            found.append(blank.model_copy(update=update))
    return tuple(found)


def by_layer(saes: Sequence[SaeGrade], metric: str, dataset: str) -> dict[str, float]:
    """Hookpoint -> the metric on one dataset, averaged over that layer's SAEs; layers without it are left out."""
    values: dict[str, list[float]] = {}
    for item in saes:
        # Absorption has prompts of its own, so a layer has it without being evaluated on any dataset.
        grade = item.datasets[0] if metric == "absorption" else item.on(dataset)
        value = grade.metric(metric).value if grade is not None else None
        if value is not None:
            values.setdefault(item.hookpoint, []).append(value)
    return {name: sum(found) / len(found) for name, found in values.items()}


def reasons_of(grade: DatasetGrade, missing: Sequence[str], config: GradingConfig) -> tuple[str, ...]:
    """Why a layer is not healthy, or stands close: one clause per metric that does not simply pass."""
    said = []
    for item in grade.metrics:
        name = TITLES[item.metric]
        if item.outcome == "NA":
            said.append(f"{name} NA: {item.reason or 'not measured'}")
        elif item.outcome != "pass":
            said.append(
                f"{name} {shown(item.metric, item.value)}: {item.outcome} ({rule_text(item.metric, config.limits)})"
            )
        if item.undecided:
            said.append(f"{name} undecided: {item.undecided}")
    if config.dataset == WORST_CASE:
        said += [f"not evaluated on {name}" for name in missing]
    return tuple(said)


def sentences_of(
    saes: Sequence[SaeGrade],
    counts: Counts,
    best: Best | None,
    means: Sequence[Mean],
    trends: Sequence[Trend],
) -> tuple[str, ...]:
    """What the grades say, one sentence each, all from stored numbers."""
    layers = len({item.hookpoint for item in saes})
    what = f"{len(saes)} layer" if layers == len(saes) else f"{len(saes)} SAEs on {layers} layer"
    parts = [f"{counts.healthy}/{counts.total} fully healthy"]
    parts += [f"{getattr(counts, word)}/{counts.total} {word}" for word in LABELS[1:] if getattr(counts, word)]
    said = [f"Of {what}{'s' if layers > 1 else ''}: {', '.join(parts)}."]
    if best is not None:
        grade = f"{best.passed}/{best.applicable}" if best.applicable is not None else f"{best.passed} passed"
        if len(best.titles) == 1:
            said.append(f"Best: {best.titles[0]} ({grade}); {best.reason}.")
        else:
            said.append(f"Best: a tie of {', '.join(best.titles)} ({grade} each); {best.reason}.")
    for mean in means:
        if mean.value is None or mean.layers < 2 or (mean.metric == "l0" and mean.smallest == mean.largest):
            continue
        spread = f"smallest {shown(mean.metric, mean.smallest)}, largest {shown(mean.metric, mean.largest)}"
        value = shown(mean.metric, mean.value)
        said.append(
            f"Mean {TITLES[mean.metric]} on {mean.dataset} over {mean.layers} layers: {value} ({spread}); descriptive."
        )
    for trend in trends:
        # A correlation beside loss recovered is said where it has a direction; the others are in the data.
        if trend.rho is None or (trend.metric != "loss_recovered" and trend.direction not in ("rises", "falls")):
            continue
        where = TITLES[trend.metric] + ("" if trend.metric == "absorption" else f" on {trend.dataset}")
        size = f"Spearman {signed(trend.rho)} with depth over {trend.layers} layers"
        if trend.p is None:
            said.append(f"{where[:1].upper()}{where[1:]}: {size}; descriptive, {trend.reason}.")
        else:
            verb = trend.direction if trend.direction == "no detectable trend" else f"{trend.direction} with depth"
            said.append(f"{where[:1].upper()}{where[1:]}: {verb} ({size}, permutation {p_text(trend.p)}).")
    undecided = [item.title for item in saes if item.undecided]
    if undecided:
        said.append(f"Undecided, since a 95% interval crosses a threshold: {', '.join(undecided)}.")
    return tuple(said)


_ADVICE: Mapping[str, str] = MappingProxyType(
    {
        "dead_fraction": "try fewer latents (training.num_latents), more training rows or epochs, or a larger weight "
        "of AuxK (training.aux_coefficient)",
        "l0_low": "try a larger training.k",
        "l0_high": "try a smaller training.k",
        "loss_recovered": "its latents are in use, so try a larger training.k or more of them (training.num_latents)",
        "absorption": "try a larger training.k or fewer latents (training.num_latents)",
        "undecided": "evaluate more documents (corpus.max_tokens.health) before the grade is quoted",
        "undecided_absorption": "measure absorption on more words (absorption.words) before the grade is quoted",
    }
)


def recommendations_of(saes: Sequence[SaeGrade], limits: Thresholds) -> tuple[Recommendation, ...]:
    """What rules yield from failed metrics, each with the numbers it rests on; without a failure there is nothing."""
    found: dict[str, list[str]] = {}
    for item in saes:
        for grade in item.datasets:
            if grade.source is None or grade.dataset != (item.decided_by or grade.dataset):
                continue
            for rule, text in _rules(item, grade, limits):
                found.setdefault(rule, []).append(f"{item.title} {text}")
    recovered = f"{100 * limits.loss_recovered_borderline:g}%"
    words = {
        "dead_fraction": f"Dead fraction fails (above {100 * limits.dead_fraction_borderline:g}%)",
        "l0_low": f"L0 lies below {limits.l0_low:g}",
        "l0_high": f"L0 lies above {limits.l0_high:g}",
        "loss_recovered": f"Loss recovered fails (below {recovered}) while dead latents pass",
        "absorption": f"Absorption fails (above {limits.absorption_borderline:g})",
        "undecided": "The grade hangs on an interval over documents that crosses a threshold",
        "undecided_absorption": "The grade hangs on an interval over letters that crosses a threshold",
    }
    return tuple(
        Recommendation(rule=rule, text=f"{words[rule]} at {'; '.join(found[rule])}: {_ADVICE[rule]}.")
        for rule in _ADVICE
        if rule in found
    )


def _rules(item: SaeGrade, grade: DatasetGrade, limits: Thresholds) -> list[tuple[str, str]]:
    values = {metric.metric: metric for metric in grade.metrics}
    failed = [name for name, metric in values.items() if metric.outcome == "fail"]
    fired = []
    dead, l0, recovered = values["dead_fraction"], values["l0"], values["loss_recovered"]
    if "dead_fraction" in failed and dead.value is not None:
        of = f", {round(dead.value * item.num_latents)} of {item.num_latents}" if item.num_latents else ""
        fired.append(("dead_fraction", f"({shown('dead_fraction', dead.value)}{of})"))
    if "l0" in failed and l0.value is not None:
        setting = f", {l0.note}" if l0.note else ""
        fired.append(("l0_low" if l0.value < limits.l0_low else "l0_high", f"({shown('l0', l0.value)}{setting})"))
    if "loss_recovered" in failed and dead.outcome == "pass":
        text = f"({shown('loss_recovered', recovered.value)}, dead {shown('dead_fraction', dead.value)})"
        fired.append(("loss_recovered", text))
    if "absorption" in failed:
        fired.append(("absorption", f"({shown('absorption', values['absorption'].value)})"))
    for metric in grade.metrics:
        if metric.undecided:
            rule = "undecided_absorption" if metric.metric == "absorption" else "undecided"
            fired.append((rule, f"({TITLES[metric.metric]} {metric.undecided})"))
    return fired


def _measured(item: SaeGrade) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """What was measured: datasets, and in each the applicable metrics."""
    return tuple(
        (grade.dataset, tuple(metric.metric for metric in grade.metrics if metric.outcome != "NA"))
        for grade in item.datasets
        if grade.source is not None
    )


def _deciding(item: SaeGrade, config: GradingConfig) -> GradedMetric | None:
    """Loss recovered by the rule of the datasets: of the primary one, else the lowest."""
    grades = [grade for grade in item.datasets if config.dataset in (WORST_CASE, grade.dataset)]
    values = [grade.metric("loss_recovered") for grade in grades if grade.source is not None]
    known = [metric for metric in values if metric.value is not None]
    return min(known, key=lambda metric: metric.value or 0.0) if known and len(known) == len(values) else None


def _tie(lead: GradedMetric, other: GradedMetric, rule: str) -> bool:
    if rule == "value" or lead.low is None or other.high is None:
        return lead.value == other.value
    return other.high >= lead.low


def _recipes_differ(saes: Sequence[SaeGrade]) -> bool:
    """Whether some layer has SAEs of several recipes, whose mean would be of nothing in particular."""
    recipes: dict[str, set[str]] = {}
    for item in saes:
        recipes.setdefault(item.hookpoint, set()).add(item.recipe)
    return any(len(found) > 1 for found in recipes.values())
