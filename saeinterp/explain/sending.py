"""One list of requests on its way to the servers, until every reply is kept.

Workers, as many per server as may be in flight, take requests, send them and write the replies at once; a keeper syncs
them to disk in groups and only then counts them. The surprising choice: nothing here waits for the disk, and yet a
killed process loses only what was in flight, because what was written survives it unsynced.
"""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import AsyncExitStack
from typing import Any

import openai
import tenacity

from saeinterp.config import LLMConfig
from saeinterp.errors import LLMError
from saeinterp.explain.chat_protocol import (
    LONGEST_RETRY_AFTER,
    RETRIED_STATUS,
    NotACompletionError,
    chat_body,
    may_pass,
    one_line,
    pause,
    read_reply,
    read_usage,
    refuses_connections,
    refuses_schema,
)
from saeinterp.explain.llm import Reply, Request
from saeinterp.explain.request_queue import RequestQueue
from saeinterp.explain.response_cache import ResponseCache
from saeinterp.explain.servers import Server
from saeinterp.explain.spending import Spent, cost_of, exceeded, ledger_of
from saeinterp.progress import Progress

log = logging.getLogger(__name__)

FAILURES_IN_A_ROW = 8  # requests given up one after another before a server counts as gone
ROOM_SECONDS = 0.02  # between looks whether requests in flight have left room in the budget


class _StopError(Exception):
    """No further reply can be had: the parts of the error, to be completed by what is kept by then."""

    def __init__(self, problem: str, *, remedy: str, **parts: Any) -> None:
        super().__init__(problem)
        self.problem, self.remedy, self.parts = problem, remedy, parts


class Sending:
    """Requests that are not known yet.

    Args:
        config: The servers and the model.
        cache: Where replies are kept.
        todo: Requests by key.
        before: Replies that were known already.
        report: Told of every group of replies that is kept.

    Attributes:
        spent: What the requests took so far.
        shared: Requests that another thread of this process was asking already; its reply serves here too.
    """

    def __init__(
        self, config: LLMConfig, cache: ResponseCache, todo: dict[str, Request], *, before: int, report: Progress
    ) -> None:
        self.spent = Spent()
        self.shared = 0
        self._config, self._cache, self._todo, self._before, self._report = config, cache, todo, before, report
        self._ledger = ledger_of(config)
        self._servers: list[Server] = []
        self._queue = RequestQueue({}, num_servers=1)
        self._received: dict[str, Reply] = {}
        self._unsynced: list[tuple[str, Reply, bool]] = []
        self._kept = 0
        self._wake = asyncio.Event()
        self._closing = False
        self._refused_schemas: set[str] = set()

    async def run(self) -> dict[str, Reply]:
        """Replies by key.

        Raises:
            LLMError: No further reply can be had.
        """
        keeping = asyncio.ensure_future(self._keep())
        sending = asyncio.ensure_future(self._send_all())
        stop: _StopError | None = None
        try:
            await asyncio.wait({sending, keeping}, return_when=asyncio.FIRST_COMPLETED)
            if keeping.done():  # only an error ends it early
                keeping.result()
            await sending
        except _StopError as found:
            stop = found
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            self._closing = True
            self._wake.set()
            await asyncio.gather(keeping, return_exceptions=True)
        if stop is not None:
            raise self._error(stop) from stop.__cause__
        keeping.result()
        refused = [reply for reply in self._received.values() if reply.status == "refused"]
        if refused and len(refused) == len(self._todo) and not self._before:
            raise self._error(
                _StopError(
                    f"the server refuses every request: {refused[0].error}",
                    remedy="check that it is a chat model, with room for the prompts, that gives log-probabilities",
                )
            )
        return self._received

    async def _send_all(self) -> None:
        config = self._config
        urls = (config.base_url,) if isinstance(config.base_url, str) else config.base_url or ()
        if config.budget.max_requests == 0:
            raise self._no_room(Spent(1))
        key = os.environ.get(config.api_key_env) or "none"
        async with AsyncExitStack() as connections:
            self._servers = [Server(number, url, key=key, config=config) for number, url in enumerate(urls)]
            for server in self._servers:
                await connections.enter_async_context(server.client)
            self._queue = RequestQueue(self._todo, num_servers=len(self._servers))
            await asyncio.gather(*(server.window.open() for server in self._servers))
            # Again, where a server is gone and those of others had ended: something is to do for them.
            while len(self._queue):
                alive = [server for server in self._servers if not server.gone]
                turns = range(min(config.concurrency, len(self._queue)))
                workers = [asyncio.ensure_future(self._work(server)) for _ in turns for server in alive]
                try:
                    await asyncio.gather(*workers)
                finally:
                    for worker in workers:
                        worker.cancel()
                    await asyncio.gather(*workers, return_exceptions=True)

    async def _work(self, server: Server) -> None:
        while not server.gone and (item := self._queue.take(server.number)) is not None:
            if (stored := await self._claim(item[0])) is not None:
                self.shared += 1
                self._count(item[0], stored, final=True)
                continue
            try:
                reply, final = await self._ask(server, item[1])
                if reply.status == "failed" and server.gone:  # it was given up meanwhile
                    self._queue.give_back([item])
                    return
                if final:
                    self._cache.append(item[0], [reply])
                self._count(item[0], reply, final=final)
            except openai.APIConnectionError as error:
                self._queue.give_back([item])
                self._give_up(server, f"the server is gone ({one_line(str(error.__cause__ or error))})", "start it")
                return
            finally:
                self._cache.in_flight.release(item[0])
            server.failed = [*server.failed, item] if reply.status == "failed" else []
            if len(server.failed) >= FAILURES_IN_A_ROW:
                if any(not other.gone for other in self._servers if other is not server):
                    self._queue.give_back(server.failed)
                problem = f"the server failed {len(server.failed)} requests in a row, the last with: {reply.error}"
                self._give_up(server, problem, "look at its log")

    def _give_up(self, server: Server, problem: str, remedy: str) -> None:
        """Send nothing more to a server; the others get its requests, and without others the run ends."""
        if server.gone:
            return
        server.gone = True
        self._queue.abandon(server.number)
        if all(other.gone for other in self._servers):
            raise _StopError(problem, remedy=f"{remedy}, then run the same command again", got=server.url)
        log.warning("%s: %s; its requests go to the other servers", server.url, problem)

    async def _claim(self, key: str) -> Reply | None:
        """The reply that another thread got meanwhile; None where the request is this one's to ask, and to release."""
        while (other := self._cache.in_flight.claim(key)) is not None:
            await asyncio.wrap_future(other)
        stored = self._cache.get(key)
        if stored is None:
            return None
        self._cache.in_flight.release(key)
        return stored[0]

    def _count(self, key: str, reply: Reply, *, final: bool) -> None:
        self._unsynced.append((key, reply, final))
        self._wake.set()

    async def _keep(self) -> None:
        """Sync what was written, all that came meanwhile at once, and count it."""
        while not self._closing or self._unsynced:
            await self._wake.wait()
            self._wake.clear()
            group, self._unsynced = self._unsynced, []
            if any(final for *_, final in group):
                await asyncio.to_thread(self._cache.sync)
            for key, reply, final in group:
                self._received[key] = reply
                self._kept += final
            if group:
                self._report(self._before + len(self._received), self._before + len(self._todo), "replies")

    async def _ask(self, server: Server, request: Request) -> tuple[Reply, bool]:
        """The reply, and whether it is the last word on this request."""
        too_long = await server.too_long(request)
        if too_long is not None:
            return Reply("", status="refused", error=too_long), False
        schema = request.schema if request.schema not in self._refused_schemas else None
        try:
            async for attempt in tenacity.AsyncRetrying(
                retry=tenacity.retry_if_exception(may_pass),
                wait=pause,
                stop=tenacity.stop_after_attempt(self._config.retries + 1),
                reraise=True,
            ):
                with attempt:
                    answer = await self._post(server, request, schema)
            reply = read_reply(answer, request)
            return reply, reply.usage is not None or reply.status == "ok"
        except (openai.APITimeoutError, TimeoutError):
            return Reply("", status="failed", error=f"no reply within {self._config.timeout_seconds:g} s"), False
        except openai.APIConnectionError as error:
            if refuses_connections(error):
                raise
            cause = type(error.__cause__ or error).__name__
            return Reply("", status="failed", error=f"connection lost ({cause})"), False
        except openai.APIStatusError as error:
            if schema is None or not refuses_schema(error):
                return await self._judge(server, error), False
            self._go_without(schema, error)
        except (openai.OpenAIError, NotACompletionError, ValueError) as error:  # no JSON, or JSON of something else
            return Reply("", status="failed", error=f"not a chat completion: {one_line(str(error))}"), False
        return await self._ask(server, request)

    def _go_without(self, schema: str, error: openai.APIStatusError) -> None:
        if not self._refused_schemas:
            log.warning(
                "the server does not take the JSON schema and is asked without: %s",
                one_line(str(error)),
            )
        self._refused_schemas.add(schema)

    async def _post(self, server: Server, request: Request, schema: str | None) -> Any:
        """One try: room in the budget first, then what it came to."""
        await server.ready()
        worst, number = await self._reserve(server, request)
        actual = worst  # what is not known to have cost less
        try:
            async with asyncio.timeout(self._config.timeout_seconds):
                body = chat_body(request, config=self._config, schema=schema)
                answer: Any = await server.client.post("/chat/completions", cast_to=object, body=body)
            usage = read_usage(answer)
            if usage is not None:
                cost = cost_of(usage.prompt, usage.reply, self._config.budget)
                actual = Spent(1, usage.prompt, usage.reply, usage.cached, cost)
            return answer
        except openai.APIStatusError as error:
            actual = Spent(1)
            server.slow_down(error, longest=LONGEST_RETRY_AFTER)
            raise
        except openai.APIConnectionError as error:
            if refuses_connections(error):
                actual = Spent()
            raise
        finally:
            self._ledger.settle(number, actual)
            self.spent = self.spent.plus(actual)

    async def _reserve(self, server: Server, request: Request) -> tuple[Spent, int]:
        """The most that the request can cost, held in the ledger under a number; waits for change from others."""
        budget = self._config.budget
        reply = 1 if request.slot is not None else request.max_tokens
        limited = budget.max_tokens is not None or budget.max_cost is not None
        prompt = await server.window.bound(request) if limited else 0
        worst = Spent(1, prompt, reply, cost=cost_of(prompt, reply, budget))
        number = self._ledger.reserve(worst, budget=budget)
        if number is None and limited:
            prompt = await server.window.count(request) or prompt
            worst = Spent(1, prompt, reply, cost=cost_of(prompt, reply, budget))
        while number is None:
            waits = self._ledger.in_flight
            number = self._ledger.reserve(worst, budget=budget)
            if number is None:
                if not waits:
                    raise self._no_room(worst)
                await asyncio.sleep(ROOM_SECONDS)
        return worst, number

    def _no_room(self, worst: Spent) -> _StopError:
        total = self._ledger.total
        cap = exceeded(total.plus(worst), self._config.budget) or "max_requests"
        return _StopError(
            f"the budget leaves no room for the next request: {total.describe()} so far in this process",
            field=f"llm.budget.{cap}",
            got=getattr(self._config.budget, cap),
            remedy=f"raise {cap} and run the same command again",
        )

    async def _judge(self, server: Server, error: openai.APIStatusError) -> Reply:
        status, text = error.status_code, one_line(str(error))
        if status in (401, 403):
            variable = self._config.api_key_env
            raise _StopError(
                f"the server refuses the key (HTTP {status})",
                got=server.url,
                expected=f"a valid key in the environment variable {variable}",
                remedy=f"export {variable}=... and run the same command again",
            ) from error
        if status == 404:
            raise _StopError(
                f"the server does not serve {self._config.model!r} (HTTP 404)",
                field="llm.model",
                got=server.url,
                expected=await server.models(),
                remedy="correct llm.model, or base_url (it usually ends in /v1)",
            ) from error
        if status >= 500 or status in RETRIED_STATUS:
            return Reply("", status="failed", error=f"HTTP {status}: {text}")
        return Reply("", status="refused", error=f"HTTP {status}: {text}")

    def _error(self, stop: _StopError) -> LLMError:
        done, total = self._before + self._kept, self._before + len(self._todo)
        urls = [server.url for server in self._servers]
        parts = {"field": "llm.base_url", "got": urls[0] if len(urls) == 1 else urls, **stop.parts}
        kept = f"{done} of {total} replies are kept and only the rest is sent"
        return LLMError(stop.problem, **parts, next_step=f"{stop.remedy}: {kept}")
