"""The arithmetic of comparing two explainers, as a pure function over score tables in memory.

The surprising choice: a failed explanation stays in the primary analysis with the score of an empty one,
because dropping it would reward an explainer for failing on hard latents; complete pairs are secondary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import polars as pl

from saeinterp.compare.comparability import ComparabilityRow
from saeinterp.compare.macro import (
    ALWAYS_YES,
    Macro,
    always_yes_columns,
    always_yes_result,
    bounds_of,
    control_results,
    macro_of,
    macro_result,
    paired,
)
from saeinterp.compare.pooled import (
    POOLED,
    WEIGHTED,
    mcnemar_per_latent,
    micro_results,
    no_micro,
    paired_verdicts,
    pooled_auroc,
    verdict_level,
)
from saeinterp.compare.results import ConfigurationDifference, ExplainerComparison, MetricResult, PairedResult
from saeinterp.compare.rows import latent_names, latent_table
from saeinterp.compare.sampled import SEVERAL, side_of
from saeinterp.compare.strata import strata_results
from saeinterp.compare.summaries import (
    by_hookpoint,
    count,
    coverage,
    families,
    mcnemar_result,
    statuses,
    verdict_result,
)
from saeinterp.compare.tables import (
    KEY,
    METRICS,
    SCORED,
    SIMULATED,
    ScoreTable,
    Side,
    fill_failed,
    with_status,
)
from saeinterp.compare.wording import DESCRIPTIONS, TITLES, macro_title, primary_sentence, sentences
from saeinterp.config import ComparisonConfig
from saeinterp.errors import DataError
from saeinterp.progress import Progress, silent
from saeinterp.stats import PairedComparison, holm, verdict_words
from saeinterp.stats.intervals import Floats

_TIE = 1e-12


class ComparedExplainers(NamedTuple):
    """The result of `compare_scores`: what is stored as `comparison.json` and as `latents.parquet`."""

    result: ExplainerComparison
    latents: pl.DataFrame


def compare_scores(
    a: ScoreTable,
    b: ScoreTable,
    *,
    controls: Mapping[str, ScoreTable] | None = None,
    config: ComparisonConfig | None = None,
    comparability: Sequence[ComparabilityRow] = (),
    configuration: Sequence[tuple[str, str, str]] = (),
    self_scored: bool = False,
    pairs: int = 1,
    progress: Progress | None = None,
) -> ComparedExplainers:
    """Compare two score tables; the difference is b minus a.

    Args:
        controls: Tables of control explanations on the same latents and examples.
        config: Endpoint, level, margin, draws and seed.
        comparability: Rows of the check that preceded.
        configuration: Fields in which the explainers differ: (field, a, b).
        self_scored: Every explainer was judged by its own model.
        pairs: Pairs of explainers compared together, this one included.

    Raises:
        DataError: No latent was scored on both sides, the primary metric is missing, or tables contradict themselves.
    """
    config = config or ComparisonConfig()
    controls = controls or {}
    listen = progress or silent
    if a.title == b.title:
        a, b = replace(a, title=f"{a.title} (A)"), replace(b, title=f"{b.title} (B)")
    a, b = (fill_failed(table, controls.get("empty")) for table in (a, b))
    selected, keys, unmatched = _latents(a, b)
    side_a, side_b = side_of(a, keys), side_of(b, keys)
    control_sides = {name: side_of(table, keys) for name, table in controls.items()}
    firings = _firings(a, b, keys)

    macros = {name: macro_of(name, side_a, side_b, config=config) for name in METRICS}
    primary = macros[config.metric]
    if primary is None:
        have = [name for name, macro in macros.items() if macro is not None]
        raise DataError(
            f"no latent has {config.metric} on both sides",
            field="comparison.metric",
            got=config.metric,
            expected=f"one of {', '.join(have)}" if have else "scored latents",
            next_step="auroc needs a scorer that gives probabilities" if config.metric == "auroc" else None,
        )
    micro = dict(
        zip(
            (*POOLED, WEIGHTED),
            micro_results(side_a, side_b, firings, draws=config.bootstrap, alpha=config.alpha, seed=config.seed),
        )
    )
    both = None
    several = a.samples is not None or b.samples is not None
    if a.verdicts is not None and b.verdicts is not None and not several:
        both = paired_verdicts(a.verdicts, b.verdicts, keys)
    verdicts = verdict_level(both, seed=config.seed) if both is not None else None
    mcnemar = mcnemar_per_latent(both, keys, seed=config.seed) if both is not None else None
    mcnemar_holm = holm(mcnemar.p) if mcnemar is not None else []
    complete = _complete_pairs(side_a, side_b, primary, config=config)

    # One family of everything that is neither the primary test nor a control.
    secondary: dict[tuple[str, str], float] = {}
    for name, macro in macros.items():
        if macro is not None and name != config.metric:
            secondary["macro", name] = macro.paired.p_value
    secondary |= {("micro", name): item.p_swap for name, item in micro.items() if item.p_swap is not None}
    if complete is not None:
        secondary["complete", ""] = complete.p_value
    if verdicts is not None:
        secondary["verdicts", ""] = verdicts.p_value
    adjusted = dict(zip(secondary, holm(list(secondary.values()))))

    floors = always_yes_columns(side_a)
    control_columns: dict[str, Mapping[str, Floats]] = {ALWAYS_YES: floors} if floors else {}
    control_columns |= {name: side.metrics for name, side in control_sides.items()}
    metrics = [
        MetricResult(
            name=name,
            title=TITLES[name],
            description=DESCRIPTIONS[name],
            primary=name == config.metric,
            macro=macro_result(
                macros.get(name),
                scored=len(keys),
                family="primary" if name == config.metric else "secondary",
                p_holm=adjusted.get(("macro", name)),
            ),
            micro=(
                micro[name].model_copy(update={"p_holm": adjusted.get(("micro", name))})
                if name in micro
                else no_micro(len(keys), "AUROC pooled over latents is another quantity: see pooled_auroc")
            ),
            always_yes=always_yes_result(name, side_a, floors, firings),
            bounds=bounds_of(name, side_a, side_b),
        )
        for name in (*METRICS, WEIGHTED)
        if name != SIMULATED or macros[name] is not None
    ]
    metrics.append(_pooled_auroc_metric(a, b, keys, side_a, side_b, config=config))
    compared_controls = control_results(control_columns, side_a, side_b, config=config)
    hookpoints = by_hookpoint(keys, primary, side_a, side_b, config=config)
    stored = PairedResult.of(primary.paired, family="primary")
    difference = (side_b.metrics[config.metric] - side_a.metrics[config.metric])[primary.rows]
    result = ExplainerComparison(
        title_a=a.title,
        title_b=b.title,
        metric=config.metric,
        metric_title=macro_title(config.metric),
        alpha=config.alpha,
        margin=config.margin,
        seed=config.seed,
        bootstrap=config.bootstrap,
        hookpoints=tuple(dict.fromkeys(selected["hookpoint"])),
        n_selected=len(selected),
        n_scored=len(keys),
        n_latents=primary.paired.n,
        unmatched=tuple(unmatched),
        verdict=primary.paired.verdict,
        verdict_words=verdict_words(primary.paired.verdict, margin=config.margin),
        sentence=primary_sentence(stored, title_a=a.title, title_b=b.title, metric=config.metric, pairs=pairs),
        primary=stored,
        complete_pairs=(
            PairedResult.of(complete, family="secondary", p_holm=adjusted["complete", ""])
            if complete is not None
            else None
        ),
        complete_pairs_reason=_no_complete_pairs(side_a, side_b, complete),
        better=(
            int((difference < -_TIE).sum()),
            int((difference > _TIE).sum()),
            int((np.abs(difference) <= _TIE).sum()),
        ),
        metrics=tuple(metrics),
        controls=tuple(compared_controls),
        floor="a" if a.floor else "b" if b.floor else None,
        statuses=tuple(statuses(a, b)),
        coverage_a=coverage(side_a),
        coverage_b=coverage(side_b),
        by_hookpoint=tuple(hookpoints),
        strata=tuple(
            strata_results(a.verdicts, b.verdicts, keys, draws=config.bootstrap, alpha=config.alpha, seed=config.seed)
        ),
        verdicts=verdict_result(verdicts, adjusted.get(("verdicts", ""))),
        verdicts_reason=(None if verdicts else SEVERAL if several else "no example has a usable verdict on both sides"),
        mcnemar=mcnemar_result(mcnemar, mcnemar_holm, latent_names(keys), alpha=config.alpha),
        families=tuple(
            families(
                controls=2 * len(compared_controls),
                secondary=len(secondary),
                hookpoints=sum(item.paired is not None for item in hookpoints),
                latents=len(mcnemar_holm),
                metric=config.metric,
            )
        ),
        comparability=tuple(comparability),
        matched=all(row.ok for row in comparability if row.severity == "hard"),
        configuration=tuple(ConfigurationDifference(field=f, a=x, b=y) for f, x, y in configuration),
        self_scored=self_scored,
        pairs=pairs,
        sentences=(),
    )
    latents = latent_table(
        selected,
        keys,
        tables=(a, b),
        sides=(side_a, side_b),
        controls=control_columns,
        mcnemar=mcnemar,
        mcnemar_holm=mcnemar_holm,
        config=config,
        progress=listen,
    )
    return ComparedExplainers(result.model_copy(update={"sentences": tuple(sentences(result))}), latents)


def _latents(a: ScoreTable, b: ScoreTable) -> tuple[pl.DataFrame, pl.DataFrame, list[str]]:
    """Latents that both sides list, those of them that both scored, and names of those only one lists."""
    left, right = (with_status(table.scores).select(*KEY, "status") for table in (a, b))
    order = {name: index for index, name in enumerate(dict.fromkeys(left["hookpoint"]))}
    selected = (
        left.join(right, on=KEY, how="inner", suffix="_b")
        .sort(pl.col("hookpoint").replace_strict(order, return_dtype=pl.Int64), "latent")
        .select(*KEY, "status", "status_b")
    )
    keys = selected.filter(pl.col("status").is_in(SCORED) & pl.col("status_b").is_in(SCORED)).select(KEY)
    if not len(keys):
        counts = {table.title: count(table) for table in (a, b)}
        raise DataError(
            "no latent was scored on both sides",
            field="comparison",
            got=counts,
            next_step="select more latents, or lower examples.min_windows",
        )
    alone = [x.join(y, on=KEY, how="anti") for x, y in ((left, right), (right, left))]
    return selected.select(KEY), keys, latent_names(pl.concat(alone).sort(KEY))


def _firings(a: ScoreTable, b: ScoreTable, keys: pl.DataFrame) -> Floats | None:
    for table in (a, b):
        if "firings" in table.scores.columns:
            rows = keys.join(table.scores.select(*KEY, "firings"), on=KEY, how="left", maintain_order="left")
            return rows["firings"].cast(pl.Float64).fill_null(float("nan")).to_numpy()
    return None


def _complete_pairs(a: Side, b: Side, primary: Macro, *, config: ComparisonConfig) -> PairedComparison | None:
    rows = primary.rows & ~a.failed & ~b.failed
    if not rows.any() or rows.sum() == primary.rows.sum():
        return None
    return paired(a.metrics[config.metric][rows], b.metrics[config.metric][rows], config=config)


def _no_complete_pairs(a: Side, b: Side, complete: PairedComparison | None) -> str | None:
    if complete is not None:
        return None
    if (a.failed | b.failed).any():
        return "no latent was explained on both sides"
    return "every scored latent was explained on both sides: the same as the primary comparison"


def _pooled_auroc_metric(
    a: ScoreTable, b: ScoreTable, keys: pl.DataFrame, side_a: Side, side_b: Side, *, config: ComparisonConfig
) -> MetricResult:
    name = "pooled_auroc"
    return MetricResult(
        name=name,
        title=TITLES[name],
        description=DESCRIPTIONS[name],
        primary=False,
        macro=macro_result(None, scored=len(keys), family="secondary", p_holm=None),
        micro=pooled_auroc(a.verdicts, b.verdicts, keys, draws=config.bootstrap, alpha=config.alpha, seed=config.seed),
        always_yes=always_yes_result(name, side_a, {}, None),
        bounds=bounds_of(name, side_a, side_b),
    )
