"""Integrity checks: what must hold between the numbers of a health table, ours or an imported one.

The surprising choice: a rule whose numbers are not there is left out, never reported as passed, so a table
of four columns and our own full one go through the same function. A rule that rounding has made unable to fail is
left out too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

TOLERANCE = 1e-9
UNIFORM_TOLERANCE = 1e-3  # nats; float32 rounding of log-softmax is 1e-6, a real deviation is far larger


class Check(NamedTuple):
    """One rule, whether it holds, and the numbers it was judged by."""

    name: str
    passed: bool
    detail: str


class _Rule(NamedTuple):
    name: str
    keys: tuple[str, ...]
    holds: Callable[..., bool]
    detail: str


_RULES = (
    _Rule(
        "L0 ≤ k",
        ("l0", "k", "l0_step"),
        lambda l0, k, l0_step: l0 <= k + l0_step + TOLERANCE,
        "largest L0 {l0:g}, k = {k:g}",
    ),
    _Rule(
        "L0 ≤ alive latents",
        ("l0", "alive", "l0_step", "alive_step"),
        lambda l0, alive, l0_step, alive_step: l0 <= alive + l0_step + alive_step + TOLERANCE,
        "largest L0 {l0:g}, {alive:g} alive",
    ),
    _Rule(
        "dead fraction × latents is an integer",
        ("dead_fraction", "num_latents", "whole_step"),
        lambda dead_fraction, num_latents, whole_step: (
            abs(dead_fraction * num_latents - round(dead_fraction * num_latents)) <= whole_step
        ),
        "{dead_fraction:.6g} × {num_latents:g} = {product:.6g}",
    ),
    _Rule(
        "dead + alive = latents",
        ("dead", "alive", "num_latents"),
        lambda dead, alive, num_latents: dead + alive == num_latents,
        "{dead:g} + {alive:g}, {num_latents:g} latents",
    ),
    _Rule(
        "always on ≤ mean L0",
        ("always_on", "l0_mean"),
        lambda always_on, l0_mean: always_on <= l0_mean + TOLERANCE,
        "{always_on:g} always on, mean L0 {l0_mean:g}",
    ),
    _Rule(
        "firings = tokens × mean L0",
        ("firings", "tokens", "l0_mean"),
        lambda firings, tokens, l0_mean: abs(firings - tokens * l0_mean) <= TOLERANCE * max(firings, 1),
        "{firings:g} firings, {tokens:g} tokens × {l0_mean:g}",
    ),
    _Rule(
        "density histogram counts every latent",
        ("binned", "dead", "num_latents"),
        lambda binned, dead, num_latents: binned + dead == num_latents,
        "{binned:g} binned + {dead:g} dead, {num_latents:g} latents",
    ),
    _Rule(
        "evaluated + masked = all tokens",
        ("tokens", "masked", "rows"),
        lambda tokens, masked, rows: tokens + masked == rows,
        "{tokens:g} + {masked:g}, {rows:g} tokens",
    ),
    _Rule(
        "explained variance + FVU = 1",
        ("explained_variance", "fvu"),
        lambda explained_variance, fvu: abs(explained_variance + fvu - 1) <= 1e-6 * max(1, abs(fvu)),
        "{explained_variance:.6g} + {fvu:.6g}",
    ),
    _Rule(
        "zeroing makes the output uniform: CE = ln V",
        ("ce_zero", "uniform_ce"),
        lambda ce_zero, uniform_ce: abs(ce_zero - uniform_ce) <= UNIFORM_TOLERANCE,
        "CE zeroed {ce_zero:.5f}, ln V = {uniform_ce:.5f}",
    ),
    _Rule(
        "masked rows are those masked in training",
        ("mask_difference", "rows"),
        # Another batch shape moves an activation by a rounding step, so a row at the very limit may change sides.
        lambda mask_difference, rows: mask_difference <= max(1, 1e-4 * rows),
        "{mask_difference:g} of {rows:g} rows differ",
    ),
)


EXACT: Mapping[str, float] = MappingProxyType({})


def integrity_checks(row: Mapping[str, Any], *, rounding: Mapping[str, float] = EXACT) -> tuple[Check, ...]:
    """Check one row of layer health.

    Args:
        row: Keys as in `health.json`, each a number or a `{value, low, high, ...}` entry; any may be absent. `alive`
            is derived from `dead_fraction` and `num_latents` where it is absent, the largest L0 is `l0_max`, else
            `l0_mean`.
        rounding: Half a unit of the last printed digit of `l0_mean`, `l0_max` or `dead_fraction`, for tables that
            were rounded before they came here.
    """
    known = {key: number for key, value in row.items() if (number := _number(value)) is not None}
    if "l0_max" in known or "l0_mean" in known:
        known["l0"] = known.get("l0_max", known.get("l0_mean", 0.0))
        known["l0_step"] = rounding.get("l0_max" if "l0_max" in known else "l0_mean", 0.0)
    known["alive_step"] = 0.0
    if {"dead_fraction", "num_latents"} <= known.keys():
        latents = known["num_latents"]
        step = rounding.get("dead_fraction", 0.0) * latents
        known["product"] = known["dead_fraction"] * latents
        if step < 0.5:  # else some integer always lies within the rounding
            known["whole_step"] = step + TOLERANCE * latents
        if "alive" not in known:
            known |= {"alive": latents - known["product"], "alive_step": step}
    if "density_histogram" in row:
        known["binned"] = sum(row["density_histogram"]["counts"])
    if "masked_tokens" in row:
        known["masked"] = sum(row["masked_tokens"].values())
    found = []
    for rule in _RULES:
        if all(key in known for key in rule.keys):
            values = {key: known[key] for key in rule.keys}
            found.append(Check(rule.name, rule.holds(**values), rule.detail.format(**known)))
    return (*found, *_intervals(row))


def printed_check(name: str, printed: float, computed: float, *, half_step: float, unit: str = "") -> Check:
    """Whether a printed number is the computed one, rounded as it was printed.

    Args:
        half_step: Half a unit of the last printed digit.
        unit: Written behind both numbers.
    """
    digits = max(0, -math.floor(math.log10(2 * half_step))) if half_step > 0 else 6
    detail = f"printed {printed:.{digits}f}{unit}, computed {computed:.{max(digits, 2)}f}{unit}"
    return Check(name, abs(printed - computed) <= half_step * (1 + 1e-6) + TOLERANCE, detail)


def _intervals(row: Mapping[str, Any]) -> list[Check]:
    """One check over all entries that have an interval; empty without one."""
    outside, known = [], 0
    for key, entry in row.items():
        ends = [_number(entry.get(name)) for name in ("low", "value", "high")] if isinstance(entry, Mapping) else []
        if not ends or any(end is None for end in ends):
            continue
        low, value, high = (end for end in ends if end is not None)
        known += 1
        slack = TOLERANCE * max(1.0, abs(low), abs(high))
        if not low - slack <= value <= high + slack:
            outside.append(f"{key} {value:g} outside {low:g} to {high:g}")
    if not known:
        return []
    return [Check("intervals contain their values", not outside, "; ".join(outside) or f"{known} intervals")]


def _number(value: Any) -> float | None:
    if isinstance(value, Mapping):
        value = value.get("value")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value
