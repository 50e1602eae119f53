"""Labels out of replies, prompts out of examples, and controls."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saeinterp.artifacts import Artifact, ArtifactStore, Recipe
from saeinterp.explain import (
    Label,
    Reply,
    control_explanations,
    fill,
    form_values,
    label_of,
    parse_label,
    prompt_hash,
    render_example,
)


def explanations(store: ArtifactStore, texts: list[str | None]) -> Artifact:
    table = pl.DataFrame(
        {
            "latent": pl.Series(range(10, 10 + len(texts)), dtype=pl.Int32),
            "status": ["failed" if text is None else "ok" for text in texts],
            "explanation": pl.Series(texts, dtype=pl.String),
            "reply": texts,
            "reason": ["the reply is empty" if text is None else None for text in texts],
            "explainer": ["planted"] * len(texts),
        }
    )
    recipe = Recipe("explanations", "planted", 1, {"texts": texts})
    return store.build(recipe, lambda space: table.write_parquet(space.out / "explanations.parquet"))


def control(store: ArtifactStore, texts: list[str | None], name: str, *, seed: int = 0) -> pl.DataFrame:
    artifact = control_explanations(explanations(store, texts), control=name, seed=seed, store=store)
    return pl.read_parquet(artifact.file("explanations.parquet"))


@pytest.mark.parametrize(
    ("reply", "label"),
    [
        ("days of the week", "days of the week"),
        (' "days of the week." ', "days of the week"),
        ("Explanation: days\nof the week", "days"),
        ("[EXPLANATION]: dates in text.", "dates in text"),
        ("**Explanation:** dates", "dates"),
        ('{"explanation": "dates"}', "dates"),
        ('```json\n{"explanation": "dates"}\n```', "dates"),
        ("<think>Monday, hmm</think>\n\ndays", "days"),
        ("- days\n- months", "days"),
        ("1. days", "days"),
        ("\n\n   days", "days"),
        ("words such as <<Monday>> and <<Sun", "words such as Monday and Sun"),
        ("a\u202eb\x00c\u200bd", "abcd"),
        ('the words "a", "b"', 'the words "a", "b"'),
    ],
)
def test_the_label_is_found_in_what_models_write(reply: str, label: str) -> None:
    assert parse_label(reply).text == label


@pytest.mark.parametrize("reply", ["", "  \n", "...", "**", "<think>never ends", '{"explanation": ""}', '""'])
def test_a_reply_without_a_label_has_a_reason(reply: str) -> None:
    label = parse_label(reply)
    assert label.text is None
    assert label.reason


@settings(deadline=None)
@given(st.text(max_size=1000))
def test_any_reply_gives_one_short_printable_line_or_none(reply: str) -> None:
    text, reason = parse_label(reply)
    assert (text is None) != (reason is None)
    if text is not None:
        assert text == " ".join(text.split())
        assert 0 < len(text) <= 203
        assert text.isprintable()


@pytest.mark.parametrize(
    ("reply", "label"),
    [
        ("Reasoning: days, all of them.\nExplanation: days", "days"),
        ("The explanation: it is about time.\n\n**Explanation:** days", "days"),
        ('{"reasoning": "explanation: no", "explanation": "days"}', "days"),
        ("<think>Explanation: x</think>Explanation: days", "days"),
        ("The words are all days of the week.", None),
        ("Reasoning: they are days.\nExplanation:", None),
        ("", None),
    ],
)
def test_after_reasoning_only_what_is_called_the_explanation_is_a_label(reply: str, label: str | None) -> None:
    found = parse_label(reply, reasoned=True)
    assert found.text == label
    assert (found.reason is None) == (label is not None)


@pytest.mark.parametrize(
    ("reply", "reasoned"),
    [
        ('{"explanation": "days of the', False),
        ('{"reasoning": "The explanation: is long and', True),
        ("Reasoning: the words are", True),
        ("<think>the words", False),
        ("\n\n", False),
    ],
)
def test_a_reply_cut_before_its_label_asks_for_more_tokens(reply: str, reasoned: bool) -> None:
    found = label_of(Reply(reply, cut=True), reasoned=reasoned)
    assert found.text is None
    assert found.reason is not None
    assert "raise llm.max_tokens" in found.reason


def test_a_reply_cut_after_its_label_has_one_and_a_refused_one_says_why_not() -> None:
    assert label_of(Reply("days\nThe words", cut=True)).text == "days"
    assert label_of(Reply('{"explanation": "days"} and', cut=True)).text == "days"
    assert label_of(Reply("days of the we", cut=True)).text == "days of the …"
    assert label_of(Reply("days of the we")).text == "days of the we"
    assert label_of(Reply("", status="refused", error="filtered")) == Label(None, "filtered")


def test_a_long_reply_is_cut_at_a_word() -> None:
    text = parse_label("words " * 100).text
    assert text is not None
    assert len(text) <= 202
    assert text.endswith("words …")


def test_active_tokens_are_marked_with_strengths() -> None:
    shown = render_example([" We", " met", " on", " Mon", "day", " noon"], [0, 0, 0.1, 4, 8, 0], largest=16)
    assert shown.text == "We met on <<Monday>> noon"
    assert shown.words == [("Monday", 5)]
    others = ["no\nday"]
    sunday = render_example(["Sunday"], [16], largest=16)
    values = form_values([shown, sunday], promoted=["shop"], suppressed=["year"], others=others)
    assert values["words"] == "Sunday (10), Monday (5)"
    assert values["examples"].count("\n") == 1
    assert values["lens"] == "Often followed by: shop\nHardly ever followed by: year\n"
    assert values["others"] == "Other text: no day"
    assert form_values([shown])["lens"] == form_values([shown])["others"] == ""


def test_marked_blanks_and_line_ends_do_not_break_a_prompt() -> None:
    shown = render_example(["a", "\n\n", "b", " "], [0, 3, 0, 3], largest=3)
    assert shown.text == "a b"
    assert shown.words == []


def test_what_fills_a_prompt_is_not_searched_for_placeholders() -> None:
    turns = fill("detection", {"explanation": "{text} and {other}", "text": "--- assistant\nYes {explanation}"})
    assert turns[-1].content == "Description: {text} and {other}\nText: --- assistant\nYes {explanation}"
    assert [turn.role for turn in turns[-2:]] == ["assistant", "user"]
    assert len(prompt_hash("detection")) == 64


def test_control_tokens_of_chat_templates_are_broken_up() -> None:
    text = fill("detection", {"explanation": "a <|im_end|> b", "text": "if x <| y |> z: <|"})[-1].content
    assert text == "Description: a < |im_end|> b\nText: if x < | y |> z: <|"


def test_permuting_leaves_no_latent_its_own_explanation(store: ArtifactStore) -> None:
    texts: list[str | None] = [f"words of class {index}" for index in range(9)]
    for seed in range(5):
        found = control(store, texts, "permuted", seed=seed)
        assert sorted(found["explanation"]) == sorted(text for text in texts if text)
        assert not (found["explanation"] == pl.Series(texts)).any()
        assert set(found["status"]) == {"control"}
    assert found.equals(control(ArtifactStore(store.root / "again"), texts, "permuted", seed=4))


def test_permuting_avoids_equal_texts_where_it_can(store: ArtifactStore) -> None:
    texts: list[str | None] = ["a", "a", "b", "b"]
    assert control(store, texts, "permuted")["explanation"].to_list() == ["b", "b", "a", "a"]


def test_a_single_explanation_cannot_be_permuted_and_failed_ones_stay_failed(store: ArtifactStore) -> None:
    found = control(store, ["only one", None], "permuted")
    assert found["status"].to_list() == ["failed", "failed"]
    assert found["reason"].to_list() == ["a single explanation cannot be permuted", "its own explanation failed"]


def test_the_empty_control_says_nothing_of_every_latent(store: ArtifactStore) -> None:
    found = control(store, ["a", None, "c"], "empty")
    assert found["explanation"].to_list() == ["", "", ""]
    assert set(found["explainer"]) == {"empty"}
