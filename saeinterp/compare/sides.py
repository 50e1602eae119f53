"""The sides of a comparison of models: health artifacts sorted by layer, dataset, SAE recipe and training seed.

What an artifact is comes from the manifests behind it, not from its name. The surprising choice: two SAEs are
"one recipe, other seeds" when everything that trained them is equal but `training.seed`, the text of the
training corpus included and its tokenizer excluded; a side may hold several recipes, which is a sweep.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from saeinterp.artifacts import Artifact
from saeinterp.compare.comparability import Node, flatten, lineage
from saeinterp.errors import ConfigError
from saeinterp.health import DocumentSums, read_health
from saeinterp.health.documents import Floats

Side = Literal["a", "b"]
DATASET = "held-out"
"""The dataset of a health artifact that names none."""
MIN_SEEDS = 3
"""SAE training seeds a side needs at a layer before anything is said of the models."""

# What changes no SAE beyond its rounding, or belongs to one side's model.
_NO_RECIPE = {"training.seed", "capture.hookpoints", "capture.dtype", "capture.batch_contexts", "capture.splits"}


class LayerHealth(NamedTuple):
    """One health artifact, read.

    Attributes:
        values: `health.json`.
        documents: Its document sums; documents that both sides evaluated have equal numbers.
        scored_bytes: Bytes [D] behind each document's predictions, 0 where only one side has the document. Given
            where the sides tokenise differently, else None.
    """

    values: Mapping[str, Any]
    documents: DocumentSums
    scored_bytes: Floats | None = None

    @classmethod
    def read(cls, artifact: Artifact) -> LayerHealth:
        """Read `health.json` and `documents.parquet`."""
        return cls(read_health(artifact), DocumentSums.read(artifact.file("documents.parquet")))


class MeasuredSae(NamedTuple):
    """One SAE of a side, measured on one dataset.

    Attributes:
        artifact: Its health.
        node: The artifact as the root of its lineage.
        hookpoint: Where it sits; `layer` is the block, None where a name has none.
        dataset: Name of the text it was measured on.
        seed: Training seed; None where the SAE was not trained here.
        recipe: Dotted settings that trained it, but for the seed.
        health: What was measured.
    """

    artifact: Artifact
    node: Node
    hookpoint: str
    layer: int | None
    dataset: str
    seed: int | None
    recipe: Mapping[str, Any]
    health: LayerHealth


class Place(NamedTuple):
    """What is compared: one hookpoint on one dataset, and the SAE recipe where a side has several."""

    hookpoint: str
    dataset: str = DATASET
    recipe: str = ""

    @property
    def id(self) -> str:
        """`layers.9@held-out`, `layers.9@held-out[k=16]`: the end of a sentence's id."""
        return f"{self.hookpoint}@{self.dataset}" + (f"[{self.recipe}]" if self.recipe else "")

    def shown(self, *, datasets: int) -> str:
        """In sentences; a dataset is named where there are several."""
        parts = [self.hookpoint, self.dataset if datasets > 1 else "", self.recipe]
        return ", ".join(part for part in parts if part)


def read_side(artifacts: Sequence[Artifact], *, side: str) -> list[MeasuredSae]:
    """Read one side.

    Raises:
        ConfigError: The SAEs are of several models, or one SAE comes twice for a dataset.
    """
    found = [_measured(artifact) for artifact in artifacts]
    subjects = {node.id: None for sae in found if (node := input_of(sae.node, "subject"))}
    if len(subjects) > 1:
        raise ConfigError(
            "the SAEs of one side are of several models",
            field=f"side {side}",
            got=", ".join(subjects),
            expected="one model per side",
        )
    seen: set[tuple[Any, ...]] = set()
    for sae in found:
        key = (sae.hookpoint, sae.dataset, sae.seed, tuple(sorted((k, str(v)) for k, v in sae.recipe.items())))
        if key in seen:
            raise ConfigError(
                "a hookpoint comes twice on one side, with one dataset, SAE recipe and training seed",
                field=f"side {side}",
                got=f"{sae.hookpoint} on {sae.dataset}",
                expected="one health artifact for each of these",
            )
        seen.add(key)
    return found


def places(*sides: Sequence[MeasuredSae]) -> list[dict[Place, tuple[MeasuredSae, ...]]]:
    """Each side's SAEs by place, those of one place ordered by seed.

    A recipe is named by the settings that vary within a side at its hookpoint. What only tells the sides apart is
    no part of the name, so that equal steps of two sweeps meet in one place.
    """
    varying: dict[str, list[str]] = {}
    for side in sides:
        recipes: dict[str, list[Mapping[str, Any]]] = {}
        for sae in side:
            recipes.setdefault(sae.hookpoint, []).append(sae.recipe)
        for hookpoint, some in recipes.items():
            known = varying.setdefault(hookpoint, [])
            known += [key for key in _varying(some) if key not in known]
    found = []
    for side in sides:
        sorted_side: dict[Place, list[MeasuredSae]] = {}
        for sae in side:
            label = recipe_label(sae.recipe, varying[sae.hookpoint])
            sorted_side.setdefault(Place(sae.hookpoint, sae.dataset, label), []).append(sae)
        found.append({place: tuple(sorted(saes, key=_by_seed)) for place, saes in sorted_side.items()})
    return found


def ordered(*sides: Mapping[Place, Sequence[MeasuredSae]]) -> list[Place]:
    """Every place once: by dataset as they come, then by layer, then by recipe as they come."""
    layers: dict[Place, int] = {}
    for side in sides:
        for place, saes in side.items():
            layers.setdefault(place, saes[0].layer or 0)
    datasets = list(dict.fromkeys(place.dataset for place in layers))
    recipes = list(dict.fromkeys(place.recipe for place in layers))
    return sorted(
        layers,
        key=lambda place: (
            datasets.index(place.dataset),
            layers[place],
            place.hookpoint,
            recipes.index(place.recipe),
        ),
    )


def recipe_label(recipe: Mapping[str, Any], keys: Sequence[str]) -> str:
    """Some settings of a recipe, such as `k=16, num_latents=400`."""
    return ", ".join(f"{_short(key)}={shown_value(recipe.get(key))}" for key in keys)


def shown_value(value: object) -> str:
    """A setting in words; sources of text by their titles."""
    if isinstance(value, list | tuple):
        return "+".join(str(item.get("title", item)) if isinstance(item, Mapping) else str(item) for item in value)
    return "not known" if value is None else str(value)


def saes_words(a: Iterable[int], b: Iterable[int], *, names: tuple[str, str]) -> str:
    """`one SAE each`, `3 SAEs each`, or how many each side has over the compared layers."""
    left, right = sorted(set(a)), sorted(set(b))
    words = {1: "one SAE", 2: "two SAEs"}

    def count(numbers: Sequence[int]) -> str:
        if len(numbers) == 1:
            return words.get(numbers[0], f"{numbers[0]} SAEs")
        return f"{numbers[0]} to {numbers[-1]} SAEs"

    return f"{count(left)} each" if left == right else f"{count(left)} of {names[0]}, {count(right)} of {names[1]}"


def input_of(node: Node, kind: str) -> Node | None:
    """The first direct input of one kind."""
    return next(iter(node.inputs(kind)), None)


def training_text(node: Node) -> Node | None:
    """The corpus whose training split a health artifact's SAE learned from."""
    activations = input_of(node, "activations")
    return input_of(activations, "corpus") if activations else None


def _measured(artifact: Artifact) -> MeasuredSae:
    node = lineage(artifact)
    health = LayerHealth.read(artifact)
    sae = input_of(node, "sae")
    settings = flatten(sae.config) if sae else {}
    recipe = {key: value for key, value in settings.items() if key.startswith(("training.", "stream."))}
    if sae and not recipe:
        recipe = {"SAE": sae.id}
    for prefix, origin in (("capture", input_of(node, "activations")), ("text", training_text(node))):
        recipe |= {f"{prefix}.{key}": value for key, value in flatten(origin.config if origin else {}).items()}
    return MeasuredSae(
        artifact=artifact,
        node=node,
        hookpoint=str(health.values["hookpoint"]),
        layer=health.values["layer"],
        dataset=str(health.values.get("dataset") or DATASET),
        seed=settings.get("training.seed"),
        recipe={key: value for key, value in recipe.items() if key not in _NO_RECIPE},
        health=health,
    )


def _varying(recipes: Sequence[Mapping[str, Any]]) -> list[str]:
    keys = dict.fromkeys(key for recipe in recipes for key in recipe)
    return [key for key in keys if any(recipe.get(key) != recipes[0].get(key) for recipe in recipes)]


def _by_seed(sae: MeasuredSae) -> tuple[int, str]:
    return (-1 if sae.seed is None else sae.seed, sae.artifact.id)


def _short(key: str) -> str:
    prefix, _, rest = key.partition(".")
    return rest if prefix == "training" else key.replace(".", " ")
