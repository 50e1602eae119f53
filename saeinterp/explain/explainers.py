"""Explanations of latents: by a language model, or by the latent's top tokens alone.

Every explainer sees the same frozen examples in the same order. The surprising choice: a reply that holds no
label is a failed explanation with a reason, never a label, and everything a model wrote is treated as
untrusted text: one line, no control characters, bounded length.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from operator import itemgetter
from typing import Any

import numpy as np
import polars as pl

from saeinterp.artifacts import Artifact, ArtifactStore, Recipe, Ref, Workspace
from saeinterp.config import ExplainerConfig
from saeinterp.errors import DataError
from saeinterp.explain.answers import request_counts, require_answers
from saeinterp.explain.explanation_table import KIND, SAMPLE, explanation_row, read_latents, write_explanations
from saeinterp.explain.labels import Label, explanation_schema, label_of
from saeinterp.explain.llm import LLM, Message, Reply, Request, llm_recipe, open_llm
from saeinterp.explain.logit_lens import LensTokens, lens_tokens
from saeinterp.explain.parts import Asking, parts
from saeinterp.explain.prompts import fill, prompt_hash
from saeinterp.explain.rendering import form_values, render_example, visible
from saeinterp.progress import Progress, silent

VERSION = 2
LABEL_TOKENS = 5
"""Tokens that a `top-tokens` explanation lists."""
FAILED_SHARE = 0.05
"""With more than this share of requests unanswered by a failing server nothing is published."""


def explain_recipe(examples: Ref, subject: Ref, sae: Ref, *, hookpoint: str, config: ExplainerConfig) -> Recipe:
    """The recipe of a set of explanations.

    Raises:
        LLMError: The in-process model does not exist.
    """
    values: dict[str, Any] = {"kind": config.kind, "label": config.label, "hookpoint": hookpoint}
    if config.kind != "top-tokens":
        prompt = _prompt(config)
        values |= {
            "logit_lens": config.logit_lens,
            "chain_of_thought": config.chain_of_thought,
            "llm": {"model": config.llm.model, **llm_recipe(config.llm)},
            "prompts": {prompt: prompt_hash(prompt)},
        }
    if config.samples > 1:
        values["samples"] = config.samples
    name = f"{hookpoint}-{_slug(config.title)}"
    return Recipe(kind=KIND, name=name, version=VERSION, config=values, inputs=(examples, subject, sae))


def explain(
    examples: Artifact,
    subject: Artifact,
    sae: Artifact,
    *,
    hookpoint: str,
    config: ExplainerConfig,
    store: ArtifactStore,
    progress: Progress | None = None,
) -> Artifact:
    """Write an explanation, or several, for each latent that has examples.

    Payload: `explanations.parquet` (latent, status, explanation, reply, reason, explainer; ascending by latent); with
    `config.samples` above 1 a row per explanation, numbered by `sample`.

    Raises:
        LLMError: The model is gone or refuses; replies received so far are kept.
        DataError: A contrastive explainer has no text in which a latent is silent.
    """
    recipe = explain_recipe(examples, subject, sae, hookpoint=hookpoint, config=config)

    def write(space: Workspace) -> None:
        latents = read_latents(examples).filter(status="ok")
        indices: list[int] = latents["latent"].to_list()
        if config.kind == "top-tokens":
            rows = _rows(indices, [(None, _top_tokens(tokens)) for tokens in latents["top_tokens"]], config)
        else:
            rows = []
            lens = lens_tokens(subject, sae, indices) if config.logit_lens else {}
            llm: LLM = open_llm(config.llm, store=store)
            asking = Asking(llm, total=len(indices) * config.samples, progress=progress or silent)
            # A model in this process answers prompts of several latents in one batch, which no part may cut.
            for part in parts([place // config.llm.batch_size for place in range(len(indices))]):
                replies = asking.ask(sampled(_requests(examples, indices[part], lens, config), config))
                found = [(reply, label_of(reply, reasoned=config.chain_of_thought)) for reply in replies]
                rows += _rows(indices[part], found, config)
            require_answers(asking.completions, share=FAILED_SHARE, what="explanations")
            space.counts = request_counts(asking.completions)
        write_explanations(space, sorted(rows, key=itemgetter("latent")))

    return store.build(recipe, write)


def _rows(
    latents: Sequence[int], found: Sequence[tuple[Reply | None, Label]], config: ExplainerConfig
) -> list[dict[str, Any]]:
    """Rows of the table: of all latents the first explanation, then of all the second."""
    numbers = [{SAMPLE: number} for number in range(config.samples)] if config.samples > 1 else [{}]
    return [
        explanation_row(
            latent,
            "ok" if label.text is not None else "failed",
            explanation=label.text,
            reply=reply.text if reply else None,
            reason=label.reason,
            explainer=config.title,
            **number,
        )
        for (number, latent), (reply, label) in zip(product(numbers, latents), found, strict=True)
    ]


def _prompt(config: ExplainerConfig) -> str:
    """The prompt file of an explainer."""
    name = "contrastive" if config.kind == "contrastive" else "explain"
    return f"{name}-reasoning" if config.chain_of_thought else name


def _requests(
    examples: Artifact, latents: Sequence[int], lens: dict[int, LensTokens], config: ExplainerConfig
) -> list[Request]:
    """One request per latent, in the order of `latents`."""
    frame = (
        pl.scan_parquet(examples.file("examples.parquet"))
        .filter(pl.col("role") == "explain", pl.col("latent").is_in(latents))
        .select("latent", "example_id", "kind", "text", "tokens", "activations")
        .collect()
        .sort("latent", "example_id")
    )
    if config.kind == "contrastive" and latents and not (frame["kind"] == "silent").any():
        raise DataError(
            "holds no texts in which latents are silent, which a contrastive explainer shows",
            field=examples.id,
            next_step="set examples.explain_silent above 0, or use the explainer kind 'llm'",
        )
    shown = frame.partition_by("latent", as_dict=True)
    as_json = config.llm.provider != "in-process" and config.llm.structured
    schema = None
    if as_json:
        schema = explanation_schema(reasoning=config.chain_of_thought, max_tokens=config.llm.max_tokens)
    requests = []
    for latent in latents:
        rows = shown[latent,]
        firing = rows.filter(kind="activating")
        largest = max(max(map(abs, row)) for row in firing["activations"])
        others = rows.filter(kind="silent")["text"].to_list() if config.kind == "contrastive" else []
        promoted, suppressed = lens.get(latent, LensTokens([], []))
        values = form_values(
            [render_example(t, a, largest=largest) for t, a in firing.select("tokens", "activations").iter_rows()],
            promoted=promoted,
            suppressed=suppressed,
            others=others,
        )
        messages = fill(_prompt(config), values)
        requests.append(
            Request(
                messages=tuple(map(_answered_in_json, messages)) if as_json else messages,
                max_tokens=config.llm.max_tokens,
                temperature=config.llm.temperature,
                seed=config.llm.seed,
                schema=schema,
            )
        )
    return requests


def sampled(requests: list[Request], config: ExplainerConfig) -> list[Request]:
    """The requests once per explanation, each time with another sampling seed; the first time with the model's own."""
    if config.samples == 1:
        return requests
    served = config.llm.provider != "in-process"  # where equal prompts meet the prefix cache if they stay together
    return [
        replace(request, seed=_sampling_seed(request.seed, number), group=f"prompt {place}" if served else "")
        for number in range(config.samples)
        for place, request in enumerate(requests)
    ]


def _sampling_seed(seed: int, number: int) -> int:
    """Of a seed and the number of an explanation; far from the seeds that a person would choose."""
    return seed if number == 0 else int(np.random.SeedSequence([seed, number]).generate_state(1)[0] >> 1)


def _answered_in_json(turn: Message) -> Message:
    """A worked answer of a prompt file as the JSON that the schema asks for."""
    if turn.role == "user":
        return turn
    reasoning, _, explanation = turn.content.rpartition("\nExplanation: ")
    answer = {"explanation": explanation}
    if reasoning:
        answer = {"reasoning": reasoning.removeprefix("Reasoning: "), **answer}
    return turn._replace(content=json.dumps(answer, ensure_ascii=False, separators=(",", ":")))


def _top_tokens(tokens: Sequence[str]) -> Label:
    words = list(dict.fromkeys(visible(token) for token in tokens if token))[:LABEL_TOKENS]
    if not words:
        return Label(None, "the latent fires on no token of the explain split")
    return Label(("the token " if len(words) == 1 else "the tokens ") + ", ".join(f'"{word}"' for word in words), None)


def _slug(title: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", title).strip("-.") or "explainer"
