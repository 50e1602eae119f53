"""The findings list: sentences that the comparisons generated, then what counts over layers and latents say.

The surprising choice: no sentence is written in a template, and none here holds an adjective; a comparison
of numbers carries both numbers, and a reason for a missing number is quoted as the step gave it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from saeinterp.artifacts import Artifact
from saeinterp.compare import read_explainer_comparison, read_explainer_pairs
from saeinterp.report.explainer_results import ExplainerSection
from saeinterp.report.format import listing, number, plural
from saeinterp.report.reasons import fold_reasons
from saeinterp.report.results import Failure, LayerHealth
from saeinterp.report.values import Number

if TYPE_CHECKING:
    import polars as pl

SHOWN_ELSEWHERE = ("primary", "unmatched", "self_scored", "ranking", "families")
"""Sentences of a comparison that have their own place: headline, banner, table."""
LISTED = 12
"""Layers whose values are written out; of more the sentence names the ends, and the table has them all."""


def findings(
    comparison: Artifact | None,
    pairs: Artifact | None,
    section: ExplainerSection | None,
    layers: Sequence[LayerHealth],
    latents: pl.DataFrame | None,
    failures: Sequence[Failure],
) -> tuple[str, ...]:
    """The sentences in the order they are read."""
    said: list[str] = []
    if comparison is not None and section is not None:
        # Of several pairs the sentences are those of the adjusted tests.
        stored = read_explainer_comparison(comparison) if pairs is None else read_explainer_pairs(pairs)
        said += [sentence.text for sentence in stored.sentences if sentence.id not in SHOWN_ELSEWHERE]
        if latents is not None and "unknown" not in latents["outcome"]:
            said.append(_against_chance(section, latents["outcome"].to_list()))
    for side in dict.fromkeys(layer.side for layer in layers):
        said += _of_layers(side, [layer for layer in layers if layer.side == side])
    if failures:
        steps = listing([" ".join(part for part in (f.stage, f.hookpoint, f.side) if part) for f in failures])
        said.append(f"{plural(len(failures), 'step')} did not finish and no number here includes any of it: {steps}.")
    return tuple(said)


def _against_chance(section: ExplainerSection, outcomes: Sequence[str]) -> str:
    scored = [outcome for outcome in outcomes if outcome not in ("unscored", "failed")]
    both, a, b, neither = (scored.count(name) for name in ("both", "a-only", "b-only", "neither"))
    floor = "0" if section.simulated else "the latent's always-yes value"
    return (
        f"Of {plural(len(scored), 'latent')} explained and scored on both sides, {section.metric_title} exceeds "
        f"{floor} on both sides for {both}, only with {section.sides[0].title} for {a}, "
        f"only with {section.sides[1].title} for {b}, with neither for {neither}."
    )


def _of_layers(side: str, layers: Sequence[LayerHealth]) -> list[str]:
    parts = []
    several = len({layer.dataset for layer in layers}) > 1
    named = {id(layer): f"{layer.title}, {layer.dataset}" if several else layer.title for layer in layers}
    for name, words in (
        ("loss_recovered", "loss recovered"),
        ("explained_variance", "explained variance"),
        ("dead", "dead"),
    ):
        known = [(named[id(layer)], item) for layer in layers if (item := _of(layer, name)).value is not None]
        if known:
            parts.append(f"{words} {_values(known)}")
    said = [f"{side}: {'; '.join(parts)}."] if parts else []
    reasons: dict[str, list[str]] = {}
    for layer in layers:
        if layer.loss_recovered.value is None:
            reasons.setdefault(layer.loss_recovered.reason or "", []).append(named[id(layer)])
        said += [f"Integrity check failed for {side}, {named[id(layer)]}: {line}." for line in layer.failed_checks]
    said += [
        f"{side}: loss recovered is NA at {listing(where) if len(where) <= LISTED else plural(len(where), 'row')}: "
        f"{reason.rstrip('.')}."
        for reason, where in fold_reasons(reasons)
    ]
    return said


def _values(known: Sequence[tuple[str, Number]]) -> str:
    """Every value with its layer, or of many the smallest and the largest."""
    if len(known) <= LISTED:
        return ", ".join(f"{number(item.value, item.style)} ({where})" for where, item in known)
    ranked = sorted(known, key=lambda pair: pair[1].value or 0)
    low, high = (f"{number(item.value, item.style)} ({where})" for where, item in (ranked[0], ranked[-1]))
    return f"from {low} to {high} over {plural(len(known), 'row')}"


def _of(layer: LayerHealth, name: str) -> Number:
    item: Number = getattr(layer, name)
    return item
