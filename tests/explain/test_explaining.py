"""Explainers over real HTTP: what each shows a model, what it asks for, and what becomes of the reply."""

from __future__ import annotations

import json
import re
from typing import Any

import polars as pl
import pytest
from explain.conftest import HOOKPOINT, Road
from explain.oracle import Answer, Oracle, completion

from saeinterp.artifacts import Artifact, ArtifactStore, Recipe, Workspace
from saeinterp.config import ExplainerConfig, LLMConfig
from saeinterp.errors import DataError
from saeinterp.explain import explain_recipe


def table(explanations: Artifact) -> pl.DataFrame:
    return pl.read_parquet(explanations.file("explanations.parquet"))


def last_turns(oracle: Oracle) -> list[str]:
    return [body["messages"][-1]["content"] for body in oracle.bodies]


def test_servers_are_asked_for_json_and_shown_answers_in_it(road: Road, store: ArtifactStore) -> None:
    with Oracle() as oracle:
        found = table(road.explain(oracle, store))
        body = oracle.bodies[0]
    schema = body["response_format"]["json_schema"]["schema"]
    assert schema["required"] == ["explanation"]
    assert schema["properties"]["explanation"]["maxLength"] < 3.5 * body["max_tokens"]
    answers = [turn["content"] for turn in body["messages"] if turn["role"] == "assistant"]
    assert [list(json.loads(answer)) for answer in answers] == [["explanation"]] * 2
    assert set(found["status"]) == {"ok"}
    assert found["explanation"].str.starts_with("words of the class").all()
    assert all(json.loads(reply)["explanation"] for reply in found["reply"])


def test_without_structured_replies_worked_answers_are_plain(road: Road, store: ArtifactStore) -> None:
    with Oracle() as oracle:
        found = table(road.explain(oracle, store, structured=False))
        body = oracle.bodies[0]
    assert "response_format" not in body
    assert body["messages"][1]["content"] == "days of the week"
    assert found["explanation"].str.starts_with("words of the class").all()


@pytest.mark.parametrize("structured", [True, False])
def test_reasoning_comes_before_the_label_and_is_no_part_of_it(
    road: Road, store: ArtifactStore, structured: bool
) -> None:
    def think(number: int, body: dict[str, Any]) -> Answer:
        values = {"reasoning": "Explanation: metals, I think.", "explanation": f"metal {number}"}
        text = json.dumps(values) if structured else f"Metals, I think.\n\nExplanation: metal {number}"
        return Answer(body=json.dumps(completion(text)))

    options = {"chain_of_thought": True}
    with Oracle(trouble=think) as oracle:
        found = table(road.explain(oracle, store, options=options, structured=structured, max_tokens=300))
        body = oracle.bodies[0]
    assert sorted(found["explanation"]) == sorted(f"metal {number}" for number in range(1, found.height + 1))
    assert found["reply"].str.contains("I think").all()
    worked = [turn["content"] for turn in body["messages"] if turn["role"] == "assistant"]
    if structured:
        assert body["response_format"]["json_schema"]["schema"]["required"] == ["reasoning", "explanation"]
        assert [list(json.loads(answer)) for answer in worked] == [["reasoning", "explanation"]] * 2
    else:
        assert all(answer.count("\nExplanation: ") == 1 for answer in worked)


def test_a_contrastive_explainer_is_shown_silent_texts_of_the_explain_split(road: Road, store: ArtifactStore) -> None:
    with Oracle() as oracle:
        found = table(road.explain(oracle, store, options={"kind": "contrastive", "label": "both"}))
        contrastive = last_turns(oracle)
        oracle.bodies.clear()
        road.explain(oracle, store)
        plain = last_turns(oracle)
    assert set(found["explainer"]) == {"both"}
    assert found["explanation"].str.starts_with("words of the class").all()
    examples = pl.read_parquet(road.examples.file("examples.parquet"))
    silent = examples.filter(role="explain", kind="silent")
    shown = sorted(text for prompt in contrastive for text in re.findall(r"^Other text: (.*)$", prompt, re.MULTILINE))
    assert shown == sorted(silent["text"].str.strip_chars())
    assert len(shown) == 6 * found.height
    assert not any("Other text: " in prompt for prompt in plain)
    scored = set(examples.filter(role="score")["doc_id"])
    assert not scored & set(silent["doc_id"])


def test_a_contrastive_explainer_without_silent_texts_says_what_to_set(road: Road, store: ArtifactStore) -> None:
    def write(space: Workspace) -> None:
        for name in ("latents", "examples"):
            frame = pl.read_parquet(road.examples.file(f"{name}.parquet"))
            frame = frame.filter(pl.col("kind") != "silent") if name == "examples" else frame
            frame.write_parquet(space.out / f"{name}.parquet")

    bare = road._replace(examples=store.build(Recipe("examples", HOOKPOINT, 1, {"silent": 0}), write))
    with Oracle() as oracle:
        with pytest.raises(DataError, match=r"examples\.explain_silent"):
            bare.explain(oracle, store, options={"kind": "contrastive"})
        assert oracle.requests == 0


def test_the_logit_lens_shows_both_ends_of_a_decoder_direction(road: Road, store: ArtifactStore) -> None:
    with Oracle() as oracle:
        found = table(road.explain(oracle, store, options={"logit_lens": True}))
        prompts = last_turns(oracle)
    for prompt, text in zip(prompts, found["explanation"]):
        # Requests go out in order one by one or overtake each other: the class is read from the prompt itself.
        promoted = re.search(r"^Often followed by: (.*)$", prompt, re.MULTILINE)
        suppressed = re.search(r"^Hardly ever followed by: (.*)$", prompt, re.MULTILINE)
        marked = re.findall(r"<<([a-z]+)\d", prompt.split("\n", 1)[1])
        name = max(marked, key=marked.count)
        assert promoted is not None
        assert suppressed is not None
        assert {word.rstrip("0123456789") for word in promoted[1].split(", ")[:6]} == {name}
        assert not any(word.startswith(name) for word in suppressed[1].split(", "))
        assert text.startswith("words of the class")


def test_a_reply_cut_at_max_tokens_is_a_failure_that_says_what_to_raise(road: Road, store: ArtifactStore) -> None:
    cut = completion('{"explanation": "words of the class me')
    cut["choices"][0]["finish_reason"] = "length"
    with Oracle(trouble=lambda number, body: Answer(body=json.dumps(cut))) as oracle:
        found = table(road.explain(oracle, store))
    assert set(found["status"]) == {"failed"}
    assert found["reason"].str.contains("raise llm.max_tokens").all()
    assert found["explanation"].null_count() == found.height


def test_what_changes_an_explanation_is_in_its_recipe(road: Road) -> None:
    def recipe(llm: dict[str, Any] | None = None, **options: Any) -> str:
        served = LLMConfig(**{"provider": "openai", "model": "m", "base_url": "http://a/v1", **(llm or {})})
        config = ExplainerConfig(llm=served, **options)
        return explain_recipe(road.examples, road.subject, road.sae, hookpoint=HOOKPOINT, config=config).hash

    base = recipe()
    assert recipe({"base_url": ("http://b/v1", "http://c/v1"), "timeout_seconds": 3}) == base
    others = [{"kind": "contrastive"}, {"chain_of_thought": True}, {"logit_lens": False}, {"kind": "top-tokens"}]
    changed = [recipe(**options) for options in others]
    changed += [recipe({"model": "n"}), recipe({"max_tokens": 9}), recipe({"temperature": 1.0})]
    changed += [recipe({"structured": False}), recipe({"seed": 5})]
    assert len({base, *changed}) == 10
    assert recipe({"model": "n"}, kind="top-tokens") == recipe(kind="top-tokens")
