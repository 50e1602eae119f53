"""Whether a prompt fits a server's context, found out before it is sent.

The surprising choice: hardly any prompt is counted. A token is at least a byte, so the bytes of the contents and the
tokens of the chat template bound its length; only what this does not clear costs a request to vLLM's `/tokenize`. A
server without it gets the prompt, and its own refusal counts.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import openai

from saeinterp.config import LLMConfig
from saeinterp.explain.llm import Message, Request

log = logging.getLogger(__name__)

TURN_TOKENS = 64  # of a chat template, per turn, where the server does not count
ANSWER_SECONDS = 20.0  # longest wait for what is only asked to know beforehand


class ContextWindow:
    """The context of one server and the lengths of prompts in it.

    Args:
        client: The connection; its base URL ends where `/chat/completions` begins.
        config: The model; `context_tokens` is believed before the server.
    """

    def __init__(self, client: openai.AsyncOpenAI, config: LLMConfig) -> None:
        self.limit = config.context_tokens
        self._client = client
        self._model = config.model
        self._counts = True
        self._template: dict[tuple[str, ...], int] = {}
        self._lock = asyncio.Lock()

    async def open(self) -> None:
        """Ask the server for its limit (`max_model_len`), where the configuration has none."""
        if self.limit is not None:
            return
        try:
            listed: Any = await self._client.get("/models", cast_to=object, options={"timeout": ANSWER_SECONDS})
            for model in listed["data"]:
                limit = model.get("max_model_len")
                if model["id"] == self._model and isinstance(limit, int) and limit > 0:
                    self.limit = limit
        except (openai.OpenAIError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.debug("the server does not say how long prompts may be: %s", error)

    async def bound(self, request: Request) -> int:
        """At least as many tokens as the prompt has."""
        roles = tuple(message.role for message in request.messages)
        if roles not in self._template:
            async with self._lock:
                if roles not in self._template:
                    counted = await self._count([Message(role, "a") for role in roles])
                    self._template[roles] = TURN_TOKENS * len(roles) if counted is None else counted
        # Lone surrogates are three bytes here and become U+FFFD, of three bytes, on the way.
        contents = sum(len(message.content.encode("utf-8", "surrogatepass")) for message in request.messages)
        return self._template[roles] + contents

    async def count(self, request: Request) -> int | None:
        """Tokens of the prompt by the server's tokenizer; None where the server does not count."""
        return await self._count(request.messages)

    async def _count(self, messages: Sequence[Message]) -> int | None:
        if not self._counts:
            return None
        url = str(self._client.base_url).rstrip("/").removesuffix("/v1") + "/tokenize"
        turns = [message._asdict() for message in messages]
        body = {"model": self._model, "messages": turns, "add_generation_prompt": True}
        try:
            found: Any = await self._client.post(url, cast_to=object, body=body, options={"timeout": ANSWER_SECONDS})
            return int(found["count"])
        except openai.APITimeoutError:
            return None  # busy; it may count the next one
        except (openai.OpenAIError, ValueError, KeyError, TypeError) as error:
            log.debug("the server does not count tokens: %s", error)
            self._counts = False
            return None
