"""The latent table and the example table of a report.

Rows come from the comparison's `latents.parquet` and from the verdicts and examples behind its scores. The
surprising choice: a side is "right" on a latent where its primary metric exceeds what answering yes to every
example would give on that very latent, since a fixed threshold means nothing under another class balance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from saeinterp.artifacts import Artifact
from saeinterp.report.explainer_results import ExplainerSection
from saeinterp.report.format import number
from saeinterp.report.lineage import Lineage

if TYPE_CHECKING:
    import polars as pl

KEY = ["hookpoint", "latent"]
CHANCE = {"balanced_accuracy": 0.5, "auroc": 0.5, "mcc": 0.0, "correlation": 0.0}
"""What always-yes gives where that does not depend on class balance."""
OUTCOMES = {
    "a-only": "A right, B wrong",
    "b-only": "B right, A wrong",
    "neither": "Both poor",
    "both": "Both right",
    "failed": "Failed",
    "unscored": "Not scored",
    "unknown": "Always-yes not known",
}
"""Outcome of a latent and the quick filter's words for it."""
_OF_EXAMPLES = ("firings", "density", "top_tokens", "reason_a", "reason_b")
KINDS = {
    "activating": "Activating",
    "near-miss": "Silent: holds the top token",
    "similar": "Silent: a near latent fires",
    "random": "Silent: random window",
}
"""Kinds of examples in the order of the row detail, strongest activation first."""


def latent_table(comparison: Artifact, section: ExplainerSection, lineage: Lineage) -> pl.DataFrame:
    """All selected latents: the comparison's columns, then top tokens, why an explanation is missing (reason_a,
    reason_b), value_a, value_b, delta, status and outcome.
    """
    import polars as pl

    table = pl.read_parquet(comparison.file("latents.parquet"))
    sides = _sides(comparison, lineage)
    if sides[0]:
        table = table.join(_top_tokens(sides[0], lineage), on=KEY, how="left", maintain_order="left")
    for letter, scores in zip("ab", sides):
        if scores:
            table = table.join(_reasons(scores, letter, lineage), on=KEY, how="left", maintain_order="left")
    metric = section.metric
    chance = (
        pl.col(f"{metric}_always_yes")
        if f"{metric}_always_yes" in table.columns
        else pl.lit(CHANCE.get(metric), dtype=pl.Float64)
    )
    a, b = pl.col("value_a"), pl.col("value_b")
    # An imported table has neither examples nor explanations of ours behind it.
    absent = [name for name in _OF_EXAMPLES if name not in table.columns]
    table = table.with_columns(pl.lit(None).alias(name) for name in absent)
    table = table.with_columns(value_a=pl.col(f"{metric}_a"), value_b=pl.col(f"{metric}_b"), chance=chance)
    for side in ("a", "b"):
        for end in ("low", "high"):
            if f"{metric}_{side}_{end}" in table.columns:
                table = table.with_columns(pl.col(f"{metric}_{side}_{end}").alias(f"value_{side}_{end}"))
    status_a, status_b = pl.col("status_a"), pl.col("status_b")
    return table.with_columns(
        delta=b - a,
        status=pl.when(status_a == "scored").then(status_b).otherwise(status_a).fill_null("one side only"),
        outcome=pl.when((status_a == "explanation_failed") | (status_b == "explanation_failed"))
        .then(pl.lit("failed"))
        .when(a.is_null() | b.is_null())
        .then(pl.lit("unscored"))
        .when(pl.col("chance").is_null())
        .then(pl.lit("unknown"))
        .when((a > pl.col("chance")) & (b > pl.col("chance")))
        .then(pl.lit("both"))
        .when(a > pl.col("chance"))
        .then(pl.lit("a-only"))
        .when(b > pl.col("chance"))
        .then(pl.lit("b-only"))
        .otherwise(pl.lit("neither")),
    )


def example_table(comparison: Artifact, lineage: Lineage) -> pl.DataFrame | None:
    """Every example of every latent with the verdicts of both sides, in the order of the row detail; None without.

    Columns: hookpoint, latent, example_id, doc_id, role, kind, quantile, band, truth, tokens, activations; per side
    verdict, probability, reply and status (null where that side was not asked).
    """
    import polars as pl

    sides = _sides(comparison, lineage)
    if not all(artifact.has("verdicts.parquet") for artifact in (*sides[0], *sides[1])) or not sides[0]:
        return None
    found = pl.concat([_examples(artifact, lineage) for artifact in sides[0]], how="diagonal_relaxed")
    found = found.join(_bands(found), on=["hookpoint", "latent", "kind", "quantile"], how="left", nulls_equal=True)
    for letter, artifacts in zip("ab", sides):
        verdicts = pl.concat([_verdicts(artifact) for artifact in artifacts], how="diagonal_relaxed")
        named = verdicts.rename({name: f"{name}_{letter}" for name in ("verdict", "probability", "reply", "status")})
        found = found.join(named, on=[*KEY, "example_id"], how="left")
    order = pl.col("kind").replace_strict({kind: place for place, kind in enumerate(KINDS)}, default=len(KINDS))
    return (
        found.with_columns(truth=pl.col("kind") == "activating")
        .sort(
            [*KEY, "role", order, pl.col("quantile"), pl.col("example_id")],
            descending=[False, False, True, False, True, False],
            nulls_last=True,
        )
        .select(
            *KEY, "example_id", "doc_id", "role", "kind", "quantile", "band", "truth", "tokens", "activations",
            *(f"{name}_{letter}" for letter in "ab" for name in ("verdict", "probability", "reply", "status")),
        )
    )  # fmt: skip


def _sides(comparison: Artifact, lineage: Lineage) -> tuple[list[Artifact], list[Artifact]]:
    """The scores artifacts of both sides, one per hookpoint; the controls come after them in the recipe."""
    config = lineage.manifest(comparison)["config"]
    scores = lineage.inputs(comparison, "scores")
    if not scores:
        return [], []
    return scores[: config["a"]], scores[config["a"] : config["a"] + config["b"]]


def _hookpoint(scores: Artifact) -> str:
    import polars as pl

    return str(pl.read_parquet(scores.file("scores.parquet"), columns=["hookpoint"])["hookpoint"][0])


def _of_inputs(
    scores: Sequence[Artifact], kind: str, file: str, columns: Sequence[str], lineage: Lineage
) -> pl.DataFrame:
    """Columns of a table of the scores' inputs, one per hookpoint, with the hookpoint."""
    import polars as pl

    parts = []
    for artifact in scores:
        source = lineage.inputs(artifact, kind)[0]
        part = pl.read_parquet(source.file(file), columns=["latent", *columns])
        parts.append(part.with_columns(hookpoint=pl.lit(_hookpoint(artifact))))
    return pl.concat(parts, how="diagonal_relaxed")


def _top_tokens(scores: Sequence[Artifact], lineage: Lineage) -> pl.DataFrame:
    return _of_inputs(scores, "examples", "latents.parquet", ["top_tokens"], lineage)


def _reasons(scores: Sequence[Artifact], letter: str, lineage: Lineage) -> pl.DataFrame:
    """Why explanations failed; a control's reason names where its text is from and is left out.

    Of several explanations of a latent all must have failed.
    """
    import polars as pl

    table = _of_inputs(scores, "explanations", "explanations.parquet", ["status", "reason"], lineage)
    failed = (pl.col("status") == "failed").all()
    found = table.group_by(KEY, maintain_order=True).agg(failed=failed, reason=pl.col("reason").first())
    return found.filter("failed").select(*KEY, pl.col("reason").alias(f"reason_{letter}"))


def _examples(scores: Artifact, lineage: Lineage) -> pl.DataFrame:
    import polars as pl

    examples = lineage.inputs(scores, "examples")[0]
    return pl.read_parquet(examples.file("examples.parquet")).with_columns(hookpoint=pl.lit(_hookpoint(scores)))


def _verdicts(scores: Artifact) -> pl.DataFrame:
    import polars as pl

    table = pl.read_parquet(scores.file("verdicts.parquet"))
    if "sample" in table.columns:  # the verdicts on the explanation that is shown
        samples = pl.read_parquet(scores.file("samples.parquet"), columns=["latent", "sample", "status"])
        shown = samples.sort((pl.col("status") != "scored"), "sample").group_by("latent").agg(pl.col("sample").first())
        table = table.join(shown, on=["latent", "sample"], how="semi", maintain_order="left")
    return table.select(
        pl.lit(_hookpoint(scores)).alias("hookpoint"),
        "latent",
        "example_id",
        "verdict",
        "probability",
        "reply",
        "status",
    )


def _bands(examples: pl.DataFrame) -> pl.DataFrame:
    """The heading of every group of a latent's scored examples, with the span of peak activations in it."""
    import polars as pl

    scored = examples.filter(pl.col("role") == "score")
    groups = (
        scored.with_columns(peak=pl.col("activations").list.eval(pl.element().abs()).list.max())
        .group_by([*KEY, "kind", "quantile"])
        .agg(low=pl.col("peak").min(), high=pl.col("peak").max())
    )
    names = [_band(row["kind"], row["quantile"], row["low"], row["high"]) for row in groups.iter_rows(named=True)]
    return groups.select(*KEY, "kind", "quantile", pl.Series("band", names, dtype=pl.String))


def _band(kind: str, quantile: int | None, low: float | None, high: float | None) -> str:
    name = KINDS.get(kind, kind)
    if quantile is None:
        return name
    low_text, high_text = number(low, "plain"), number(high, "plain")
    span = low_text if low_text == high_text else f"{low_text} to {high_text}"
    return f"{name}, quantile {quantile + 1}: peak activation {span}"


def outcome_counts(outcomes: Sequence[str]) -> dict[str, int]:
    """How many latents ended in each outcome, in the order of `OUTCOMES`."""
    return {name: outcomes.count(name) for name in OUTCOMES}
