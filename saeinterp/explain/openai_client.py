"""The client for OpenAI-compatible servers (vLLM and others).

Requests go out in order, a bounded number at once, so that neighbours meet the server's prefix cache, and
each reply is stored before the next is waited for. The surprising choice: what ends a run and what costs one
reply are told apart. A server that is gone, a refused key or an unknown model ends it with a next step; one
refused prompt (too long, filtered) or one that keeps failing is a reply with a status.
"""

from __future__ import annotations

import asyncio
import email.utils
import logging
import math
import os
import threading
import time
from collections.abc import Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import openai
import tenacity

from saeinterp.config import LLMConfig
from saeinterp.errors import LLMError
from saeinterp.explain.llm import Completions, Reply, Request, llm_identity, request_key
from saeinterp.explain.response_cache import ResponseCache
from saeinterp.progress import Progress, silent

log = logging.getLogger(__name__)

T = TypeVar("T")

TOP_LOGPROBS = 20  # the most that vLLM and OpenAI give by default
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds between tries of one request
LONGEST_RETRY_AFTER = 600.0  # seconds; a server that asks for more is treated as gone
FAILURES_IN_A_ROW = 8  # requests given up one after another before the run stops
_RETRIED_STATUS = {408, 409, 425, 429}


class OpenAIChat:
    """Answers requests over HTTP.

    Args:
        config: The server, the model, how many requests at once.
        cache: Where replies are kept.
    """

    def __init__(self, config: LLMConfig, *, cache: ResponseCache) -> None:
        self._config = config
        self._cache = cache
        self._identity = llm_identity(config)

    def complete(self, requests: Sequence[Request], *, progress: Progress | None = None) -> Completions:
        """Answer all requests; equal ones are sent once, known ones never.

        Raises:
            LLMError: The server is gone, refuses the key, does not serve the model, or answers nothing usable.
        """
        keys = [request_key(request, identity=self._identity) for request in requests]
        known: dict[str, Reply] = {}
        todo: dict[str, Request] = {}
        for key, request in zip(keys, requests, strict=True):
            stored = self._cache.get(key)
            if stored is not None:
                known[key] = stored[0]
            else:
                todo.setdefault(key, request)
        report = progress or silent
        report(len(known), len(known) + len(todo), "replies")
        if todo:
            known |= run_in_thread(_Batch(self._config, self._cache, todo, before=len(known), report=report).run())
        return Completions([known[key] for key in keys], sent=len(todo), cached=len(requests) - len(todo))


@dataclass
class _Batch:
    """Requests on their way; `before` of all replies were known already."""

    config: LLMConfig
    cache: ResponseCache
    todo: dict[str, Request]
    before: int
    report: Progress

    def __post_init__(self) -> None:
        self.received: dict[str, Reply] = {}
        self.answered = 0
        self.failures_in_a_row = 0

    async def run(self) -> dict[str, Reply]:
        key = os.environ.get(self.config.api_key_env) or "none"
        queue = iter(self.todo.items())
        async with openai.AsyncOpenAI(
            base_url=self.config.base_url, api_key=key, timeout=self.config.timeout_seconds, max_retries=0
        ) as client:
            workers = [
                asyncio.ensure_future(self._work(client, queue))
                for _ in range(min(self.config.concurrency, len(self.todo)))
            ]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
        refused = [reply for reply in self.received.values() if reply.status == "refused"]
        if refused and len(refused) == len(self.todo) and not self.before:
            raise self._error(
                f"the server refuses every request: {refused[0].error}",
                next_step="check that it is a chat model and that it gives log-probabilities (top_logprobs)",
            )
        return self.received

    async def _work(self, client: openai.AsyncOpenAI, queue: Iterable[tuple[str, Request]]) -> None:
        for key, request in queue:
            reply = await self._ask(client, request)
            if reply.status == "ok":
                self.cache.put(key, [reply])
                self.answered += 1
            self.failures_in_a_row = self.failures_in_a_row + 1 if reply.status == "failed" else 0
            self.received[key] = reply
            if self.failures_in_a_row >= FAILURES_IN_A_ROW:
                raise self._error(
                    f"the server failed {self.failures_in_a_row} requests in a row, the last with: {reply.error}",
                    next_step=f"look at its log, then run again: {self._kept()}",
                )
            self.report(self.before + len(self.received), self.before + len(self.todo), "replies")

    async def _ask(self, client: openai.AsyncOpenAI, request: Request) -> Reply:
        try:
            async for attempt in tenacity.AsyncRetrying(
                retry=tenacity.retry_if_exception(_may_pass),
                wait=_pause,
                stop=tenacity.stop_after_attempt(self.config.retries + 1),
                reraise=True,
            ):
                with attempt:
                    return _read(await client.chat.completions.create(**self._body(request)), request)
        except openai.APITimeoutError:
            return Reply("", status="failed", error=f"no reply within {self.config.timeout_seconds:g} s")
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            # By name: which HTTP package openai uses depends on its version.
            if type(cause).__name__ != "ConnectError":
                return Reply("", status="failed", error=f"connection lost ({type(cause).__name__})")
            raise self._error(
                f"the server is gone ({_line(cause)})",
                next_step=f"start it, then run the same command again: {self._kept()}",
            ) from error
        except openai.APIStatusError as error:
            return await self._judge(client, error)
        except (openai.OpenAIError, ValueError) as error:  # an answer that is no chat completion, or no JSON
            return Reply("", status="failed", error=f"not a chat completion: {_line(error)}")
        raise AssertionError("tenacity returned without a reply")

    async def _judge(self, client: openai.AsyncOpenAI, error: openai.APIStatusError) -> Reply:
        status, text = error.status_code, _line(error)
        if status in (401, 403):
            raise self._error(
                f"the server refuses the key (HTTP {status})",
                expected=f"a valid key in the environment variable {self.config.api_key_env}",
                next_step=f"export {self.config.api_key_env}=... and run the same command again",
            ) from error
        if status == 404:
            raise self._error(
                f"the server does not serve {self.config.model!r} (HTTP 404)",
                field="llm.model",
                expected=await _served(client),
                next_step="correct llm.model, or base_url (it usually ends in /v1)",
            ) from error
        if status >= 500 or status in _RETRIED_STATUS:
            return Reply("", status="failed", error=f"HTTP {status}: {text}")
        return Reply("", status="refused", error=f"HTTP {status}: {text}")

    def _body(self, request: Request) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.config.model,
            "messages": [message._asdict() for message in request.messages],
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "seed": request.seed,
        }
        if request.choices:
            body |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
        return body

    def _kept(self) -> str:
        done = self.before + self.answered
        return f"{done} of {self.before + len(self.todo)} replies are kept and only the rest is sent"

    def _error(self, problem: str, **parts: str) -> LLMError:
        return LLMError(problem, **{"field": "llm.base_url", "got": self.config.base_url, **parts})


def run_in_thread(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in a thread with an event loop of its own: the caller's may be running (notebooks, Prefect).

    Leaving early (Ctrl-C) cancels the coroutine and waits for it to end.
    """
    started = threading.Event()
    handle: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[T]]] = []

    async def main() -> T:
        task = asyncio.ensure_future(work)
        handle.append((asyncio.get_running_loop(), task))
        started.set()
        return await task

    with ThreadPoolExecutor(1, thread_name_prefix="llm") as pool:
        future = pool.submit(asyncio.run, main())
        try:
            return future.result()
        except BaseException:
            started.wait()
            loop, task = handle[0]
            if not loop.is_closed():
                loop.call_soon_threadsafe(task.cancel)
            raise


def choice_logprobs(top: Iterable[tuple[str, float]], choices: tuple[str, str]) -> tuple[float, float] | None:
    """Log-probabilities of two answers from a server's list of likeliest tokens, over spellings and spaces.

    An answer that is not in the list has at most the probability of the last one that is, and gets that: a
    bound, never zero. None when neither is in the list.
    """
    found: list[list[float]] = [[], []]
    least = 0.0
    for token, logprob in top:
        least = min(least, logprob)
        for index, choice in enumerate(choices):
            if token.strip().casefold() == choice.casefold():
                found[index].append(logprob)
    if not any(found):
        return None
    yes, no = (_log_sum(values) if values else least for values in found)
    return yes, no


def _read(completion: Any, request: Request) -> Reply:
    """A server's answer as a reply; raises `OpenAIError` when it is no chat completion."""
    choices = getattr(completion, "choices", None)
    if not choices or getattr(choices[0], "message", None) is None:
        raise openai.OpenAIError(repr(completion)[:200])
    choice = choices[0]
    text = choice.message.content or ""
    pair = None
    content = getattr(choice.logprobs, "content", None) if request.choices else None
    if request.choices and content:
        pair = choice_logprobs([(item.token, item.logprob) for item in content[0].top_logprobs], request.choices)
    return Reply(text, pair)


def _may_pass(error: BaseException) -> bool:
    """Whether sending the same request again may help."""
    if isinstance(error, openai.APIStatusError):
        after = _retry_after(error)
        if after is not None and after > LONGEST_RETRY_AFTER:
            return False
        return error.status_code >= 500 or error.status_code in _RETRIED_STATUS
    return isinstance(error, openai.APIConnectionError)


def _pause(state: tenacity.RetryCallState) -> float:
    """Seconds until the next try: what the server asked for, else doubling with jitter."""
    error = state.outcome.exception() if state.outcome else None
    after = _retry_after(error) if isinstance(error, openai.APIStatusError) else None
    if after is not None:
        return after
    return tenacity.wait_random_exponential(multiplier=FIRST_PAUSE, max=LONGEST_PAUSE)(state)


def _retry_after(error: openai.APIStatusError) -> float | None:
    """The Retry-After header in seconds; it holds seconds or a date."""
    value = error.response.headers.get("retry-after")
    if value is None:
        return None
    try:
        return max(float(value), 0.0)
    except ValueError:
        date = email.utils.parsedate_tz(value)
        return max(email.utils.mktime_tz(date) - time.time(), 0.0) if date else None


async def _served(client: openai.AsyncOpenAI) -> str:
    """The names a server answers to, for an error message."""
    try:
        names = [model.id async for model in client.models.list()]
    except openai.OpenAIError as error:
        log.info("cannot list the server's models: %s", error)
        return "a model the server has"
    return " or ".join(repr(name) for name in names[:5]) or "a model the server has"


def _log_sum(values: Sequence[float]) -> float:
    top = max(values)
    return top + math.log(sum(math.exp(value - top) for value in values))


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]
