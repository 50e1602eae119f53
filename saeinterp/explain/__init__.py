"""Explanations of latents and their scores, by language models in this process or behind a URL."""

from saeinterp.explain.controls import control_explanations, control_explanations_recipe
from saeinterp.explain.explainers import explain, explain_recipe
from saeinterp.explain.explanation_table import read_explanations, read_latents
from saeinterp.explain.fuzz import fuzz_texts
from saeinterp.explain.judging import Judgement, judge, judge_list, questions
from saeinterp.explain.labels import Label, label_of, parse_label
from saeinterp.explain.llm import (
    LLM,
    Completions,
    Message,
    Reply,
    Request,
    Usage,
    llm_identity,
    llm_recipe,
    open_llm,
    request_key,
)
from saeinterp.explain.metrics import Rate, VerdictMetrics, match_rates, natural_precision, verdict_metrics
from saeinterp.explain.profiles import describe_latents, describe_latents_recipe
from saeinterp.explain.prompts import fill, prompt_hash
from saeinterp.explain.rendering import Shown, form_values, marked_text, render_example
from saeinterp.explain.response_cache import ResponseCache
from saeinterp.explain.scorers import score, score_recipe
from saeinterp.explain.simulation import predicted_activations, simulation_correlation
from saeinterp.explain.spending import Spent, spending
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
    "Spent",
    "Usage",
    "VerdictMetrics",
    "VerdictScores",
    "control_explanations",
    "control_explanations_recipe",
    "describe_latents",
    "describe_latents_recipe",
    "explain",
    "explain_recipe",
    "fill",
    "form_values",
    "fuzz_texts",
    "judge",
    "judge_list",
    "label_of",
    "llm_identity",
    "llm_recipe",
    "marked_text",
    "match_rates",
    "natural_precision",
    "open_llm",
    "parse_label",
    "parse_verdicts",
    "predicted_activations",
    "prompt_hash",
    "questions",
    "read_explanations",
    "read_latents",
    "render_example",
    "request_key",
    "score",
    "score_recipe",
    "score_verdicts",
    "simulation_correlation",
    "spending",
    "verdict_metrics",
]
