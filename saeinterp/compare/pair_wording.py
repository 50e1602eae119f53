"""The sentences of three or more explainers, each from the adjusted tests stored beside it."""

from __future__ import annotations

from saeinterp.compare.pair_results import ControlTest, ExplainerPairs, PairResult
from saeinterp.compare.results import PairedResult, Sentence
from saeinterp.compare.wording import SELF_SCORED, answers_title, macro_title
from saeinterp.stats import Verdict, number, p_text, paired_sentence


def pair_sentence(
    paired: PairedResult, verdict: Verdict, equivalence_p: float, *, titles: tuple[str, str], metric: str, pairs: int
) -> str:
    """The sentence of one pair; the verdict and both p values at its end are adjusted over the pairs."""
    adjusted = paired.model_copy(update={"verdict": verdict, "equivalence_p": equivalence_p})
    text = paired_sentence(adjusted, title_a=titles[0], title_b=titles[1], metric=macro_title(metric))
    return f"{text} Adjusted over {pairs} pairs: {p_text(paired.p_holm)}, for equivalence {p_text(equivalence_p)}."


def pair_sentences(result: ExplainerPairs) -> list[Sentence]:
    """Every sentence that follows from the ranking and its tests."""
    said = [Sentence(id="ranking", text=_ranking(result))]
    broken = [pair for pair in result.pairs if not pair.matched]
    if broken:
        names = ", ".join(f"{pair.title_a} and {pair.title_b}" for pair in broken)
        said.insert(0, Sentence(id="unmatched", text=f"These sides are not matched: {names}."))
    if result.self_scored:
        said.insert(0, Sentence(id="self_scored", text=SELF_SCORED))
    said += [Sentence(id=f"pair.{pair.key_a}{pair.key_b}", text=pair.sentence) for pair in result.pairs]
    said += [Sentence(id=f"control.{test.control}.{test.key}", text=_control(test, result)) for test in result.controls]
    for item in result.ranking:
        if item.floor:
            text = f"{item.title} uses no model: it is the floor that the others have to beat."
            said.append(Sentence(id=f"floor.{item.key}", text=text))
    said.append(Sentence(id="coverage", text=_coverage(result)))
    if tested := [pair for pair in result.pairs if pair.mcnemar is not None]:
        said.append(Sentence(id="mcnemar", text=_mcnemar(tested, result.alpha)))
    families = "; ".join(f"{family.name}: {family.tests} ({family.adjustment})" for family in result.families)
    said.append(Sentence(id="families", text=f"Tests by family, with their adjustment: {families}."))
    return said


def _ranking(result: ExplainerPairs) -> str:
    means = ", ".join(f"{item.title} {number(item.mean)}" for item in result.ranking)
    text = f"By {result.metric_title} (n = {result.n_latents}): {means}."
    orders = [f"{item.title} is higher than {' and '.join(item.higher_than)}" for item in result.ranking]
    known = [order for order, item in zip(orders, result.ranking) if item.higher_than]
    return f"{text} By the adjusted tests {'; '.join(known) if known else 'no explainer is higher than another'}."


def _control(test: ControlTest, result: ExplainerPairs) -> str:
    adjusted = test.paired.model_copy(update={"verdict": test.verdict})
    text = paired_sentence(adjusted, title_a=test.control, title_b=test.title, metric=result.metric_title)
    return f"{text} Adjusted over {len(result.controls)} tests against controls: {p_text(test.paired.p_holm)}."


def _coverage(result: ExplainerPairs) -> str:
    if all(item.coverage.share is None for item in result.ranking):
        return "How many verdicts were usable is not known."
    parts = []
    for item in result.ranking:
        known = item.coverage.share is not None
        share = f"{item.coverage.usable:,} of {item.coverage.examples:,}" if known else "not known"
        failed = f" ({item.failed} failed explanations, scored as an empty one)" if item.failed else ""
        parts.append(f"{item.title} {share}{failed}")
    return f"{answers_title(result.metric)}: {'; '.join(parts)}."


def _mcnemar(pairs: list[PairResult], alpha: float) -> str:
    tests = sum(pair.mcnemar.tested for pair in pairs if pair.mcnemar)
    found = "; ".join(
        f"{pair.title_a} and {pair.title_b} on {pair.mcnemar.significant}" for pair in pairs if pair.mcnemar
    )
    return (
        f"Latents on which a pair differs by itself (exact McNemar on one example per document, Holm over {tests} "
        f"tests of latents and pairs, level {alpha:g}): {found}."
    )
