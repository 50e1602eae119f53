"""What an outside table becomes: rows of layer health, and what the file claims about them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal

from saeinterp.health.checks import integrity_checks
from saeinterp.health.grading.inputs import NOT_MEASURED, LayerRow
from saeinterp.health.grading.results import Measured, Record
from saeinterp.health.imported.cells import METRIC_COLUMNS, Place, Quantity
from saeinterp.stats import number

UNNAMED = "not named"
"""The dataset of a table that names none."""


class ImportedRow(Record):
    """One layer on one dataset, as printed."""

    model: str
    hookpoint: str
    layer: int | None
    dataset: str
    line: int
    values: dict[str, Measured]
    """loss_recovered, l0, dead_fraction, absorption."""
    rounding: dict[str, float]
    """Half a unit of the last printed digit."""
    k: int | None = None
    num_latents: int | None = None
    l0_max: float | None = None
    alive: int | None = None
    printed: tuple[int, int] | None = None
    """The grade that the file prints."""

    def graded(self, *, file: str, unit: str = "line") -> LayerRow:
        """The row as grading takes it, checked; `file` and `unit` say where it stands."""
        values = {**self.values, "l0_mean": self.values["l0"]}
        values = {name: entry for name, entry in values.items() if entry.value is not None}
        counts = {"k": self.k, "num_latents": self.num_latents, "l0_max": self.l0_max, "alive": self.alive}
        row = {**{name: entry.model_dump() for name, entry in values.items() if name != "l0"}, **counts}
        rounding = {**self.rounding, "l0_mean": self.rounding.get("l0", 0.0)}
        return LayerRow(
            key=self.hookpoint,
            hookpoint=self.hookpoint,
            layer=self.layer,
            dataset=self.dataset,
            source=f"{file}, {unit} {self.line}",
            values=self.values,
            checks=integrity_checks(row, rounding=rounding),
            num_latents=self.num_latents,
            k=self.k,
        )


class ImportedModel(Record):
    """One model of the file."""

    title: str
    names: tuple[str, ...]
    """Other names by which the file calls it."""
    line: int


class Claim(Record):
    """A statement of the file about its own table, to be checked against it."""

    line: int
    subject: str
    """What is claimed: healthy, incomplete, partial, unhealthy, mean, range or gap."""
    metric: str | None
    model: str | None
    other: str | None = None
    """For a gap: the model that is taken away from `model`."""
    values: tuple[float, ...]
    half_step: float
    percent: bool
    of: int | None = None
    """The denominator of a count."""
    text: str


class ImportedTable(Record):
    """An outside file of layer health, read."""

    file: str
    sha256: str
    models: tuple[ImportedModel, ...]
    rows: tuple[ImportedRow, ...]
    claims: tuple[Claim, ...]
    notes: tuple[str, ...]
    """How something was read that could have been read otherwise."""
    unit: Literal["line", "row"] = "line"
    """What `line` counts: rows where the format keeps no lines."""

    def of(self, model: str) -> tuple[ImportedRow, ...]:
        """The rows of one model."""
        return tuple(row for row in self.rows if row.model == model)


def hookpoint_of(text: str, place: Place) -> tuple[str, int | None]:
    """`4` and `Layer 4` are `layers.4`; any other name stays.

    Raises:
        DataError: It is empty.
    """
    if not text:
        place.refuse("is empty", text, expected="a layer such as 4 or layers.4")
    if match := re.fullmatch(r"(?:layer\s*)?(\d+)", text, re.IGNORECASE):
        return f"layers.{int(match[1])}", int(match[1])
    return text, next((int(part) for part in text.split(".") if part.isdigit()), None)


def rows_of_layer(
    cells: Mapping[str, Sequence[Quantity]],
    *,
    model: str,
    hookpoint: str,
    layer: int | None,
    place: Place,
    k: int | None,
    num_latents: int | None,
    printed: tuple[int, int] | None,
    notes: list[str],
) -> list[ImportedRow]:
    """One table row as one `ImportedRow` per dataset that it names.

    A number without a dataset holds for all of them; as many numbers as datasets are taken in the datasets' order.

    Raises:
        DataError: A cell holds another number of values than the row has datasets.
    """
    labels = list(dict.fromkeys(item.dataset for found in cells.values() for item in found if item.dataset))
    rows = []
    for index, dataset in enumerate(labels or [UNNAMED]):
        values, rounding = {}, {}
        for metric in METRIC_COLUMNS:
            item = _of_dataset(metric, cells.get(metric, ()), dataset, index, labels, place, notes)
            values[metric] = Measured(value=item.value) if item is not None else _absent(cells.get(metric), dataset)
            if item is not None:
                rounding[metric] = item.half_step
        rows.append(
            ImportedRow(
                model=model,
                hookpoint=hookpoint,
                layer=layer,
                dataset=dataset,
                line=place.line,
                values=values,
                rounding=rounding,
                k=k,
                num_latents=num_latents,
                printed=printed,
            )
        )
    return rows


def _of_dataset(
    metric: str,
    found: Sequence[Quantity],
    dataset: str,
    index: int,
    labels: Sequence[str],
    place: Place,
    notes: list[str],
) -> Quantity | None:
    own = [item for item in found if item.dataset == dataset]
    unlabelled = [item for item in found if item.dataset is None]
    if len(own) == 1 or not found:
        return own[0] if own else None
    if not own and len(unlabelled) == 1:
        return unlabelled[0]
    if not own and not unlabelled:
        return None
    if own or len(unlabelled) != len(labels):
        place._replace(column=metric).refuse(
            f"holds {len(own) or len(unlabelled)} numbers for {dataset}",
            [item.value for item in found],
            expected="one number, or one per dataset in the order of the row's datasets",
        )
    note = f"line {place.line}, {metric}: {' and '.join(number(item.value, digits=2) for item in unlabelled)} taken"
    note += f" as the values on {' and '.join(labels)}"
    if note not in notes:
        notes.append(note)
    return unlabelled[index]


def _absent(found: Sequence[Quantity] | None, dataset: str) -> Measured:
    if found:
        return Measured(value=None, reason=f"not given for {dataset}")
    return NOT_MEASURED if found is None else Measured(value=None, reason="empty in the table")
