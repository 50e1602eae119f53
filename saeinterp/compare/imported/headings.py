"""What the headings of an outside table of scores mean: the latent, and whose which metric a column is.

The surprising choice: `Qwen 70B F1` and `f1_qwen70b` are taken apart into an explainer and a metric, but a column of
differences is never taken for a third explainer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from saeinterp.health.imported.cells import plain_text

LATENT = (
    "latent",
    "latentidx",
    "latentindex",
    "latentid",
    "feature",
    "featureidx",
    "featureindex",
    "featureid",
    "neuron",
)
HOOKPOINT = ("hookpoint", "layer", "layers")
EXPLAINER = ("explainer", "model", "explainermodel")
METRIC = ("metric", "measure")
VALUE = ("value", "score")
COUNTS = ("tp", "fp", "tn", "fn", "positives", "negatives", "firings")
METRICS = {
    "f1": r"f1(?:[\s_-]?score)?",
    "precision": r"precision",
    "recall": r"recall",
    "balanced_accuracy": r"(?:class[\s_-]?)?balanced[\s_-]?acc(?:uracy)?",
    "accuracy": r"acc(?:uracy)?",
    "mcc": r"mcc",
    "auroc": r"(?:auroc|roc[\s_-]?auc|auc)",
    "correlation": r"correlation",
}
_LABEL = r"label|explanation|description"
_DIFFERENCE = re.compile(r"\b(difference|diff|delta|gap|change|improvement)\b|Δ", re.IGNORECASE)
_PARTS = "|".join(f"(?P<{name}>{pattern})" for name, pattern in METRICS.items())
_ENDS = re.compile(rf"^(?P<name>.*?)[\s_:/-]*(?:{_PARTS}|(?P<label>{_LABEL})|(?P<value>score|value))$", re.IGNORECASE)
_BEGINS = re.compile(
    rf"^(?:{_PARTS}|(?P<label>{_LABEL})|(?P<value>score|value))[\s_:/(-]+(?:of\s+)?(?P<name>.+?)\)?$", re.IGNORECASE
)


class Column(NamedTuple):
    """A column of values (or explanations) of one explainer.

    Attributes:
        at: Its place in the row.
        heading: As printed.
        explainer: Whose; empty where the heading does not say.
        metric: Which; None where the heading does not say.
        percent: Its numbers are percentages.
    """

    at: int
    heading: str
    explainer: str
    metric: str | None
    percent: bool


class Layout(NamedTuple):
    """The columns of a table, by what they mean."""

    latent: int
    hookpoint: int | None
    explainer: int | None
    metric: int | None
    value: int | None
    columns: list[Column]
    labels: dict[str, int]
    counts: dict[str, int]
    differences: list[int]
    unread: list[str]


def layout_of(header: Sequence[str], rows: Sequence[Sequence[object]], *, chosen: Sequence[str] = ()) -> Layout | None:
    """The layout of a table of scores; None where it has no latent column or no column of values.

    Args:
        rows: Cells; a column whose heading says nothing holds values if all its cells are numbers.
        chosen: Headings of the columns that hold the explainers' values, where the user names them.
    """
    names = [plain_text(heading) for heading in header]
    keys = [re.sub(r"[^a-z0-9]", "", name.lower()) for name in names]

    def first(words: Sequence[str]) -> int | None:
        return next((at for at, key in enumerate(keys) if key in words), None)

    latent = first(LATENT)
    if latent is None:
        return None
    hookpoint, explainer, metric = first(HOOKPOINT), first(EXPLAINER), first(METRIC)
    long = explainer is not None and metric is not None
    value = first(VALUE) if long else None
    taken = {at for at in (latent, hookpoint, explainer, metric, value) if at is not None}
    found = Layout(latent, hookpoint, explainer, metric, value, [], {}, {}, [], [])
    for at, name in enumerate(names):
        if at in taken or not name:
            continue
        if name in chosen:
            who, what = heading_parts(name)
            found.columns.append(Column(at, name, who or name, what if what in METRICS else None, "%" in name))
        elif keys[at] in COUNTS:
            found.counts[keys[at]] = at
        elif _DIFFERENCE.search(name):
            found.differences.append(at)
        elif (parts := heading_parts(name))[1] == "label":
            found.labels[parts[0]] = at
        elif not chosen and not long and (parts[1] is not None or _numeric(rows, at)):
            who, what = parts if parts[1] is not None else (name, None)
            found.columns.append(Column(at, name, who, what if what in METRICS else None, "%" in name))
        else:
            found.unread.append(name)
    return found if found.columns or value is not None or chosen else None


def heading_parts(heading: str) -> tuple[str, str | None]:
    """`Qwen 70B F1` -> (`Qwen 70B`, `f1`); the second is a metric, `label`, `value`, or None for no such word."""
    text = heading.replace("%", "").strip()
    for pattern in (_ENDS, _BEGINS):
        if match := pattern.match(text):
            groups = match.groupdict()
            what = next(name for name, part in groups.items() if name != "name" and part is not None)
            return groups["name"].strip(" _-:(/"), what
    return heading, None


def metric_of(text: str) -> str | None:
    """The metric that a cell of a `metric` column names."""
    plain = plain_text(text).strip()
    return next((name for name, pattern in METRICS.items() if re.fullmatch(pattern, plain, re.IGNORECASE)), None)


def _numeric(rows: Sequence[Sequence[object]], at: int) -> bool:
    cells = [row[at] for row in rows]
    known = [cell for cell in cells if not (cell is None or (isinstance(cell, str) and not cell.strip()))]
    return bool(known) and all(_is_number(cell) for cell in known)


def _is_number(cell: object) -> bool:
    if isinstance(cell, bool):
        return False
    if isinstance(cell, int | float):
        return True
    return bool(re.fullmatch(r"[-−+]?\d+(\.\d+)?\s*%?", plain_text(str(cell)).strip()))
