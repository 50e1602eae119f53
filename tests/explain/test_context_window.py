"""Prompts that do not fit are refused before they are sent, and hardly any is counted for it."""

from __future__ import annotations

import pytest
from explain.conftest import served_by
from explain.oracle import Answer, Oracle
from explain.test_clients import ask, error

from saeinterp.artifacts import ArtifactStore
from saeinterp.explain import Message, Request


def prompts(*words: int, max_tokens: int = 1) -> list[Request]:
    texts = ["Description: metal\nText: " + "w " * (count - 3) for count in words]
    return [Request((Message("user", text),), max_tokens=max_tokens, choices=("Yes", "No")) for text in texts]


@pytest.mark.parametrize("configured", [False, True])
def test_a_prompt_over_the_window_is_refused_alone_and_not_sent(store: ArtifactStore, configured: bool) -> None:
    limit = {"context_tokens": 200} if configured else {}
    with Oracle(context=None if configured else 200, tokenizes=True) as oracle:
        replies = ask(served_by(oracle, **limit), store, prompts(10, 195, 196, 500)).replies
    assert [reply.status for reply in replies] == ["ok", "ok", "refused", "refused"]
    assert replies[2].error == "the prompt has 200 tokens, the reply up to 1, the model takes 200"
    assert oracle.requests == 2


def test_room_for_the_longest_reply_is_part_of_it(store: ArtifactStore) -> None:
    with Oracle(context=200, tokenizes=True) as oracle:
        fits, not_quite = (ask(served_by(oracle), store, prompts(146, 10, max_tokens=m)).replies[0] for m in (50, 51))
    assert (fits.status, not_quite.status) == ("ok", "refused")


def test_prompts_whose_bytes_fit_are_not_counted(store: ArtifactStore) -> None:
    with Oracle(context=4096, tokenizes=True) as oracle:
        ask(served_by(oracle), store, prompts(*range(10, 40)))
        assert oracle.tokenized == 1  # the chat template, once
        assert oracle.requests == 30


def test_where_the_server_does_not_count_its_own_refusal_does(store: ArtifactStore) -> None:
    def too_long(number: int, body: dict) -> Answer | None:
        long = len(body["messages"][-1]["content"].split()) > 190
        return Answer(400, error("maximum context length is 200 tokens")) if long else None

    with Oracle(context=200, trouble=too_long) as oracle:
        replies = ask(served_by(oracle), store, prompts(100, 500)).replies
        assert oracle.requests == 2
    assert [reply.status for reply in replies] == ["ok", "refused"]
    assert "maximum context length" in (replies[1].error or "")
