"""Where in a problem activations are taken: selectors such as `even:6@cot`, and the tokens they choose.

A selector has a fixed number of *slots*, one SAE each; slot j of a problem is one token, or none where the problem has
no such place. The surprising choice: a place past the end is never moved to the nearest token, which would fill a slot
with tokens of another kind; the problem simply takes no part there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from saeinterp.errors import ConfigError
from saeinterp.ids import site_name

_SELECTORS = re.compile(r"(all|last|even|token|latent)(?::(\d+))?(?:@(cot|bot))?")
_FORMS = {
    "all": (False, (None, "cot")),
    "last": (True, (None, "cot")),
    "even": (True, ("cot",)),
    "token": (True, (None,)),
    "latent": (True, (None, "bot")),
}


class Selector(NamedTuple):
    """A selector, read.

    Attributes:
        kind: What it counts.
        number: Slots of `last`, `even` and `latent`, the id of `token`, 0 for `all`.
        part: `cot` keeps to the reasoning, `bot` begins at the token before the first thought.
    """

    kind: Literal["all", "last", "even", "token", "latent"]
    number: int
    part: Literal["cot", "bot"] | None

    @property
    def slots(self) -> int | None:
        """How many places it chooses in a problem; None for every token."""
        if self.kind == "all":
            return None
        return 1 if self.kind == "token" else self.number

    @property
    def titles(self) -> list[str]:
        """A title for each slot, for reports; one for `all`."""
        reasoning = " of the reasoning" if self.part == "cot" else ""
        if self.kind == "all":
            return [f"every token{reasoning}"]
        if self.kind == "token":
            return [f"token {self.number}"]
        if self.kind == "even":
            return [f"reasoning {slot + 1}/{self.number}" for slot in range(self.number)]
        if self.kind == "last":
            return [f"{_from_end(back)}{reasoning}" for back in range(self.number, 0, -1)]
        thoughts = [f"thought {slot}" for slot in range(1, self.number + 1)]
        return ["BOT", *thoughts[:-1]] if self.part == "bot" else thoughts


def parse_select(select: str) -> Selector:
    """Read a selector.

    Raises:
        ConfigError: It is none.
    """
    match = _SELECTORS.fullmatch(select)
    kind, number, part = match.groups() if match is not None else ("", None, None)
    numbered, parts = _FORMS.get(kind, (False, ()))
    if part not in parts or (number is not None) != numbered or (kind != "token" and number == "0"):
        raise ConfigError(
            "no such selector",
            field="positions.select",
            got=select,
            expected="all, all@cot, last:n, last:n@cot, even:n@cot, token:ID, latent:n or latent:n@bot",
        )
    return Selector(kind, int(number or 0), part)  # type: ignore[arg-type]


def site_names(hookpoints: Sequence[str], select: str) -> list[str]:
    """The sites of a selector: every slot of every hookpoint, or the hookpoints themselves for `all`.

    Raises:
        ConfigError: No such selector.
    """
    slots = parse_select(select).slots
    numbers = [None] if slots is None else range(slots)
    return [site_name(hookpoint, slot) for hookpoint in hookpoints for slot in numbers]


def places(selector: Selector, token_ids: np.ndarray, *, cot: range) -> list[np.ndarray]:
    """The tokens that a selector chooses in one problem.

    Args:
        selector: One that chooses tokens: not `latent`.
        token_ids: `[T]`, the whole problem.
        cot: The tokens of its reasoning.

    Returns:
        Per slot the chosen indices, int32: one, or none where the problem has no such place; for `all` a single array
        of all of them.
    """
    within = cot if selector.part == "cot" else range(len(token_ids))
    if selector.kind == "all":
        return [np.arange(within.start, within.stop, dtype=np.int32)]
    if selector.kind == "token":
        found = np.flatnonzero(token_ids == selector.number)
        chosen: list[int | None] = [int(found[-1]) if len(found) else None]
    elif selector.kind == "last":
        chosen = [within[-back] if back <= len(within) else None for back in range(selector.number, 0, -1)]
    elif selector.kind == "even":
        count, length = selector.number, len(within)
        # The middles of n equal parts: (j + 1/2) * L / n, in whole numbers.
        chosen = [within[(2 * slot + 1) * length // (2 * count)] if length >= count else None for slot in range(count)]
    else:
        raise AssertionError(f"{selector.kind} chooses no tokens")
    return [np.array([index] if index is not None else [], np.int32) for index in chosen]


def _from_end(back: int) -> str:
    return "last token" if back == 1 else f"token {back} from the end"
