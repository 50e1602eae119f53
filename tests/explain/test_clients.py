"""The HTTP client against a server that misbehaves: what costs one reply, what ends the run, what is kept."""

from __future__ import annotations

import asyncio
import email.utils
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from explain.conftest import served_by
from explain.oracle import Answer, Oracle, completion, usage

from saeinterp.artifacts import ArtifactStore
from saeinterp.config import LLMConfig, ServingConfig
from saeinterp.errors import LLMError
from saeinterp.explain import Completions, Message, Request, ResponseCache, llm_identity, open_llm, request_key
from saeinterp.explain.llm import llm_recipe
from saeinterp.explain.sending import Sending
from saeinterp.progress import silent


def questions(count: int, *, start: int = 0) -> list[Request]:
    texts = [f"Description: metal\nText: w{index} metal{index % 6}" for index in range(start, start + count)]
    return [Request((Message("user", text),), max_tokens=1, choices=("Yes", "No")) for text in texts]


def ask(config: LLMConfig, store: ArtifactStore, requests: list[Request]) -> Completions:
    return open_llm(config, store=store).complete(requests)


def error(message: str) -> str:
    return json.dumps({"error": {"message": message}})


def dead_url() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/v1"


def test_replies_come_in_order_with_both_probabilities(store: ArtifactStore) -> None:
    with Oracle(delay=0.01) as oracle:
        requests = questions(6)
        requests[2] = Request(
            (Message("user", "Description: metal\nText: w1 w2"),), max_tokens=1, choices=("Yes", "No")
        )
        replies = ask(served_by(oracle), store, requests).replies
    assert [reply.text for reply in replies] == ["Yes", "Yes", "No", "Yes", "Yes", "Yes"]
    yes, no = replies[0].choice_logprobs or (0, 0)
    assert yes > no
    assert oracle.bodies[0]["top_logprobs"] == 20


def test_at_most_so_many_requests_are_in_flight(store: ArtifactStore) -> None:
    with Oracle(delay=0.03) as oracle:
        ask(served_by(oracle, concurrency=3), store, questions(20))
    assert oracle.most_at_once == 3


def test_equal_requests_are_sent_once_and_known_ones_never(store: ArtifactStore) -> None:
    with Oracle() as oracle:
        first = ask(served_by(oracle), store, questions(5) * 3)
        again = ask(served_by(oracle), store, questions(7))
    assert (first.sent, first.cached, len(first.replies)) == (5, 10, 15)
    assert (again.sent, again.cached) == (2, 5)
    assert oracle.requests == 7


def test_the_address_is_no_part_of_the_key_but_the_model_and_every_parameter_is() -> None:
    request = questions(1)[0]
    key = request_key(request, identity={"model": "a"})
    assert key != request_key(request, identity={"model": "b"})
    for change in ({"temperature": 0.5}, {"seed": 1}, {"max_tokens": 2}, {"choices": None}):
        assert key != request_key(Request(**{**request.__dict__, **change}), identity={"model": "a"})
    assert key == request_key(Request(**{**request.__dict__, "group": "x"}), identity={"model": "a"})


def test_the_key_is_sent_and_written_nowhere(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    caplog.set_level("DEBUG")
    with Oracle() as oracle:
        ask(served_by(oracle, api_key_env="MY_KEY"), store, questions(3))
    assert oracle.keys == {"Bearer sk-very-secret"}
    assert not [path for path in store.root.rglob("*") if path.is_file() and b"sk-very-secret" in path.read_bytes()]
    assert "sk-very-secret" not in caplog.text


def test_a_dead_endpoint_says_so_and_how_to_go_on(store: ArtifactStore) -> None:
    config = LLMConfig(provider="openai", model="m", base_url=dead_url(), retries=0)
    with pytest.raises(LLMError, match=r"server is gone .* run the same command again: 0 of 3 replies are kept"):
        ask(config, store, questions(3))


def test_a_server_that_dies_midway_costs_only_what_was_in_flight(store: ArtifactStore) -> None:
    def die(number: int, body: dict) -> Answer | None:
        if number < 8:
            return None
        oracle.stop_listening()
        return Answer(500, "{}", {"Connection": "close"})

    with Oracle() as oracle:
        oracle.trouble = die
        with pytest.raises(LLMError, match=r"server is gone .* 7 of 12 replies are kept"):
            ask(served_by(oracle, concurrency=1), store, questions(12))
    with Oracle() as oracle:
        assert ask(served_by(oracle), store, questions(12)).sent == 5


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_ends_the_run_and_names_the_variable(store: ArtifactStore, status: int) -> None:
    with Oracle(trouble=lambda number, body: Answer(status, error("Incorrect API key: sk-leak"))) as oracle:
        with pytest.raises(LLMError, match="OPENAI_API_KEY") as caught:
            ask(served_by(oracle), store, questions(40))
        assert oracle.requests <= 40
    assert "sk-leak" not in str(caught.value)


def test_an_unknown_model_ends_the_run_and_names_those_served(store: ArtifactStore) -> None:
    with Oracle() as oracle, pytest.raises(LLMError, match=r"does not serve 'other'.*'oracle'"):
        ask(served_by(oracle, model="other"), store, questions(1))


@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_is_honoured(store: ArtifactStore, as_date: bool) -> None:
    value = email.utils.formatdate(time.time() + 2, usegmt=True) if as_date else "1"
    busy = Answer(429, error("slow down"), {"Retry-After": value})
    with Oracle(trouble=lambda number, body: busy if number == 1 else None) as oracle:
        started = time.monotonic()
        replies = ask(served_by(oracle), store, questions(1)).replies
    assert replies[0].status == "ok"
    assert oracle.requests == 2
    assert 0.9 < time.monotonic() - started < 8


def test_a_busy_server_that_names_no_time_is_asked_again(store: ArtifactStore) -> None:
    with Oracle(trouble=lambda number, body: Answer(429, error("slow down")) if number == 1 else None) as oracle:
        assert ask(served_by(oracle), store, questions(1)).replies[0].status == "ok"
        assert oracle.requests == 2


def test_a_server_that_asks_for_more_patience_than_a_run_has_is_not_waited_for(store: ArtifactStore) -> None:
    tomorrow = Answer(429, error("quota used up"), {"Retry-After": "86400"})
    with Oracle(trouble=lambda number, body: tomorrow if number == 1 else None) as oracle:
        first, second = ask(served_by(oracle, concurrency=1), store, questions(2)).replies
    assert (first.status, second.status) == ("failed", "ok")
    assert "quota used up" in (first.error or "")


def test_a_passing_server_error_is_survived(store: ArtifactStore) -> None:
    with Oracle(trouble=lambda number, body: Answer(503, error("warming up")) if number < 3 else None) as oracle:
        replies = ask(served_by(oracle, retries=3, concurrency=1), store, questions(2)).replies
    assert [reply.status for reply in replies] == ["ok", "ok"]
    assert oracle.requests == 4


def test_a_server_that_only_fails_ends_the_run_early(store: ArtifactStore) -> None:
    with Oracle(trouble=lambda number, body: Answer(500, error("out of memory"))) as oracle:
        with pytest.raises(LLMError, match=r"failed 8 requests in a row.*out of memory"):
            ask(served_by(oracle, retries=0, concurrency=2), store, questions(60))
        assert oracle.requests < 15


def test_a_server_without_log_probabilities_that_refuses_everything_ends_the_run(store: ArtifactStore) -> None:
    refusal = Answer(400, error("logprobs are not supported"))
    with Oracle(trouble=lambda number, body: refusal) as oracle, pytest.raises(LLMError, match="refuses every request"):
        ask(served_by(oracle), store, questions(3))


@pytest.mark.parametrize("body", ["<html>Gateway</html>", "null", '{"choices": []}', "not json"])
def test_a_page_instead_of_a_completion_is_a_failed_reply_and_not_kept(store: ArtifactStore, body: str) -> None:
    page = Answer(200, body, {"Content-Type": "text/html"} if body[0] == "<" else {})
    with Oracle(trouble=lambda number, request: page if number == 2 else None) as oracle:
        replies = ask(served_by(oracle, concurrency=1), store, questions(3)).replies
        assert [reply.status for reply in replies] == ["ok", "failed", "ok"]
        assert ask(served_by(oracle), store, questions(3)).sent == 1


def test_a_body_that_ends_too_early_is_sent_again(store: ArtifactStore) -> None:
    cut = Answer(200, '{"choices": [{"mess', {"Content-Length": "5000", "Connection": "close"})
    with Oracle(trouble=lambda number, body: cut if number < 3 else None) as oracle:
        first, second = ask(served_by(oracle, concurrency=1, retries=0), store, questions(2)).replies
        assert first.error == second.error == "connection lost (RemoteProtocolError)"
        again = ask(served_by(oracle), store, questions(2))
    assert [reply.status for reply in again.replies] == ["ok", "ok"]


@pytest.mark.parametrize("text", ["", None, "<b>Yes</b>\x1b[31m {{7*7}} \ud800"])
def test_a_reply_that_says_nothing_or_holds_markup_is_kept_as_it_came(store: ArtifactStore, text: str | None) -> None:
    with Oracle(trouble=lambda number, body: Answer(body=json.dumps(completion(text)))) as oracle:
        first = ask(served_by(oracle), store, questions(1)).replies
        assert [(reply.text, reply.status, reply.choice_logprobs) for reply in first] == [(text or "", "ok", None)]
        assert ask(served_by(oracle), store, questions(1)).replies == first
    assert oracle.requests == 1


def test_a_filtered_reply_is_refused_and_not_asked_for_again(store: ArtifactStore) -> None:
    def filtered(number: int, body: dict) -> Answer:
        answer = completion("")
        if number == 1:
            answer["choices"][0]["finish_reason"] = "content_filter"
        return Answer(body=json.dumps({**answer, "usage": usage(body)}))

    with Oracle(trouble=filtered) as oracle:
        first = ask(served_by(oracle, concurrency=1), store, questions(2)).replies
        assert [(reply.status, reply.error) for reply in first] == [
            ("refused", "the server filtered the reply"),
            ("ok", None),
        ]
        assert ask(served_by(oracle), store, questions(2)).sent == 0


def test_a_reply_that_reached_its_longest_is_marked_cut(store: ArtifactStore) -> None:
    def long(number: int, body: dict) -> Answer:
        answer = completion("the token")
        answer["choices"][0]["finish_reason"] = "length" if number == 1 else "stop"
        return Answer(body=json.dumps(answer))

    texts = [Request((Message("user", name),), max_tokens=2) for name in "ab"]
    with Oracle(trouble=long) as oracle:
        ask(served_by(oracle, concurrency=1), store, texts)
        assert [reply.cut for reply in ask(served_by(oracle), store, texts).replies] == [True, False]


def test_a_slow_server_is_a_failed_reply(store: ArtifactStore) -> None:
    with Oracle(delay=1.5) as oracle:
        reply = ask(served_by(oracle, timeout_seconds=0.2, retries=0), store, questions(1)).replies[0]
    assert (reply.status, reply.error) == ("failed", "no reply within 0.2 s")


def test_a_body_that_never_ends_is_a_failed_reply(store: ArtifactStore) -> None:
    endless = Answer(200, "{", {"Content-Length": "5000"})
    with Oracle(trouble=lambda number, body: endless) as oracle:
        reply = ask(served_by(oracle, timeout_seconds=0.3, retries=0), store, questions(1)).replies[0]
    assert (reply.status, reply.error) == ("failed", "no reply within 0.3 s")


def test_it_works_where_an_event_loop_is_running(store: ArtifactStore) -> None:
    async def notebook() -> Completions:
        return ask(served_by(oracle), store, questions(2))

    with Oracle() as oracle:
        assert asyncio.run(notebook()).sent == 2


def test_killed_midway_the_next_run_sends_only_what_was_in_flight(store: ArtifactStore) -> None:
    code = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from explain.test_clients import ask, questions\n"
        "from saeinterp.artifacts import ArtifactStore\nfrom saeinterp.config import LLMConfig\n"
        "config = LLMConfig(provider='openai', model='oracle', base_url=sys.argv[1], concurrency=4)\n"
        "ask(config, ArtifactStore(sys.argv[2]), questions(60))\n"
    )
    with Oracle(delay=0.05) as oracle:
        child = subprocess.Popen(
            [sys.executable, "-c", code, oracle.url, str(store.root)], cwd=Path(__file__).parents[2]
        )
        deadline = time.monotonic() + 60
        while oracle.requests < 20 and time.monotonic() < deadline and child.poll() is None:
            time.sleep(0.01)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        sent = oracle.requests
        assert 20 <= sent < 60
        oracle.delay = 0.0
        again = ask(served_by(oracle), store, questions(60))
    assert len(again.replies) == 60
    assert 60 - sent <= again.sent <= 60 - sent + 5


def test_leaving_early_keeps_what_was_received(store: ArtifactStore) -> None:
    def leave(done: int, total: int, what: str) -> None:
        if done >= 5:
            raise KeyboardInterrupt

    with Oracle(delay=0.01) as oracle:
        with pytest.raises(KeyboardInterrupt):
            open_llm(served_by(oracle, concurrency=2), store=store).complete(questions(40), progress=leave)
        received = oracle.requests
        assert received < 40
        again = ask(served_by(oracle), store, questions(40))
    assert 40 - received <= again.sent <= 40 - received + 2


def test_a_model_that_the_run_should_serve_needs_its_server(store: ArtifactStore) -> None:
    with pytest.raises(LLMError, match=r"llm\.provider: no server is running.*saeinterp\.explain\.serving"):
        open_llm(LLMConfig(provider="vllm", model="m"), store=store)


def test_the_recipe_holds_what_changes_replies_and_nothing_of_where_they_come_from() -> None:
    config = LLMConfig(provider="openai", model="m", base_url="http://a/v1")
    same = LLMConfig(
        provider="vllm", model="m", concurrency=2, retries=0, api_key_env="K", batch_size=3, context_tokens=9
    )
    assert llm_recipe(config) == llm_recipe(same)
    awq = ServingConfig(quantization="awq", dtype="float16", port=8001, tensor_parallel=4)
    assert llm_recipe(same.model_copy(update={"serving": awq})) == {
        **llm_recipe(config),
        "quantization": "awq",
        "dtype": "float16",
    }
    for change in ({"temperature": 1.0}, {"seed": 1}, {"max_tokens": 9}, {"structured": False}, {"revision": "r"}):
        assert llm_recipe(config.model_copy(update=change)) != llm_recipe(config)


def test_equal_requests_of_two_tasks_at_once_are_sent_once(store: ArtifactStore) -> None:
    with Oracle(delay=0.05) as oracle, ThreadPoolExecutor(3) as pool:
        config = served_by(oracle, concurrency=4)
        tasks = [pool.submit(ask, config, store, questions(10, start=start)) for start in (0, 0, 5)]
        found = [task.result() for task in tasks]
    assert oracle.requests == 15
    assert sum(item.sent for item in found) == 15
    assert sum(item.cached for item in found) == 15
    assert sum(item.spent.requests for item in found) == 15
    assert found[0].replies == found[1].replies
    assert found[0].replies[5:] == found[2].replies[:5]


def test_a_task_that_waits_for_another_asks_itself_where_that_one_failed(store: ArtifactStore) -> None:
    arrived = threading.Event()

    def trouble(number: int, body: dict[str, Any]) -> Answer | None:
        if number > 1:
            return None
        arrived.set()
        time.sleep(0.2)
        return Answer(400, error("odd prompt"))

    with Oracle(trouble=trouble) as oracle, ThreadPoolExecutor(2) as pool:
        request = questions(1)
        first = pool.submit(ask, served_by(oracle), store, request)
        assert arrived.wait(10)
        second = pool.submit(ask, served_by(oracle), store, request)
        assert second.result().replies[0].text == "Yes"
        with pytest.raises(LLMError, match="refuses every request"):
            first.result()
    assert oracle.requests == 2


def test_a_task_that_waits_for_another_asks_itself_where_that_one_is_cancelled(store: ArtifactStore) -> None:
    arrived = threading.Event()

    def trouble(number: int, body: dict[str, Any]) -> Answer | None:
        if number == 1:
            arrived.set()
            time.sleep(3)
        return None

    async def leave_early(config: LLMConfig) -> None:
        key = request_key(questions(1)[0], identity=llm_identity(config))
        cache = ResponseCache.at(store.root / "llm-cache")
        sending = Sending(config, cache, {key: questions(1)[0]}, before=0, report=silent)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(sending.run(), timeout=1)

    with Oracle(trouble=trouble) as oracle, ThreadPoolExecutor(2) as pool:
        first = pool.submit(asyncio.run, leave_early(served_by(oracle)))
        assert arrived.wait(10)
        found = pool.submit(ask, served_by(oracle), store, questions(1)).result()
        first.result()
    assert (found.sent, found.replies[0].text, oracle.requests) == (1, "Yes", 2)
