"""Names of SAEs and latents: `L9_P1_F355` is latent 355 of the SAE at layer 9, position 1.

The position part is absent for SAEs trained on every position (`L9_F355`). A *site* is where an SAE reads: a hookpoint
(`layers.9`), or one position slot of it (`layers.9@1`).
"""

from __future__ import annotations

import re
from typing import NamedTuple

from saeinterp.errors import ConfigError

_LATENT = re.compile(r"L(\d+)(?:_P(\d+))?_F(\d+)")
_HOOKPOINT = re.compile(r"(?:.*\.)?layers\.(\d+)|(?:.*\.)?h\.(\d+)")
_SITE = re.compile(r"([^@]+)(?:@(\d+))?")


class LatentId(NamedTuple):
    """One latent of one SAE: block `layer`, position slot `position` (None = all), index `latent`."""

    layer: int
    position: int | None
    latent: int

    def __str__(self) -> str:
        middle = "" if self.position is None else f"_P{self.position}"
        return f"L{self.layer}{middle}_F{self.latent}"

    @classmethod
    def parse(cls, text: str) -> LatentId:
        """Read `L9_P1_F355` or `L9_F355`; raises `ConfigError` on anything else."""
        match = _LATENT.fullmatch(text)
        if match is None:
            raise ConfigError("not a latent id", got=text, expected="an id such as 'L9_F355' or 'L9_P1_F355'")
        layer, position, latent = match.groups()
        return cls(int(layer), None if position is None else int(position), int(latent))


class SaeId(NamedTuple):
    """One SAE of one model: block `layer`, position slot `position` (None = all)."""

    model: str
    layer: int
    position: int | None = None

    def latent(self, index: int) -> LatentId:
        """The id of this SAE's latent `index`."""
        return LatentId(self.layer, self.position, index)


class Site(NamedTuple):
    """Where an SAE reads: a module output, and the position slot there (None = every position)."""

    hookpoint: str
    slot: int | None


def site_name(hookpoint: str, slot: int | None) -> str:
    """The name of a site: `layers.9@1`, or the hookpoint itself for every position."""
    return hookpoint if slot is None else f"{hookpoint}@{slot}"


def parse_site(site: str) -> Site:
    """Read what `site_name` wrote; raises `ConfigError` on anything else."""
    match = _SITE.fullmatch(site)
    if match is None:
        raise ConfigError("not a site", got=site, expected="a hookpoint, or a slot of it such as 'layers.9@1'")
    hookpoint, slot = match.groups()
    return Site(hookpoint, None if slot is None else int(slot))


def layer_of(hookpoint: str) -> int:
    """The block index in the name of a hookpoint or site (`layers.9` -> 9); raises `ConfigError` when it has none."""
    match = _HOOKPOINT.fullmatch(parse_site(hookpoint).hookpoint)
    if match is None:
        raise ConfigError("names no block", field="hookpoint", got=hookpoint, expected="a name such as 'layers.9'")
    return int(match.group(1) or match.group(2))


def is_block(hookpoint: str) -> bool:
    """Whether a hookpoint is a whole block (`layers.9`), whose output is the residual stream."""
    return _HOOKPOINT.fullmatch(hookpoint) is not None
