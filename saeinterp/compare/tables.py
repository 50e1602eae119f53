"""Score tables of one side of a comparison, in memory, and the same latents of two sides lined up.

The surprising choice: where a table holds confusion counts, every metric is computed from them here and a
table whose own F1 disagrees with its counts is refused, so one definition stands behind every number; a
table without counts (an imported one) brings its metric columns as they are, under their own names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from saeinterp.artifacts import Artifact
from saeinterp.compare.comparability import explainer_title, explanations_of, flatten, lineage
from saeinterp.errors import DataError
from saeinterp.stats import classification
from saeinterp.stats.intervals import Floats

KEY = ["hookpoint", "latent"]
COUNTS = ["tp", "fp", "tn", "fn"]
SIMULATED = "correlation"
"""The metric of the simulation scorer, which gives no verdicts; no other scorer has it."""
METRICS = ("f1", "precision", "recall", "accuracy", "balanced_accuracy", "mcc", "auroc", SIMULATED)
"""Metrics of one latent, averaged over latents."""
SCORED = ("scored", "explanation_failed")
"""Statuses that enter the comparison; the others are counted and listed."""
_SLACK = 1e-9


@dataclass(frozen=True)
class ScoreTable:
    """One side: a row per latent, and the verdicts behind it where there are any.

    Attributes:
        title: The name in reports.
        scores: `hookpoint`, `latent`, and any of the columns of `scores.parquet`; `status` defaults to `scored`.
        verdicts: Rows of `verdicts.parquet` with a `hookpoint` column.
        floor: The side uses no model (top-tokens, a control).
        samples: Rows of `samples.parquet` with a `hookpoint` column, where latents have several explanations; then
            `scores` are their means, and `verdicts` too have a column `sample`.
    """

    title: str
    scores: pl.DataFrame
    verdicts: pl.DataFrame | None = None
    floor: bool = False
    samples: pl.DataFrame | None = None

    def __post_init__(self) -> None:
        missing = [name for name in KEY if name not in self.scores.columns]
        if missing:
            raise DataError("the score table lacks columns", field=self.title, got=missing, expected=", ".join(KEY))
        if self.scores.select(KEY).is_duplicated().any():
            raise DataError("the score table holds a latent twice", field=self.title)

    @classmethod
    def of_columns(cls, title: str, *, hookpoint: str, latent: Sequence[int], **metrics: Sequence[float]) -> ScoreTable:
        """A table typed in or imported: one hookpoint, latent indices, and metric columns under their own names."""
        lengths = {"latent": len(latent), **{name: len(values) for name, values in metrics.items()}}
        if len(set(lengths.values())) > 1:
            raise DataError("the columns differ in length", field=title, got=lengths)
        unknown = [name for name in metrics if name.removesuffix("_always_yes") not in METRICS]
        if unknown:
            raise DataError("unknown metric columns", field=title, got=unknown, expected=f"any of {', '.join(METRICS)}")
        columns = {"latent": list(latent), **{name: list(values) for name, values in metrics.items()}}
        return cls(title, pl.DataFrame(columns).with_columns(hookpoint=pl.lit(hookpoint)))


@dataclass(frozen=True)
class Side:
    """Columns of the compared latents [n] of one side; NaN where a value does not exist.

    Attributes:
        metrics: Per metric, one value per latent.
        counts: tp, fp, tn, fn [n, 4]; None for a table without counts.
        unusable: Unusable verdicts on true and on false examples [n, 2]; None when not known.
        examples: Examples per latent [n].
        usable: Of those, with a usable verdict [n].
        failed: Whether the explanation failed [n].
        samples: The same for each explanation of a latent, where there are several; counts are then means over them.
    """

    title: str
    metrics: Mapping[str, Floats]
    always_yes: Mapping[str, Floats]
    counts: Floats | None
    unusable: Floats | None
    examples: Floats | None
    usable: Floats | None
    failed: np.ndarray
    samples: tuple[Side, ...] = ()


def read_score_table(artifacts: Sequence[Artifact]) -> ScoreTable:
    """The score table of one side from its `scores` artifacts, one per hookpoint.

    Raises:
        DataError: There is no artifact, or one holds no latents or several hookpoints.
    """
    if not artifacts:
        raise DataError("a side has no scores", field="comparison", expected="one scores artifact per hookpoint")
    scores, verdicts, samples = [], [], []
    for artifact in artifacts:
        table = pl.read_parquet(artifact.file("scores.parquet"))
        if not len(table):
            raise DataError("holds no latents", field=artifact.id)
        hookpoints = table["hookpoint"].unique().to_list()
        if len(hookpoints) != 1:
            raise DataError("a scores artifact covers one hookpoint", field=artifact.id, got=hookpoints)
        scores.append(table)
        # A simulation predicts activations: it has no verdicts.
        if artifact.has("verdicts.parquet"):
            rows = pl.read_parquet(artifact.file("verdicts.parquet"))
            verdicts.append(rows.drop("hookpoint", strict=False).with_columns(hookpoint=pl.lit(hookpoints[0])))
        if artifact.has("samples.parquet"):
            samples.append(pl.read_parquet(artifact.file("samples.parquet")))
    title, floor = _name(artifacts[0])
    return ScoreTable(
        title,
        pl.concat(scores, how="diagonal_relaxed"),
        pl.concat(verdicts, how="diagonal_relaxed") if verdicts else None,
        floor=floor,
        samples=pl.concat(samples) if samples else None,
    )


def fill_failed(table: ScoreTable, empty: ScoreTable | None) -> ScoreTable:
    """Give every failed explanation that carries no score the score of the `empty` control on that latent.

    Raises:
        DataError: There is a failed explanation without a score and no empty control to take it from.
    """
    scores = with_status(table.scores)
    measure = next((name for name in METRICS if _floats(scores, name) is not None), None)
    if measure is None:
        return table
    lacking = scores.filter((pl.col("status") == "explanation_failed") & pl.col(measure).is_null())
    if not len(lacking):
        return table
    if empty is None:
        raise DataError(
            f"{len(lacking)} failed explanation(s) carry no score",
            field=table.title,
            expected="the score of an empty explanation",
            next_step="add 'empty' to the controls",
        )
    kept = [name for name in (*KEY, "status", "explanation") if name in scores.columns]
    filled = lacking.select(kept).join(empty.scores.drop(["status", "explanation"], strict=False), on=KEY, how="left")
    rest = scores.join(lacking.select(KEY), on=KEY, how="anti")
    merged = pl.concat([rest, filled], how="diagonal_relaxed").select(scores.columns)
    verdicts = table.verdicts
    if verdicts is not None and empty.verdicts is not None:
        taken = empty.verdicts.join(lacking.select(KEY), on=KEY, how="semi")
        verdicts = pl.concat([verdicts.join(lacking.select(KEY), on=KEY, how="anti"), taken], how="diagonal_relaxed")
    return ScoreTable(table.title, merged, verdicts, floor=table.floor)


def with_status(scores: pl.DataFrame) -> pl.DataFrame:
    """The table with a `status` column; without one every latent counts as scored."""
    return scores if "status" in scores.columns else scores.with_columns(status=pl.lit("scored"))


def side_columns(table: ScoreTable, keys: pl.DataFrame) -> Side:
    """The columns of the latents in `keys` (hookpoint, latent), in that order.

    Raises:
        DataError: Counts, verdicts and metrics of a latent contradict each other.
    """
    rows = keys.join(with_status(table.scores), on=KEY, how="left", maintain_order="left")
    values = {name: _floats(rows, name) for name in (*METRICS, *COUNTS, "n", "usable")}
    for name in ("n", "usable"):
        column = values[name]
        if column is not None and np.isnan(column).any():
            values[name] = None  # coverage of some latents only is coverage of none
    counted = all(values[name] is not None for name in COUNTS)
    counts = np.stack([_known(values[name], table.title, name) for name in COUNTS], axis=1) if counted else None
    unusable = None
    if table.verdicts is not None:
        confusion, unusable, judged = _verdict_counts(table.verdicts, keys)
        if counts is None:
            counts = confusion
        wrong = np.flatnonzero(judged & (confusion != counts).any(axis=1))
        if len(wrong):
            raise DataError(
                f"counts of {_row_name(keys, wrong[0])} do not follow from its verdicts (tp, fp, tn, fn)",
                field=table.title,
                got=counts[wrong[0]].astype(int).tolist(),
                expected=str(confusion[wrong[0]].astype(int).tolist()),
            )
        if not judged.all():
            # Counts without verdicts: on which examples the unusable ones fell is not known.
            unusable = None
    usable = counts.sum(axis=1) if counts is not None else None
    stated = values["usable"]
    if usable is not None and stated is not None and (stated != usable).any():
        row = int(np.flatnonzero(stated != usable)[0])
        raise DataError(
            f"counts of {_row_name(keys, row)} do not add up to its usable verdicts",
            field=table.title,
            got=int(usable[row]),
            expected=f"{stated[row]:g}",
        )
    examples = values["n"]
    if unusable is not None and usable is not None:
        examples = usable + unusable.sum(axis=1)
    elif usable is not None and examples is not None and np.array_equal(examples, usable):
        unusable = np.zeros((len(rows), 2))
    metrics = {name: column for name in METRICS if (column := values[name]) is not None}
    floors: dict[str, Floats] = {}
    if counts is not None:
        computed = classification(*counts.T)._asdict()
        for name, column in computed.items():
            _agree(table.title, name, stated=metrics.get(name), computed=column, keys=keys)
        metrics |= computed
    for name in METRICS:
        column = _floats(rows, f"{name}_always_yes")
        if column is not None:
            floors[name] = column
    return Side(
        title=table.title,
        metrics=metrics,
        always_yes=floors,
        counts=counts,
        unusable=unusable,
        examples=examples,
        usable=usable if usable is not None else stated,
        failed=(rows["status"] == "explanation_failed").to_numpy(),
    )


def _verdict_counts(verdicts: pl.DataFrame, keys: pl.DataFrame) -> tuple[Floats, Floats, np.ndarray]:
    """tp, fp, tn, fn [n, 4], unusable on true, on false [n, 2], and whether there are verdicts at all [n]."""
    truth, said = pl.col("truth"), pl.col("verdict")
    usable = usable_verdict()
    table = verdicts.group_by(KEY).agg(
        tp=(usable & truth & said).sum(),
        fp=(usable & ~truth & said).sum(),
        tn=(usable & ~truth & ~said).sum(),
        fn=(usable & truth & ~said).sum(),
        unusable_true=(~usable & truth).sum(),
        unusable_false=(~usable & ~truth).sum(),
    )
    rows = keys.join(table, on=KEY, how="left", maintain_order="left").drop(KEY)
    judged = rows["tp"].is_not_null().to_numpy()
    array = rows.fill_null(0).to_numpy().astype(np.float64)
    return array[:, :4], array[:, 4:], judged


def usable_verdict() -> pl.Expr:
    """Whether a row of verdicts can be counted: answered, and not an error."""
    return (pl.col("status") == "ok") & pl.col("verdict").is_not_null()


def _floats(rows: pl.DataFrame, name: str) -> Floats | None:
    """A column as float64 with NaN for null; None when it is absent or holds nothing."""
    if name not in rows.columns or rows[name].null_count() == len(rows):
        return None
    return rows[name].cast(pl.Float64).fill_null(float("nan")).to_numpy()


def _known(column: Floats | None, title: str, name: str) -> Floats:
    if column is None or np.isnan(column).any():
        raise DataError("a scored latent has no counts", field=f"{title}: {name}")
    return column


def _agree(title: str, name: str, *, stated: Floats | None, computed: Floats, keys: pl.DataFrame) -> None:
    if stated is None:
        return
    with np.errstate(invalid="ignore"):
        off = np.flatnonzero(np.abs(stated - computed) > _SLACK)
    if len(off):
        raise DataError(
            f"{name} of {_row_name(keys, int(off[0]))} does not follow from its counts",
            field=title,
            got=float(stated[off[0]]),
            expected=f"{computed[off[0]]:.6f}",
        )


def _row_name(keys: pl.DataFrame, row: int) -> str:
    hookpoint, latent = keys.row(int(row))[:2]
    return f"{hookpoint} latent {latent}"


def _name(scores: Artifact) -> tuple[str, bool]:
    """The side's title, and whether it is a floor, from the explanations it judged."""
    explanations = explanations_of(lineage(scores))
    if explanations is None:
        return scores.name, False
    flat = {key.rpartition(".")[2]: value for key, value in reversed(flatten(explanations.config).items())}
    if flat.get("control"):
        return str(flat["control"]), True
    return explainer_title(lineage(scores)), flat.get("kind") == "top-tokens"
