"""The client for OpenAI-compatible servers (vLLM and others).

Requests go out in order, a bounded number at once per server, and each reply is on disk before it counts. The
surprising choice: what ends a run and what costs one reply are told apart. A server that is gone, a refused key, an
unknown model or an exhausted budget ends it with a next step; one refused prompt (too long, filtered) or one that
keeps failing is a reply with a status.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any, TypeVar

from saeinterp.config import LLMConfig
from saeinterp.explain.llm import Completions, Reply, Request, llm_identity, request_key
from saeinterp.explain.response_cache import ResponseCache
from saeinterp.explain.sending import Sending
from saeinterp.progress import Progress, silent

T = TypeVar("T")

_POLL_SECONDS = 0.2  # how late a Ctrl-C may be noticed


class OpenAIChat:
    """Answers requests over HTTP.

    Args:
        config: The server or servers, the model, how many requests at once, what may be spent.
        cache: Where replies are kept.
    """

    def __init__(self, config: LLMConfig, *, cache: ResponseCache) -> None:
        self._config = config
        self._cache = cache
        self._identity = llm_identity(config)

    def complete(self, requests: Sequence[Request], *, progress: Progress | None = None) -> Completions:
        """Answer all requests; equal ones are sent once, by all threads of a process together, known ones never.

        Raises:
            LLMError: The server is gone, refuses the key, does not serve the model, or answers nothing usable; or the
                budget is exhausted.
        """
        if not self._config.structured:
            requests = [replace(request, schema=None) if request.schema else request for request in requests]
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
        sending = Sending(self._config, self._cache, todo, before=len(known), report=report)
        if todo:
            known |= run_in_thread(sending.run())
        replies = [known[key] for key in keys]
        sent = len(todo) - sending.shared
        return Completions(replies, sent=sent, cached=len(requests) - sent, spent=sending.spent)


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
            # By turns: polars makes system calls resume after a signal, and a wait without end would not see a Ctrl-C.
            while not wait([future], timeout=_POLL_SECONDS).done:
                pass
            return future.result()
        except BaseException:
            started.wait()
            loop, task = handle[0]
            if not loop.is_closed():
                loop.call_soon_threadsafe(task.cancel)
            raise
