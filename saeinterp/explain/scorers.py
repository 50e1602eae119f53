"""Scores of explanations: does a model that reads only the explanation know where the latent fires?

`detection` asks whether texts match it, `fuzz` whether it fits the marked tokens, `simulation` how strongly the latent
fires on each token. The surprising choice: the verdict is not what the model wrote but P(yes) / (P(yes) + P(no))
against a threshold, where the model gives probabilities; a verdict that cannot be had stays None, is counted in
coverage and bounded, and is never taken for "no".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from saeinterp.artifacts import Artifact, ArtifactStore, Recipe, Ref, Workspace, read_json, write_json
from saeinterp.config import ScorerConfig
from saeinterp.errors import DataError
from saeinterp.explain.answers import request_counts, require_answers
from saeinterp.explain.explanation_table import KIND as EXPLANATIONS
from saeinterp.explain.explanation_table import SAMPLE, read_explanations, read_latents
from saeinterp.explain.fuzz import fuzz_texts
from saeinterp.explain.intervals import macro_estimate
from saeinterp.explain.judging import Judgement, examples_asked, judgements, prompt_name, question_request
from saeinterp.explain.llm import Completions, Request, llm_recipe, open_llm
from saeinterp.explain.parts import Asking, parts
from saeinterp.explain.prompts import prompt_hash
from saeinterp.explain.sampling import correlation_variance, mean_scores, numbered, verdict_variance
from saeinterp.explain.score_tables import (
    Judged,
    coverage_summary,
    outcome_rows,
    score_rows,
    score_table,
    verdict_summary,
    verdict_table,
)
from saeinterp.explain.simulation import simulation_correlation, simulation_requests, simulations
from saeinterp.progress import Progress, silent

VERSION = 2
KIND = "scores"
_KEY = ("latent", "example_id", "kind", "quantile", "doc_id")
_READ = {"detection": ("text",), "fuzz": ("tokens", "activations"), "simulation": ("tokens", "activations")}


def score_recipe(explanations: Ref, examples: Ref, *, config: ScorerConfig) -> Recipe:
    """The recipe of a set of scores.

    Raises:
        LLMError: The in-process model does not exist.
    """
    prompt = prompt_name(config)
    values: dict[str, Any] = {
        "kind": config.kind,
        "min_coverage": config.min_coverage,
        "llm": {"model": config.llm.model, **llm_recipe(config.llm)},
        "prompts": {prompt: prompt_hash(prompt)},
    }
    if config.kind != "simulation":
        values |= {"examples_per_prompt": config.together, "threshold": config.threshold}
    return Recipe(kind=KIND, name=explanations.name, version=VERSION, config=values, inputs=(explanations, examples))


def score(
    explanations: Artifact,
    examples: Artifact,
    *,
    config: ScorerConfig,
    store: ArtifactStore,
    progress: Progress | None = None,
) -> Artifact:
    """Judge explanations on the scorer's examples.

    Payload: `scores.parquet` (one row per selected latent, scored or not), `summary.json`, and one row per example in
    `verdicts.parquet` (detection, fuzz) or `simulations.parquet`. A latent whose explanation failed is judged by the
    empty one. Where latents have several explanations, each is judged, with rows of its own in these two and in
    `samples.parquet`; `scores.parquet` has their mean, and the summary says where its variance comes from.

    Raises:
        LLMError: The model is gone or refuses, or a failing server left coverage below `min_coverage`; replies
            received so far are kept.
        DataError: Explanations and examples are not of the same SAE, or not of the same latents.
    """
    recipe = score_recipe(explanations, examples, config=config)

    def write(space: Workspace) -> None:
        _require_same_sae(explanations, examples)
        latents = read_latents(examples)
        judged = _judged(explanations, latents)
        facts = read_json(examples.file("examples.json"))
        windows = facts["windows"]["score"]
        outcomes = [outcome_rows(latents, item, hookpoint=facts["hookpoint"], windows=windows) for item in judged]
        rows = (
            pl.scan_parquet(examples.file("examples.parquet"))
            .filter(pl.col("role") == "score", pl.col("latent").is_in(list(judged[0])))
            .select(*_KEY, *_READ[config.kind])
            .collect()
            .sort("latent", "example_id")
        )
        texts = [{latent: item.explanation for latent, item in one.items()} for one in judged]
        asked = _simulated if config.kind == "simulation" else _judge
        scores, summary, completions = asked(rows, texts, outcomes, config, store, progress or silent, space.out)
        scores.write_parquet(space.out / "scores.parquet", compression="zstd")
        coverage = summary["coverage"]
        write_json(
            space.out / "summary.json",
            {
                "hookpoint": facts["hookpoint"],
                "scorer": f"{config.llm.model} ({config.kind})",
                "kind": config.kind,
                "examples_per_prompt": 1 if config.kind == "simulation" else config.together,
                "threshold": None if config.kind == "simulation" else config.threshold,
                "min_coverage": config.min_coverage,
                "coverage_ok": coverage is not None and coverage >= config.min_coverage,
                **summary,
            },
        )
        answers = "windows" if config.kind == "simulation" else "verdicts"
        space.counts = {"latents": scores.height, answers: summary["n"], **request_counts(completions)}

    return store.build(recipe, write)


_Scored = tuple[pl.DataFrame, dict[str, Any], Completions]


def _judge(
    rows: pl.DataFrame,
    texts: Sequence[Mapping[int, str]],
    outcomes: Sequence[pl.DataFrame],
    config: ScorerConfig,
    store: ArtifactStore,
    progress: Progress,
    folder: Path,
) -> _Scored:
    """Verdicts: does the text match, do the marks fit?"""
    shown = fuzz_texts(rows) if config.kind == "fuzz" else rows["text"].to_list()
    asked = examples_asked(rows["latent"].to_list(), together=config.together)

    def make(part: slice, text: Mapping[int, str]) -> list[Request]:
        return [question_request(latent, of, shown, text[latent], config=config) for latent, of in asked[part]]

    completions = _answers([latent for latent, _ in asked], texts, make, config, store, progress)
    replies = enumerate(completions.replies)
    tables = []
    for _ in texts:
        judged = [Judgement(None, None, "error")] * len(rows)
        request, reply = [0] * len(rows), [""] * len(rows)
        for _, of in asked:
            number, answer = next(replies)
            found = judgements(answer, num_examples=len(of), config=config)
            for row, item in zip(of, found, strict=True):
                judged[row] = item
                request[row], reply[row] = number, answer.text if answer.status == "ok" else answer.error or ""
        tables.append(verdict_table(rows, judged, requests=request, replies=reply))
    verdicts, variance = tables[0], {}
    if len(tables) > 1:
        verdicts = numbered(tables)
        variance = {"variance": verdict_variance(verdicts)}
    verdicts.write_parquet(folder / "verdicts.parquet", compression="zstd")
    of_each = [score_table(item, table, progress=progress) for item, table in zip(outcomes, tables, strict=True)]
    scores = _of_latents(of_each, folder)
    return scores, {**verdict_summary(verdicts, scores), **variance}, completions


def _simulated(
    rows: pl.DataFrame,
    texts: Sequence[Mapping[int, str]],
    outcomes: Sequence[pl.DataFrame],
    config: ScorerConfig,
    store: ArtifactStore,
    progress: Progress,
    folder: Path,
) -> _Scored:
    """Predicted activations of every token."""
    latents, tokens = rows["latent"].to_list(), rows["tokens"].to_list()

    def make(part: slice, text: Mapping[int, str]) -> list[Request]:
        return simulation_requests(latents[part], tokens[part], text, config=config)

    completions = _answers(latents, texts, make, config, store, progress)
    starts = [number * len(rows) for number in range(len(texts))]
    tables = [simulations(rows, completions.replies[start : start + len(rows)]) for start in starts]
    table, variance = tables[0], {}
    if len(tables) > 1:
        table = numbered(tables)
        true = numbered([part.with_columns(rows["activations"]) for part in tables])
        variance = {"variance": correlation_variance(true)}
    table.write_parquet(folder / "simulations.parquet", compression="zstd")
    scores = _of_latents([_correlations(item, part, rows) for item, part in zip(outcomes, tables, strict=True)], folder)
    summary = coverage_summary(scores["status"].to_list(), table["status"].to_list(), answers="windows")
    summary["macro"] = {"correlation": macro_estimate(scores["correlation"])._asdict()}
    return scores, {**summary, **variance}, completions


def _of_latents(scores: Sequence[pl.DataFrame], folder: Path) -> pl.DataFrame:
    """`scores.parquet` of one explanation per latent, or the mean of several, which are kept beside it."""
    if len(scores) == 1:
        return scores[0]
    samples = numbered(scores)
    samples.write_parquet(folder / "samples.parquet", compression="zstd")
    return mean_scores(samples)


def _correlations(outcomes: pl.DataFrame, table: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    """`scores.parquet` of a simulation."""
    known = table.with_columns(rows["activations"]).filter(status="ok").partition_by("latent", as_dict=True)
    answers = table.group_by("latent").agg(n=pl.len(), usable=(pl.col("status") == "ok").sum())
    asked = {row["latent"]: row for row in answers.iter_rows(named=True)}
    found = []
    for row in outcomes.iter_rows(named=True):
        mine = known.get((row["latent"],), table.clear().with_columns(activations=None))
        counts = asked.get(row["latent"], {"n": 0, "usable": 0})
        found.append(
            {
                **row,
                **counts,
                "coverage": counts["usable"] / counts["n"] if counts["n"] else None,
                "correlation": simulation_correlation(mine["activations"].to_list(), mine["predicted"].to_list()),
            }
        )
    return score_rows(found)


def _answers(
    latents: Sequence[int],
    texts: Sequence[Mapping[int, str]],
    make: Callable[[slice, Mapping[int, str]], list[Request]],
    config: ScorerConfig,
    store: ArtifactStore,
    progress: Progress,
) -> Completions:
    """The replies to all requests, those about the first texts first.

    Args:
        latents: Of each request about one of the texts.
        make: The requests of a part.
    """
    asking = Asking(open_llm(config.llm, store=store), total=len(latents) * len(texts), progress=progress)
    for text in texts:
        for part in parts(latents):
            asking.ask(make(part, text))
    completions = asking.completions
    require_answers(completions, share=1 - config.min_coverage, what="replies of the scorer")
    return completions


def _judged(explanations: Artifact, latents: pl.DataFrame) -> list[dict[int, Judged]]:
    """The text each latent is judged by, for latents that have examples; once per explanation of a latent."""
    table = read_explanations(explanations)
    samples = table.partition_by(SAMPLE, maintain_order=True) if SAMPLE in table.columns else [table]
    return [_judged_by(sample, explanations, latents) for sample in samples]


def _judged_by(table: pl.DataFrame, explanations: Artifact, latents: pl.DataFrame) -> dict[int, Judged]:
    found = {row["latent"]: row for row in table.iter_rows(named=True)}
    wanted = latents.filter(status="ok")["latent"].to_list()
    if set(found) != set(wanted):
        raise DataError(
            "explanations and examples are not of the same latents",
            field=explanations.id,
            got=sorted(found)[:10],
            expected=f"latents {wanted[:10]}",
            next_step="explain the latents of this example set",
        )
    texts = {}
    for latent in wanted:
        text = found[latent]["explanation"]
        texts[latent] = Judged(text or "", "scored" if text is not None else "explanation_failed")
    return texts


def _require_same_sae(explanations: Artifact, examples: Artifact) -> None:
    """Refuse explanations of another SAE's latents; equal indices would hide it."""
    explained, shown = _sae_of(explanations), _sae_of(examples)
    if explained and shown and explained != shown:
        raise DataError(
            "explanations and examples are of different SAEs",
            field=explanations.id,
            got=explained,
            expected=f"{shown}, the SAE of {examples.id}",
            next_step="explain the latents of this example set",
        )


def _sae_of(artifact: Artifact) -> str | None:
    """The SAE among an artifact's inputs; for a control that of the explanations it was made from."""
    for item in artifact.manifest()["inputs"]:
        behind = artifact.beside(item)
        if item["kind"] == "sae":
            return behind.id
        if item["kind"] == EXPLANATIONS and behind.exists:
            return _sae_of(behind)
    return None
