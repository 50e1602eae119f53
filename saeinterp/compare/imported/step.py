"""The steps that bring in an outside table of scores: read, compare its explainers, check what it claims.

Payloads: `table.json` (an `ImportedScores`), one `explainer-comparison` per pair and for three or more explainers an
`explainer-pairs`, as for our own scores, and `checks.json` (a `ScoreReview`). The surprising choice: nothing is stored
before everything could be computed, so a table that is refused leaves nothing behind.
"""

from __future__ import annotations

import logging
import re
import string
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import polars as pl

from saeinterp.artifacts import Artifact, ArtifactStore, Recipe, Workspace, write_json
from saeinterp.compare.comparability import ComparabilityRow, comparability_row, require_comparable
from saeinterp.compare.explainer_pairs import compare_pairs, read_explainer_pairs
from saeinterp.compare.explainers import VERSION as COMPARISON_VERSION
from saeinterp.compare.explainers import write_comparison
from saeinterp.compare.imported.checks import ratio_denominators, review_scores
from saeinterp.compare.imported.reading import read_scores
from saeinterp.compare.imported.records import ImportedExplainer, ImportedScores, ScoreReview, ScoreRow
from saeinterp.compare.results import ExplainerComparison
from saeinterp.compare.scores import ComparedExplainers, compare_scores
from saeinterp.compare.tables import COUNTS, ScoreTable
from saeinterp.config import ComparisonConfig, parse_config, recipe_of
from saeinterp.stats import always_yes

log = logging.getLogger(__name__)

VERSION = 1
UNKNOWN = "an outside table does not say whether they were the same"


class ImportedComparison(NamedTuple):
    """What an import leaves: the table, a comparison per pair (`ab`), for three or more the ranking, the review."""

    table: Artifact
    comparisons: Mapping[str, Artifact]
    pairs: Artifact | None
    review: Artifact


def import_scores(
    paths: Sequence[str | Path],
    *,
    metric: str | None = None,
    explainers: Sequence[str] = (),
    columns: Sequence[str] = (),
    hookpoint: str | None = None,
    positives: int | None = None,
    negatives: int | None = None,
    config: ComparisonConfig,
    store: ArtifactStore,
) -> ImportedComparison:
    """Read, compare and check per-latent scores made elsewhere; the first five arguments as of `read_scores`.

    Args:
        positives: Examples of each latent in which it fires, where the table does not say; with `negatives` they give
            what always-yes scores. Of values that are counts over a number of examples one of the two is enough.
        negatives: Examples in which it is silent.
        config: What is tested; its metric is replaced by that of the values.

    Raises:
        DataError: A file cannot be read; file, line, column, value and expectation are named.
        ConfigError: An option does not fit the files, or the metric cannot be a primary endpoint.
        ComparabilityError: The explainers have different latents and `allow_unmatched` is off.
    """
    table = read_scores(paths, metric=metric, explainers=explainers, columns=columns, hookpoint=hookpoint)
    config = parse_config(ComparisonConfig, {**config.model_dump(), "metric": table.metric}, source="comparison")
    examples = ratio_denominators(table)
    tables = [score_table(item, examples, positives=positives, negatives=negatives) for item in table.explainers]
    sides = dict(zip(string.ascii_lowercase, tables))
    together = list(combinations(sides, 2))
    found: dict[str, ComparedExplainers] = {}
    for a, b in together:
        rows = _comparability(sides[a], sides[b])
        require_comparable(rows, allow_unmatched=config.allow_unmatched)
        found[a + b] = compare_scores(sides[a], sides[b], config=config, comparability=rows, pairs=len(together))
    settings = {
        "files": [[item.file, item.sha256] for item in table.files],
        "metric": metric,
        "explainers": list(explainers),
        "columns": list(columns),
        "hookpoint": hookpoint,
        "positives": positives,
        "negatives": negatives,
    }
    name = _slug("-".join(Path(item.file).stem for item in table.files))
    source = store.build(Recipe("score-table", name, VERSION, settings), lambda space: _write_table(space, table))
    comparisons = {
        pair: store.build(
            Recipe(
                "explainer-comparison",
                name,
                COMPARISON_VERSION,
                {"comparison": recipe_of(config), "imported": pair, "pairs": len(together)},
                (source,),
            ),
            lambda space, outcome=outcome: write_comparison(space, outcome),  # type: ignore[misc]
        )
        for pair, outcome in found.items()
    }
    pairs = compare_pairs(comparisons, config=config, store=store) if len(comparisons) > 1 else None
    made = (*comparisons.values(), *([pairs] if pairs is not None else []))
    review = store.build(
        Recipe("score-review", name, VERSION, {}, (source, *made)),
        lambda space: _write_review(space, table, _verdicts(found, pairs)),
    )
    return ImportedComparison(source, comparisons, pairs, review)


def score_table(
    explainer: ImportedExplainer,
    examples: Mapping[tuple[str, int], int],
    *,
    positives: int | None = None,
    negatives: int | None = None,
) -> ScoreTable:
    """One explainer's rows as a score table, with always-yes where the class balance is known.

    Args:
        examples: Number of examples of the latents where the values gave it away.
        positives: Examples per latent in which it fires; `negatives` those in which it is silent.
    """
    rows = []
    for row in explainer.rows:
        scored = any(value is not None for value in row.values.values())
        values: dict[str, object] = {"hookpoint": row.hookpoint, "latent": row.latent, **row.values}
        values |= {"status": "scored" if scored else "not_scored", "explanation": row.explanation}
        values |= {name: row.counts[name] for name in (*COUNTS, "firings") if name in row.counts}
        balance = _balance(row, examples.get(row.key), positives, negatives)
        if balance is not None:
            floor = always_yes(*balance)._asdict()
            values |= {f"{name}_always_yes": float(value) for name, value in floor.items()}
        rows.append(values)
    # Rounding is of the printed values: a table with counts has every metric computed from them instead.
    table = pl.DataFrame(rows, infer_schema_length=None)
    if set(COUNTS) <= set(table.columns):
        table = table.drop([name for name in explainer.rows[0].values if name in table.columns])
    return ScoreTable(explainer.title, table.fill_nan(None))


def read_scores_table(artifact: Artifact) -> ImportedScores:
    """The content of `table.json`."""
    return ImportedScores.model_validate_json(artifact.file("table.json").read_bytes())


def read_score_review(artifact: Artifact) -> ScoreReview:
    """The content of `checks.json`."""
    return ScoreReview.model_validate_json(artifact.file("checks.json").read_bytes())


def summary_of(imported: ImportedComparison) -> dict[str, object]:
    """Comparisons and failed checks as plain values, for `--json`."""
    review = read_score_review(imported.review)
    read = {
        pair: ExplainerComparison.model_validate_json(item.file("comparison.json").read_bytes())
        for pair, item in imported.comparisons.items()
    }
    return {
        "comparisons": {pair: item.model_dump(mode="json") for pair, item in read.items()},
        "pairs": read_explainer_pairs(imported.pairs).model_dump(mode="json") if imported.pairs is not None else None,
        "problems": [check.model_dump(mode="json") for check in review.problems],
        "checks": len(review.checks),
        "notes": [*read_scores_table(imported.table).notes, *review.notes],
    }


def _balance(
    row: ScoreRow, examples: int | None, positives: int | None, negatives: int | None
) -> tuple[float, float] | None:
    """Positives and negatives of a latent: its own columns, else the options, else what the denominator leaves."""
    yes: float | None = row.counts.get("positives", positives)
    no: float | None = row.counts.get("negatives", negatives)
    if examples is not None and yes is None and no is not None and examples > no:
        yes = examples - no
    if examples is not None and no is None and yes is not None and examples > yes:
        no = examples - yes
    return (yes, no) if yes is not None and no is not None else None


def _comparability(a: ScoreTable, b: ScoreTable) -> list[ComparabilityRow]:
    listed = [set(side.scores.select("hookpoint", "latent").iter_rows()) for side in (a, b)]
    shown = [f"{len(one)} latents, {len(one - other)} of them alone" for one, other in (listed, listed[::-1])]
    latents = comparability_row("latents", *shown, severity="hard").model_copy(update={"ok": listed[0] == listed[1]})
    unknown = comparability_row("examples, prompts and scorer", None, None, severity="soft", note=UNKNOWN)
    return [latents, unknown.model_copy(update={"ok": False})]


def _verdicts(
    found: Mapping[str, ComparedExplainers], pairs: Artifact | None
) -> dict[tuple[str, str], ExplainerComparison]:
    """The comparisons by their titles; of several pairs with the adjusted verdicts."""
    read = {pair: outcome.result for pair, outcome in found.items()}
    if pairs is not None:
        for pair in read_explainer_pairs(pairs).pairs:
            words = {"verdict": pair.verdict, "verdict_words": pair.verdict_words}
            read[pair.key_a + pair.key_b] = read[pair.key_a + pair.key_b].model_copy(update=words)
    return {(item.title_a, item.title_b): item for item in read.values()}


def _write_table(space: Workspace, table: ImportedScores) -> None:
    write_json(space.out / "table.json", table.model_dump(mode="json"))
    rows = {item.title: len(item.rows) for item in table.explainers}
    space.counts = {"explainers": len(rows), "rows": sum(rows.values()), "claims": len(table.claims)}


def _write_review(
    space: Workspace, table: ImportedScores, found: Mapping[tuple[str, str], ExplainerComparison]
) -> None:
    review = review_scores(table, found)
    log.info("%s: %d of %d checks fail", table.files[0].file, len(review.problems), len(review.checks))
    write_json(space.out / "checks.json", review.model_dump(mode="json"))
    space.counts = {"checks": len(review.checks), "problems": len(review.problems)}


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-.")[:60] or "table"
