"""The smaller parts of a stored comparison: hookpoints, statuses, coverage, verdict-level tests, families.

The surprising choice: a hookpoint with fewer than six latents gets its means and no p, because none of
its p values could fall below 0.05.
"""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from saeinterp.compare.macro import Macro, paired
from saeinterp.compare.pooled import McNemar, VerdictLevel
from saeinterp.compare.results import (
    CoverageResult,
    FamilyResult,
    HookpointResult,
    McNemarResult,
    PairedResult,
    StatusCount,
    VerdictResult,
)
from saeinterp.compare.tables import ScoreTable, Side, with_status
from saeinterp.compare.wording import macro_title
from saeinterp.config import ComparisonConfig
from saeinterp.stats import MIN_PAIRS, holm
from saeinterp.stats.intervals import Floats

STATUSES = ("scored", "explanation_failed", "too_rare", "too_dense", "dead")


def by_hookpoint(
    keys: pl.DataFrame, primary: Macro, a: Side, b: Side, *, config: ComparisonConfig
) -> list[HookpointResult]:
    """The primary metric per hookpoint; tested, and adjusted by Holm, where a hookpoint has enough latents."""
    names = list(dict.fromkeys(keys["hookpoint"]))
    of_row = keys["hookpoint"].to_numpy()
    found: list[tuple[str, Floats, Floats]] = []
    for name in names:
        rows = primary.rows & (of_row == name)
        found.append((name, a.metrics[config.metric][rows], b.metrics[config.metric][rows]))
    tests = {name: paired(x, y, config=config) for name, x, y in found if len(x) >= MIN_PAIRS and len(names) > 1}
    adjusted = dict(zip(tests, holm([test.p_value for test in tests.values()])))
    results = []
    for name, x, y in found:
        reason = None
        if len(names) == 1:
            reason = "the only hookpoint: the primary comparison is its test"
        elif len(x) < MIN_PAIRS:
            reason = f"n = {len(x)} is too few: no sign-flip p can fall below 0.05 under {MIN_PAIRS} latents"
        results.append(
            HookpointResult(
                hookpoint=name,
                n=len(x),
                mean_a=float(x.mean()) if len(x) else None,
                mean_b=float(y.mean()) if len(y) else None,
                difference=float((y - x).mean()) if len(x) else None,
                paired=(
                    PairedResult.of(tests[name], family="hookpoints", p_holm=adjusted[name]) if name in tests else None
                ),
                reason=reason,
            )
        )
    return results


def count(table: ScoreTable) -> dict[str, int]:
    """Latents per status."""
    counts = with_status(table.scores)["status"].value_counts(sort=False)
    return {str(status): int(count) for status, count in sorted(counts.iter_rows())}


def statuses(a: ScoreTable, b: ScoreTable) -> list[StatusCount]:
    """Latents per status on both sides."""
    left, right = count(a), count(b)
    names = list(dict.fromkeys([*STATUSES, *left, *right]))
    return [StatusCount(status=name, a=left.get(name, 0), b=right.get(name, 0)) for name in names]


def coverage(side: Side) -> CoverageResult:
    """Usable verdicts of one side."""
    if side.examples is None or side.usable is None:
        return CoverageResult(
            examples=0, usable=0, share=None, latents_below=0, lowest=None, reason="the table holds no example counts"
        )
    examples, usable = int(side.examples.sum()), int(side.usable.sum())
    asked = side.examples > 0
    return CoverageResult(
        examples=examples,
        usable=usable,
        share=usable / examples if examples else None,
        latents_below=int((side.usable < side.examples).sum()),
        lowest=float((side.usable[asked] / side.examples[asked]).min()) if asked.any() else None,
        reason=None if examples else "no example was judged",
    )


def verdict_result(verdicts: VerdictLevel | None, p_holm: float | None) -> VerdictResult | None:
    """The stored form of the verdict-level test."""
    if verdicts is None:
        return None
    both, only_a, only_b, neither = verdicts.cells
    return VerdictResult(
        latents=verdicts.latents,
        examples=both + only_a + only_b + neither,
        both_right=both,
        only_a=only_a,
        only_b=only_b,
        both_wrong=neither,
        difference=only_b - only_a,
        p_value=verdicts.p_value,
        p_holm=p_holm,
        method=verdicts.method,
    )


def mcnemar_result(
    mcnemar: McNemar | None, adjusted: Sequence[float], names: Sequence[str], *, alpha: float
) -> McNemarResult | None:
    """How many latents differ by themselves after adjustment."""
    if mcnemar is None:
        return None
    found = tuple(name for name, p in zip(names, adjusted) if p < alpha)
    return McNemarResult(
        tested=len(adjusted), examples=int(mcnemar.examples.sum()), significant=len(found), latents=found
    )


def families(*, controls: int, secondary: int, hookpoints: int, latents: int, metric: str) -> list[FamilyResult]:
    """The families of tests that were made, with their sizes."""
    families = [
        FamilyResult(
            name="primary", tests=1, adjustment="none", description=f"{macro_title(metric)}, sign-flip over latents"
        ),
        FamilyResult(
            name="controls",
            tests=controls,
            adjustment="Holm",
            description="each side against each control on the primary metric",
        ),
        FamilyResult(
            name="secondary",
            tests=secondary,
            adjustment="Holm",
            description="the other metrics, pooled metrics, complete pairs and the verdict-level test",
        ),
        FamilyResult(
            name="hookpoints", tests=hookpoints, adjustment="Holm", description="the primary metric at each hookpoint"
        ),
        FamilyResult(name="latents", tests=latents, adjustment="Holm", description="exact McNemar within each latent"),
    ]
    return [family for family in families if family.tests]
