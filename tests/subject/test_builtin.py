"""The corpora that need no network."""

from __future__ import annotations

import ast
import operator
import re
from fractions import Fraction

import pytest

from saeinterp.errors import ConfigError
from saeinterp.subject.builtin import builtin_documents, builtin_fingerprint, word_problems

OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
ANNOTATION = re.compile(r"<<([^=<>]+)=([^<>]+)>>")


def evaluate(text: str) -> Fraction:
    """Arithmetic without `eval`."""

    def walk(node: ast.expr) -> Fraction:
        if isinstance(node, ast.BinOp):
            return OPERATORS[type(node.op)](walk(node.left), walk(node.right))
        assert isinstance(node, ast.Constant)
        return Fraction(node.value)

    return walk(ast.parse(text, mode="eval").body)


def test_every_annotation_of_a_thousand_problems_is_right() -> None:
    for text in word_problems(seed=3, count=1000):
        found = ANNOTATION.findall(text)
        assert found
        for expression, result in found:
            assert evaluate(expression) == Fraction(result), text


def test_a_problem_ends_with_the_result_of_its_last_step() -> None:
    for text in word_problems(seed=0, count=200):
        last = ANNOTATION.findall(text)[-1][1]
        assert text.splitlines()[-1] == f"#### {last}"
        assert int(last) >= 0


def test_problems_have_two_or_more_steps_and_vary() -> None:
    texts = list(word_problems(seed=0, count=400))
    steps = [len(ANNOTATION.findall(text)) for text in texts]
    assert min(steps) >= 2
    assert max(steps) >= 5
    assert len(set(texts)) > 395
    assert len({text.split()[0] for text in texts}) > 30


def test_the_worked_answer_reads_like_gsm8k() -> None:
    text = next(word_problems(seed=0, count=1))
    question, *answer = text.splitlines()
    assert question.endswith("?") or "?" in question
    assert all("<<" in line for line in answer[:-1])


def test_the_same_seed_gives_the_same_problems_whatever_the_count() -> None:
    assert list(word_problems(seed=7, count=5)) == list(word_problems(seed=7, count=9))[:5]
    assert list(word_problems(seed=7, count=5)) != list(word_problems(seed=8, count=5))


def test_the_python_reference_has_many_documents_of_moderate_size() -> None:
    texts = list(builtin_documents("builtin:python-reference", seed=0, limit=None))
    assert len(texts) > 150
    assert max(map(len, texts)) <= 4200
    assert sum(map(len, texts)) > 300_000


def test_no_long_paragraph_of_the_python_reference_comes_twice() -> None:
    # Long topics contain short ones; what repeats would leak from training into held-out text.
    seen: set[str] = set()
    for text in builtin_documents("builtin:python-reference", seed=0, limit=None):
        for paragraph in text.split("\n\n"):
            key = " ".join(paragraph.split())
            if len(key) > 60:
                assert key not in seen
                seen.add(key)


def test_the_fingerprint_follows_the_content() -> None:
    def problems(seed: int, limit: int | None) -> str:
        return builtin_fingerprint("builtin:word-problems", seed=seed, limit=limit)

    assert problems(0, None) == problems(0, 400)
    assert problems(0, None) != problems(1, None)
    assert problems(0, None) != problems(0, 10)
    assert len(builtin_fingerprint("builtin:python-reference", seed=0, limit=None)) == 64


def test_an_unknown_builtin_corpus_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="builtin:python-reference or builtin:word-problems"):
        builtin_documents("builtin:shakespeare", seed=0, limit=None)
