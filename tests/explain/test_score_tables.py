"""The tables and the summary of scores, against two latents worked by hand."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from saeinterp.explain import Judgement, natural_precision, score_verdicts
from saeinterp.explain.intervals import document_intervals, pooled_auroc
from saeinterp.explain.score_tables import Judged, outcome_rows, score_table, verdict_summary, verdict_table

T, F = True, False
ONE = [("activating", T), ("activating", T), ("activating", T), ("activating", F)]
ONE += [("random", F), ("random", T), ("similar", F), ("similar", None)]
TWO = [("activating", T), ("activating", T), ("random", F), ("random", F)]


def verdicts(*latents: list[tuple[str, bool | None]], documents: int = 100) -> pl.DataFrame:
    """Verdicts of latents 1, 2, ...; every second positive is of quantile 0, the others of quantile 1."""
    rows: list[dict[str, Any]] = []
    judged = []
    for latent, examples in enumerate(latents, start=1):
        for number, (kind, said) in enumerate(examples):
            quantile = number % 2 if kind == "activating" else None
            known = {"latent": latent, "example_id": number, "kind": kind, "quantile": quantile}
            rows.append({**known, "doc_id": number % documents})
            chance = None if said is None else 0.9 if said else 0.1
            judged.append(Judgement(said, chance, "ok" if said is not None else "unusable"))
    types = {"latent": pl.Int32, "example_id": pl.Int32, "quantile": pl.Int8, "doc_id": pl.Int32}
    table = pl.DataFrame(rows, schema_overrides=types)
    return verdict_table(table, judged, requests=list(range(len(rows))), replies=["x"] * len(rows))


def scores(frame: pl.DataFrame) -> pl.DataFrame:
    latents = pl.DataFrame(
        {
            "latent": [1, 2, 3],
            "status": ["ok", "ok", "too_rare"],
            "firings": [10, 30, 1],
            "density": [0.1, 0.3, 0.01],
            "windows_score": [10, 50, 1],
        }
    )
    judged = {1: Judged("a", "scored"), 2: Judged("", "explanation_failed")}
    return score_table(outcome_rows(latents, judged, hookpoint="layers.1", windows=100), frame)


def test_every_latent_has_its_metrics_or_its_outcome() -> None:
    one, two, three = scores(verdicts(ONE, TWO)).iter_rows(named=True)
    assert (one["status"], two["status"], three["status"]) == ("scored", "explanation_failed", "too_rare")
    assert (one["explanation"], two["explanation"], three["explanation"]) == ("a", None, None)
    assert (one["tp"], one["fp"], one["tn"], one["fn"], one["n"], one["usable"]) == (3, 1, 2, 1, 8, 7)
    assert one["f1"] == pytest.approx(6 / 8)
    assert one["false_positives"] == 0.5
    assert one["prevalence"] == 0.1
    assert one["natural_precision"] == pytest.approx(0.075 / (0.075 + 0.45))
    assert two["natural_precision"] == 1
    assert (three["n"], three["f1"], three["natural_precision"]) == (0, None, None)


def test_the_summary_gives_every_level_under_its_own_name() -> None:
    frame = verdicts(ONE, TWO)
    found = verdict_summary(frame, scores(frame))
    assert found["counts"] == {"tp": 5, "fp": 1, "tn": 4, "fn": 1}
    assert (found["n"], found["usable"], found["coverage"]) == (12, 11, pytest.approx(11 / 12))
    micro, macro = found["micro"], found["macro"]
    assert micro["f1"]["value"] == pytest.approx(10 / 12)
    assert micro["f1"]["worst"] == pytest.approx(10 / 13)
    assert micro["f1"]["best"] == pytest.approx(10 / 12)
    assert micro["f1"]["always_yes"] == pytest.approx(12 / 18)
    assert macro["f1"]["value"] == pytest.approx((0.75 + 1) / 2)
    assert macro["f1"]["worst"] == pytest.approx((6 / 9 + 1) / 2)
    assert macro["f1"]["always_yes"] == pytest.approx(2 / 3)
    assert micro["frequency_weighted_f1"]["value"] == pytest.approx((0.75 * 10 + 30) / 40)
    assert micro["frequency_weighted_f1"]["always_yes"] == pytest.approx(2 / 3)
    assert micro["natural_precision"]["value"] == pytest.approx((0.075 + 0.5) / (0.075 + 0.5 + 0.45))
    assert macro["natural_precision"]["value"] == pytest.approx((1 / 7 + 1) / 2)
    # Of 6 positives 5 are at 0.9 and 1 at 0.1; of 5 usable negatives 1 and 4.
    assert micro["pooled_auroc"]["value"] == pytest.approx((5 * 4 + 0.5 * 5 * 1 + 0.5 * 1 * 4) / 30)
    assert "auroc" not in micro
    assert micro["f1"]["low"] is None
    assert "too few" in micro["f1"]["interval"]
    assert macro["f1"]["n"] == 2


def test_each_kind_of_negative_is_told_from_the_positives_by_itself() -> None:
    frame = verdicts(ONE, TWO)
    found = verdict_summary(frame, scores(frame))
    assert found["kinds"]["activating"] == {"n": 6, "usable": 6, "matched": 5, "rate": pytest.approx(5 / 6)}
    random, similar = found["kinds"]["random"], found["kinds"]["similar"]
    assert (random["n"], random["rate"]) == (4, 0.25)
    assert random["f1"] == pytest.approx(10 / 12)
    assert random["f1_always_yes"] == pytest.approx(12 / 16)
    assert random["balanced_accuracy"] == pytest.approx((5 / 6 + 3 / 4) / 2)
    assert (similar["n"], similar["usable"], similar["rate"]) == (2, 1, 0.0)
    assert similar["f1"] == pytest.approx(10 / 11)
    assert similar["coverage"] == pytest.approx(7 / 8)
    assert [(item["quantile"], item["n"], item["matched"]) for item in found["quantiles"]] == [(0, 3, 3), (1, 3, 2)]


def test_the_summary_agrees_with_the_scores_of_a_bare_table_of_verdicts() -> None:
    frame = verdicts(ONE, TWO, ONE[::-1], TWO + ONE, ONE + ONE, TWO[1:], ONE[2:])
    latents = pl.DataFrame(
        {"latent": range(1, 8), "status": "ok", "firings": 5, "density": 0.1, "windows_score": range(10, 17)}
    )
    judged = dict.fromkeys(range(1, 8), Judged("a", "scored"))
    table = score_table(outcome_rows(latents, judged, hookpoint="layers.1", windows=100), frame)
    found = verdict_summary(frame, table)
    other = score_verdicts(frame.rename({"verdict": "prediction"}).with_columns(firings=5))
    micro = found["micro"]
    assert (micro["f1"]["low"], micro["f1"]["high"]) == pytest.approx((other.micro_f1_low, other.micro_f1_high))
    assert micro["f1"]["low"] < micro["f1"]["value"] < micro["f1"]["high"]
    assert micro["frequency_weighted_f1"]["value"] == pytest.approx(other.frequency_weighted_f1)
    assert found["macro"]["f1"]["value"] == pytest.approx(other.macro_f1)
    assert found["macro"]["auroc"]["value"] == pytest.approx(other.auroc)
    assert found["macro"]["f1"]["low"] < found["macro"]["f1"]["value"] < found["macro"]["f1"]["high"]


def test_intervals_of_a_latent_are_over_its_documents_and_need_six_of_them() -> None:
    latent = ONE + TWO + ONE
    few, many = (document_intervals(verdicts(latent, documents=documents)) for documents in (5, 20))
    assert few.row(0)[1:] == (None, None, None, None)
    low, high = many.row(0, named=True)["f1_ci_low"], many.row(0, named=True)["f1_ci_high"]
    f1 = scores(verdicts(latent, documents=20))["f1"][0]
    assert 0 <= low < f1 < high <= 1
    # What belongs to a latent does not depend on the others.
    assert document_intervals(verdicts(TWO, latent, documents=20)).row(1)[1:] == many.row(0)[1:]


def test_without_probabilities_or_verdicts_there_is_a_reason() -> None:
    frame = verdicts(ONE, TWO).with_columns(probability=pl.lit(None, pl.Float64))
    assert verdict_summary(frame, scores(frame))["micro"]["pooled_auroc"]["interval"] == (
        "the scorer gave no probabilities"
    )
    empty = verdicts(ONE).clear()
    nothing = verdict_summary(empty, scores(empty))
    assert nothing["coverage"] is None
    assert nothing["micro"]["f1"]["value"] is nothing["macro"]["f1"]["value"] is None
    assert pooled_auroc([[True], [True]], [[0.5], [0.6]]).value is None


@pytest.mark.parametrize(
    ("recall", "wrong", "share", "expected"),
    [(1.0, 0.0, 0.01, 1.0), (0.8, 0.1, 0.01, 0.008 / 0.107), (0.0, 0.0, 0.5, 0.0), (None, 0.1, 0.5, None)],
)
def test_precision_at_natural_prevalence(
    recall: float | None, wrong: float, share: float, expected: float | None
) -> None:
    assert natural_precision(recall, wrong, share) == (None if expected is None else pytest.approx(expected))
