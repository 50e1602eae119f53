"""`saeinterp plan --scale`: what every step of a flow takes by arithmetic, also where models and texts are not here.

The flow itself is walked, as `plan` does; a model that is not on this machine is stood in for by its sizes in
`deployments/sizes.yaml`. Nothing is guessed silently: what is assumed, and which steps have no formula, is listed.
"""

from __future__ import annotations

import json
import math
from typing import Any, NamedTuple

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from flows.pricing import WITHOUT_PRODUCTS, Line, Pricing, known_sizes
from saeinterp.errors import ConfigError
from saeinterp.estimates import gpu_hours
from tasks.step import planning

CARD = "H100"
UTILISATION = 0.3
COMPARISONS = ("explainer-", "model-", "interpretability-", "scorer-")
QUANTITIES = ("tokens", "size", "flops", "requests", "llm_tokens")


class Scale(NamedTuple):
    """A whole run by arithmetic.

    Attributes:
        lines: One a step that has a formula, in order.
        assumed: What was taken from the table of sizes or from rules, in words.
        uncounted: Kinds of steps without a formula, with their number.
        card: Whose `peak` FLOP/s, reached to the share `utilisation`, make hours of FLOPs.
    """

    lines: list[Line]
    assumed: list[str]
    uncounted: dict[str, int]
    card: str
    peak: float
    utilisation: float

    def hours(self, flops: float) -> float:
        return gpu_hours(flops, peak=self.peak, utilisation=self.utilisation)

    @property
    def whole(self) -> Line:
        """The sum of all lines."""
        return _sum(self.lines)

    def total(self, by: str) -> dict[str, Line]:
        """Sums by `kind` or by `layer`; `shared` is what serves all layers at once."""
        groups: dict[str, list[Line]] = {}
        for line in self.lines:
            groups.setdefault(str(getattr(line, by)) or "shared", []).append(line)
        return {key: _sum(lines) for key, lines in groups.items()}


def _sum(lines: list[Line]) -> Line:
    return Line("", "", "", **{name: sum(getattr(line, name) for line in lines) for name in QUANTITIES})


def card_peak(card: str) -> tuple[str, float]:
    """A card's name and its FLOP/s: one of the table, or NAME=FLOPS.

    Raises:
        ConfigError: Neither.
    """
    name, _, given = card.partition("=")
    cards = known_sizes()["cards"]
    try:
        peak = float(given) if given else float(cards[name])
    except (KeyError, ValueError):
        peak = math.nan
    if not 0 < peak < math.inf:
        expected = f"{', '.join(cards)}, or NAME=FLOPS such as mine=2e14"
        raise ConfigError("no such card", field="--gpu", got=card, expected=expected)
    return name, peak


def make_scale(flow: Any, config: BaseModel, *, card: str = CARD, utilisation: float = UTILISATION) -> Scale:
    """Walk `flow` with `config` and price every step; nothing runs and nothing is written.

    Raises:
        ConfigError: No such card, a utilisation outside (0, 1], or a model whose sizes are not known.
    """
    if not 0 < utilisation <= 1:
        raise ConfigError("no share", field="--utilisation", got=utilisation, expected="more than 0, at most 1")
    name, peak = card_peak(card)
    pricing = Pricing(known_sizes())
    config = pricing.without_absent_saes(config)
    with planning(stand_in=pricing.stand_in) as recorded:
        flow.fn(config)
    pricing.made = {recipe.folder: inputs for recipe, inputs in recorded.steps}
    lines, uncounted = [], dict[str, int]()
    for recipe, inputs in recorded.steps:
        found = pricing.lines(recipe, inputs)
        if found:
            lines += found
        elif recipe.kind not in WITHOUT_PRODUCTS and not recipe.kind.startswith(COMPARISONS):
            uncounted[recipe.kind] = uncounted.get(recipe.kind, 0) + 1
    return Scale(lines, list(pricing.assumed), uncounted, name, peak, utilisation)


def as_json(scale: Scale) -> str:
    """Every line with its hours, sums by kind and by layer, and what was assumed."""

    def row(line: Line, **names: str) -> dict[str, Any]:
        values = {name: getattr(line, name) for name in QUANTITIES}
        return {**names, **values, "gpu_hours": scale.hours(line.flops)}

    return json.dumps(
        {
            "gpu": scale.card,
            "peak_flops": scale.peak,
            "utilisation": scale.utilisation,
            "steps": [row(line, kind=line.kind, name=line.name, layer=line.layer) for line in scale.lines],
            "by_kind": {key: row(line) for key, line in scale.total("kind").items()},
            "by_layer": {key: row(line) for key, line in scale.total("layer").items()},
            "total": row(scale.whole),
            "assumed": scale.assumed,
            "not_counted": scale.uncounted,
        },
        indent=1,
    )


def print_scale(scale: Scale, *, console: Console) -> None:
    """Two tables, by step and by layer, each with its total, and what they rest on."""
    for title, by in (("step", "kind"), ("layer", "layer")):
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column(title, no_wrap=True)
        for heading in ("tokens", "bytes", "FLOPs", "GPU-hours", "requests", "LLM tokens"):
            table.add_column(heading, justify="right", no_wrap=True)
        for key, line in [*scale.total(by).items(), ("total", scale.whole)]:
            counts = [_short(value) for value in (line.tokens, line.size, line.flops)]
            asked = [_short(value) for value in (line.requests, line.llm_tokens)]
            table.add_row(key, *counts, _short(scale.hours(line.flops)), *asked)
        console.print(table)
        console.print()
    console.print(
        f"GPU-hours: FLOPs / ({_short(scale.peak)} FLOP/s of one {scale.card} by data sheet x {scale.utilisation:g}, "
        "the share that is taken to be reached). --gpu and --utilisation change both; `make bench-scaling` measures.",
        markup=False,
        highlight=False,
    )
    for text in scale.assumed:
        console.print(f"assumed      {text}", markup=False, highlight=False)
    for kind, count in scale.uncounted.items():
        console.print(f"not counted  {kind} ({count} steps): no formula", markup=False, highlight=False)


def _short(value: float) -> str:
    """Three digits; nothing for zero."""
    if value == 0:
        return ""
    return f"{value:,.3g}" if 0.001 <= value < 1e6 else f"{value:.2e}"
