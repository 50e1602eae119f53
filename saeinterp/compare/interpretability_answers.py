"""The research questions of a comparison, answered: each with its statistic, interval, null and verdict.

The surprising choice: whether larger models have fewer monosemantic latents is answered with "two models cannot tell",
whatever the numbers are. They are one comparison, and everything else that tells them apart came with the size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from saeinterp.compare.interpretability_maxima import compare_maxima, maximum_sentence, maximum_verdict
from saeinterp.compare.interpretability_rates import Pairing
from saeinterp.compare.interpretability_results import Answer, RateDifference, SideRate, Sizes
from saeinterp.compare.interpretability_sides import Associated
from saeinterp.compare.interpretability_words import is_category, points, points_interval, share, side_text
from saeinterp.stats import number, p_text

HEADLINE = {"robust": "monosemantic", "seed-gsm8k-chi2": "monosemantic_of_interpretable"}
"""Preset to its monosemantic rate: over all alive latents, or as the published analysis has it."""
WORDS = {
    "different": "different",
    "inconclusive": "no detectable difference",
    "chance": "not distinguishable from chance",
    "not tested": "not tested",
}


def answer_questions(
    a: Sequence[Associated],
    b: Sequence[Associated],
    preset: str,
    rates: Sequence[RateDifference],
    *,
    sizes: Sizes,
    pairing: Pairing,
) -> tuple[Answer, ...]:
    """The four questions under one preset.

    Args:
        rates: Of this preset.
        sizes: Parameters of the models.
    """
    model = {row.rate: row for row in rates if row.scope == "model"}
    answers = []
    monosemantic = model.get(HEADLINE[preset])
    if monosemantic is not None:
        answers.append(_answer("monosemantic", "What is the monosemantic rate?", preset, monosemantic))
    if category := _category_row(list(model.values())):
        answers.append(_category_answer(category, pairing))
    found = compare_maxima(a, b, preset)
    sentence = maximum_sentence(found, preset, pairing=pairing)
    answers.append(
        Answer(
            id="maximum",
            question="What is the largest enrichment?",
            preset=preset,
            verdict=WORDS[maximum_verdict(found, pairing.alpha)],
            short=sentence,
            sentence=sentence,
            rate=None,
            maximum=found,
        )
    )
    if monosemantic is not None:
        answers.append(_size_answer(monosemantic, sizes, pairing))
    return tuple(answers)


def _answer(name: Literal["monosemantic", "category"], question: str, preset: str, row: RateDifference) -> Answer:
    return Answer(
        id=name,
        question=question,
        preset=preset,
        verdict=WORDS[row.verdict or "not tested"],
        short=row.sentence,
        sentence=row.sentence,
        rate=row,
        maximum=None,
    )


def _category_row(rows: Sequence[RateDifference]) -> RateDifference | None:
    """The share of number latents; in text without numbers that of the largest category."""
    found = [row for row in rows if is_category(row.rate)]
    number_row = next((row for row in found if is_category(row.rate) == "number"), None)
    return number_row or max(found, key=lambda row: (row.a.value or 0.0) + (row.b.value or 0.0), default=None)


def _category_answer(row: RateDifference, pairing: Pairing) -> Answer:
    """The share beside the category's share of the vocabulary, which is what it would be for tokens drawn at random."""
    name = is_category(row.rate)
    parts = [_over_vocabulary(side, title, str(name)) for side, title in zip((row.a, row.b), pairing.names)]
    shown = _answer("category", f"What share of interpretable latents are {name} latents?", row.preset, row)
    return shown.model_copy(update={"sentence": f"{row.sentence} {' '.join(part for part in parts if part)}".strip()})


def _over_vocabulary(side: SideRate, title: str, name: str) -> str:
    if side.over_vocabulary is None or side.vocabulary_share is None:
        return ""
    text = (
        f"{title}: {name} tokens are {share(side.vocabulary_share)} of the testable vocabulary; the latents' share is "
        f"{number(side.over_vocabulary, digits=2)} times that"
    )
    if side.low is None or side.high is None:
        return f"{text}."
    low, high = (end / side.vocabulary_share for end in (side.low, side.high))
    held = "as in the vocabulary" if low <= 1 <= high else "more than there" if low > 1 else "less than there"
    return f"{text} (95% CI {number(low, digits=2)} to {number(high, digits=2)}): {held}."


def _size_answer(row: RateDifference, sizes: Sizes, pairing: Pairing) -> Answer:
    question = "Does the larger model have the lower monosemantic rate?"
    larger = sizes.larger
    if larger is None:
        if sizes.a is None or sizes.b is None:
            text = "Which model is larger is not known: the parameters of one could not be counted."
        else:
            text = f"Both models have {sizes.a:,} parameters, so nothing here is about size."
        return Answer(
            id="size",
            question=question,
            preset=row.preset,
            verdict="not asked",
            short=text,
            sentence=text,
            rate=row,
            maximum=None,
        )
    assert sizes.a is not None
    assert sizes.b is not None
    names = pairing.names if larger == "b" else pairing.names[::-1]
    counts = (sizes.a, sizes.b) if larger == "b" else (sizes.b, sizes.a)
    head = (
        f"Not answerable with two models: {names[1]} ({counts[1]:,} parameters) and {names[0]} ({counts[0]:,}) are one "
        "comparison, in which size cannot be told from whatever else differs."
    )
    return Answer(
        id="size",
        question=question,
        preset=row.preset,
        verdict="not answerable with two models",
        short=head,
        sentence=f"{head} {_seen(row, larger, names, pairing)}",
        rate=row,
        maximum=None,
    )


def _seen(row: RateDifference, larger: str, names: tuple[str, str], pairing: Pairing) -> str:
    """What this pair shows, and what chance alone would show."""
    head = f"Seen in this pair ({row.preset})"
    if row.difference is None:
        return f"{head}: no difference could be computed ({row.reason})."
    sides = (row.a, row.b) if larger == "b" else (row.b, row.a)
    change = row.difference if larger == "b" else -row.difference
    ends = (row.low, row.high) if row.models is None else (row.models.low, row.models.high)
    if larger == "a":
        ends = (None if ends[1] is None else -ends[1], None if ends[0] is None else -ends[0])
    words = {
        "chance": "not distinguishable from chance, so the sign says nothing",
        "inconclusive": "no detectable difference",
        "different": "lower for the larger model" if change < 0 else "higher for the larger model",
    }
    what = words[row.verdict] if row.verdict else "not tested"
    text = (
        f"{head}: {what}: {side_text(sides[1])} for {names[1]}, {side_text(sides[0])} for {names[0]}, larger − smaller "
        f"{points(change)} ({points_interval(*ends, alpha=pairing.alpha)})"
    )
    null = row.by_chance.get("strata") or row.by_chance.get("free")
    if null is not None and null.mean is not None:
        expected = null.mean if larger == "b" else -null.mean
        text += f"; chance gives {points(expected)} ({p_text(null.p)})"
    return f"{text}."
