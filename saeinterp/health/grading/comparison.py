"""Two models by their grades, like with like: only layers and datasets that both have.

Difference always means b minus a, in percentage points where the values are percentages. The surprising choice:
nothing here is a test. Grades hold no sampling model; the tests are in the comparison of documents.
"""

from __future__ import annotations

from collections.abc import Sequence

from saeinterp.config import WORST_CASE
from saeinterp.errors import ConfigError
from saeinterp.health.grading.results import DatasetGrade, LayerGrades, Record, SaeGrade
from saeinterp.health.grading.rules import PERCENT, TITLES, Metric
from saeinterp.health.grading.step import decide
from saeinterp.health.grading.summary import by_layer, shown
from saeinterp.stats import number, p_text, signed, spearman

COMPARED: tuple[Metric, ...] = ("loss_recovered", "l0", "dead_fraction", "absorption")


class MetricMeans(Record):
    """One metric over the layers that both models have it on."""

    metric: Metric
    dataset: str
    layers: int
    mean_a: float | None
    mean_b: float | None
    difference: float | None
    """b - a, from unrounded values."""
    range_a: tuple[float, float] | None
    range_b: tuple[float, float] | None
    rho_a: float | None
    """Spearman's correlation with depth."""
    rho_b: float | None
    p_a: float | None
    p_b: float | None
    reason: str | None = None
    """Why nothing is compared."""


class HealthyLayers(Record):
    """How many SAEs are healthy on what both models have."""

    dataset: str
    """A dataset, or `worst-case` over the shared ones."""
    healthy_a: int
    healthy_b: int
    of_a: int
    of_b: int


class GradeComparison(Record):
    """Two models' grades side by side."""

    layers: tuple[str, ...]
    """Hookpoints of both."""
    datasets: tuple[str, ...]
    """Datasets of both."""
    only_a: tuple[str, ...]
    """Layers and datasets that b lacks: compared with nothing."""
    only_b: tuple[str, ...]
    healthy: tuple[HealthyLayers, ...]
    means: tuple[MetricMeans, ...]
    sentences: tuple[str, ...]


def compare_grades(a: LayerGrades, b: LayerGrades, *, names: tuple[str, str]) -> GradeComparison:
    """Compare the grades of two models on the layers and datasets they share.

    Raises:
        ConfigError: They were graded by different profiles or rules.
    """
    rules = [(side.profile, side.thresholds, side.dataset) for side in (a, b)]
    if rules[0] != rules[1]:
        raise ConfigError(
            "the sides were graded differently",
            field="grading",
            got=f"{a.profile} ({a.dataset}) and {b.profile} ({b.dataset})",
            expected="one profile and one rule for both",
        )
    points = [list(dict.fromkeys(item.hookpoint for item in side.saes)) for side in (a, b)]
    layers = tuple(name for name in points[0] if name in points[1])
    datasets = tuple(name for name in a.datasets if name in b.datasets)
    only = [
        (
            *(name for name in points[i] if name not in layers),
            *(name for name in (a, b)[i].datasets if name not in datasets),
        )
        for i in (0, 1)
    ]
    sides = tuple([item for item in side.saes if item.hookpoint in layers] for side in (a, b))
    healthy = [_healthy(sides, [name], name) for name in datasets]
    if len(datasets) > 1 and a.dataset == WORST_CASE:
        healthy.append(_healthy(sides, datasets, WORST_CASE))
    means = [_means(sides, metric, dataset) for metric in COMPARED for dataset in _datasets_of(metric, datasets)]
    return GradeComparison(
        layers=layers,
        datasets=datasets,
        only_a=only[0],
        only_b=only[1],
        healthy=tuple(healthy),
        means=tuple(means),
        sentences=_sentences(healthy, means, only, names, len(layers)),
    )


def _datasets_of(metric: str, datasets: Sequence[str]) -> Sequence[str]:
    """Absorption is measured on prompts of its own, so it is compared once."""
    return datasets[:1] if metric == "absorption" else datasets


def _healthy(sides: Sequence[Sequence[SaeGrade]], datasets: Sequence[str], name: str) -> HealthyLayers:
    counts = []
    for side in sides:
        graded = [[grade for label in datasets if (grade := item.on(label)) is not None] for item in side]
        complete = [found for found in graded if len(found) == len(datasets)]
        counts.append(sum(_is_healthy(found) for found in complete))
    return HealthyLayers(dataset=name, healthy_a=counts[0], healthy_b=counts[1], of_a=len(sides[0]), of_b=len(sides[1]))


def _is_healthy(grades: Sequence[DatasetGrade]) -> bool:
    return decide(grades).label == "healthy"


def _means(sides: Sequence[Sequence[SaeGrade]], metric: Metric, dataset: str) -> MetricMeans:
    values = [by_layer(side, metric, dataset) for side in sides]
    shared = [name for name in values[0] if name in values[1]]
    depth = {item.hookpoint: item.layer for side in sides for item in side}
    columns = [[side[name] for name in shared] for side in values]
    if not shared:
        return MetricMeans(
            metric=metric,
            dataset=dataset,
            layers=0,
            mean_a=None,
            mean_b=None,
            difference=None,
            range_a=None,
            range_b=None,
            rho_a=None,
            rho_b=None,
            p_a=None,
            p_b=None,
            reason="no layer has it on both sides",
        )
    means = [sum(column) / len(column) for column in columns]
    known = all(depth[name] is not None for name in shared)
    tests = [spearman([float(depth[name] or 0) for name in shared], column) if known else None for column in columns]
    return MetricMeans(
        metric=metric,
        dataset=dataset,
        layers=len(shared),
        mean_a=means[0],
        mean_b=means[1],
        difference=means[1] - means[0],
        range_a=(min(columns[0]), max(columns[0])),
        range_b=(min(columns[1]), max(columns[1])),
        rho_a=tests[0].rho if tests[0] else None,
        rho_b=tests[1].rho if tests[1] else None,
        p_a=tests[0].p_value if tests[0] else None,
        p_b=tests[1].p_value if tests[1] else None,
    )


def points(value: float | None) -> str:
    """A difference of percentages, such as `−12.80 percentage points`."""
    return "NA" if value is None else f"{signed(100 * value, digits=2)} percentage points"


def _sentences(
    healthy: Sequence[HealthyLayers],
    means: Sequence[MetricMeans],
    only: Sequence[Sequence[str]],
    names: tuple[str, str],
    layers: int,
) -> tuple[str, ...]:
    said = []
    for item in healthy:
        where = "the worst case of the shared datasets" if item.dataset == WORST_CASE else item.dataset
        counts = (f"{item.healthy_a}/{item.of_a} ({names[0]})", f"{item.healthy_b}/{item.of_b} ({names[1]})")
        said.append(f"Fully healthy on {where}: {counts[0]} and {counts[1]}.")
    for row in means:
        if row.mean_a is None or row.mean_b is None or row.difference is None:
            continue
        change = points(row.difference) if row.metric in PERCENT else signed(row.difference)
        where = TITLES[row.metric] + ("" if row.metric == "absorption" else f" on {row.dataset}")
        text = f"Mean {where} over {row.layers} shared layer{'s' if row.layers > 1 else ''}"
        values = f"{shown(row.metric, row.mean_a)} ({names[0]}) and {shown(row.metric, row.mean_b)} ({names[1]})"
        said.append(f"{text}: {values}, difference {change}; descriptive, no test over layers.")
        if row.metric == "loss_recovered" and row.rho_a is not None and row.rho_b is not None:
            tests = [
                f"{number(rho)} ({name}{', permutation ' + p_text(p) if p is not None else ''})"
                for rho, p, name in ((row.rho_a, row.p_a, names[0]), (row.rho_b, row.p_b, names[1]))
            ]
            tail = "" if row.p_a is not None else "; descriptive, no test below six layers"
            said.append(f"Spearman of {where} with depth: {' and '.join(tests)}{tail}.")
    for name, lacking, other in zip(names, only, names[::-1]):
        if lacking:
            said.append(f"Only {name} has {', '.join(lacking)}: not compared, and no win over {other}.")
    if not layers:
        said.append("The sides share no layer, so nothing is compared.")
    return tuple(said)
