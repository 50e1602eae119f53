"""Fuzz scoring: where the marks stand, and what a server that knows the truth makes of them."""

from __future__ import annotations

import re

import numpy as np
import polars as pl
import pytest
from explain.conftest import Road
from explain.oracle import Oracle, judged
from hypothesis import given, settings
from hypothesis import strategies as st

from saeinterp.artifacts import ArtifactStore
from saeinterp.explain import control_explanations, fuzz_texts, marked_text

WORDS = [f" t{index}" for index in range(16)]


def example(latent: int, kind: str, firing: list[int], tokens: list[str] = WORDS) -> dict:
    activations = [1.5 if index in firing else 0.0 for index in range(len(tokens))]
    return {"latent": latent, "kind": kind, "tokens": tokens, "activations": activations}


def marked_places(text: str) -> tuple[int, ...]:
    """The numbers of the marked words."""
    return tuple(int(n) for run in re.findall(r"<<(.+?)>>", text) for n in re.findall(r"t(\d+)", run))


def test_true_texts_mark_every_firing_token_and_false_ones_borrow_their_marks() -> None:
    firing = [[0], [3, 4], [7, 15], [2]]
    rows = [example(1, "activating", places) for places in firing] + [example(1, "random", []) for _ in range(4)]
    texts = fuzz_texts(pl.DataFrame(rows))
    assert texts[1] == "t0 t1 t2 <<t3 t4>> t5 t6 t7 t8 t9 t10 t11 t12 t13 t14 t15"
    assert [marked_places(text) for text in texts[:4]] == [tuple(places) for places in firing]
    assert sorted(marked_places(text) for text in texts[4:]) == sorted(map(tuple, firing))


def test_marks_of_false_texts_do_not_depend_on_other_latents_and_differ_between_latents() -> None:
    def rows(latent: int) -> list[dict]:
        return [
            *(example(latent, "activating", [place]) for place in range(12)),
            *(example(latent, "similar", []) for _ in range(12)),
        ]

    both = fuzz_texts(pl.DataFrame(rows(5) + rows(9)))
    assert both[24:] == fuzz_texts(pl.DataFrame(rows(9)))
    assert both[12:24] != both[36:]
    assert sorted(both[12:24]) == sorted(both[36:])


def test_positions_of_false_marks_have_the_distribution_of_true_ones() -> None:
    rng = np.random.default_rng(0)
    weights = np.linspace(1, 4, 16) / np.linspace(1, 4, 16).sum()
    rows = []
    for latent in range(200):
        rows += [
            example(latent, "activating", sorted(rng.choice(16, size=3, replace=False, p=weights))) for _ in range(8)
        ]
        rows += [example(latent, "random", []) for _ in range(5)]
    texts = fuzz_texts(pl.DataFrame(rows))
    true = np.array([row["kind"] == "activating" for row in rows])
    places = [marked_places(text) for text in texts]
    assert {len(place) for place in places} == {3}
    shares = [
        np.bincount([n for place, own in zip(places, true) if own is keep for n in place], minlength=16)
        for keep in (np.True_, np.False_)
    ]
    shares = [counts / counts.sum() for counts in shares]
    assert np.abs(shares[0] - shares[1]).max() < 0.02
    assert len({place for place, own in zip(places, true) if not own}) > 100


def test_a_shorter_false_text_takes_the_marks_that_fit() -> None:
    rows = [example(1, "activating", [2, 13, 15]), example(1, "near-miss", [], WORDS[:6])]
    assert marked_places(fuzz_texts(pl.DataFrame(rows))[1]) == (3, 5)


def test_blank_tokens_keep_their_marks_and_marks_of_the_text_itself_are_broken_up() -> None:
    marks = np.array([False, True, False, True])
    assert marked_text(["cout <<", "\n\n", " x >> y", " end"], marks) == "cout < <<< >> x > > y <<end>>"


@settings(deadline=None)
@given(
    st.lists(st.text(max_size=6), min_size=1, max_size=20).flatmap(
        lambda tokens: st.tuples(st.just(tokens), st.lists(st.booleans(), min_size=len(tokens), max_size=len(tokens)))
    )
)
def test_a_marked_text_is_one_line_with_one_pair_of_marks_a_run(case: tuple[list[str], list[bool]]) -> None:
    tokens, marks = case
    text = marked_text([token.replace("<", "").replace(">", "") for token in tokens], np.array(marks))
    runs = sum(mark and not (index and marks[index - 1]) for index, mark in enumerate(marks))
    assert text.count("<<") == text.count(">>") == runs
    assert text == " ".join(text.split())


@pytest.mark.parametrize("together", [1, 5])
def test_right_explanations_of_planted_latents_have_f1_one(road: Road, store: ArtifactStore, together: int) -> None:
    with Oracle() as oracle:
        explanations = road.explain(oracle, store)
        permuted = control_explanations(explanations, control="permuted", seed=0, store=store)
        right = road.score(explanations, oracle, store, kind="fuzz", together=together)
        prompts = [body["messages"][-1]["content"] for body in oracle.bodies if body.get("logprobs")]
        wrong = road.score(permuted, oracle, store, kind="fuzz", together=together)
    found = pl.read_parquet(right.file("scores.parquet")).filter(status="scored")
    assert found.height == 8
    assert (found["f1"] == 1).all()
    assert (found["auroc"] == 1).all()
    texts = [text for prompt in prompts for text in judged(prompt)[1]]
    assert len(texts) == 144
    assert all("<<" in text for text in texts)
    assert pl.read_parquet(wrong.file("scores.parquet")).filter(status="scored")["recall"].max() == 0
