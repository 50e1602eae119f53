"""Which latents are studied: a range, a list, a seeded sample of the alive, or all."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

import numpy as np

from saeinterp.errors import ConfigError, DataError

log = logging.getLogger(__name__)

_FORMS = "'10:21', a list such as [3, 17], 'sample:N' or 'all'"


def select_latents(wanted: str | Sequence[int], *, alive: np.ndarray, seed: int) -> list[int]:
    """The latents to study, ascending.

    Args:
        wanted: `"10:21"` (10 to 20), a list of indices, `"sample:N"` or `"all"`. A sample is uniform over the
            alive latents and seeded; when fewer than N are alive it is all of them, and a warning says so.
        alive: `[M]` bool, True where the latent fired on the explain split.
        seed: Of the sample.

    Raises:
        ConfigError: Another form, an empty range or sample, or an index outside the dictionary.
        DataError: A sample is wanted and no latent is alive.
    """
    size = len(alive)
    chosen: Sequence[int]
    if not isinstance(wanted, str):
        chosen = sorted(set(wanted))
    elif wanted == "all":
        return list(range(size))
    elif match := re.fullmatch(r"(\d+):(\d+)", wanted):
        chosen = range(int(match[1]), int(match[2]))
    elif match := re.fullmatch(r"sample:(\d+)", wanted):
        chosen = _sample(int(match[1]), alive=alive, seed=seed)
    else:
        raise ConfigError("not a selection of latents", field="examples.latents", got=wanted, expected=_FORMS)
    if not chosen:
        raise ConfigError("selects no latent", field="examples.latents", got=wanted, expected=_FORMS)
    outside = next((latent for latent in chosen if not 0 <= latent < size), None)
    if outside is not None:
        raise ConfigError(
            "index outside the dictionary",
            field="examples.latents",
            got=outside,
            expected=f"0 to {size - 1}",
            next_step="check it against training.num_latents",
        )
    return list(chosen)


def _sample(wanted: int, *, alive: np.ndarray, seed: int) -> list[int]:
    candidates = np.flatnonzero(alive)
    if not len(candidates):
        raise DataError(
            "no latent fires on the explain split",
            field="examples.latents",
            got=f"sample:{wanted}",
            expected="latents that are alive",
            next_step="train longer or with another configuration; 'all' lists every latent as dead",
        )
    count = min(wanted, len(candidates))
    if count < wanted:
        log.warning("examples.latents asks for %d latents; only %d fire on the explain split", wanted, count)
    picked = np.random.default_rng(seed).choice(candidates, size=count, replace=False)
    return sorted(int(latent) for latent in picked)
