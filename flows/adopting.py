"""SAEs that were trained elsewhere, in a flow: looked at before anything is computed, then taken over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from saeinterp.artifacts import Recipe
from saeinterp.config import TrainingConfig
from saeinterp.ids import is_block
from tasks import steps
from tasks.step import Pending


class Adopted(NamedTuple):
    """An SAE on its way into the artifact folder."""

    sae: Pending
    recipe: Recipe


def look_at(saes: Mapping[str, str]) -> None:
    """Refuse folders that hold no SAE.

    Raises:
        DataError: The first that cannot be taken over.
    """
    for hookpoint, folder in saes.items():
        steps.adopt_layer.planned(folder=folder, hookpoint=hookpoint, d_in=None)


def adopt(config: TrainingConfig, hookpoints: Sequence[str], *, width: int | None, side: str) -> dict[str, Adopted]:
    """The SAEs that exist, by hookpoint.

    Args:
        hookpoints: Those that the subject has.
        width: Of its residual stream, where it is known.

    Raises:
        DataError: An SAE has another width. Modules inside a block may have widths of their own: an SAE of theirs is
            refused once their activations are there.
    """
    found = {}
    for hookpoint in hookpoints:
        if hookpoint not in config.saes:
            continue
        d_in = width if is_block(hookpoint) else None
        settings: dict[str, Any] = {"folder": config.saes[hookpoint], "hookpoint": hookpoint, "d_in": d_in}
        recipe = steps.adopt_layer.planned(**settings)
        found[hookpoint] = Adopted(steps.adopt_layer.submit(label=f"{hookpoint} {side}", **settings), recipe)
    return found
