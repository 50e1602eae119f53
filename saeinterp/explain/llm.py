"""What explainers and scorers ask of a language model: one protocol, whatever answers.

A request is plain data; a reply is text, or the log-probabilities of two answers. The surprising choice:
the model's identity (fingerprint, dtype, batch size in process; name and revision on a server) enters
recipes and cache keys, its address and credentials never do.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from saeinterp.artifacts import ArtifactStore
from saeinterp.config import LLMConfig, SubjectConfig
from saeinterp.errors import LLMError, SubjectError
from saeinterp.explain.spending import Spent
from saeinterp.progress import Progress

ReplyStatus = Literal["ok", "refused", "failed"]


class Message(NamedTuple):
    """One turn of a chat."""

    role: Literal["user", "assistant"]
    content: str


@dataclass(frozen=True)
class Request:
    """One question.

    Attributes:
        messages: The chat so far; the last turn is the user's.
        max_tokens: Longest reply, in tokens.
        temperature: 0 is greedy.
        seed: Of sampling.
        choices: Two answers whose log-probabilities are wanted, such as `("Yes", "No")`.
        verdicts: The reply is a list of so many entries 0 or 1, as the only list of a JSON object; the
            log-probabilities of both at every entry are wanted.
        schema: JSON schema (as JSON text) of the reply, where the server takes one.
        slot: A text of which every occurrence in the last turn stands for a digit; nothing is generated, the
            log-probabilities of the ten digits at those places are wanted.
        group: Requests of one group share a long beginning; they stay together, and nothing else depends on it.
    """

    messages: tuple[Message, ...]
    max_tokens: int
    temperature: float = 0.0
    seed: int = 0
    choices: tuple[str, str] | None = None
    verdicts: int | None = None
    schema: str | None = None
    slot: str | None = None
    group: str = ""


class Usage(NamedTuple):
    """Tokens of one request, as the server counted them.

    Attributes:
        prompt: Tokens of the prompt.
        reply: Tokens of the reply.
        cached: Of the prompt's, those the server had from an earlier request (prefix caching).
    """

    prompt: int
    reply: int
    cached: int = 0


@dataclass(frozen=True)
class Reply:
    """What came back.

    Attributes:
        text: The reply; "" where there was none.
        choice_logprobs: Natural logarithms of the probabilities of the two choices, where the model gave them.
        verdict_logprobs: Per entry of the verdict list, those of 0 and of 1; None for an entry, or in whole, where the
            model did not give them.
        slot_logprobs: Per slot, those of the digits 0 to 9; None where the model did not give them.
        cut: The reply reached `max_tokens` and ends there; said of texts only, not of choices and slots.
        usage: Its tokens, where they were counted.
        status: `ok`; `refused`: this request will never be answered (too long, filtered); `failed`: it was not
            answered this time (server error, timeout), and is sent again by the next run.
        error: Why, where it is not `ok`.
    """

    text: str
    choice_logprobs: tuple[float, float] | None = None
    verdict_logprobs: tuple[tuple[float, float] | None, ...] | None = None
    slot_logprobs: tuple[tuple[float, ...], ...] | None = None
    cut: bool = False
    usage: Usage | None = None
    status: ReplyStatus = "ok"
    error: str | None = None


class Completions(NamedTuple):
    """Replies in the order of the requests.

    Attributes:
        replies: One per request.
        sent: Requests that were computed now.
        cached: Requests whose reply was known.
        spent: What those computed now took, requests sent again included.
    """

    replies: list[Reply]
    sent: int
    cached: int
    spent: Spent = Spent()


class LLM(Protocol):
    """Anything that answers requests."""

    def complete(self, requests: Sequence[Request], *, progress: Progress | None = None) -> Completions:
        """Answer all requests, storing each reply durably as soon as it is there.

        Raises:
            LLMError: No further reply can be had; those received are kept and not asked for again.
        """
        ...


def llm_identity(config: LLMConfig) -> dict[str, Any]:
    """What determines the replies, apart from the request: JSON values for recipes and cache keys.

    A server is the same one whether a run starts it or attaches to it, and wherever it listens.

    Raises:
        LLMError: The in-process model does not exist or cannot be reached.
    """
    if config.provider != "in-process":
        serving = {"dtype": config.serving.dtype, "quantization": config.serving.quantization}
        changed = {name: value for name, value in serving.items() if value not in ("auto", None)}
        return {"provider": "openai", "model": config.model, "revision": config.revision, **changed}
    from saeinterp.subject import prepare_subject_recipe

    try:
        recipe = prepare_subject_recipe(subject_config(config))
    except SubjectError as error:
        raise LLMError(
            error.problem, field="llm.model", got=config.model, expected=error.expected, next_step=error.next_step
        ) from error
    facts = {key: recipe.config[key] for key in ("fingerprint", "dtype", "weights")}
    return {"provider": "in-process", **facts, "batch_size": config.batch_size}


def llm_recipe(config: LLMConfig) -> dict[str, Any]:
    """Everything of a configuration that changes replies: JSON values for the recipes of explanations and scores.

    Raises:
        LLMError: The in-process model does not exist or cannot be reached.
    """
    values = {**llm_identity(config), "temperature": config.temperature, "seed": config.seed}
    values["max_tokens"] = config.max_tokens
    if config.provider != "in-process":  # where a schema is ignored
        values["structured"] = config.structured
    return values


def subject_config(config: LLMConfig) -> SubjectConfig:
    """The in-process model as a subject to prepare and load."""
    return SubjectConfig(model=config.model, revision=config.revision)


def open_llm(config: LLMConfig, *, store: ArtifactStore) -> LLM:
    """The client for a configuration; replies are kept below `<root>/llm-cache`. Nothing is loaded or sent yet.

    Raises:
        LLMError: The run should start the server (`vllm`) and has not.
    """
    from saeinterp.explain.response_cache import ResponseCache

    cache = ResponseCache.at(store.root / "llm-cache")
    if config.provider == "in-process":
        from saeinterp.explain.in_process import InProcessChat

        return InProcessChat(config, cache=cache, store=store)
    if not config.base_url:
        raise LLMError(
            "no server is running for it",
            field="llm.provider",
            got=config.provider,
            expected="the address of a server in base_url",
            next_step="run it by a flow, which starts the server, or within `saeinterp.explain.serving.served(config)`",
        )
    from saeinterp.explain.openai_client import OpenAIChat

    return OpenAIChat(config, cache=cache)


def request_key(request: Request, *, identity: dict[str, Any]) -> str:
    """The cache key of one request: SHA-256 over the model's identity and everything that shapes the reply."""
    body = {name: value for name, value in vars(request).items() if value is not None and name != "group"}
    text = json.dumps([identity, body], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    # Documents may hold lone surrogates, which UTF-8 refuses by default.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
