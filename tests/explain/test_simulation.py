"""Simulation scoring: expected activations out of digits, correlations, and a server that knows the truth."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np
import polars as pl
import pytest
from explain.conftest import Road
from explain.oracle import Answer, Oracle, completion, simulation
from scipy import stats

from saeinterp.artifacts import Artifact, ArtifactStore, read_json
from saeinterp.compare import compare_explainers
from saeinterp.config import CompareExplainersConfig, ComparisonConfig, ScorerConfig
from saeinterp.errors import LLMError
from saeinterp.explain import Reply, control_explanations, predicted_activations, simulation_correlation
from saeinterp.report import write_report


def row_of(**digits: float) -> tuple[float, ...]:
    """Log-probabilities with some digits likely, as in `d3=0.5`, and all others all but impossible."""
    return tuple(math.log(digits.get(f"d{digit}", 1e-12)) for digit in range(10))


def scored(artifact: Artifact) -> pl.DataFrame:
    return pl.read_parquet(artifact.file("scores.parquet")).filter(status="scored")


def test_an_expected_activation_is_over_the_digits_alone() -> None:
    slots = (row_of(d3=1.0), row_of(d0=0.1, d9=0.1), row_of(d1=0.03, d2=0.01))
    found = predicted_activations(Reply("", slot_logprobs=slots), num_tokens=3)
    assert found == pytest.approx([3.0, 4.5, 1.25], abs=1e-6)


@pytest.mark.parametrize(
    "reply",
    [
        Reply("", status="refused", error="no prompt log-probabilities"),
        Reply("3"),
        Reply("", slot_logprobs=(row_of(d3=1.0),)),
    ],
)
def test_a_reply_without_all_slots_predicts_nothing(reply: Reply) -> None:
    assert predicted_activations(reply, num_tokens=2) is None


def test_the_correlation_is_over_all_tokens_of_all_windows() -> None:
    rng = np.random.default_rng(0)
    true = [rng.exponential(size=size) for size in (16, 16, 9)]
    said = [part + rng.normal(size=len(part)) for part in true]
    expected = stats.pearsonr(np.concatenate(true), np.concatenate(said)).statistic
    assert simulation_correlation(true, said) == pytest.approx(expected)
    assert simulation_correlation([-part for part in true], said) == pytest.approx(expected)


def test_constant_predictions_correlate_with_nothing() -> None:
    assert simulation_correlation([[0.0, 1.0, 0.0]], [[4.5, 4.5, 4.5 + 1e-12]]) == 0


@pytest.mark.parametrize(
    ("true", "said"),
    [([], []), ([[0.0, 1.0]], [[4.5, 4.5]]), ([[2.0, 2.0, 2.0]], [[1.0, 2.0, 3.0]]), ([[2.0] * 3], [[1.0] * 3])],
)
def test_a_correlation_with_constant_activations_does_not_exist(
    true: list[list[float]], said: list[list[float]]
) -> None:
    assert simulation_correlation(true, said) is None


def test_a_server_that_knows_the_truth_correlates_and_permuted_explanations_do_not(
    road: Road, store: ArtifactStore
) -> None:
    with Oracle() as oracle:
        explanations = road.explain(oracle, store)
        permuted = control_explanations(explanations, control="permuted", seed=0, store=store)
        scores = road.score(explanations, oracle, store, kind="simulation")
        wrong = scored(road.score(permuted, oracle, store, kind="simulation"))
        body = next(body for body in oracle.bodies if body.get("prompt_logprobs"))
    right = scored(scores)
    assert right["correlation"].min() > 0.999
    assert wrong["correlation"].drop_nulls().max() < 0.2
    assert right["f1"].null_count() == right.height
    assert (right["coverage"] == 1).all()
    assert body["messages"][-1]["content"].endswith("\t<?>")
    summary = read_json(scores.file("summary.json"))
    assert summary["macro"]["correlation"]["n"] == 8
    assert (summary["coverage"], summary["coverage_ok"], summary["threshold"]) == (1.0, True, None)
    windows = pl.read_parquet(scores.file("simulations.parquet"))
    shown = pl.read_parquet(road.examples.file("examples.parquet")).filter(role="score")
    joined = windows.join(shown, on=["latent", "example_id"])
    assert joined.height == windows.height == 144
    assert (joined["predicted"].list.len() == joined["tokens"].list.len()).all()


def test_a_server_that_says_the_same_of_every_token_scores_zero(road: Road, store: ArtifactStore) -> None:
    def constant(number: int, body: dict[str, Any]) -> Answer | None:
        if not body.get("prompt_logprobs"):
            return None
        return Answer(body=json.dumps(simulation(body["messages"][-1]["content"], digit=lambda text, token: 4)))

    with Oracle(trouble=constant) as oracle:
        scores = road.score(road.explain(oracle, store), oracle, store, kind="simulation")
    found = scored(scores)
    assert found["correlation"].to_list() == [0.0] * 8
    assert (found["usable"] == found["n"]).all()
    macro = read_json(scores.file("summary.json"))["macro"]["correlation"]
    assert (macro["value"], macro["n"]) == (0.0, 8)


def test_windows_that_were_refused_cost_coverage_only(road: Road, store: ArtifactStore) -> None:
    refusal = Answer(400, json.dumps({"error": {"message": "maximum context length exceeded"}}))
    with Oracle() as oracle:
        explanations = road.explain(oracle, store)
        oracle.trouble = lambda number, body: refusal if number % 5 == 0 else None
        scores = road.score(explanations, oracle, store, kind="simulation", concurrency=1)
    summary = read_json(scores.file("summary.json"))
    assert summary["coverage"] == pytest.approx(0.8, abs=0.01)
    assert summary["coverage_ok"] is False
    assert scored(scores)["correlation"].min() > 0.999
    refused = pl.read_parquet(scores.file("simulations.parquet")).filter(status="error")
    assert refused["predicted"].null_count() == refused.height == summary["windows"]["error"]
    assert refused["error"].str.contains("maximum context length").all()


def test_a_server_without_log_probabilities_of_prompts_is_named(road: Road, store: ArtifactStore) -> None:
    with Oracle() as oracle:
        explanations = road.explain(oracle, store)
        oracle.trouble = lambda number, body: Answer(body=json.dumps(completion("0")))
        with pytest.raises(LLMError, match="prompt log-probabilities"):
            road.score(explanations, oracle, store, kind="simulation")


def test_a_report_of_simulations_shows_what_they_give_and_no_verdicts(road: Road) -> None:
    store = ArtifactStore(road.examples.path.parent.parent)  # a report reads the examples too
    with Oracle() as oracle:
        written = road.explain(oracle, store)
        empty = control_explanations(written, control="empty", seed=0, store=store)
        scores = [road.score(item, oracle, store, kind="simulation") for item in (empty, written)]
    config = CompareExplainersConfig(
        comparison=ComparisonConfig(metric="correlation"), scorer=ScorerConfig(kind="simulation")
    )
    comparison = compare_explainers(scores[:1], scores[1:], {}, config=config.comparison, store=store)
    report = write_report(
        title="Simulated",
        explainer_comparison=comparison,
        model_comparison=None,
        health={},
        saes={},
        failures=(),
        config=config,
        store=store,
    )
    section = read_json(report.file("results.json"))["explainers"]
    assert [(row["metric"], row["level"]) for row in section["rows"]] == [("correlation", "macro")]
    text = report.file("report.md").read_text()
    assert "Coverage (share of windows predicted): A 100.0%, B 100.0%" in text
    assert "Windows predicted: empty 144 of 144 (100.0%); oracle 144 of 144 (100.0%)." in text
    assert "verdict" not in re.sub(r"## Provenance.*", "", text, flags=re.DOTALL)
    page = report.file("report.html").read_text()
    assert '<th scope="row">Difference, bounds from unusable verdicts</th>' not in page
    assert "Always-yes</th>" not in page
    assert "always answering yes" not in page
