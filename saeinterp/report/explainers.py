"""The comparison of two explainers as a report section, and its latents and examples as tables.

Adapts `comparison.json` (see `saeinterp.compare.results`): every stored value gets its n, interval and
source. The surprising choice: a latent counts as explained "right" where its score exceeds what answering
yes to every example would give on that very latent, since F1 depends on class balance.
"""

from __future__ import annotations

from collections.abc import Sequence

from saeinterp.artifacts import Artifact
from saeinterp.compare import ExplainerComparison, read_explainer_comparison
from saeinterp.compare.results import CoverageResult, IntervalResult, MetricResult, PairedResult
from saeinterp.compare.tables import SIMULATED
from saeinterp.report.explainer_results import Control, ExplainerSection, Family, LayerScore, MetricRow, StatusCount
from saeinterp.report.format import Style, listing, short
from saeinterp.report.values import Check, Difference, Fact, Number, Side

UNDEFINED = "undefined on these latents"


def explainer_section(artifact: Artifact) -> ExplainerSection:
    """The verdict card, metric tables, controls and checks of one comparison."""
    data = read_explainer_comparison(artifact)
    source = artifact.id
    primary = next(metric for metric in data.metrics if metric.primary)
    return ExplainerSection(
        sides=(Side(key="a", title=data.title_a), Side(key="b", title=data.title_b)),
        metric=data.metric,
        metric_title=capital(primary.title),
        alpha=data.alpha,
        margin=data.margin,
        verdict=data.verdict,
        verdict_words=data.verdict_words,
        sentence=data.sentence,
        against=_against_controls(data),
        n_latents=data.n_latents,
        rows=metric_rows(measured_metrics(data), source),
        controls=tuple(
            Control(
                name=control.name,
                title=capital(control.title),
                description=control.description,
                value=stored_number(control.mean, source, over=control.interval, n=control.n),
                difference_a=paired_difference(control.against_a, source),
                p_a=p_number(control.against_a.p_value, source, control.against_a),
                p_holm_a=_holm(control.against_a, source),
                difference_b=paired_difference(control.against_b, source),
                p_b=p_number(control.against_b.p_value, source, control.against_b),
                p_holm_b=_holm(control.against_b, source),
            )
            for control in data.controls
        ),
        coverage=(coverage_number(data.coverage_a, source), coverage_number(data.coverage_b, source)),
        bounds=Number(
            value=data.primary.difference,
            style="fine-difference",
            low=primary.bounds.difference_low,
            high=primary.bounds.difference_high,
            interval="worst joint assignment of unusable verdicts",
            no_interval=primary.bounds.reason,
            n=primary.bounds.n,
            of="latents",
            source=source,
        ),
        by_layer=tuple(
            LayerScore(
                hookpoint=row.hookpoint,
                a=stored_number(row.mean_a, source, n=row.n, reason=row.reason),
                b=stored_number(row.mean_b, source, n=row.n, reason=row.reason),
                difference=(
                    paired_difference(row.paired, source)
                    if row.paired
                    else stored_number(row.difference, source, style="fine-difference", n=row.n, reason=row.reason)
                ),
                p=p_number(row.paired.p_value if row.paired else None, source, row.paired, reason=row.reason),
                p_holm=_holm(row.paired, source),
            )
            for row in data.by_hookpoint
        ),
        better=tuple(stored_number(count, source, style="count", n=data.n_latents) for count in data.better),
        examples=_examples(data, source),
        spread=(*_ranges(artifact, data), *_spread(data.primary, source)),
        statuses=tuple(StatusCount(status=row.status, a=row.a, b=row.b) for row in data.statuses),
        families=tuple(Family(**family.model_dump()) for family in data.families),
        checks=tuple(Check(**row.model_dump()) for row in data.comparability),
        matched=data.matched,
        self_scored=data.self_scored,
        differences=tuple(Difference(field=row.field, a=short(row.a), b=short(row.b)) for row in data.configuration),
        source=source,
    )


def stored_number(
    value: float | None,
    source: str,
    *,
    style: Style = "score",
    over: IntervalResult | None = None,
    n: int | None = None,
    of: str = "latents",
    reason: str | None = None,
) -> Number:
    """A stored value with its interval, its n and where it was read."""
    return Number(
        value=value,
        style=style,
        low=over.low if over else None,
        high=over.high if over else None,
        interval=f"{over.level:.0%} CI, {over.method}" if over and over.low is not None else None,
        no_interval=over.reason if over else None,
        n=n,
        of=of if n is not None else None,
        source=source,
        reason=None if value is not None else reason or UNDEFINED,
    )


def paired_difference(paired: PairedResult, source: str) -> Number:
    """The difference of a paired comparison with its interval."""
    return Number(
        value=paired.difference,
        style="fine-difference",
        low=paired.ci_low,
        high=paired.ci_high,
        interval=f"{1 - paired.alpha:.0%} CI, {paired.method}" if paired.ci_low is not None else None,
        no_interval=paired.ci_reason,
        n=paired.n,
        of="latents",
        source=source,
    )


def p_number(
    value: float | None, source: str, paired: PairedResult | None = None, *, reason: str | None = None
) -> Number:
    """A p value of a paired comparison."""
    return stored_number(value, source, style="p", n=paired.n if paired else None, reason=reason)


def _against_controls(data: ExplainerComparison) -> str | None:
    """What both sides are beside the controls, by the tests adjusted over all of them."""
    if not data.controls:
        return None
    said = []
    for title, tests in (
        (data.title_a, [(control.title, control.against_a) for control in data.controls]),
        (data.title_b, [(control.title, control.against_b) for control in data.controls]),
    ):
        found: dict[str, list[str]] = {"higher than": [], "lower than": [], "not detectably different from": []}
        for control, test in tests:
            if control == title:  # an explainer that is a control itself
                continue
            p = test.p_value if test.p_holm is None else test.p_holm
            differs = p is not None and p < data.alpha
            word = (
                "not detectably different from"
                if not differs
                else "higher than"
                if test.difference > 0
                else "lower than"
            )
            found[word].append(control)
        if parts := [f"{word} {listing(controls)}" for word, controls in found.items() if controls]:
            said.append(f"{title} is {', '.join(parts)}")
    return f"Beside the controls, by tests adjusted over all of them: {'; '.join(said)}."


def _holm(paired: PairedResult | None, source: str) -> Number | None:
    return None if paired is None or paired.p_holm is None else p_number(paired.p_holm, source, paired)


def measured_metrics(data: ExplainerComparison) -> Sequence[MetricResult]:
    """All metrics; without verdicts (of a simulation, of an outside table) those that there are."""
    counted = data.coverage_a.share is not None or data.coverage_b.share is not None
    if counted and data.metric != SIMULATED:
        return data.metrics
    return [item for item in data.metrics if item.primary or item.macro.mean_a is not None]


def metric_rows(metrics: Sequence[MetricResult], source: str) -> tuple[MetricRow, ...]:
    """Macro, then micro rows; a metric that exists on one level only has one row."""
    macro = [_macro(metric, source) for metric in metrics]
    micro = [_micro(metric, source) for metric in metrics]
    kept_macro = [row for row, other in zip(macro, micro) if row.primary or not (_absent(row) and not _absent(other))]
    kept_micro = [row for row, other in zip(micro, macro) if not (_absent(row) and not _absent(other))]
    return (*kept_macro, *kept_micro)


def _absent(row: MetricRow) -> bool:
    return row.a.value is None and row.b.value is None


def _macro(metric: MetricResult, source: str) -> MetricRow:
    row = metric.macro
    paired = row.paired
    reason = row.reason or UNDEFINED
    return MetricRow(
        metric=metric.name,
        title=capital(metric.title),
        description=metric.description,
        level="macro",
        primary=metric.primary,
        a=stored_number(row.mean_a, source, over=row.interval_a, n=row.n, reason=reason),
        b=stored_number(row.mean_b, source, over=row.interval_b, n=row.n, reason=reason),
        difference=(
            paired_difference(paired, source)
            if paired
            else stored_number(None, source, style="fine-difference", reason=reason)
        ),
        p=p_number(paired.p_value if paired else None, source, paired, reason=reason),
        p_holm=_holm(paired, source),
        detectable=(
            None
            if paired is None
            else stored_number(paired.min_detectable, source, n=paired.n, reason="needs two or more differing pairs")
        ),
        always_yes=stored_number(metric.always_yes.macro, source, n=row.n, reason=metric.always_yes.reason),
    )


def _micro(metric: MetricResult, source: str) -> MetricRow:
    row = metric.micro
    return MetricRow(
        metric=metric.name,
        title=capital(metric.title),
        description=metric.description,
        level="micro",
        primary=False,
        a=stored_number(row.value_a, source, over=row.interval_a, n=row.n, reason=row.reason),
        b=stored_number(row.value_b, source, over=row.interval_b, n=row.n, reason=row.reason),
        difference=stored_number(
            row.difference, source, style="fine-difference", over=row.interval_difference, n=row.n, reason=row.reason
        ),
        p=stored_number(row.p_swap, source, style="p", n=row.n, reason=row.reason),
        p_holm=None if row.p_holm is None else stored_number(row.p_holm, source, style="p", n=row.n),
        always_yes=stored_number(metric.always_yes.micro, source, n=row.n, reason=metric.always_yes.reason),
    )


def coverage_number(coverage: CoverageResult, source: str) -> Number:
    """The share of usable verdicts, or of windows predicted."""
    return stored_number(
        coverage.share, source, style="share", n=coverage.examples, of="examples", reason=coverage.reason
    )


def _examples(data: ExplainerComparison, source: str) -> tuple[Fact, ...]:
    if data.verdicts is None:
        return ()
    counts = {
        "Both right": data.verdicts.both_right,
        "Only A right": data.verdicts.only_a,
        "Only B right": data.verdicts.only_b,
        "Both wrong": data.verdicts.both_wrong,
    }
    return tuple(
        Fact(title=title, number=stored_number(count, source, style="count", n=data.verdicts.examples, of="examples"))
        for title, count in counts.items()
    )


def _ranges(artifact: Artifact, data: ExplainerComparison) -> tuple[Fact, ...]:
    """Mean of each side with its smallest and largest latent, over the latents that both sides have a value on."""
    import polars as pl

    columns = [f"{data.metric}_{key}" for key in ("a", "b")]
    table = pl.read_parquet(artifact.file("latents.parquet"), columns=columns).drop_nulls()
    facts = []
    for key, column, mean in zip("AB", columns, (data.primary.mean_a, data.primary.mean_b)):
        values = table[column].to_list()
        number = Number(
            value=mean,
            low=min(values, default=None),
            high=max(values, default=None),
            interval="smallest to largest latent" if values else None,
            n=data.primary.n,
            of="latents",
            source=artifact.id,
        )
        facts.append(Fact(title=f"Mean over latents [smallest, largest], {key}", number=number))
    return tuple(facts)


def _spread(paired: PairedResult, source: str) -> tuple[Fact, ...]:
    few = "needs more latents, or a column that varies"
    values = {
        "Standard deviation over latents, A": paired.sd_a,
        "Standard deviation over latents, B": paired.sd_b,
        "Standard deviation of the differences": paired.sd_difference,
        "Pearson correlation of A and B": paired.pearson_r,
        "Spearman correlation of A and B": paired.spearman_r,
    }
    return tuple(
        Fact(title=title, number=stored_number(value, source, n=paired.n, reason=few))
        for title, value in values.items()
    )


def capital(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]
