"""What goes over the wire: bodies of OpenAI chat requests, replies out of what comes back, errors in one line.

vLLM's `prompt_logprobs` is the one extension used. The surprising choice: replies are read as plain JSON; building
the client package's typed objects costs twice what sending does.
"""

from __future__ import annotations

import email.utils
import json
import re
import time
from typing import Any

import openai
import tenacity

from saeinterp.config import LLMConfig
from saeinterp.explain.llm import Reply, Request, Usage
from saeinterp.explain.token_logprobs import Token, choice_logprobs, slot_logprobs, verdict_logprobs

TOP_LOGPROBS = 20  # the most that vLLM and OpenAI give by default
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds between tries of one request
LONGEST_RETRY_AFTER = 600.0  # seconds; a request that is to wait longer fails
RETRIED_STATUS = {408, 409, 425, 429}
_SCHEMA_WORDS = re.compile(r"response_format|json_schema|structured|guided|grammar|schema", re.IGNORECASE)


class NotACompletionError(Exception):
    """The server's answer is no chat completion."""


def chat_body(request: Request, *, config: LLMConfig, schema: str | None) -> dict[str, Any]:
    """The JSON body of a request; `schema` asks for a reply of that form."""
    body: dict[str, Any] = {
        "model": config.model,
        "messages": [message._asdict() for message in request.messages],
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "seed": request.seed,
    }
    if request.choices or request.verdicts is not None:
        body |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
    if request.slot is not None:
        body |= {"max_tokens": 1, "prompt_logprobs": TOP_LOGPROBS}
    if schema is not None:
        form = {"name": "reply", "strict": True, "schema": json.loads(schema)}
        body["response_format"] = {"type": "json_schema", "json_schema": form}
    return body


def read_usage(answer: Any) -> Usage | None:
    """The tokens that a server says it counted."""
    usage = answer.get("usage") if isinstance(answer, dict) else None
    if not isinstance(usage, dict):
        return None
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    counts = [usage.get("prompt_tokens"), usage.get("completion_tokens") or 0, cached or 0]
    whole = [count for count in counts if isinstance(count, int) and count >= 0]
    return Usage(*whole) if len(whole) == len(counts) else None


def read_reply(answer: Any, request: Request) -> Reply:
    """A server's answer as a reply.

    Raises:
        NotACompletionError: It is something else.
    """
    try:
        return _read(answer, request)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise NotACompletionError(one_line(str(answer))) from error


def _read(answer: Any, request: Request) -> Reply:
    choice = answer["choices"][0]
    text = choice["message"].get("content") or ""
    reason, usage = choice.get("finish_reason"), read_usage(answer)
    if not isinstance(text, str):
        raise TypeError("the content is no text")
    if reason == "content_filter" or choice["message"].get("refusal"):
        problem = choice["message"].get("refusal") or "the server filtered the reply"
        return Reply(text, usage=usage, status="refused", error=one_line(str(problem)))
    if request.slot is not None:
        found = answer.get("prompt_logprobs")
        if not found:
            return Reply("", status="refused", error="the server gives no prompt log-probabilities")
        digits = slot_logprobs(found, content=request.messages[-1].content, slot=request.slot)
        if digits is None:
            problem = f"the tokens of the prompt do not spell the slots {request.slot!r}"
            return Reply("", usage=usage, status="refused", error=problem)
        return Reply("", slot_logprobs=digits, usage=usage)
    content = (choice.get("logprobs") or {}).get("content") or []
    if request.choices:
        pair = choice_logprobs(_token(content[0]).top, request.choices) if content else None
        return Reply(text, choice_logprobs=pair, usage=usage)
    pairs = None
    if request.verdicts is not None and content:
        pairs = verdict_logprobs(text, [_token(item) for item in content], num_examples=request.verdicts)
    return Reply(text, verdict_logprobs=pairs, cut=reason == "length", usage=usage)


def _token(item: dict[str, Any]) -> Token:
    top = [(str(other["token"]), float(other["logprob"])) for other in item.get("top_logprobs") or []]
    text = str(item["token"])
    if all(other != text for other, _ in top):
        top.append((text, float(item["logprob"])))
    return Token(text, top)


def refuses_schema(error: openai.APIStatusError) -> bool:
    """Whether a server refused the form that was asked for, and not the prompt."""
    return error.status_code in (400, 422) and bool(_SCHEMA_WORDS.search(str(error)))


def may_pass(error: BaseException) -> bool:
    """Whether sending the same request again may help."""
    if isinstance(error, openai.APIStatusError):
        after = retry_after(error)
        if after is not None and after > LONGEST_RETRY_AFTER:
            return False
        return error.status_code >= 500 or error.status_code in RETRIED_STATUS
    return isinstance(error, (openai.APIConnectionError, TimeoutError))


def pause(state: tenacity.RetryCallState) -> float:
    """Seconds until the next try: what the server asked for, else doubling with jitter."""
    error = state.outcome.exception() if state.outcome else None
    after = retry_after(error) if isinstance(error, openai.APIStatusError) else None
    if after is not None:
        return after
    return tenacity.wait_random_exponential(multiplier=FIRST_PAUSE, max=LONGEST_PAUSE)(state)


def retry_after(error: openai.APIStatusError) -> float | None:
    """The Retry-After header in seconds; it holds seconds or a date."""
    value = error.response.headers.get("retry-after")
    if value is None:
        return None
    try:
        return max(float(value), 0.0)
    except ValueError:
        date = email.utils.parsedate_tz(value)
        return max(email.utils.mktime_tz(date) - time.time(), 0.0) if date else None


def refuses_connections(error: openai.APIConnectionError) -> bool:
    """Whether nothing listens at the address, so that nothing was sent."""
    # By name: which HTTP package openai uses depends on its version.
    return type(error.__cause__ or error).__name__ == "ConnectError"


def one_line(text: str) -> str:
    """The first line that says something, shortened."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0][:300] if lines else ""
