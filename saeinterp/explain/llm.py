"""What explainers and scorers ask of a language model: one protocol, whatever answers.

A request is plain data; a reply is text, or the log-probabilities of two answers. The surprising choice:
the model's identity (fingerprint, dtype, batch size in process; name and revision on a server) enters
recipes and cache keys, its address and credentials never do.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, Protocol

from saeinterp.artifacts import ArtifactStore
from saeinterp.config import LLMConfig, SubjectConfig
from saeinterp.errors import LLMError, SubjectError
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
        group: Requests of one group share a long beginning; they stay together, and nothing else depends on it.
    """

    messages: tuple[Message, ...]
    max_tokens: int
    temperature: float = 0.0
    seed: int = 0
    choices: tuple[str, str] | None = None
    group: str = ""


@dataclass(frozen=True)
class Reply:
    """What came back.

    Attributes:
        text: The reply; "" where there was none.
        choice_logprobs: Natural logarithms of the probabilities of the two choices, where the model gave them.
        status: `ok`; `refused`: this request will never be answered (too long, filtered); `failed`: it was not
            answered this time (server error, timeout), and is sent again by the next run.
        error: Why, where it is not `ok`.
    """

    text: str
    choice_logprobs: tuple[float, float] | None = None
    status: ReplyStatus = "ok"
    error: str | None = None


class Completions(NamedTuple):
    """Replies in the order of the requests; how many requests were computed now, and how many were known."""

    replies: list[Reply]
    sent: int
    cached: int


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

    Raises:
        LLMError: The in-process model does not exist or cannot be reached.
    """
    if config.provider == "openai":
        return {"provider": "openai", "model": config.model, "revision": config.revision}
    from saeinterp.subject import prepare_subject_recipe

    try:
        recipe = prepare_subject_recipe(subject_config(config))
    except SubjectError as error:
        raise LLMError(
            error.problem, field="llm.model", got=config.model, expected=error.expected, next_step=error.next_step
        ) from error
    facts = {key: recipe.config[key] for key in ("fingerprint", "dtype", "weights")}
    return {"provider": "in-process", **facts, "batch_size": config.batch_size}


def subject_config(config: LLMConfig) -> SubjectConfig:
    """The in-process model as a subject to prepare and load."""
    return SubjectConfig(model=config.model, revision=config.revision)


def open_llm(config: LLMConfig, *, store: ArtifactStore) -> LLM:
    """The client for a configuration; replies are kept below `<root>/llm-cache`. Nothing is loaded or sent yet."""
    from saeinterp.explain.response_cache import ResponseCache

    cache = ResponseCache.at(store.root / "llm-cache")
    if config.provider == "openai":
        from saeinterp.explain.openai_client import OpenAIChat

        return OpenAIChat(config, cache=cache)
    from saeinterp.explain.in_process import InProcessChat

    return InProcessChat(config, cache=cache, store=store)


def request_key(request: Request, *, identity: dict[str, Any]) -> str:
    """The cache key of one request: SHA-256 over the model's identity and everything that shapes the reply."""
    body = asdict(request)
    del body["group"]
    text = json.dumps([identity, body], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    # Documents may hold lone surrogates, which UTF-8 refuses by default.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
