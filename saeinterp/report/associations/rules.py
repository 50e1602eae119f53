"""The rules of associations in words, from the constants that the code applies and the settings in the recipe.

The surprising choice: nothing here is typed twice. A limit that changes in the code changes in the report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from saeinterp.enrichment import labels, monosemantic, published, robust
from saeinterp.report.values import Setting

_ADJUSTED = {"bh": "Benjamini–Hochberg", "by": "Benjamini–Yekutieli"}


def preset_rules(preset: str, recipes: Sequence[Mapping[str, Any]]) -> tuple[Setting, ...]:
    """What a pair of a latent and a token must pass, and what makes a latent monosemantic.

    Args:
        preset: Key of the rules.
        recipes: Configurations in the recipes of the models' associations; where they differ, each value is named.
    """
    lines = _published() if preset == "seed-gsm8k-chi2" else _robust(recipes)
    return tuple(Setting(field=field, value=value) for field, value in lines.items())


def _robust(recipes: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    used = dict.fromkeys(_ADJUSTED.get(str(item.get("adjustment", "bh")), "not known") for item in recipes)
    return {
        "test": (
            f"one-sided Fisher exact, adjusted by {' or '.join(used)} over the pairs that could be rejected at all, "
            f"q ≤ {robust.RATE:g}"
        ),
        "effect": f"odds ratio above {robust.ODDS:g}, shown at the same rate",
        "tokens": f"in at least {robust.MIN_HOLDING} samples",
        "monosemantic": (
            f"the first token replicates between halves, MCC ≥ {monosemantic.MIN_MCC:g}, "
            f"p ≤ {monosemantic.MOST_CMH_P:g} among samples of equally many steps, more than "
            f"{monosemantic.MIN_SHARE:.0%} of the latent's information and any other token less than "
            f"{monosemantic.MAX_NEXT_SHARE:.0%}"
        ),
    }


def _published() -> dict[str, str]:
    return {
        "test": f"chi-square with Yates' correction, p < {published.LARGEST_P:g}, not adjusted",
        "effect": f"enrichment ≥ {published.MIN_ENRICHMENT:g}",
        "latents": (
            f"active in at least {published.MIN_FIRING} samples; of each the {published.MOST_KEPT} pairs of largest "
            "enrichment are kept"
        ),
        "monosemantic": f"enrichment ≥ {labels.STRONG:g}, or the first {labels.ALIKE} tokens of one category",
    }
