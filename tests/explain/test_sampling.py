"""Several explanations per latent: each asked for, each scored, averaged, and their variance split."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import polars as pl
import pytest
from explain.conftest import HOOKPOINT, Road
from explain.oracle import Answer, Oracle, completion
from pydantic import ValidationError

from saeinterp.artifacts import Artifact, ArtifactStore, read_json
from saeinterp.compare import compare_explainers, read_explainer_comparison
from saeinterp.config import CompareExplainersConfig, ComparisonConfig, ExplainerConfig
from saeinterp.explain import control_explanations, explain_recipe
from saeinterp.explain.sampling import verdict_variance
from saeinterp.report import write_report
from saeinterp.stats import split_variance

THREE = {"samples": 3}
WRONG = "words of the class metal"


def spoilt(number: int, body: dict[str, Any]) -> Answer | None:
    """Explanations of any but the first sampling seed are the same wrong one."""
    asks = not body.get("logprobs") and not body.get("prompt_logprobs")
    if not asks or body["seed"] == 0:
        return None
    return Answer(body=json.dumps(completion(json.dumps({"explanation": WRONG}))))


def read(artifact: Artifact, name: str) -> pl.DataFrame:
    return pl.read_parquet(artifact.file(f"{name}.parquet"))


def test_each_explanation_is_asked_for_with_a_seed_of_its_own(road: Road, store: ArtifactStore) -> None:
    with Oracle(trouble=spoilt) as oracle:
        made = road.explain(oracle, store, options=THREE, temperature=0.7)
        seeds = [body["seed"] for body in oracle.bodies]
        single = road.explain(oracle, store, temperature=0.7)
    table, alone = read(made, "explanations"), read(single, "explanations")
    latents = alone["latent"].to_list()
    assert table.select("latent", "sample").rows() == [(latent, number) for latent in latents for number in range(3)]
    assert len(set(seeds)) == 3
    assert {seeds.count(seed) for seed in seeds} == {len(latents)}
    # The first is that of a run with one explanation: nothing is sent again.
    assert oracle.requests == 3 * len(latents)
    assert table.filter(sample=0).drop("sample").equals(alone)
    assert set(table.filter(pl.col("sample") > 0)["explanation"]) == {WRONG}
    assert made.counts()["latents"] == len(latents)
    assert made.counts()["explanations"] == 3 * len(latents)


def test_one_explanation_is_what_it_always_was(road: Road) -> None:
    config = ExplainerConfig(kind="top-tokens")
    recipe = explain_recipe(road.examples, road.subject, road.sae, hookpoint=HOOKPOINT, config=config)
    assert "samples" not in recipe.config


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"samples": 2}, "temperature above 0"),
        ({"samples": 2, "kind": "top-tokens", "llm": {"temperature": 1.0}}, "draws nothing"),
    ],
)
def test_explanations_that_would_all_be_the_same_are_refused(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        ExplainerConfig(**fields)


def test_a_latents_score_is_the_mean_over_its_explanations(road: Road, store: ArtifactStore) -> None:
    with Oracle(trouble=spoilt) as oracle:
        several = road.score(road.explain(oracle, store, options=THREE, temperature=0.7), oracle, store)
        single = road.score(road.explain(oracle, store, temperature=0.7), oracle, store)
    scores, samples, alone = read(several, "scores"), read(several, "samples"), read(single, "scores")
    assert scores.columns == alone.columns
    assert scores.schema == alone.schema
    assert samples.filter(sample=0).drop("sample").equals(alone)
    for name in ("f1", "balanced_accuracy", "f1_low"):
        of_latent = {row["latent"]: row[name] for row in scores.iter_rows(named=True)}
        for (latent,), rows in samples.group_by("latent"):
            known = rows[name].drop_nulls()
            assert of_latent[latent] == (pytest.approx(known.mean()) if len(known) else None)
    assert scores["n"].sum() == 3 * alone["n"].sum()
    assert scores.filter(status="scored")["explanation"].equals(alone.filter(status="scored")["explanation"])
    assert scores["f1_ci_low"].null_count() == len(scores)
    summary = read_json(several.file("summary.json"))
    assert summary["n"] == 3 * read_json(single.file("summary.json"))["n"]
    split = summary["variance"]["f1"]
    assert (split["latents"]["n"], split["sampling"]["n"], split["reason"]) == (8, 3, None)
    assert split["sampling"]["value"] > 0.05
    assert "variance" not in read_json(single.file("summary.json"))


def test_a_simulation_is_averaged_and_split_too(road: Road, store: ArtifactStore) -> None:
    with Oracle(trouble=spoilt) as oracle:
        made = road.explain(oracle, store, options=THREE, temperature=0.7)
        scores = road.score(made, oracle, store, kind="simulation")
    found, samples = read(scores, "scores").drop_nulls("correlation"), read(scores, "samples")
    assert found["correlation"].to_list() == pytest.approx(
        samples.drop_nulls("correlation")
        .group_by("latent")
        .agg(pl.col("correlation").mean())
        .sort("latent")["correlation"]
    )
    split = read_json(scores.file("summary.json"))["variance"]["correlation"]
    assert split["sampling"]["value"] > 0.05
    assert abs(split["documents"]["value"]) < 0.01


def test_controls_take_the_first_explanation(road: Road, store: ArtifactStore) -> None:
    with Oracle(trouble=spoilt) as oracle:
        made = road.explain(oracle, store, options=THREE, temperature=0.7)
    first = read(made, "explanations").filter(sample=0)
    permuted = read(control_explanations(made, control="permuted", seed=0, store=store), "explanations")
    assert sorted(permuted["explanation"]) == sorted(first["explanation"])
    empty = read(control_explanations(made, control="empty", seed=0, store=store), "explanations")
    assert empty["latent"].equals(first["latent"])


def test_a_side_with_several_explanations_is_compared_by_their_mean(road: Road, store: ArtifactStore) -> None:
    with Oracle(trouble=spoilt) as oracle:
        several = road.score(road.explain(oracle, store, options=THREE, temperature=0.7), oracle, store)
        single = road.score(road.explain(oracle, store, options={"label": "one"}), oracle, store)
    config = ComparisonConfig(bootstrap=200)
    made = compare_explainers([single], [several], {}, config=config, store=store)
    found = read_explainer_comparison(made)
    samples = read(several, "samples").drop_nulls("f1")
    assert found.primary.mean_a == pytest.approx(1)
    assert found.primary.mean_b == pytest.approx(samples["f1"].mean())
    primary = next(item for item in found.metrics if item.primary)
    assert primary.bounds.low_b == primary.bounds.high_b == pytest.approx(found.primary.mean_b)
    # Pooled over all verdicts of all explanations, of which every explanation has as many.
    tp, fp, fn = (samples[name].sum() for name in ("tp", "fp", "fn"))
    assert primary.micro.value_b == pytest.approx(2 * tp / (2 * tp + fp + fn))
    assert found.coverage_b.examples == 3 * found.coverage_a.examples
    assert found.verdicts is None
    assert "several explanations" in (found.verdicts_reason or "")
    assert found.mcnemar is None
    assert "samples" in [row.field for row in found.configuration]
    latents = read(made, "latents")
    assert latents["explanation_b"].equals(latents["explanation_a"])
    assert "f1_b_low" not in latents.columns


def test_the_report_says_where_the_variance_comes_from(road: Road) -> None:
    store = ArtifactStore(road.examples.path.parent.parent)  # a report reads the examples too
    with Oracle(trouble=spoilt) as oracle:
        written = road.explain(oracle, store, options=THREE, temperature=0.7)
        scores = road.score(written, oracle, store)
        other = road.score(road.explain(oracle, store, options={"label": "one"}), oracle, store)
    config = CompareExplainersConfig(comparison=ComparisonConfig(bootstrap=200))
    comparison = compare_explainers([other], [scores], {}, config=config.comparison, store=store)
    arguments = {"model_comparison": None, "health": {}, "saes": {}, "failures": (), "config": config, "store": store}
    report = write_report(title="Sampled", explainer_comparison=comparison, **arguments)
    (row,) = read_json(report.file("results.json"))["variance"]
    stored = read_json(scores.file("summary.json"))["variance"]["f1"]
    assert (row["explainer"], row["hookpoint"], row["source"]) == ("oracle", HOOKPOINT, scores.id)
    for part in ("latents", "documents", "sampling", "rest"):
        assert (row[part]["value"], row[part]["n"]) == (stored[part]["value"], stored[part]["n"])
    text, page = report.file("report.md").read_text(), report.file("report.html").read_text()
    assert "### Several explanations per latent" in text
    assert f"8 latents, {stored['documents']['n']} documents, 3 explanations each" in text
    assert "Several explanations per latent" in page
    examples = pl.read_parquet(report.path / "tables" / "examples.parquet").filter(role="score")
    assert len(examples) == 144
    assert examples.select("verdict_a").equals(examples.select(verdict_a="verdict_b"))  # of the first explanation


def test_of_accuracy_with_an_example_per_document_the_parts_are_the_verdicts(road: Road) -> None:
    rng = np.random.default_rng(0)
    right = [rng.uniform(size=(size, 3)) < 0.7 for size in (6, 9, 7, 8)]
    rows = [
        {"latent": latent, "sample": sample, "doc_id": document, "example_id": document, "truth": document % 2 == 0,
         "verdict": bool((document % 2 == 0) == table[document, sample]), "probability": None}
        for latent, table in enumerate(right)
        for document in range(len(table))
        for sample in range(3)
    ]  # fmt: skip
    found = verdict_variance(pl.DataFrame(rows, schema_overrides={"probability": pl.Float64}))["accuracy"]
    expected = split_variance([table.astype(float) for table in right])
    values = [found[part]["value"] for part in ("latents", "documents", "sampling", "rest")]
    assert values == pytest.approx(expected[3:7])
    assert [found[part]["n"] for part in ("latents", "documents", "sampling")] == [4, 30, 3]
    assert "too few" in found["latents"]["interval"]
