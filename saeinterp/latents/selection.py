"""Which latents are studied: a range, a list, a seeded sample of the alive, or all."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from saeinterp.errors import ConfigError

_FORMS = "'10:21', a list such as [3, 17], 'sample:N' or 'all'"


def select_latents(wanted: str | Sequence[int], *, alive: np.ndarray, seed: int) -> list[int]:
    """The latents to study, ascending.

    Args:
        wanted: `"10:21"` (10 to 20), a list of indices, `"sample:N"` or `"all"`. A sample is uniform over the
            alive latents and seeded; when fewer than N are alive it is all of them.
        alive: `[M]` bool, True where the latent fired on the explain split.
        seed: Of the sample.

    Raises:
        ConfigError: Another form, an empty range, or an index outside the dictionary.
    """
    size = len(alive)
    if not isinstance(wanted, str):
        chosen = sorted(set(wanted))
    elif wanted == "all":
        return list(range(size))
    elif match := re.fullmatch(r"(\d+):(\d+)", wanted):
        chosen = list(range(int(match[1]), int(match[2])))
    elif match := re.fullmatch(r"sample:(\d+)", wanted):
        candidates = np.flatnonzero(alive)
        count = min(int(match[1]), len(candidates))
        picked = np.random.default_rng(seed).choice(candidates, size=count, replace=False)
        return sorted(int(latent) for latent in picked)
    else:
        raise ConfigError("not a selection of latents", field="examples.latents", got=wanted, expected=_FORMS)
    if not chosen:
        raise ConfigError("selects no latent", field="examples.latents", got=wanted, expected=_FORMS)
    outside = [latent for latent in chosen if not 0 <= latent < size]
    if outside:
        raise ConfigError(
            "index outside the dictionary",
            field="examples.latents",
            got=outside[0],
            expected=f"0 to {size - 1}",
            next_step="check it against training.num_latents",
        )
    return chosen
