"""Labels of latents by a published analysis's rules, and the rates it reports.

The surprising choice: the labels are reproduced to the letter, so that the null beside them speaks of the same thing.
Of latents that have nothing to do with the tokens they call three of four interpretable ones monosemantic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import polars as pl

from saeinterp.enrichment.concepts import category

STRONG = 5.0
"""Enrichment from which on a latent is called after its first token alone."""
ALIKE = 3
"""So many first tokens of one category make a label too."""

LABEL_SCHEMA: dict[str, pl.DataType] = {
    "latent": pl.Int32(),
    "label": pl.String(),
    "kind": pl.String(),
    "category": pl.String(),
    "monosemantic": pl.Boolean(),
    "pairs": pl.Int32(),
    "enrichment": pl.Float64(),
}


class Rates(NamedTuple):
    """Rates over latents; None where nothing is in the denominator.

    Attributes:
        latents: All of them.
        interpretable: Latents with a kept pair.
        monosemantic: Of those, the ones with a label of their own.
        in_category: Of those, per category, the ones whose first token is of it.
    """

    latents: int
    interpretable: int
    monosemantic: int
    in_category: dict[str, int]

    @property
    def interpretable_rate(self) -> float | None:
        """Interpretable latents over all."""
        return self.interpretable / self.latents if self.latents else None

    @property
    def monosemantic_rate(self) -> float | None:
        """Monosemantic over interpretable latents."""
        return self.monosemantic / self.interpretable if self.interpretable else None

    def category_rate(self, name: str) -> float | None:
        """Latents whose first token is of a category, over interpretable ones."""
        return self.in_category.get(name, 0) / self.interpretable if self.interpretable else None


def published_labels(
    associations: pl.DataFrame, vocabulary: Sequence[str], *, category_of: Callable[[str], str] = category
) -> pl.DataFrame:
    """The label of every latent with a kept pair, ascending by latent.

    By its pairs from the largest enrichment on: the first at 5 or more gives `number_210`; three of one category
    `numbers_2_4_8`; an operator and a number `composite_*_12`; anything else is polysemantic.

    Args:
        associations: `associate(..., preset="seed-gsm8k-chi2")`.
        vocabulary: The token of each column.
        category_of: A token's category.
    """
    kept = (
        associations.filter("kept")
        .sort(["latent", "enrichment", "token"], descending=[False, True, False])
        .group_by("latent", maintain_order=True)
        .agg(pl.col("token").head(ALIKE), pl.col("enrichment").first(), pairs=pl.len())
    )
    categories = [category_of(token) for token in vocabulary]
    rows = []
    for latent, tokens, enrichment, pairs in kept.iter_rows():
        names, kinds = [vocabulary[token] for token in tokens], [categories[token] for token in tokens]
        label, kind = _label(names, kinds, enrichment)
        rows.append((latent, label, kind, kinds[0], kind != "polysemantic", pairs, enrichment))
    return pl.DataFrame(rows, schema=LABEL_SCHEMA, orient="row")


def published_rates(labels: pl.DataFrame, *, latents: int) -> Rates:
    """The rates of a table of labels."""
    counts = dict(labels["category"].value_counts().iter_rows())
    return Rates(latents, labels.height, int(labels["monosemantic"].sum()), dict(sorted(counts.items())))


def _label(names: Sequence[str], kinds: Sequence[str], enrichment: float) -> tuple[str, str]:
    if enrichment >= STRONG:
        return f"{kinds[0]}_{names[0]}", "specific"
    if len(kinds) >= ALIKE and len(set(kinds)) == 1:
        return f"{kinds[0]}s_{'_'.join(names)}", "range"
    if set(kinds[:2]) == {"number", "operator"}:
        return f"composite_{names[0]}_{names[1]}", "composite"
    return "polysemantic", "polysemantic"
