"""Explanations of latents: by a language model, by the latent's top tokens alone, and controls.

Every explainer sees the same frozen examples in the same order. The surprising choice: a reply that holds no
label is a failed explanation with a reason, never a label, and everything a model wrote is treated as
untrusted text: one line, no control characters, bounded length.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl

from saeinterp.artifacts import Artifact, ArtifactStore, Recipe, Ref, Workspace
from saeinterp.config import ExplainerConfig, recipe_of
from saeinterp.errors import LLMError
from saeinterp.explain.labels import Label, one_line, parse_label
from saeinterp.explain.llm import LLM, Completions, Reply, Request, llm_identity, open_llm
from saeinterp.explain.prompts import fill, prompt_hash
from saeinterp.progress import Progress, silent

VERSION = 1
KIND = "explanations"
PROMPT = "explain"
LABEL_TOKENS = 5
"""Tokens that a `top-tokens` explanation lists."""
PROMOTED_TOKENS = 8
"""Tokens shown to the explainer that the decoder direction promotes most."""
SHOWN_WORDS = 10
"""Marked words that are listed with their strengths, strongest first."""
MARKED_SHARE = 0.5
"""Tokens with at least this share of their window's largest activation are marked."""
FAILED_SHARE = 0.05
"""With more than this share of requests unanswered by a failing server nothing is published."""

Control = Literal["permuted", "empty"]
Status = Literal["ok", "failed", "control"]

SCHEMA: dict[str, Any] = {
    "latent": pl.Int32,
    "status": pl.String,
    "explanation": pl.String,
    "reply": pl.String,
    "reason": pl.String,
    "explainer": pl.String,
}


def explain_recipe(examples: Ref, subject: Ref, sae: Ref, *, hookpoint: str, config: ExplainerConfig) -> Recipe:
    """The recipe of a set of explanations.

    Raises:
        LLMError: The in-process model does not exist.
    """
    values: dict[str, Any] = {"kind": config.kind, "label": config.label, "hookpoint": hookpoint}
    if config.kind == "llm":
        values |= recipe_of(config)
        values["identity"] = llm_identity(config.llm)
        values["prompts"] = {PROMPT: prompt_hash(PROMPT)}
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
    """Write one explanation per latent that has examples.

    Payload: `explanations.parquet` (latent, status, explanation, reply, reason, explainer; ascending by latent).

    Raises:
        LLMError: The model is gone or refuses; replies received so far are kept.
    """
    recipe = explain_recipe(examples, subject, sae, hookpoint=hookpoint, config=config)

    def write(space: Workspace) -> None:
        latents = read_latents(examples).filter(status="ok")
        if config.kind == "top-tokens":
            labels = [_top_tokens(tokens) for tokens in latents["top_tokens"]]
            rows = _rows(latents["latent"], labels, [None] * len(labels), config.title)
        else:
            rows, completions = _ask(examples, latents, subject, sae, config, store, progress or silent)
            space.counts = {"requests_sent": completions.sent, "requests_cached": completions.cached}
        _write(space, rows)

    return store.build(recipe, write)


def control_explanations_recipe(explanations: Ref, *, control: Control, seed: int) -> Recipe:
    """The recipe of a control."""
    values: dict[str, Any] = {"control": control}
    if control == "permuted":
        values["seed"] = seed
    name = f"{explanations.name}-{control}"
    return Recipe(kind=KIND, name=name, version=VERSION, config=values, inputs=(explanations,))


def control_explanations(explanations: Artifact, *, control: Control, seed: int, store: ArtifactStore) -> Artifact:
    """Replace the explanations by nothing (`empty`) or by those of other latents (`permuted`).

    A permutation leaves no latent its own explanation, and as few as it can an equal text; `reason` names the
    latent a text came from. Latents whose explanation failed stay failed, and so does a single latent, which has
    no other to take from.
    """
    recipe = control_explanations_recipe(explanations, control=control, seed=seed)

    def write(space: Workspace) -> None:
        table = read_explanations(explanations)
        if control == "empty":
            rows = [_row(latent, "control", explanation="", explainer="empty") for latent in table["latent"]]
        else:
            rows = _permuted(table, seed=seed)
        _write(space, rows)

    return store.build(recipe, write)


def read_explanations(explanations: Artifact) -> pl.DataFrame:
    """`explanations.parquet`."""
    return pl.read_parquet(explanations.file("explanations.parquet"))


def read_latents(examples: Artifact) -> pl.DataFrame:
    """`latents.parquet` of an example set: one row per selected latent, ascending."""
    return pl.read_parquet(examples.file("latents.parquet")).sort("latent")


class Shown(NamedTuple):
    """One example as an explainer sees it: the text with `<<marks>>`, and each marked word's strength."""

    text: str
    words: list[tuple[str, int]]


def render_example(tokens: Sequence[str], activations: Sequence[float], *, largest: float) -> Shown:
    """Mark the tokens of an example that fire most.

    Neighbouring marked tokens share one pair of marks; a strength is the activation on a scale from 1 to 10,
    where 10 is `largest`.
    """
    values = np.abs(np.asarray(activations, dtype=np.float64))
    marked = (values > 0) & (values >= MARKED_SHARE * values.max(initial=0.0))
    text = ""
    words: list[tuple[str, int]] = []
    for mark, group in itertools.groupby(zip(marked, tokens, values, strict=True), key=lambda item: bool(item[0])):
        items = list(group)
        piece = "".join(token for _, token, _ in items)
        word = piece.strip()
        if mark and word:
            strength = max(1, round(10 * max(value for _, _, value in items) / largest))
            words.append((one_line(word), strength))
            piece = piece.replace(word, f"<<{word}>>", 1)
        text += piece
    return Shown(one_line(text), words)


def form_values(examples: Sequence[Shown], *, promoted: Sequence[str]) -> dict[str, str]:
    """What fills the form of the explainer's prompt: texts, strongest words, words that the latent promotes."""
    strength: dict[str, int] = {}
    for example in examples:
        for word, value in example.words:
            strength[word] = max(value, strength.get(word, 0))
    strongest = sorted(strength.items(), key=lambda item: -item[1])[:SHOWN_WORDS]
    return {
        "examples": "\n".join(f"Text: {example.text}" for example in examples),
        "words": ", ".join(f"{word} ({value})" for word, value in strongest),
        "promoted": f"Often followed by: {', '.join(promoted)}\n" if promoted else "",
    }


def _ask(
    examples: Artifact,
    latents: pl.DataFrame,
    subject: Artifact,
    sae: Artifact,
    config: ExplainerConfig,
    store: ArtifactStore,
    progress: Progress,
) -> tuple[list[dict[str, Any]], Completions]:
    indices: list[int] = latents["latent"].to_list()
    shown = pl.read_parquet(examples.file("examples.parquet")).filter(role="explain", kind="activating")
    promoted = _promoted(subject, sae, indices) if config.logit_lens and indices else {}
    requests = []
    for latent in indices:
        rows = shown.filter(latent=latent).sort("example_id")
        largest = max(max(map(abs, row)) for row in rows["activations"])
        texts = [render_example(t, a, largest=largest) for t, a in zip(rows["tokens"], rows["activations"])]
        values = form_values(texts, promoted=promoted.get(latent, ()))
        requests.append(
            Request(
                messages=fill(PROMPT, values),
                max_tokens=config.llm.max_tokens,
                temperature=config.llm.temperature,
                seed=config.llm.seed,
            )
        )
    llm: LLM = open_llm(config.llm, store=store)
    completions = llm.complete(requests, progress=progress)
    require_answers(completions, share=FAILED_SHARE, what="explanations")
    labels = [
        parse_label(reply.text) if reply.status == "ok" else Label(None, reply.error) for reply in completions.replies
    ]
    return _rows(indices, labels, completions.replies, config.title), completions


def require_answers(completions: Completions, *, share: float, what: str) -> None:
    """Refuse to publish when a failing server left more than `share` of the requests unanswered.

    Such a gap is the server's, not the model's, and the next run can close it.

    Raises:
        LLMError: Saying how many, and the last error.
    """
    failed = [reply for reply in completions.replies if reply.status == "failed"]
    total = len(completions.replies)
    if len(failed) > share * total:
        raise LLMError(
            f"{len(failed)} of {total} {what} were not answered, the last with: {failed[-1].error}",
            field="llm",
            next_step=f"run again: {total - len(failed)} replies are kept and only the rest is sent",
        )


def _promoted(subject: Artifact, sae: Artifact, latents: Sequence[int]) -> dict[int, list[str]]:
    """Tokens whose logits each latent's decoder direction raises most (the logit lens)."""
    from saeinterp.explain.in_process import unembedding
    from saeinterp.sae import TopKSae

    weight, tokenizer = unembedding(subject)
    directions = TopKSae.load(sae.path).W_dec.float()
    # A token that the mean direction raises says nothing about one latent.
    logits = (directions[list(latents)] - directions.mean(0)) @ weight.float().T
    found = {}
    for latent, row in zip(latents, logits.topk(min(4 * PROMOTED_TOKENS, logits.shape[1])).indices.tolist()):
        words = dict.fromkeys(one_line(tokenizer.decode([token])) for token in row)
        found[latent] = [word for word in words if re.search(r"\w", word)][:PROMOTED_TOKENS]
    return found


def _top_tokens(tokens: Sequence[str]) -> Label:
    words = list(dict.fromkeys(_visible(token) for token in tokens if token))[:LABEL_TOKENS]
    if not words:
        return Label(None, "the latent fires on no token of the explain split")
    return Label(("the token " if len(words) == 1 else "the tokens ") + ", ".join(f'"{word}"' for word in words), None)


def _permuted(table: pl.DataFrame, *, seed: int) -> list[dict[str, Any]]:
    """Sattolo's algorithm: a uniform cyclic permutation, which has no fixed point."""
    usable = table.filter(pl.col("status") != "failed")
    latents, texts = usable["latent"].to_list(), usable["explanation"].to_list()
    best: list[int] = []
    fewest = len(latents) + 1
    rng = np.random.default_rng(seed)
    for _ in range(100 if len(latents) > 1 else 0):
        order = list(range(len(latents)))
        for index in range(len(order) - 1, 0, -1):
            other = int(rng.integers(index))
            order[index], order[other] = order[other], order[index]
        equal = sum(texts[source] == texts[target] for target, source in enumerate(order))
        if equal < fewest:
            best, fewest = order, equal
        if not equal:
            break
    source_of = {latents[target]: source for target, source in enumerate(best)}
    rows = []
    for latent, status in zip(table["latent"], table["status"]):
        if latent in source_of:
            source = source_of[latent]
            reason = f"explanation of latent {latents[source]}"
            rows.append(_row(latent, "control", explanation=texts[source], reason=reason, explainer="permuted"))
        else:
            reason = "its own explanation failed" if status == "failed" else "a single explanation cannot be permuted"
            rows.append(_row(latent, "failed", reason=reason, explainer="permuted"))
    return rows


def _rows(
    latents: Sequence[int] | pl.Series, labels: Sequence[Label], replies: Sequence[Reply | None], explainer: str
) -> list[dict[str, Any]]:
    return [
        _row(
            int(latent),
            "ok" if label.text is not None else "failed",
            explanation=label.text,
            reply=reply.text if reply else None,
            reason=label.reason,
            explainer=explainer,
        )
        for latent, label, reply in zip(latents, labels, replies, strict=True)
    ]


def _row(latent: int, status: Status, *, explainer: str, **values: str | None) -> dict[str, Any]:
    return {"latent": latent, "status": status, "explainer": explainer, **values}


def _write(space: Workspace, rows: Sequence[Mapping[str, Any]]) -> None:
    path: Path = space.out / "explanations.parquet"
    table = pl.DataFrame([{name: row.get(name) for name in SCHEMA} for row in rows], schema=SCHEMA)
    table.write_parquet(path, compression="zstd")
    statuses = table["status"].to_list()
    space.counts |= {"latents": len(statuses), "failed": statuses.count("failed")}


def _visible(token: str) -> str:
    """A token as printed: without the spaces around it, unless it is nothing else."""
    return token.strip() or repr(token)[1:-1].replace(" ", "·")


def _slug(title: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", title).strip("-.") or "explainer"
