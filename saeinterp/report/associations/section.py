"""Which latents go with which tokens, as a report section: rates beside both nulls, labels, the strongest latents.

Adapts what `correlate_latents` leaves. The surprising choice: the published rules get no table of their own shape.
Their rates stand in rows like those of the recommended ones, beside the same nulls, and where a rate is what chance
gives the sentence says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from saeinterp.artifacts import read_json
from saeinterp.compare.interpretability_draws import MAXIMUM
from saeinterp.compare.interpretability_sides import Associated
from saeinterp.compare.interpretability_words import is_category, rate_title
from saeinterp.report.associations.findings import side_findings
from saeinterp.report.associations.results import (
    CategoryRow,
    ChanceCell,
    EnrichmentSection,
    KindRow,
    PresetSection,
    RateRow,
    SideFacts,
    TopLatent,
)
from saeinterp.report.associations.rules import preset_rules
from saeinterp.report.associations.volcano import pair_facts
from saeinterp.report.format import Style
from saeinterp.report.values import Fact, Number

TITLES = {
    "robust": "Recommended rules (robust)",
    "seed-gsm8k-chi2": "Published rules (seed-gsm8k-chi2), for comparison",
}
TOP = 5
"""Monosemantic latents listed."""
SCORES = {"robust": ("odds_ratio", "odds ratio"), "seed-gsm8k-chi2": ("enrichment", "enrichment")}
"""Preset to the column that ranks its latents, and its name."""
UNDEFINED = "undefined"


def enrichment_section(sides: Mapping[str, Associated], latents: pl.DataFrame) -> EnrichmentSection:
    """The section.

    Args:
        sides: Title of the model to its enrichment.
        latents: Table of `associated_latents`.
    """
    presets = dict.fromkeys(preset for item in sides.values() for preset in item.presets)
    return EnrichmentSection(
        sides=tuple(_facts(title, item) for title, item in sides.items()),
        presets=tuple(_preset(preset, sides, latents.filter(pl.col("preset") == preset)) for preset in presets),
        latents=latents.height,
    )


def rate_number(row: Mapping[str, Any], source: str) -> Number:
    """A rate of `rates.json` with its interval over half-samples."""
    value, reason = row["value"], row.get("reason")
    return Number(
        value=value,
        style=style_of(row["rate"]),
        low=row["low"],
        high=row["high"],
        interval=f"95% CI, 1.96 × SD over {row.get('halves')} half-samples" if row["low"] is not None else None,
        no_interval=reason if value is not None else None,
        n=row["of"],
        of="latents" if row["of"] is not None else None,
        source=source,
        reason=None if value is not None else reason or UNDEFINED,
    )


def chance_cell(null: Mapping[str, Any] | None, style: Style, source: str) -> ChanceCell:
    """What a null gives, or why it gives nothing."""
    null = null or {}
    count = null.get("permutations")
    reason = null.get("reason") or ("no permutations were drawn" if not count else "undefined under this null")

    def cell(name: str, shown: Style) -> Number:
        value = null.get(name)
        missing = None if value is not None else reason
        return Number(value=value, style=shown, n=count, of="permutations", source=source, reason=missing)

    return ChanceCell(mean=cell("mean", style), sd=cell("sd", style), p=cell("p", "p"))


def style_of(rate: str) -> Style:
    """How a rate is written."""
    return "plain" if rate == MAXIMUM else "share"


def _facts(title: str, item: Associated) -> SideFacts:
    data = read_json(item.artifact.file("rates.json"))
    source = item.artifact.id
    observed = next(iter(item.draws.values())).filter(pl.col("draw") == "observed")
    counts = {
        "Problems associated": data["samples"],
        "Problems left out: a position is missing": data["left_out"]["without_position"],
        "Problems left out: not on the other side": data["left_out"]["unmatched"],
        "SAEs": len(item.sites),
        "Latents": data["latents"],
        "Latents active in some problem": int(observed["alive"].sum()),
        "Tokens": data["tokens"],
        "Strata of problems": len(data["strata"]),
        **{f"Pairs tested, {preset}": family for preset, family in data["families"].items()},
    }
    facts = [
        Fact(title=name, number=Number(value=value, style="count", source=source))
        for name, value in counts.items()
        if value or "left out" not in name
    ]
    return SideFacts(title=title, facts=tuple(facts), source=source)


def _preset(preset: str, read: Mapping[str, Associated], latents: pl.DataFrame) -> PresetSection:
    have = {title: item for title, item in read.items() if preset in item.presets}
    rates, categories, findings = [], [], []
    for title, item in have.items():
        rows = [row for row in item.rates if row["preset"] == preset and row["scope"] != "site"]
        rates += [_rate_row(title, item, row) for row in rows if _shown(row, item)]
        categories += [_category_row(title, item, row) for row in rows if _is_model_category(row)]
        findings += side_findings(title, preset, rows, latents.filter(pl.col("side") == title))
    rank, measure = SCORES[preset]
    return PresetSection(
        preset=preset,
        title=TITLES[preset],
        rules=preset_rules(preset, [item.artifact.manifest()["config"] for item in have.values()]),
        rates=tuple(rates),
        categories=tuple(categories),
        kinds=_kinds(have, latents),
        top=tuple(top for title, item in have.items() for top in _top(title, item, latents, rank, measure)),
        findings=tuple(findings),
        pairs=tuple(pair_facts(title, item, preset) for title, item in have.items()),
    )


def _shown(row: Mapping[str, Any], item: Associated) -> bool:
    if is_category(row["rate"]) is not None:
        return False
    if row["rate"] == MAXIMUM:
        return row["scope"] == "model" and row["value"] is not None
    return row["scope"] != "position" or len({site.position for site in item.sites}) > 1


def _is_model_category(row: Mapping[str, Any]) -> bool:
    return row["scope"] == "model" and is_category(row["rate"]) is not None


def _rate_row(title: str, item: Associated, row: Mapping[str, Any]) -> RateRow:
    source, style = item.artifact.id, style_of(row["rate"])
    nulls = row["nulls"]
    excess = (nulls.get("strata") or {}).get("excess")
    words = "Largest enrichment" if row["rate"] == MAXIMUM else rate_title(row["rate"])
    reason = "only rates over all latents have one" if excess is None else None
    return RateRow(
        side=title,
        scope=row["scope"],
        where=_where(row, item),
        rate=row["rate"],
        title=words[:1].upper() + words[1:],
        value=rate_number(row, source),
        strata=chance_cell(nulls.get("strata"), style, source),
        free=chance_cell(nulls.get("free"), style, source),
        excess=Number(value=excess, style="share", n=row["of"], of="latents", source=source, reason=reason),
    )


def _where(row: Mapping[str, Any], item: Associated) -> str:
    if row["scope"] == "layer":
        return str(row["hookpoint"])
    if row["scope"] == "position":
        return next(site.title for site in item.sites if site.position == row["position"])
    return "all layers and positions"


def _category_row(title: str, item: Associated, row: Mapping[str, Any]) -> CategoryRow:
    source = item.artifact.id
    share, ratio = row.get("vocabulary_share"), row.get("over_vocabulary")
    value = rate_number(row, source)
    bounds = [end / share if share and end is not None else None for end in (value.low, value.high)]
    return CategoryRow(
        side=title,
        category=str(is_category(row["rate"])),
        value=value,
        strata=chance_cell(row["nulls"].get("strata"), "share", source),
        vocabulary=Number(value=share, style="share", source=source, reason=UNDEFINED if share is None else None),
        ratio=Number(
            value=ratio,
            style="score",
            low=bounds[0] if ratio is not None else None,
            high=bounds[1] if ratio is not None else None,
            interval=value.interval if bounds[0] is not None else None,
            no_interval=value.no_interval if bounds[0] is None and ratio is not None else None,
            n=row["of"],
            of="latents",
            source=source,
            reason=None if ratio is not None else value.reason or UNDEFINED,
        ),
    )


def _kinds(sides: Mapping[str, Associated], latents: pl.DataFrame) -> tuple[KindRow, ...]:
    """Labels by category and kind, those of no single category together; the most frequent first."""
    alone = pl.col("kind").is_in(["polysemantic", "unclear"])
    words = pl.when(alone).then(pl.col("kind")).otherwise(pl.format("{}, {}", "category", "kind"))
    counted = latents.group_by("side", words=words).len()
    totals = dict(counted.group_by("words").agg(pl.col("len").sum()).iter_rows())
    found = {(side, name): count for side, name, count in counted.iter_rows()}
    labelled = {side: sum(count for (owner, _), count in found.items() if owner == side) for side in sides}
    rows = []
    for name in sorted(totals, key=lambda name: (-totals[name], name)):
        values = []
        for side, item in sides.items():
            of = labelled[side]
            share = found.get((side, name), 0) / of if of else None
            reason = None if of else "no latent is labelled"
            values.append(
                Number(value=share, style="share", n=of, of="latents", source=item.artifact.id, reason=reason)
            )
        rows.append(KindRow(kind=name, values=tuple(values)))
    return tuple(rows)


def _top(title: str, item: Associated, latents: pl.DataFrame, rank: str, measure: str) -> Sequence[TopLatent]:
    mine = latents.filter((pl.col("side") == title) & pl.col("monosemantic") & pl.col(rank).is_not_null())
    best = mine.sort([rank, "id"], descending=[True, False]).head(TOP)
    return [
        TopLatent(
            side=title,
            id=row["id"],
            label=row["label"],
            score=Number(
                value=row[rank],
                style="plain",
                low=row["odds_ratio_low"] if rank == "odds_ratio" else None,
                high=row["odds_ratio_high"] if rank == "odds_ratio" else None,
                interval="95% CI of this pair, chosen for being among the largest" if rank == "odds_ratio" else None,
                n=row["a"] + row["b"] + row["c"] + row["d"],
                of="problems",
                source=item.artifact.id,
            ),
            measure=measure,
            table=" / ".join(f"{row[name]:,}" for name in "abcd"),
        )
        for row in best.iter_rows(named=True)
    ]
