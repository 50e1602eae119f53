"""One server as a run sees it: connection, context window, and how it fares."""

from __future__ import annotations

import asyncio
import re
import time

import openai

from saeinterp.config import LLMConfig
from saeinterp.explain.chat_protocol import retry_after
from saeinterp.explain.context_window import ContextWindow
from saeinterp.explain.llm import Request
from saeinterp.explain.request_queue import Item


class Server:
    """A server that answers requests of a run.

    Args:
        number: Its place among the servers of the run.
        url: Base URL, as configured.
        key: Sent with every request.
        config: The model and the timeout.

    Attributes:
        failed: Requests it failed one after another, the latest last.
        gone: Nothing more is sent to it.
    """

    def __init__(self, number: int, url: str, *, key: str, config: LLMConfig) -> None:
        self.number = number
        self.url = re.sub(r"//[^/@]*@", "//", url)  # without credentials, for messages
        self.client = openai.AsyncOpenAI(base_url=url, api_key=key, timeout=config.timeout_seconds, max_retries=0)
        self.window = ContextWindow(self.client, config)
        self.failed: list[Item] = []
        self.gone = False
        self._paused_until = 0.0

    async def ready(self) -> None:
        """Wait as long as the server asked everybody to."""
        while (wait := self._paused_until - time.monotonic()) > 0:
            await asyncio.sleep(wait)

    def slow_down(self, error: openai.APIStatusError, *, longest: float) -> None:
        """Note a Retry-After of the server."""
        after = retry_after(error)
        if after is not None and after <= longest:
            self._paused_until = max(self._paused_until, time.monotonic() + after)

    async def too_long(self, request: Request) -> str | None:
        """Why the prompt and the longest reply do not fit the context, as far as that can be known."""
        limit = self.window.limit
        if limit is None or await self.window.bound(request) + request.max_tokens <= limit:
            return None
        tokens = await self.window.count(request)
        if tokens is None or tokens + request.max_tokens <= limit:
            return None
        return f"the prompt has {tokens} tokens, the reply up to {request.max_tokens}, the model takes {limit}"

    async def models(self) -> str:
        """The names it answers to, for an error message."""
        try:
            names = [model.id async for model in self.client.models.list()]
        except openai.OpenAIError:
            names = []
        return " or ".join(repr(name) for name in names[:5]) or "a model the server has"
