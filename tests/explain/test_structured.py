"""What is asked of servers beyond text, over real HTTP: schemas, probabilities of listed verdicts and of slots."""

from __future__ import annotations

import json
import math

import pytest
from explain.conftest import served_by
from explain.oracle import Answer, Oracle, completion, listed, simulation
from explain.test_clients import ask, error

from saeinterp.artifacts import ArtifactStore
from saeinterp.errors import LLMError
from saeinterp.explain import Message, Request

SCHEMA = json.dumps({"type": "object", "required": ["verdicts"]})


def lists(count: int, *, schema: str | None = SCHEMA) -> list[Request]:
    return [
        Request((Message("user", f"text {index}"),), max_tokens=30, verdicts=3, schema=schema) for index in range(count)
    ]


def answers(number: int, body: dict) -> Answer:
    return Answer(body=json.dumps(listed([0.9, 0.2, 0.5])))


def test_a_schema_and_log_probabilities_are_asked_for_and_every_verdict_has_its_own(store: ArtifactStore) -> None:
    with Oracle(trouble=answers) as oracle:
        (reply,) = ask(served_by(oracle), store, lists(1)).replies
        assert ask(served_by(oracle), store, lists(1)).replies == [reply]
    (body,) = oracle.bodies
    form = body["response_format"]
    assert form["type"] == "json_schema"
    assert (form["json_schema"]["strict"], form["json_schema"]["schema"]) == (True, json.loads(SCHEMA))
    assert (body["logprobs"], body["top_logprobs"]) == (True, 20)
    assert reply.text == '{"verdicts":[1,0,1]}'
    pairs = reply.verdict_logprobs or ()
    assert [round(math.exp(pair[1]), 6) for pair in pairs if pair] == [0.9, 0.2, 0.5]
    assert [round(math.exp(pair[0]), 6) for pair in pairs if pair] == [0.1, 0.8, 0.5]


def test_a_server_that_takes_no_schema_is_asked_without_and_the_run_says_so_once(
    store: ArtifactStore, caplog: pytest.LogCaptureFixture
) -> None:
    def refuses(number: int, body: dict) -> Answer:
        if "response_format" in body:
            return Answer(400, error("This response_format type is unavailable now"))
        return answers(number, body)

    with Oracle(trouble=refuses) as oracle:
        found = ask(served_by(oracle, concurrency=2), store, lists(10))
        assert [reply.text for reply in found.replies] == ['{"verdicts":[1,0,1]}'] * 10
        assert 11 <= oracle.requests <= 12
        assert found.spent.requests == oracle.requests
        # The key holds what was wanted, so that the next run knows the replies whatever the server takes by then.
        oracle.trouble = answers
        assert ask(served_by(oracle), store, lists(10)).sent == 0
    assert caplog.text.count("does not take the JSON schema") == 1


def test_without_structured_output_no_schema_is_sent_and_the_replies_are_others(store: ArtifactStore) -> None:
    with Oracle(trouble=answers) as oracle:
        ask(served_by(oracle, structured=False), store, lists(1))
        assert "response_format" not in oracle.bodies[0]
        assert ask(served_by(oracle, structured=False), store, lists(1, schema=None)).sent == 0
        assert ask(served_by(oracle), store, lists(1)).sent == 1


def test_a_refusal_that_is_about_the_prompt_is_not_taken_for_one_of_the_schema(store: ArtifactStore) -> None:
    refusal = Answer(400, error("maximum context length exceeded"))
    with Oracle(trouble=lambda number, body: refusal if number == 1 else answers(number, body)) as oracle:
        first, second = ask(served_by(oracle, concurrency=1), store, lists(2)).replies
        assert oracle.requests == 2
    assert (first.status, second.status) == ("refused", "ok")


@pytest.mark.parametrize("text", ["Yes, no, yes", '{"verdicts": [1, 0]}', '{"verdicts": [1, 0, 1]}'])
def test_a_list_without_probabilities_is_a_reply_all_the_same(store: ArtifactStore, text: str) -> None:
    with Oracle(trouble=lambda number, body: Answer(body=json.dumps(completion(text)))) as oracle:
        (reply,) = ask(served_by(oracle), store, lists(1)).replies
    assert (reply.text, reply.verdict_logprobs, reply.status) == (text, None, "ok")


def slots(count: int) -> list[Request]:
    texts = [f"Description: metal\nmetal{index} <?>\nstone <?>" for index in range(count)]
    return [Request((Message("user", text),), max_tokens=1, slot="<?>") for text in texts]


def test_slots_are_read_from_the_log_probabilities_of_the_prompt(store: ArtifactStore) -> None:
    with Oracle(trouble=lambda number, body: Answer(body=json.dumps(simulation(lines(body), digit=len_of)))) as oracle:
        (reply,) = ask(served_by(oracle), store, slots(1)).replies
    assert (oracle.bodies[0]["prompt_logprobs"], oracle.bodies[0]["max_tokens"]) == (20, 1)
    assert reply.text == ""
    assert [row.index(max(row)) for row in reply.slot_logprobs or ()] == [6, 5]


def lines(body: dict) -> str:
    return str(body["messages"][-1]["content"])


def len_of(description: str, token: str) -> int:
    return len(token)


def test_a_server_without_log_probabilities_of_prompts_says_so(store: ArtifactStore) -> None:
    with (
        Oracle(trouble=lambda number, body: Answer(body=json.dumps(completion("0")))) as oracle,
        pytest.raises(LLMError, match="gives no prompt log-probabilities"),
    ):
        ask(served_by(oracle), store, slots(2))
    assert not [path for path in (store.root / "llm-cache").glob("*") if path.stat().st_size]
