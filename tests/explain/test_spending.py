"""Budgets over real HTTP: a cap holds whatever comes back, and a stopped run goes on where it was."""

from __future__ import annotations

import json
import threading

import pytest
from explain.conftest import served_by
from explain.oracle import Answer, Oracle
from explain.test_clients import ask, error, questions

from saeinterp.artifacts import ArtifactStore
from saeinterp.config import BudgetConfig, LLMConfig
from saeinterp.errors import LLMError
from saeinterp.explain import Message, Request
from saeinterp.explain.spending import Ledger, Spent, spending

PROMPT = 9  # tokens of one question by the oracle's tokenizer: five words, four for the turn


def limited(oracle: Oracle, **caps: float) -> LLMConfig:
    return served_by(oracle, concurrency=4, budget=BudgetConfig(**caps))


def test_what_a_run_took_is_counted_with_its_cost_and_adds_up_over_the_process(store: ArtifactStore) -> None:
    before = spending().get("oracle", Spent())
    with Oracle() as oracle:
        config = limited(oracle, prompt_price=1000.0, reply_price=100_000.0)
        first = ask(config, store, questions(4) * 2).spent
        assert ask(config, store, questions(4)).spent == Spent()
    assert first[:4] == (4, 4 * PROMPT, 4, 4 * 3)
    assert first.cost == pytest.approx(4 * (PROMPT * 0.001 + 0.1))
    now = spending()["oracle"]
    assert (now.requests - before.requests, now.tokens - before.tokens) == (4, 4 * (PROMPT + 1))


def test_no_request_is_sent_without_a_budget(store: ArtifactStore) -> None:
    with Oracle(tokenizes=True, context=100) as oracle:
        with pytest.raises(LLMError, match=r"llm\.budget\.max_requests.*\(got 0\).*0 of 3 replies are kept"):
            ask(limited(oracle, max_requests=0), store, questions(3))
        assert (oracle.requests, oracle.tokenized) == (0, 0)


@pytest.mark.parametrize(
    ("caps", "sent"),
    [
        ({"max_requests": 7}, 7),
        ({"max_tokens": 6 * (PROMPT + 1) + 5}, 6),
        ({"max_cost": 0.5, "prompt_price": 0.0, "reply_price": 100_000.0}, 5),
    ],
)
def test_a_cap_is_never_passed_and_the_run_goes_on_when_it_is_raised(
    store: ArtifactStore, caps: dict[str, float], sent: int
) -> None:
    (name,) = [name for name in caps if name.startswith("max_")]
    with Oracle(delay=0.01, tokenizes=True) as oracle:
        with pytest.raises(LLMError, match=rf"llm\.budget\.{name}: .* {sent} requests.*raise {name}.*: {sent} of 12"):
            ask(limited(oracle, **caps), store, questions(12))
        assert oracle.requests == sent
        again = ask(limited(oracle, **{**caps, name: 10_000}), store, questions(12))
    assert (again.sent, oracle.requests) == (12 - sent, 12)
    assert [reply.status for reply in again.replies] == ["ok"] * 12


def test_without_a_tokenizer_a_prompt_counts_with_its_bytes_until_the_server_has_counted(store: ArtifactStore) -> None:
    with Oracle() as oracle, pytest.raises(LLMError, match="max_tokens"):
        ask(limited(oracle, max_tokens=200), store, questions(20))
    # A prompt of 35 bytes and a turn of a template may be 99 tokens; 10 are left of each when it has been counted.
    assert 1 < oracle.requests * (PROMPT + 1) <= 200
    assert oracle.requests == (200 - 100) // (PROMPT + 1) + 1


def test_requests_sent_again_count(store: ArtifactStore) -> None:
    busy = Answer(503, error("warming up"), {"Retry-After": "0"})
    with Oracle(trouble=lambda number, body: busy if number % 2 else None) as oracle:
        with pytest.raises(LLMError, match=r"5 requests.* 2 of 4 replies are kept"):
            ask(served_by(oracle, concurrency=1, retries=3, budget=BudgetConfig(max_requests=5)), store, questions(4))
        assert oracle.requests == 5


def test_what_has_no_answer_is_taken_for_the_most_it_can_have_cost(store: ArtifactStore) -> None:
    page = Answer(200, "<html>", {"Content-Type": "text/html"})
    with Oracle(trouble=lambda number, body: page if number < 3 else None, tokenizes=True) as oracle:
        long = [Request((Message("user", f"Description: x\nText: {n}"),), max_tokens=50) for n in range(6)]
        # 77 and 58 tokens at most, by bytes and by the tokenizer; 5 are left, and not one reply was usable.
        with pytest.raises(LLMError, match=r"2 requests, 135 tokens.*0 of 6"):
            ask(limited(oracle, max_tokens=140), store, long)
        assert oracle.requests == 2


def test_tasks_at_once_share_a_budget(store: ArtifactStore) -> None:
    stopped: list[str] = []

    def task(start: int) -> None:
        try:
            ask(limited(oracle, max_requests=10), store, questions(8, start=start))
        except LLMError as problem:
            stopped.append(problem.field or "")

    with Oracle(delay=0.02) as oracle:
        threads = [threading.Thread(target=task, args=(100 * n,)) for n in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert oracle.requests == 10
    assert stopped.count("llm.budget.max_requests") >= 2


def test_a_ledger_holds_what_is_in_flight() -> None:
    ledger, budget = Ledger("m"), BudgetConfig(max_tokens=100)
    first = ledger.reserve(Spent(1, 50, 10), budget=budget)
    assert first is not None
    assert ledger.reserve(Spent(1, 40, 1), budget=budget) is None
    assert ledger.in_flight
    ledger.settle(first, Spent(1, 20, 5))
    assert ledger.reserve(Spent(1, 70, 5), budget=budget) is not None
    assert ledger.total == Spent(1, 20, 5)


def test_the_usage_of_each_reply_is_kept_with_it(store: ArtifactStore) -> None:
    with Oracle() as oracle:
        ask(served_by(oracle), store, questions(1))
        (reply,) = ask(served_by(oracle), store, questions(1)).replies
    assert reply.usage == (PROMPT, 1, 3)
    (shard,) = (store.root / "llm-cache").glob("*.jsonl")
    assert json.loads(shard.read_text())["replies"][0]["usage"] == [PROMPT, 1, 3]
