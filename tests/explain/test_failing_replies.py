"""A server that fails a known fifth of its replies: coverage says so, bounds hold, and nothing counts as a verdict."""

from __future__ import annotations

import json

import polars as pl
import pytest
from explain.conftest import Road, served_by
from explain.oracle import Answer, Oracle, completion

from saeinterp.artifacts import ArtifactStore, read_json
from saeinterp.config import ScorerConfig
from saeinterp.explain import score
from saeinterp.stats import classification

FAILURES = {
    "server errors": (Answer(500, "{}"), "error", "HTTP 500"),
    "refused prompts": (Answer(400, json.dumps({"error": {"message": "too long"}})), "error", "too long"),
    "bodies cut short": (
        Answer(200, '{"choices": [{"mess', {"Content-Length": "5000", "Connection": "close"}),
        "error",
        "connection lost",
    ),
    "half an answer": (Answer(200, '{"choices": [{"mess'), "error", "not a chat completion"),
    "empty replies": (Answer(body=json.dumps(completion(""))), "unusable", ""),
    "other answers": (Answer(body=json.dumps(completion("Perhaps."))), "unusable", "Perhaps."),
}


@pytest.mark.parametrize("together", [1, 3])
@pytest.mark.parametrize("failure", FAILURES)
def test_coverage_is_four_fifths_and_the_bounds_are_those_of_the_missing_verdicts(
    road: Road, store: ArtifactStore, failure: str, together: int
) -> None:
    answer, status, said = FAILURES[failure]
    with Oracle() as oracle:
        explanations = road.explain(oracle, store)
        before = oracle.requests
        oracle.trouble = lambda number, body: answer if (number - before) % 5 == 0 else None
        llm = served_by(oracle, max_tokens=1, retries=0, concurrency=1)
        config = ScorerConfig(llm=llm, examples_per_prompt=together, min_coverage=0.5)
        scores = score(explanations, road.examples, config=config, store=store)
        asked = oracle.requests - before
    verdicts = pl.read_parquet(scores.file("verdicts.parquet"))
    missing = verdicts.filter(pl.col("verdict").is_null())
    assert missing["request"].n_unique() == asked // 5
    assert set(missing["request"] % 5) == {4}
    assert set(missing["status"]) == {status}
    assert missing["reply"].str.contains(said, literal=True).all()
    assert missing["probability"].null_count() == missing.height

    summary = read_json(scores.file("summary.json"))
    assert summary["coverage"] == 1 - missing.height / verdicts.height == pytest.approx(0.8, abs=0.03)
    true, false = (int(verdicts["truth"].sum()), int((~verdicts["truth"]).sum()))
    lost_true, lost_false = (int(missing["truth"].sum()), int((~missing["truth"]).sum()))
    f1 = summary["micro"]["f1"]
    assert f1["value"] == f1["best"] == 1
    worst = classification(true - lost_true, lost_false, false - lost_false, lost_true).f1
    assert f1["worst"] == pytest.approx(float(worst))
    for row in pl.read_parquet(scores.file("scores.parquet")).filter(status="scored").iter_rows(named=True):
        lost = missing.filter(latent=row["latent"])
        assert row["usable"] == row["n"] - lost.height
        assert row["coverage"] == pytest.approx(row["usable"] / row["n"])
        assert row["f1_high"] == 1
        assert (row["f1_low"] < 1) is (lost.height > 0)
