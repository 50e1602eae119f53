"""Three or more explainers: every pair compared as two are, then p values adjusted over the pairs, and a ranking.

The surprising choice: this step reads the stored comparisons of the pairs and computes no difference of its own, so a
number here and the same number in a pair's artifact cannot differ; what it adds is Holm's adjustment and the order.
"""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from saeinterp.artifacts import Artifact, ArtifactStore, Recipe, Ref, Workspace, write_json
from saeinterp.compare.explainers import read_explainer_comparison
from saeinterp.compare.macro import side_interval
from saeinterp.compare.pair_results import ControlTest, ExplainerPairs, PairResult, RankedExplainer
from saeinterp.compare.pair_wording import pair_sentence, pair_sentences
from saeinterp.compare.results import (
    CoverageResult,
    ExplainerComparison,
    FamilyResult,
    IntervalResult,
    McNemarResult,
    PairedResult,
)
from saeinterp.compare.tables import KEY
from saeinterp.compare.wording import macro_title
from saeinterp.config import ComparisonConfig, recipe_of
from saeinterp.errors import DataError
from saeinterp.stats import Verdict, holm, verdict_words

VERSION = 1
_OF_SIDE = ("status", "explanation")


def compare_pairs_recipe(comparisons: Mapping[str, Ref], *, config: ComparisonConfig) -> Recipe:
    """The recipe; `comparisons` are the pairs' artifacts by their two letters, such as `ab`."""
    return Recipe(
        kind="explainer-pairs",
        name="explainers",
        version=VERSION,
        config={"comparison": recipe_of(config), "pairs": list(comparisons)},
        inputs=tuple(comparisons.values()),
    )


def compare_pairs(comparisons: Mapping[str, Artifact], *, config: ComparisonConfig, store: ArtifactStore) -> Artifact:
    """Rank explainers, and adjust the tests of all their pairs.

    Args:
        comparisons: `explainer-comparison` artifacts of every pair, by their two letters (`ab`, `ac`, `bc`).

    Returns:
        An `explainer-pairs` artifact: `pairs.json` (an `ExplainerPairs`) and `latents.parquet`, one row per latent:
        hookpoint, latent, id, per explainer its status, explanation and primary metric (`f1_c`), per pair
        `mcnemar_p_holm_ab`, adjusted over latents and pairs.

    Raises:
        DataError: There are fewer than three pairs, or no latent was scored for every explainer.
    """

    def write(space: Workspace) -> None:
        read = {pair: read_explainer_comparison(item) for pair, item in comparisons.items()}
        latents = _latents(comparisons, config.metric)
        result, latents = _compared(read, latents, {pair: item.id for pair, item in comparisons.items()}, config)
        write_json(space.out / "pairs.json", result.model_dump(mode="json"))
        latents.write_parquet(space.out / "latents.parquet", compression="zstd")
        space.counts = {"explainers": len(result.ranking), "pairs": len(result.pairs), "latents": result.n_latents}

    if len(comparisons) < 3:
        raise DataError(
            "needs the pairs of three or more explainers", field="comparisons", got=len(comparisons), expected="3 pairs"
        )
    return store.build(compare_pairs_recipe(comparisons, config=config), write)


def read_explainer_pairs(artifact: Artifact) -> ExplainerPairs:
    """The stored result of `compare_pairs`."""
    return ExplainerPairs.model_validate_json(artifact.file("pairs.json").read_bytes())


def _latents(comparisons: Mapping[str, Artifact], metric: str) -> pl.DataFrame:
    """The pairs' latent tables as one, columns named by explainer and by pair."""
    merged: pl.DataFrame | None = None
    for pair, artifact in comparisons.items():
        table = pl.read_parquet(artifact.file("latents.parquet"))
        columns = [pl.col("mcnemar_p").alias(f"mcnemar_p_{pair}")] if "mcnemar_p" in table.columns else []
        for side, key in zip("ab", pair):
            known = merged is not None and f"{metric}_{key}" in merged.columns
            if not known:
                columns += [pl.col(f"{name}_{side}").alias(f"{name}_{key}") for name in (*_OF_SIDE, metric)]
        part = table.select(*KEY, "id", *columns)
        merged = part if merged is None else merged.join(part, on=[*KEY, "id"], how="full", coalesce=True)
    assert merged is not None
    return merged.sort(KEY, maintain_order=True)


def _compared(
    read: Mapping[str, ExplainerComparison], latents: pl.DataFrame, ids: Mapping[str, str], config: ComparisonConfig
) -> tuple[ExplainerPairs, pl.DataFrame]:
    differs = holm([item.primary.p_value for item in read.values()])
    alike = holm([item.primary.equivalence_p for item in read.values()])
    latents, mcnemar = _mcnemar(latents, read, config.alpha)
    pairs = [
        _pair(pair, item, ids[pair], p, q, mcnemar.get(pair), count=len(read))
        for (pair, item), p, q in zip(read.items(), differs, alike)
    ]
    controls = _controls(read, config.alpha)
    ranking = _ranking(read, pairs, latents, config)
    result = ExplainerPairs(
        metric=config.metric,
        metric_title=macro_title(config.metric),
        alpha=config.alpha,
        margin=config.margin,
        n_latents=ranking[0].n,
        ranking=tuple(ranking),
        pairs=tuple(pairs),
        controls=tuple(controls),
        families=tuple(_families(pairs, controls, config.metric)),
        self_scored=any(item.self_scored for item in read.values()),
        matched=all(item.matched for item in read.values()),
        sentences=(),
    )
    return result.model_copy(update={"sentences": tuple(pair_sentences(result))}), latents


def _pair(
    pair: str, item: ExplainerComparison, id: str, p: float, q: float, mcnemar: McNemarResult | None, *, count: int
) -> PairResult:
    paired = item.primary.model_copy(update={"p_holm": p, "family": "pairs"})
    verdict: Verdict = "different" if p < item.alpha else "equivalent" if q < item.alpha else "inconclusive"
    titles = (item.title_a, item.title_b)
    return PairResult(
        key_a=pair[0],
        key_b=pair[1],
        title_a=titles[0],
        title_b=titles[1],
        comparison=id,
        paired=paired,
        equivalence_p_holm=q,
        verdict=verdict,
        verdict_words=verdict_words(verdict, margin=item.margin),
        sentence=pair_sentence(paired, verdict, q, titles=titles, metric=item.metric, pairs=count),
        better=item.better,
        mcnemar=mcnemar,
        matched=item.matched,
    )


def _mcnemar(
    latents: pl.DataFrame, read: Mapping[str, ExplainerComparison], alpha: float
) -> tuple[pl.DataFrame, dict[str, McNemarResult]]:
    """McNemar within latents, adjusted over latents and pairs: as columns, and counted per pair."""
    tested = [pair for pair in read if f"mcnemar_p_{pair}" in latents.columns]
    p = latents.select(*KEY, "id", *(pl.col(f"mcnemar_p_{pair}").alias(pair) for pair in tested))
    long = p.unpivot(tested, index=[*KEY, "id"], variable_name="pair", value_name="p").drop_nulls("p")
    long = long.with_columns(pl.Series("holm", holm(long["p"].to_list()), dtype=pl.Float64))
    found = {}
    for pair in tested:
        rows, stored = long.filter(pl.col("pair") == pair), read[pair].mcnemar
        below = rows.filter(pl.col("holm") < alpha)["id"].to_list()
        examples = stored.examples if stored is not None else 0
        found[pair] = McNemarResult(tested=len(rows), examples=examples, significant=len(below), latents=tuple(below))
        column = rows.select(*KEY, pl.col("holm").alias(f"mcnemar_p_holm_{pair}"))
        latents = latents.drop(f"mcnemar_p_{pair}").join(column, on=KEY, how="left", maintain_order="left")
    return latents, found


def _controls(read: Mapping[str, ExplainerComparison], alpha: float) -> list[ControlTest]:
    """Every explainer against every control once, adjusted over all of them."""
    tests: dict[tuple[str, str], tuple[str, float, PairedResult]] = {}
    for pair, item in read.items():
        for control in item.controls:
            tests.setdefault((pair[0], control.name), (item.title_a, control.mean, control.against_a))
            tests.setdefault((pair[1], control.name), (item.title_b, control.mean, control.against_b))
    adjusted = holm([paired.p_value for _, _, paired in tests.values()])
    found = []
    for ((key, name), (title, mean, paired)), p in zip(tests.items(), adjusted):
        verdict: Verdict = "different" if p < alpha else "inconclusive"
        stored = paired.model_copy(update={"p_holm": p})
        found.append(ControlTest(key=key, title=title, control=name, mean=mean, paired=stored, verdict=verdict))
    return sorted(found, key=lambda test: (test.key, test.control))


def _ranking(
    read: Mapping[str, ExplainerComparison], pairs: list[PairResult], latents: pl.DataFrame, config: ComparisonConfig
) -> list[RankedExplainer]:
    sides: dict[str, tuple[str, CoverageResult, int]] = {}
    for pair, item in read.items():
        failed = {row.status: (row.a, row.b) for row in item.statuses}.get("explanation_failed", (0, 0))
        sides.setdefault(pair[0], (item.title_a, item.coverage_a, failed[0]))
        sides.setdefault(pair[1], (item.title_b, item.coverage_b, failed[1]))
    floors = {pair["ab".index(item.floor)] for pair, item in read.items() if item.floor is not None}
    values = latents.select(pl.col(f"{config.metric}_{key}").alias(key) for key in sides).drop_nulls()
    if not len(values):
        raise DataError("no latent was scored for every explainer", field="comparison", got=list(sides))
    means = {key: float(values[key].to_numpy().mean()) for key in sides}
    ranked = []
    for key, (title, coverage, failed_count) in sorted(sides.items(), key=lambda side: -means[side[0]]):
        ranked.append(
            RankedExplainer(
                key=key,
                title=title,
                rank=1 + sum(mean > means[key] + 1e-12 for mean in means.values()),
                n=len(values),
                mean=means[key],
                interval=IntervalResult.of(side_interval(config.metric, values[key].to_numpy(), config=config)),
                higher_than=tuple(_below(key, pairs)),
                floor=key in floors,
                failed=failed_count,
                coverage=coverage,
            )
        )
    return ranked


def _below(key: str, pairs: list[PairResult]) -> list[str]:
    below = []
    for pair in pairs:
        if pair.verdict != "different":
            continue
        higher, lower = (pair.key_b, pair.title_a) if pair.paired.difference > 0 else (pair.key_a, pair.title_b)
        if higher == key:
            below.append(lower)
    return below


def _families(pairs: list[PairResult], controls: list[ControlTest], metric: str) -> list[FamilyResult]:
    latents = sum(pair.mcnemar.tested for pair in pairs if pair.mcnemar is not None)
    title = macro_title(metric)
    families = [
        FamilyResult(
            name="primary",
            tests=len(pairs),
            adjustment="Holm",
            description=f"{title}, sign-flip over latents, every pair of explainers",
        ),
        FamilyResult(
            name="equivalence", tests=len(pairs), adjustment="Holm", description="equivalence of every pair (TOST)"
        ),
        FamilyResult(
            name="controls",
            tests=len(controls),
            adjustment="Holm",
            description="each explainer against each control on the primary metric",
        ),
        FamilyResult(
            name="latents",
            tests=latents,
            adjustment="Holm",
            description="exact McNemar within each latent, over latents and pairs",
        ),
    ]
    return [family for family in families if family.tests]
