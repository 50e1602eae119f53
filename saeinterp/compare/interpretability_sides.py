"""The sides of a comparison of interpretability: enrichments by SAE training, and which layers face each other.

The surprising choice: layers are matched by relative depth, (layer + 1) / blocks, never by number: layer 8 of 16 blocks
faces layer 5 of 12, and a comparison by number would hold a middle layer against a late one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import polars as pl

from saeinterp.artifacts import Artifact, read_json
from saeinterp.compare.comparability import Node, flatten, lineage
from saeinterp.errors import ConfigError
from saeinterp.ids import layer_of


class Site(NamedTuple):
    """One SAE of a model: hookpoint, position slot (None: all positions) with its title, dictionary size, k."""

    hookpoint: str
    position: int | None
    title: str
    latents: int
    k: int

    @property
    def layer(self) -> int:
        """The block."""
        return layer_of(self.hookpoint)


class Associated(NamedTuple):
    """One enrichment artifact, read.

    Attributes:
        artifact: The artifact.
        node: The same as the root of its lineage.
        behind: Kind to the artifacts it was made from, nearest first.
        seed: Training seed of its SAEs; None where they were not trained here, or not alike.
        sites: Its SAEs; the index is `site` of the draws.
        rates: Rows of `rates.json`, all presets.
        draws: Per preset the counts per draw and site.
    """

    artifact: Artifact
    node: Node
    behind: Mapping[str, Sequence[Node]]
    seed: int | None
    sites: tuple[Site, ...]
    rates: Sequence[Mapping[str, Any]]
    draws: Mapping[str, pl.DataFrame]

    @property
    def presets(self) -> tuple[str, ...]:
        """The presets in order."""
        return tuple(self.draws)

    def first(self, kind: str) -> Node | None:
        """The nearest artifact of a kind behind it."""
        return next(iter(self.behind.get(kind, ())), None)

    @property
    def subject(self) -> Node | None:
        """The model."""
        return self.first("subject")

    @property
    def blocks(self) -> int | None:
        """How many blocks the model has."""
        subject = self.subject
        count = subject.manifest.get("counts", {}).get("num_layers") if subject else None
        return None if count is None else int(count)

    @property
    def hookpoints(self) -> dict[str, int]:
        """Hookpoint to its block, from the first block on."""
        found = {site.hookpoint: site.layer for site in self.sites}
        return dict(sorted(found.items(), key=lambda item: item[1]))


class LayerPair(NamedTuple):
    """A layer of side a and the layer of side b at the same relative depth."""

    a: str
    b: str

    @property
    def shown(self) -> str:
        """One name where both are called alike."""
        return self.a if self.a == self.b else f"{self.a} and {self.b}"


def read_associated(artifact: Artifact) -> Associated:
    """Read `rates.json` and the draws of an enrichment artifact."""
    rates = read_json(artifact.file("rates.json"))["rates"]
    presets = list(dict.fromkeys(row["preset"] for row in rates))
    node = lineage(artifact)
    behind = _behind(node)
    seeds = {flatten(sae.config).get("training.seed") for sae in behind.get("sae", ())}
    return Associated(
        artifact=artifact,
        node=node,
        behind=behind,
        seed=seeds.pop() if len(seeds) == 1 else None,
        sites=tuple(site for activity in node.inputs("activity") for site in _sites(activity)),
        rates=rates,
        draws={preset: pl.read_parquet(artifact.file(f"draws-{preset}.parquet")) for preset in presets},
    )


def _behind(node: Node) -> dict[str, list[Node]]:
    """Every ancestor by kind, in one walk: a model may have hundreds of SAEs."""
    found: dict[str, list[Node]] = {}
    queue, seen = node.inputs(), {node.recipe}
    while queue:
        item = queue.pop(0)
        if item.recipe not in seen:
            seen.add(item.recipe)
            found.setdefault(item.kind, []).append(item)
            queue += item.inputs()
    return found


def _sites(activity: Node) -> list[Site]:
    facts = read_json(activity.artifact.file("activity.json"))["sites"]
    return [Site(item["hookpoint"], item["slot"], item["title"], item["latents"], item["k"]) for item in facts]


def read_trainings(artifacts: Sequence[Artifact], *, side: str) -> list[Associated]:
    """Read one side: one artifact per SAE training, ordered by seed.

    Raises:
        ConfigError: None is given, they are of several models, of different layers or positions, or one training comes
            twice.
    """
    found = [read_associated(artifact) for artifact in artifacts]
    if not found:
        raise ConfigError("no enrichment is given", field=f"side {side}", expected="one artifact per SAE training")
    models = {item.subject.id: None for item in found if item.subject}
    if len(models) > 1:
        raise ConfigError(
            "the enrichments of one side are of several models",
            field=f"side {side}",
            got=", ".join(models),
            expected="one model per side",
        )
    sites = {tuple((site.hookpoint, site.position) for site in item.sites) for item in found}
    if len(sites) > 1:
        raise ConfigError(
            "the SAE trainings of one side are not at the same layers and positions",
            field=f"side {side}",
            got=", ".join(item.artifact.id for item in found),
            expected="the same sites in each",
        )
    seeds = [item.seed for item in found]
    if len(set(seeds)) < len(seeds):
        raise ConfigError(
            "one SAE training comes twice on one side",
            field=f"side {side}",
            got=f"seeds {', '.join('not known' if seed is None else str(seed) for seed in seeds)}",
            expected="one enrichment per training seed",
        )
    return sorted(found, key=lambda item: -1 if item.seed is None else item.seed)


def depths(side: Associated) -> dict[str, float] | None:
    """Hookpoint to (block + 1) / blocks; None where the number of blocks is not known."""
    if side.blocks is None:
        return None
    return {hookpoint: (layer + 1) / side.blocks for hookpoint, layer in side.hookpoints.items()}


def layer_pairs(a: Associated, b: Associated) -> list[LayerPair]:
    """Layers at the same relative depth, within half a block of the shallower model; by name where that is not known.

    Each layer is in one pair at most; layers without a counterpart are left out.
    """
    left, right = depths(a), depths(b)
    if left is None or right is None:
        return [LayerPair(hookpoint, hookpoint) for hookpoint in a.hookpoints if hookpoint in b.hookpoints]
    tolerance = depth_tolerance(a, b)
    pairs = []
    free = dict(right)
    for hookpoint, depth in left.items():
        near = min(free, key=lambda name: (abs(free[name] - depth), name != hookpoint), default=None)
        if near is not None and abs(free[near] - depth) <= tolerance:
            pairs.append(LayerPair(hookpoint, near))
            del free[near]
    return pairs


def depth_tolerance(a: Associated, b: Associated) -> float:
    """Half a block of the shallower model, as a share of its depth."""
    return 0.5 / min(a.blocks or 1, b.blocks or 1) + 1e-9


def position_slots(a: Associated, b: Associated) -> list[tuple[int | None, str]]:
    """Position slots that both sides have, with the title of side a."""
    both = {site.position for site in b.sites}
    titles = {site.position: site.title for site in a.sites if site.position in both}
    return sorted(titles.items(), key=lambda item: -1 if item[0] is None else item[0])
