"""Explanations of latents and their scores, by language models in this process or behind a URL."""

from saeinterp.explain.explainers import (
    Shown,
    control_explanations,
    control_explanations_recipe,
    explain,
    explain_recipe,
    form_values,
    render_example,
)
from saeinterp.explain.labels import Label, parse_label
from saeinterp.explain.llm import LLM, Completions, Message, Reply, Request, llm_identity, open_llm, request_key
from saeinterp.explain.metrics import Rate, VerdictMetrics, match_rates, verdict_metrics
from saeinterp.explain.prompts import fill, prompt_hash
from saeinterp.explain.response_cache import ResponseCache
from saeinterp.explain.scorers import Judgement, judge, score, score_recipe
from saeinterp.explain.verdict_scores import VerdictScores, score_verdicts
from saeinterp.explain.verdicts import parse_verdicts

__all__ = [
    "LLM",
    "Completions",
    "Judgement",
    "Label",
    "Message",
    "Rate",
    "Reply",
    "Request",
    "ResponseCache",
    "Shown",
    "VerdictMetrics",
    "VerdictScores",
    "control_explanations",
    "control_explanations_recipe",
    "explain",
    "explain_recipe",
    "fill",
    "form_values",
    "judge",
    "llm_identity",
    "match_rates",
    "open_llm",
    "parse_label",
    "parse_verdicts",
    "prompt_hash",
    "render_example",
    "request_key",
    "score",
    "score_recipe",
    "score_verdicts",
    "verdict_metrics",
]
