"""The words of a comparison of rates: every sentence follows from stored numbers, and chance is in each.

The surprising choice: no sentence states a difference without what chance gives for it; where no null was computed it
says that instead.
"""

from __future__ import annotations

from collections.abc import Mapping

from saeinterp.compare.interpretability_draws import CATEGORY, OF_INTERPRETABLE
from saeinterp.compare.interpretability_results import Chance, Null, RateDifference, SideRate
from saeinterp.stats import number, p_text, signed

TITLES = {
    "interpretable": "interpretable latents",
    "monosemantic": "monosemantic latents",
    "monosemantic_of_interpretable": "monosemantic among interpretable latents",
}
NULL_WORDS: dict[Null, str] = {"strata": "within strata of tokens per problem", "free": "with problems permuted freely"}


def rate_title(rate: str) -> str:
    """A rate in words."""
    if rate in TITLES:
        return TITLES[rate]
    return f"{is_category(rate)} latents among interpretable ones"


def is_category(rate: str) -> str | None:
    """The category of a category's rate, else None."""
    if not rate.startswith(CATEGORY) or not rate.endswith(OF_INTERPRETABLE):
        return None
    return rate.removeprefix(CATEGORY).removesuffix(OF_INTERPRETABLE)


def share(value: float | None) -> str:
    """`12.3%`."""
    return "n/a" if value is None else f"{number(100 * value, digits=1)}%"


def points(value: float | None) -> str:
    """`+1.2 pp`."""
    return "n/a" if value is None else f"{signed(100 * value, digits=1)} pp"


def points_interval(low: float | None, high: float | None, *, alpha: float) -> str:
    """`95% CI −0.5 to +2.9 pp`."""
    level = f"{100 * (1 - alpha):g}% CI"
    if low is None or high is None:
        return f"no {level}"
    return f"{level} {signed(100 * low, digits=1)} to {points(high)}"


def spread_text(null: Chance) -> str:
    """`75.2% ± 0.9%`."""
    return share(null.mean) if null.sd is None else f"{share(null.mean)} ± {share(null.sd)}"


def chosen_null(nulls: Mapping[Null, Chance]) -> tuple[Null, Chance] | None:
    """The null that decides, with its name: within strata, or where there is none the free one."""
    for kind in NULL_WORDS:
        if kind in nulls and nulls[kind].permutations:
            return kind, nulls[kind]
    return None


def at_chance(rate: str, value: float | None, nulls: Mapping[Null, Chance], alpha: float) -> bool | None:
    """Whether a value is not above its null, of a category not outside of its null's range; None without a null."""
    found = chosen_null(nulls)
    if found is None or found[1].p is None or value is None:
        return None
    null = found[1]
    if is_category(rate) and null.low is not None and null.high is not None:
        return null.low <= value <= null.high
    return found[1].p > alpha


def both_at_chance(row: RateDifference, alpha: float) -> bool:
    """Whether neither rate is distinguishable from its null."""
    return all(at_chance(row.rate, side.value, side.nulls, alpha) for side in (row.a, row.b))


def side_text(side: SideRate) -> str:
    """A rate with its counts, or why there is none."""
    if side.value is None:
        return f"not known ({side.reason})"
    if side.count is not None and side.of is not None:
        return f"{share(side.value)} ({side.count:,} of {side.of:,})"
    return f"{share(side.value)} (mean of {len(side.values)} SAE trainings, sd {share(side.sd)})"


def rate_sentence(row: RateDifference, *, names: tuple[str, str], alpha: float) -> str:
    """One difference in words: both values, the difference and its interval, chance, what follows."""
    head = f"{row.title[:1].upper()}{row.title[1:]} ({row.preset}; {row.where})"
    values = " and ".join(f"{side_text(side)} for {name}" for side, name in zip((row.a, row.b), names))
    if row.difference is None:
        return f"{head}: {values}; no difference is computed."
    parts = [f"{values}, difference {points(row.difference)} ({points_interval(row.low, row.high, alpha=alpha)})"]
    if row.models is not None:
        shown = points_interval(row.models.low, row.models.high, alpha=alpha)
        parts.append(f"with SAE training seeds included {shown}")
    parts.append(_chance_text(row))
    return f"{head}: {'; '.join(parts)}: {_verdict_text(row, names, alpha)}."


def _chance_text(row: RateDifference) -> str:
    found = [chosen_null(side.nulls) for side in (row.a, row.b)]
    if found[0] is None or found[1] is None:
        return "no null was computed, so how much of it is chance is not known"
    kind, left = found[0]
    _, right = found[1]
    if left.mean is None or right.mean is None:
        return f"chance {NULL_WORDS[kind]} leaves too few latents for this rate"
    text = f"chance {NULL_WORDS[kind]} gives {spread_text(left)} and {spread_text(right)}"
    expected = row.by_chance.get(kind)
    if expected is None or expected.mean is None:
        return text
    sd = "" if expected.sd is None else f" ± {number(100 * expected.sd, digits=1)}"
    middle = points(expected.mean).removesuffix(" pp")
    return f"{text}, a difference of {middle}{sd} pp ({p_text(expected.p)})"


def _verdict_text(row: RateDifference, names: tuple[str, str], alpha: float) -> str:
    if row.verdict == "chance" and both_at_chance(row, alpha):
        return f"neither rate is distinguishable from chance ({_ps(row)}), so nothing about the models follows"
    if row.verdict == "chance":
        return "chance gives differences as large, so nothing about the models follows"
    if row.verdict is None:
        return f"not tested ({row.reason})" if row.reason else "not tested"
    if row.verdict == "inconclusive":
        return "no detectable difference"
    text = f"higher for {names[1] if row.higher == 'b' else names[0]}"
    for side, name in zip((row.a, row.b), names):
        found = chosen_null(side.nulls)
        if not is_category(row.rate) and found and found[1].p is not None and found[1].p > alpha:
            text += f"; the rate of {name} is not distinguishable from chance ({p_text(found[1].p)})"
    return text


def _ps(row: RateDifference) -> str:
    if is_category(row.rate):
        return "both lie in the range of 95% of the draws"
    return " and ".join(p_text(found[1].p) for side in (row.a, row.b) if (found := chosen_null(side.nulls)))
