"""Controls: explanations that say nothing, or what is true of another latent.

The surprising choice: a permutation is cyclic, so that no latent can keep its own explanation by chance, and of many
drawn the one is kept that leaves fewest latents with an equal text.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import polars as pl

from saeinterp.artifacts import Artifact, ArtifactStore, Recipe, Ref, Workspace
from saeinterp.explain.explanation_table import KIND, SAMPLE, explanation_row, read_explanations, write_explanations

VERSION = 1

Control = Literal["permuted", "empty"]


def control_explanations_recipe(explanations: Ref, *, control: Control, seed: int) -> Recipe:
    """The recipe of a control."""
    values: dict[str, Any] = {"control": control}
    if control == "permuted":
        values["seed"] = seed
    name = f"{explanations.name}-{control}"
    return Recipe(kind=KIND, name=name, version=VERSION, config=values, inputs=(explanations,))


def control_explanations(explanations: Artifact, *, control: Control, seed: int, store: ArtifactStore) -> Artifact:
    """Replace the explanations by nothing (`empty`) or by those of other latents (`permuted`), one for each latent.

    A permutation leaves no latent its own explanation, and as few as it can an equal text; `reason` names the
    latent a text came from. Latents whose explanation failed stay failed, and so does a single latent, which has
    no other to take from. Of several explanations of a latent the first is taken.
    """
    recipe = control_explanations_recipe(explanations, control=control, seed=seed)

    def write(space: Workspace) -> None:
        table = read_explanations(explanations)
        if SAMPLE in table.columns:
            table = table.filter(pl.col(SAMPLE) == 0).drop(SAMPLE)
        if control == "empty":
            rows = [explanation_row(latent, "control", explanation="", explainer="empty") for latent in table["latent"]]
        else:
            rows = _permuted(table, seed=seed)
        write_explanations(space, rows)

    return store.build(recipe, write)


def _permuted(table: pl.DataFrame, *, seed: int) -> list[dict[str, Any]]:
    """Sattolo's algorithm: a uniform cyclic permutation, which has no fixed point."""
    usable = table.filter(pl.col("status") != "failed")
    latents, texts = usable["latent"].to_list(), usable["explanation"].to_list()
    best: list[int] = []
    fewest = len(latents) + 1
    rng = np.random.default_rng(seed)
    for _ in range(100 if len(latents) > 1 else 0):
        order = list(range(len(latents)))
        for index in range(len(order) - 1, 0, -1):
            other = int(rng.integers(index))
            order[index], order[other] = order[other], order[index]
        equal = sum(texts[source] == texts[target] for target, source in enumerate(order))
        if equal < fewest:
            best, fewest = order, equal
        if not equal:
            break
    source_of = {latents[target]: source for target, source in enumerate(best)}
    rows = []
    for latent, status in zip(table["latent"], table["status"]):
        if latent in source_of:
            source = source_of[latent]
            reason = f"explanation of latent {latents[source]}"
            rows.append(
                explanation_row(latent, "control", explanation=texts[source], reason=reason, explainer="permuted")
            )
        else:
            reason = "its own explanation failed" if status == "failed" else "a single explanation cannot be permuted"
            rows.append(explanation_row(latent, "failed", reason=reason, explainer="permuted"))
    return rows
