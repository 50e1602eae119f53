"""Scores of explanations: does a model that reads only the explanation know where the latent fires?

`detection` asks about one text at a time whether it matches. The surprising choice: the verdict is not the
word the model wrote but P(Yes) / (P(Yes) + P(No)) against a threshold, where the model gives probabilities;
a verdict that cannot be had stays None, is counted in coverage and bounded, and is never taken for "no".
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import polars as pl

from saeinterp.artifacts import Artifact, ArtifactStore, Recipe, Ref, Workspace, read_json, write_json
from saeinterp.config import ScorerConfig, recipe_of
from saeinterp.errors import DataError
from saeinterp.explain.explainers import read_explanations, read_latents, require_answers
from saeinterp.explain.llm import Completions, Reply, Request, llm_identity, open_llm
from saeinterp.explain.metrics import VerdictMetrics, match_rates, verdict_metrics
from saeinterp.explain.prompts import fill, prompt_hash
from saeinterp.progress import Progress, silent

VERSION = 1
KIND = "scores"
CHOICES = ("Yes", "No")
_ANSWER = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)
MACRO = ("precision", "recall", "f1", "accuracy", "balanced_accuracy", "mcc", "auroc", "f1_always_yes")

VERDICT_SCHEMA: dict[str, Any] = {
    "latent": pl.Int32,
    "example_id": pl.Int32,
    "kind": pl.String,
    "quantile": pl.Int8,
    "doc_id": pl.Int32,
    "truth": pl.Boolean,
    "verdict": pl.Boolean,
    "probability": pl.Float64,
    "reply": pl.String,
    "status": pl.String,
}
_COUNTS = ("n", "usable", "tp", "fp", "tn", "fn")
SCORE_SCHEMA: dict[str, Any] = {
    "latent": pl.Int32,
    "hookpoint": pl.String,
    "status": pl.String,
    "explanation": pl.String,
    **{name: pl.Int32 if name in _COUNTS else pl.Float64 for name in VerdictMetrics._fields},
    "firings": pl.Int64,
    "density": pl.Float64,
}


class Judgement(NamedTuple):
    """One verdict: what was said, P(match) where known, and whether it is usable (`ok`, `unusable`, `error`)."""

    verdict: bool | None
    probability: float | None
    status: str


def score_recipe(explanations: Ref, examples: Ref, *, config: ScorerConfig) -> Recipe:
    """The recipe of a set of scores.

    Raises:
        LLMError: The in-process model does not exist.
    """
    values = recipe_of(config)
    values["identity"] = llm_identity(config.llm)
    values["prompts"] = {config.kind: prompt_hash(config.kind)}
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

    Payload: `verdicts.parquet` (one row per example), `scores.parquet` (one row per selected latent, scored or
    not), `summary.json`. A latent whose explanation failed is judged by the empty one.

    Raises:
        LLMError: The model is gone or refuses, or a failing server left coverage below `min_coverage`; replies
            received so far are kept.
        DataError: Explanations and examples are not of the same latents.
    """
    recipe = score_recipe(explanations, examples, config=config)

    def write(space: Workspace) -> None:
        latents = read_latents(examples)
        texts = _texts(explanations, latents)
        rows = (
            pl.read_parquet(examples.file("examples.parquet"))
            .filter(pl.col("role") == "score", pl.col("latent").is_in(list(texts)))
            .sort("latent", "example_id")
        )
        completions = _ask(rows, texts, config, store, progress or silent)
        judged = [judge(reply, threshold=config.threshold) for reply in completions.replies]
        verdicts = _verdicts(rows, judged, completions.replies)
        verdicts.write_parquet(space.out / "verdicts.parquet", compression="zstd")
        hookpoint = read_json(examples.file("examples.json"))["hookpoint"]
        scores = _scores(latents, texts, verdicts, hookpoint)
        scores.write_parquet(space.out / "scores.parquet", compression="zstd")
        write_json(space.out / "summary.json", _summary(verdicts, scores, hookpoint, config))
        space.counts = {
            "latents": scores.height,
            "verdicts": verdicts.height,
            "requests_sent": completions.sent,
            "requests_cached": completions.cached,
        }

    return store.build(recipe, write)


def judge(reply: Reply, *, threshold: float) -> Judgement:
    """The verdict in a reply: from the log-probabilities of the choices, else from a reply that starts with one."""
    if reply.status != "ok":
        return Judgement(None, None, "error")
    if reply.choice_logprobs is not None:
        yes, no = reply.choice_logprobs
        # exp() of a difference up to 745 is finite, and log-probabilities of listed tokens differ by far less.
        probability = 1.0 / (1.0 + math.exp(min(no - yes, 700.0)))
        return Judgement(probability >= threshold, probability, "ok")
    found = _ANSWER.match(reply.text)
    if found is None:
        return Judgement(None, None, "unusable")
    return Judgement(found[1].lower() == "yes", None, "ok")


class _Text(NamedTuple):
    """What the scorer is told of one latent."""

    explanation: str
    status: str


def _texts(explanations: Artifact, latents: pl.DataFrame) -> dict[int, _Text]:
    """The text each latent is judged by, for latents that have examples."""
    found = {row["latent"]: row for row in read_explanations(explanations).iter_rows(named=True)}
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
        texts[latent] = _Text(text or "", "scored" if text is not None else "explanation_failed")
    return texts


def _ask(
    rows: pl.DataFrame, texts: dict[int, _Text], config: ScorerConfig, store: ArtifactStore, progress: Progress
) -> Completions:
    requests = [
        Request(
            messages=fill(config.kind, {"explanation": texts[latent].explanation, "text": " ".join(text.split())}),
            max_tokens=config.llm.max_tokens,
            temperature=config.llm.temperature,
            seed=config.llm.seed,
            choices=CHOICES,
            group=str(latent),
        )
        for latent, text in rows.select("latent", "text").iter_rows()
    ]
    completions = open_llm(config.llm, store=store).complete(requests, progress=progress)
    require_answers(completions, share=1 - config.min_coverage, what="verdicts")
    return completions


def _verdicts(rows: pl.DataFrame, judged: Sequence[Judgement], replies: Sequence[Reply]) -> pl.DataFrame:
    said = pl.DataFrame(
        {
            "verdict": [item.verdict for item in judged],
            "probability": [item.probability for item in judged],
            "reply": [reply.error or "" if reply.status != "ok" else reply.text for reply in replies],
            "status": [item.status for item in judged],
        },
        schema={name: VERDICT_SCHEMA[name] for name in ("verdict", "probability", "reply", "status")},
    )
    known = rows.select("latent", "example_id", "kind", "quantile", "doc_id", truth=pl.col("kind") == "activating")
    return pl.concat([known, said], how="horizontal").select(list(VERDICT_SCHEMA))


def _scores(latents: pl.DataFrame, texts: dict[int, _Text], verdicts: pl.DataFrame, hookpoint: str) -> pl.DataFrame:
    """One row per selected latent: metrics of those with examples, the outcome of the others."""
    of_latent = {key[0]: frame for key, frame in verdicts.partition_by("latent", as_dict=True).items()}
    rows = []
    for latent, status, firings, density in latents.select("latent", "status", "firings", "density").iter_rows():
        text = texts.get(latent)
        metrics = _metrics(of_latent.get(latent, verdicts.clear()))
        rows.append(
            {
                "latent": latent,
                "hookpoint": hookpoint,
                "status": text.status if text else status,
                "explanation": text.explanation if text and text.status == "scored" else None,
                **metrics._asdict(),
                "firings": firings,
                "density": density,
            }
        )
    return pl.DataFrame(rows, schema=SCORE_SCHEMA)


def _metrics(verdicts: pl.DataFrame) -> VerdictMetrics:
    return verdict_metrics(*(verdicts[name].to_list() for name in ("truth", "verdict", "probability")))


def _summary(verdicts: pl.DataFrame, scores: pl.DataFrame, hookpoint: str, config: ScorerConfig) -> dict[str, Any]:
    """What `summary.json` holds: counts, coverage, micro and macro metrics, rates per kind and per quantile."""
    micro = _metrics(verdicts)
    said = verdicts["verdict"].to_list()
    kinds = match_rates(verdicts["kind"].to_list(), said)
    positives = verdicts.filter("truth").sort("quantile")
    quantiles = match_rates(positives["quantile"].to_list(), positives["verdict"].to_list())
    return {
        "hookpoint": hookpoint,
        "scorer": f"{config.llm.model} ({config.kind})",
        "threshold": config.threshold,
        "latents": dict(sorted(Counter(scores["status"].to_list()).items())),
        "verdicts": dict(sorted(Counter(verdicts["status"].to_list()).items())),
        "n": micro.n,
        "usable": micro.usable,
        "coverage": micro.coverage,
        "min_coverage": config.min_coverage,
        "coverage_ok": micro.coverage is not None and micro.coverage >= config.min_coverage,
        "micro": micro._asdict(),
        "macro": {name: _mean(scores[name]) for name in MACRO},
        "kinds": {kind: rate._asdict() for kind, rate in sorted(kinds.items())},
        "quantiles": [{"quantile": quantile, **rate._asdict()} for quantile, rate in quantiles.items()],
    }


def _mean(column: pl.Series) -> dict[str, Any]:
    """Mean over the latents where the metric is defined, and their number."""
    values = column.drop_nulls().to_list()
    return {"value": math.fsum(values) / len(values) if values else None, "n": len(values)}
