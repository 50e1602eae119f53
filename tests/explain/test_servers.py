"""Several servers of one model: groups stay together, work is shared, a server that goes is replaced by the others."""

from __future__ import annotations

import itertools

import pytest
from explain.conftest import served_by
from explain.oracle import Answer, Oracle
from explain.test_clients import ask, dead_url, error, questions
from hypothesis import given
from hypothesis import strategies as st

from saeinterp.artifacts import ArtifactStore
from saeinterp.config import LLMConfig, parse_config
from saeinterp.errors import ConfigError, LLMError
from saeinterp.explain import Message, Request
from saeinterp.explain.request_queue import RequestQueue


def grouped(groups: int, each: int) -> list[Request]:
    return [
        Request(
            (Message("user", f"Description: metal\nText: g{group} m{index}"),),
            max_tokens=1,
            choices=("Yes", "No"),
            group=str(group),
        )
        for group in range(groups)
        for index in range(each)
    ]


def groups_of(oracle: Oracle) -> list[str]:
    return [body["messages"][-1]["content"].split()[3] for body in oracle.bodies]


def test_a_group_stays_on_one_server_and_both_work(store: ArtifactStore) -> None:
    with Oracle(delay=0.01) as one, Oracle(delay=0.01) as two:
        config = served_by(one, base_url=(one.url, two.url), concurrency=3)
        replies = ask(config, store, grouped(12, 6)).replies
    assert [reply.status for reply in replies] == ["ok"] * 72
    assert one.requests + two.requests == 72
    # Only the last groups may be shared, by the server that would wait otherwise.
    assert len(set(groups_of(one)) & set(groups_of(two))) <= 2
    assert min(one.requests, two.requests) >= 18
    assert max(one.most_at_once, two.most_at_once) == 3


def test_one_server_meets_the_requests_in_order_with_all_places_filled(store: ArtifactStore) -> None:
    with Oracle(delay=0.05) as oracle:
        ask(served_by(oracle, concurrency=4), store, grouped(5, 3))
    assert oracle.most_at_once == 4
    order = [int(name[1:]) for name in groups_of(oracle)]
    assert all(later >= earlier - 1 for earlier, later in itertools.pairwise(order))


def test_a_server_that_is_gone_leaves_its_requests_to_the_other(
    store: ArtifactStore, caplog: pytest.LogCaptureFixture
) -> None:
    def die(number: int, body: dict) -> Answer | None:
        if number < 5:
            return None
        one.stop_listening()
        return Answer(500, "{}", {"Connection": "close"})

    with Oracle(trouble=die, delay=0.01) as one, Oracle(delay=0.01) as two:
        config = served_by(one, base_url=(one.url, two.url), concurrency=2, retries=2)
        found = ask(config, store, grouped(8, 5))
    assert [reply.status for reply in found.replies] == ["ok"] * 40
    assert f"{one.url}: the server is gone" in caplog.text
    assert "go to the other servers" in caplog.text


def test_a_server_that_only_fails_leaves_its_requests_to_the_other(store: ArtifactStore) -> None:
    broken = Answer(500, error("out of memory"))
    with Oracle(trouble=lambda number, body: broken) as one, Oracle(delay=0.01) as two:
        config = served_by(one, base_url=(one.url, two.url), concurrency=2, retries=0)
        found = ask(config, store, grouped(8, 5))
    assert [reply.status for reply in found.replies] == ["ok"] * 40
    assert two.requests == 40


def test_when_all_are_gone_the_run_ends(store: ArtifactStore) -> None:
    urls = (dead_url(), dead_url())
    with Oracle() as oracle, pytest.raises(LLMError, match=r"server is gone.*0 of 4 replies are kept"):
        ask(served_by(oracle, base_url=urls, retries=0), store, grouped(2, 2))


def test_the_address_of_a_server_may_change_between_runs(store: ArtifactStore) -> None:
    with Oracle() as one, Oracle() as two:
        ask(served_by(one), store, questions(3))
        assert ask(served_by(one, base_url=(one.url, two.url)), store, questions(3)).sent == 0
        managed = served_by(two, provider="vllm")
        assert ask(managed, store, questions(3)).sent == 0


@pytest.mark.parametrize("address", ["http://me:sk-secret@127.0.0.1:1/v1", "http://127.0.0.1:1/v1?key=sk-secret"])
def test_credentials_in_an_address_are_refused_and_in_no_message(address: str) -> None:
    with pytest.raises(ConfigError, match="api_key_env") as caught:
        parse_config(LLMConfig, {"provider": "openai", "model": "m", "base_url": address}, source="run.yaml")
    assert "sk-secret" not in str(caught.value)


@given(
    st.lists(st.sampled_from(["", "a", "b", "c"]), max_size=20),
    st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=60),
)
def test_every_request_is_taken_once_whoever_takes_it_and_whatever_is_given_back(
    groups: list[str], turns: list[tuple[int, bool]]
) -> None:
    requests = {str(i): Request((Message("user", str(i)),), max_tokens=1, group=g) for i, g in enumerate(groups)}
    queue = RequestQueue(requests, num_servers=3)
    done: list[str] = []
    for server, gives_back in turns:
        item = queue.take(server)
        if item is not None and gives_back:
            queue.give_back([item])
            queue.abandon(server)
        elif item is not None:
            done.append(item[0])
    while (item := queue.take(0)) is not None:
        done.append(item[0])
    assert sorted(done) == sorted(requests)
    assert len(queue) == 0
