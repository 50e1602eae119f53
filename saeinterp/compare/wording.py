"""The sentences of an explainer comparison, each generated from the numbers stored beside it.

The surprising choice: this module sees only the finished result, never the data, so a sentence cannot say
what the file does not hold.
"""

from __future__ import annotations

from collections.abc import Iterable

from saeinterp.compare.results import CoverageResult, ExplainerComparison, MetricResult, PairedResult, Sentence
from saeinterp.stats import number, p_text, paired_sentence, signed

TITLES = {
    "f1": "F1",
    "precision": "precision",
    "recall": "recall",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "mcc": "MCC",
    "auroc": "AUROC",
    "correlation": "correlation",
    "frequency_weighted_f1": "frequency-weighted F1",
    "pooled_auroc": "pooled AUROC",
}
DESCRIPTIONS = {
    "f1": "2 TP / (2 TP + FP + FN); depends on class balance, so read it beside always-yes",
    "precision": "TP / (TP + FP); 0 when nothing was called a match",
    "recall": "TP / (TP + FN)",
    "accuracy": "(TP + TN) / all; depends on class balance, so read it beside always-yes",
    "balanced_accuracy": "(TPR + TNR) / 2; chance is 0.5",
    "mcc": "Matthews correlation coefficient; chance is 0, and 0 when every answer is the same",
    "auroc": "P(a true example gets a higher probability than a false one), within a latent; chance is 0.5",
    "correlation": "Pearson correlation of simulated and true activations over a latent's tokens; chance is 0, and 0 "
    "when all predictions are the same",
    "frequency_weighted_f1": "sum of F1 times firings over sum of firings",
    "pooled_auroc": "AUROC over the examples of all latents thrown together; not the mean of within-latent AUROCs",
}
CONTROL_DESCRIPTIONS = {
    "permuted": "another latent's explanation",
    "empty": "no explanation",
    "always-yes": 'the answer "match" to every example',
}
STATUS_WORDS = {
    "too_rare": "too rare",
    "too_dense": "too dense",
    "dead": "dead",
    "explanation_failed": "with a failed explanation",
    "not_scored": "without a value",
}
SELF_SCORED = (
    "Two things changed at once: each explainer was judged by its own model, so a difference may come from the "
    "explainer or from its judge."
)


def macro_title(metric: str) -> str:
    """The name of a per-latent metric in sentences: `per-latent F1, averaged over latents`."""
    return f"per-latent {TITLES[metric]}, averaged over latents"


def answers_title(metric: str) -> str:
    """What a scorer's usable answers are called."""
    return "Windows predicted" if metric == "correlation" else "Usable verdicts"


def primary_sentence(paired: PairedResult, *, title_a: str, title_b: str, metric: str, pairs: int = 1) -> str:
    """The sentence of the primary endpoint; of one pair among several it says that it is not adjusted."""
    text = paired_sentence(paired, title_a=title_a, title_b=title_b, metric=macro_title(metric))
    return text if pairs == 1 else f"{text} One of {pairs} pairs: p is before adjustment."


def sentences(result: ExplainerComparison) -> list[Sentence]:
    """Every sentence that follows from a comparison, the primary one first."""
    metric = macro_title(result.metric)
    said = [Sentence(id="primary", text=result.sentence)]
    if not result.matched:
        broken = [row.field for row in result.comparability if row.severity == "hard" and not row.ok]
        text = f"The sides are not matched: they differ in {', '.join(broken)}; the difference may come from that."
        said.insert(0, Sentence(id="unmatched", text=text))
    if result.self_scored:
        said.insert(0, Sentence(id="self_scored", text=SELF_SCORED))
    said += _soft(result)
    if result.complete_pairs is not None and result.complete_pairs.n != result.primary.n:
        complete = primary_sentence(
            result.complete_pairs, title_a=result.title_a, title_b=result.title_b, metric=result.metric
        )
        text = f"Only latents explained on both sides (secondary): {complete}"
        said.append(Sentence(id="complete_pairs", text=text))
    for control in result.controls:
        for side, paired in (("a", control.against_a), ("b", control.against_b)):
            title = result.title_a if side == "a" else result.title_b
            if control.name == title:
                continue
            text = paired_sentence(paired, title_a=control.title, title_b=title, metric=metric)
            said.append(Sentence(id=f"control.{control.name}.{side}", text=text))
    if result.floor is not None:
        floor, other = result.title_a, result.title_b
        if result.floor == "b":
            floor, other = other, floor
        said.append(Sentence(id="floor", text=f"{floor} uses no model: it is the floor that {other} has to beat."))
    said.append(Sentence(id="latents", text=_latents(result)))
    said.append(Sentence(id="coverage", text=_coverage(result)))
    said += [Sentence(id=f"micro.{item.name}", text=text) for item, text in _micro(result.metrics)]
    if result.verdicts is not None:
        v = result.verdicts
        text = (
            f"Of {v.examples:,} examples judged on both sides, {v.only_a:,} were right only with {result.title_a} and "
            f"{v.only_b:,} only with {result.title_b} (signs flipped per latent, {p_text(v.p_value)}, "
            f"n = {v.latents} latents)."
        )
        said.append(Sentence(id="verdicts", text=text))
    if result.mcnemar is not None:
        m = result.mcnemar
        text = (
            f"{m.significant} of {m.tested} latents differ by themselves (exact McNemar on one example per document, "
            f"{m.examples:,} examples, Holm over {m.tested} latents, level {result.alpha:g})."
        )
        said.append(Sentence(id="mcnemar", text=text))
    families = "; ".join(f"{family.name}: {family.tests} ({family.adjustment})" for family in result.families)
    said.append(Sentence(id="families", text=f"Tests by family, with their adjustment: {families}."))
    return said


def _soft(result: ExplainerComparison) -> Iterable[Sentence]:
    for row in result.comparability:
        if row.severity == "soft" and not row.ok:
            text = f"{row.field}: {row.a} and {row.b}" + (f" ({row.note})." if row.note else ".")
            yield Sentence(id=f"soft.{row.field.replace(' ', '_')}", text=text[0].upper() + text[1:])


def _latents(result: ExplainerComparison) -> str:
    text = f"Of {result.n_selected} selected latents {result.n_scored} were scored"
    counts = []
    for status in result.statuses:
        if status.status == "scored" or not (status.a or status.b):
            continue
        words = STATUS_WORDS.get(status.status, status.status)
        many = (
            f"{status.a}"
            if status.a == status.b
            else f"{status.a} ({result.title_a}) and {status.b} ({result.title_b})"
        )
        counts.append(f"{many} {words}")
    text += f"; {', '.join(counts)}" if counts else ""
    if any(status.status == "explanation_failed" and (status.a or status.b) for status in result.statuses):
        text += ". A failed explanation scores as an empty one does"
    if result.n_latents < result.n_scored:
        text += f". On {result.n_scored - result.n_latents} of them the metric is undefined on a side"
    if result.unmatched:
        text += f". {len(result.unmatched)} latent(s) that only one side has are left out"
    return f"{text}."


def _coverage(result: ExplainerComparison) -> str:
    parts = [_share(result.title_a, result.coverage_a), _share(result.title_b, result.coverage_b)]
    if result.coverage_a.share is None and result.coverage_b.share is None:
        return "How many verdicts were usable is not known."
    text = f"{answers_title(result.metric)}: {'; '.join(parts)}."
    bounds = next(item for item in result.metrics if item.primary).bounds
    unusable = sum(side.examples - side.usable for side in (result.coverage_a, result.coverage_b))
    if unusable and bounds.difference_low is not None:
        text += (
            f" The worst joint assignment of the {unusable:,} others moves the difference to "
            f"{signed(bounds.difference_low)} or {signed(bounds.difference_high)}."
        )
    return text


def _share(title: str, coverage: CoverageResult) -> str:
    if coverage.share is None:
        return f"{title} not known"
    return f"{title} {coverage.usable:,} of {coverage.examples:,} ({100 * coverage.share:.1f}%)"


def _micro(metrics: Iterable[MetricResult]) -> Iterable[tuple[MetricResult, str]]:
    for item in metrics:
        micro = item.micro
        if not item.primary or micro.p_swap is None:
            continue
        yield (
            item,
            f"Pooled over the examples of all {micro.n} latents, {item.title} is {number(micro.value_a)} and "
            f"{number(micro.value_b)}, difference {signed(micro.difference)} ({micro.method}, {p_text(micro.p_swap)}, "
            f"adjusted {p_text(micro.p_holm)}).",
        )
