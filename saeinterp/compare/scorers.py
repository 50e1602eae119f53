"""Two scorers on the same explanations: do they agree which explainer is better, and on which latents?

The surprising choice: this step reads stored comparisons and computes no difference of its own, so what the second
scorer says can never change the primary analysis, which is the first one's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import polars as pl
from scipy import stats

from saeinterp.artifacts import Artifact, ArtifactStore, Recipe, Ref, Workspace, write_json
from saeinterp.compare.comparability import (
    ComparabilityRow,
    Node,
    comparability_row,
    fold_rows,
    lineage,
    require_comparable,
    scorer_name,
)
from saeinterp.compare.explainers import read_explainer_comparison
from saeinterp.compare.results import ExplainerComparison, Sentence
from saeinterp.compare.scorer_results import JudgedPair, ScorerAgreement, TwiceJudgedPair
from saeinterp.compare.tables import KEY
from saeinterp.compare.wording import macro_title
from saeinterp.config import ComparisonConfig, recipe_of
from saeinterp.errors import DataError
from saeinterp.stats import Verdict, correlation, holm, number, paired_sentence, verdict_words

VERSION = 1
FEW = "needs three latents, and differences that vary under both scorers"
_TIE = 1e-12


def compare_scorers_recipe(first: Mapping[str, Ref], second: Mapping[str, Ref], *, config: ComparisonConfig) -> Recipe:
    """The recipe; both map two letters, such as `ab`, to the comparison of these explainers."""
    return Recipe(
        kind="scorer-agreement",
        name="scorers",
        version=VERSION,
        config={"comparison": recipe_of(config), "pairs": list(first)},
        inputs=(*first.values(), *second.values()),
    )


def compare_scorers(
    first: Mapping[str, Artifact], second: Mapping[str, Artifact], *, config: ComparisonConfig, store: ArtifactStore
) -> Artifact:
    """Set two scorers' comparisons of the same explanations side by side.

    Args:
        first: `explainer-comparison` artifacts by their two letters (`ab`), of the scorer of the primary analysis.
        second: Those of the other scorer, of the same pairs.

    Returns:
        A `scorer-agreement` artifact: `scorers.json` (a `ScorerAgreement`) and `latents.parquet`, one row per pair and
        latent: pair, hookpoint, latent, id, `difference` and `difference_second`, null where a side has no value.

    Raises:
        DataError: The pairs differ.
        ComparabilityError: The scorers judged other explanations, or on other examples, and `allow_unmatched` is off.
    """

    def write(space: Workspace) -> None:
        rows = _comparability(first, second)
        matched = require_comparable(rows, allow_unmatched=config.allow_unmatched)
        judged = [_judged(comparisons) for comparisons in (first, second)]
        tables = {pair: _differences(first[pair], second[pair], config.metric) for pair in first}
        pairs = [_pair(pair, judged[0][pair], judged[1][pair], tables[pair]) for pair in first]
        names = [_scorer(comparisons) for comparisons in (first, second)]
        result = ScorerAgreement(
            metric=config.metric,
            metric_title=macro_title(config.metric),
            alpha=config.alpha,
            margin=config.margin,
            scorer=names[0],
            second_scorer=names[1],
            pairs=tuple(pairs),
            comparability=(*rows, *_flagged(second)),
            matched=matched,
            sentences=(),
        )
        result = result.model_copy(update={"sentences": tuple(_sentences(result))})
        write_json(space.out / "scorers.json", result.model_dump(mode="json"))
        latents = pl.concat([table.select(pl.lit(pair).alias("pair"), pl.all()) for pair, table in tables.items()])
        latents.write_parquet(space.out / "latents.parquet", compression="zstd")
        space.counts = {"pairs": len(pairs), "latents": max(pair.n for pair in pairs)}

    if list(first) != list(second) or not first:
        raise DataError(
            "the two scorers compare other pairs", field="second", got=list(second), expected=f"{list(first)}"
        )
    return store.build(compare_scorers_recipe(first, second, config=config), write)


def read_scorer_agreement(artifact: Artifact) -> ScorerAgreement:
    """The stored result of `compare_scorers`."""
    return ScorerAgreement.model_validate_json(artifact.file("scorers.json").read_bytes())


class _Judged(NamedTuple):
    """A comparison with its verdict adjusted over the pairs of its scorer."""

    stored: ExplainerComparison
    pair: JudgedPair


def _judged(comparisons: Mapping[str, Artifact]) -> dict[str, _Judged]:
    read = {pair: read_explainer_comparison(item) for pair, item in comparisons.items()}
    differs = holm([item.primary.p_value for item in read.values()])
    alike = holm([item.primary.equivalence_p for item in read.values()])
    found = {}
    for (pair, item), p, q in zip(read.items(), differs, alike):
        verdict: Verdict = "different" if p < item.alpha else "equivalent" if q < item.alpha else "inconclusive"
        several = {"p_holm": p, "family": "pairs"} if len(read) > 1 else {}
        judged = JudgedPair(
            comparison=comparisons[pair].id,
            paired=item.primary.model_copy(update=several),
            verdict=verdict,
            verdict_words=verdict_words(verdict, margin=item.margin),
        )
        found[pair] = _Judged(item, judged)
    return found


def _differences(first: Artifact, second: Artifact, metric: str) -> pl.DataFrame:
    """Per latent the difference under both scorers."""
    difference = pl.col(f"{metric}_b") - pl.col(f"{metric}_a")
    left, right = (pl.read_parquet(item.file("latents.parquet")) for item in (first, second))
    table = left.select(*KEY, "id", difference=difference)
    return table.join(right.select(*KEY, difference_second=difference), on=KEY, how="left", maintain_order="left")


def _pair(pair: str, first: _Judged, second: _Judged, latents: pl.DataFrame) -> TwiceJudgedPair:
    known = latents.drop_nulls(["difference", "difference_second"])
    x, y = known["difference"].to_numpy(), known["difference_second"].to_numpy()
    r = correlation(x, y)
    signs = [_sign(item.pair.paired.difference) for item in (first, second)]
    return TwiceJudgedPair(
        key_a=pair[0],
        key_b=pair[1],
        title_a=first.stored.title_a,
        title_b=first.stored.title_b,
        first=first.pair,
        second=second.pair,
        same_sign=signs[0] == signs[1],
        same_verdict=first.pair.verdict == second.pair.verdict,
        n=len(known),
        pearson_r=r,
        spearman_r=None if r is None else correlation(stats.rankdata(x), stats.rankdata(y)),
        reason=FEW if r is None else None,
    )


def _sign(difference: float) -> int:
    return 0 if abs(difference) <= _TIE else 1 if difference > 0 else -1


def _comparability(first: Mapping[str, Artifact], second: Mapping[str, Artifact]) -> list[ComparabilityRow]:
    """Both scorers judged the same texts on the same examples, on the layers that both finished."""
    found = {}
    for pair in first:
        sides = [_scored(comparisons[pair]) for comparisons in (first, second)]
        shared = [name for name in sides[0] if name in sides[1]]
        layers = [", ".join(dict.fromkeys(name.partition(" ")[0] for name in side)) for side in sides]
        found[pair] = [
            comparability_row("hookpoints", *layers, severity="soft", note="a layer that one scorer did not finish"),
            *(
                comparability_row(
                    what, *(_inputs([side[name] for name in shared], kind) for side in sides), severity="hard"
                )
                for what, kind in (("explanations", "explanations"), ("example set", "examples"))
            ),
        ]
    return fold_rows(found)


def _scored(comparison: Artifact) -> dict[str, Node]:
    """The scores of both sides of a comparison, by `hookpoint side`; those of controls left out."""
    node = lineage(comparison)
    scores = node.inputs("scores")
    a, b = node.config["a"], node.config["b"]
    named = {}
    for place, item in enumerate(scores[: a + b]):
        table = pl.read_parquet(item.artifact.file("scores.parquet"), columns=["hookpoint"])
        named[f"{table['hookpoint'][0]} {'a' if place < a else 'b'}"] = item
    return named


def _inputs(scores: Sequence[Node], kind: str) -> str:
    return ", ".join(dict.fromkeys(node.id for item in scores for node in item.inputs(kind)))


def _scorer(comparisons: Mapping[str, Artifact]) -> str:
    """The judge of all comparisons, or the judges, where every explainer was its own."""
    nodes = [node for item in comparisons.values() for node in _scored(item).values()]
    return ", ".join(dict.fromkeys(scorer_name(node) or "not known" for node in nodes))


def _flagged(second: Mapping[str, Artifact]) -> list[ComparabilityRow]:
    """What the second scorer's own comparisons say is not equal, each once."""
    rows = [row for item in second.values() for row in read_explainer_comparison(item).comparability if not row.ok]
    return list({row.field: row.model_copy(update={"field": f"second scorer: {row.field}"}) for row in rows}.values())


def _sentences(result: ScorerAgreement) -> list[Sentence]:
    said = []
    for pair in result.pairs:
        paired = pair.second.paired.model_copy(update={"verdict": pair.second.verdict})
        text = paired_sentence(paired, title_a=pair.title_a, title_b=pair.title_b, metric=result.metric_title)
        said.append(Sentence(id=f"second.{pair.key_a}{pair.key_b}", text=f"Judged by {result.second_scorer}: {text}"))
        said.append(Sentence(id=f"agreement.{pair.key_a}{pair.key_b}", text=_agreement(pair, result)))
    return said


def _agreement(pair: TwiceJudgedPair, result: ScorerAgreement) -> str:
    signs = "the same sign" if pair.same_sign else "different signs"
    words = f'both say "{pair.first.verdict_words}"'
    if not pair.same_verdict:
        words = f'{result.scorer} says "{pair.first.verdict_words}" and {result.second_scorer} says '
        words += f'"{pair.second.verdict_words}"'
    if pair.pearson_r is None:
        alike = "their correlation over latents does not exist"
    else:
        alike = f"over {pair.n} latents they correlate with r = {number(pair.pearson_r)}"
        alike += f" (Spearman {number(pair.spearman_r)})"
    return f"On {pair.title_a} and {pair.title_b} the differences under the two scorers have {signs}; {words}; {alike}."
