"""Which report a handful of artifacts make: comparisons with the layers behind them, health, grades, associations.

The surprising choice: models are named by what the artifacts say, a comparison's own names first, then the title of
the subject; and the run's configuration, which no artifact holds, is left out rather than guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from saeinterp.artifacts import Artifact, ArtifactStore, open_artifact, read_json
from saeinterp.compare import read_explainer_comparison, read_explainer_pairs
from saeinterp.errors import ArtifactError, ConfigError
from saeinterp.report.format import listing
from saeinterp.report.lineage import Lineage

SINGLE: Mapping[str, tuple[str, ...]] = {
    "explainer_comparison": ("explainer-comparison",),
    "explainer_pairs": ("explainer-pairs",),
    "scorer_agreement": ("scorer-agreement",),
    "model_comparison": ("model-comparison",),
    "review": ("table-review", "score-review"),
    "interpretability": ("interpretability-comparison",),
}
"""Argument of `write_report` to the kinds of which a report has at most one."""
KINDS = (*(kind for kinds in SINGLE.values() for kind in kinds), "health", "grades", "sae", "enrichment", "profiles")
"""Kinds of artifacts that a report is made of."""
UNKNOWN = "model not known"
Sides = dict[str, list[Artifact]]


def compose(artifacts: Sequence[Artifact], *, title: str | None, store: ArtifactStore) -> dict[str, Any]:
    """The arguments of `write_report` for a report of these artifacts.

    A comparison brings what it was made from: the health and SAEs of both models, the associations of both sides, the
    first pair of a ranking; and the profiles that the store holds of its latents.

    Args:
        artifacts: Of the kinds in `KINDS`, of one store.
        title: Heading; default follows from what is compared.

    Raises:
        ConfigError: Two comparisons of one kind, or a pair that is not of the ranking.
        ArtifactError: An artifact behind one of them has been removed.
    """
    lineage = Lineage(store)
    unique = list({item.hash: item for item in artifacts}.values())
    single: dict[str, Artifact | None] = {}
    for name, kinds in SINGLE.items():
        found = [item for item in unique if item.kind in kinds]
        if len(found) > 1:
            raise ConfigError(
                "a report has one of a kind",
                field="DIR",
                got=[item.id for item in found],
                expected=f"one {' or '.join(kinds)}",
                next_step="make a report of each",
            )
        single[name] = found[0] if found else None
    _first_pair(single, lineage)
    models = _Models(lineage)
    health, grades = _of_models(single["model_comparison"], models)
    for item in _kind(unique, "health"):
        models.add(health, models.title(item), item)
    grades |= _graded(single["review"], _kind(unique, "grades"), models)
    saes: Sides = {}
    for side, items in health.items():
        for item in items:
            for sae in lineage.inputs(item, "sae"):
                if sae.exists:
                    models.add(saes, side, sae)
    for item in _kind(unique, "sae"):
        models.add(saes, models.title(item), item)
    enrichment = _of_interpretability(single["interpretability"], models)
    for item in _kind(unique, "enrichment"):
        if item not in enrichment.values():
            enrichment[models.free(models.title(item), enrichment)] = item
    return {
        **single,
        "title": title or _title(single, enrichment),
        "health": health,
        "saes": saes,
        "grades": grades,
        "enrichment": enrichment,
        "profiles": _profiles(single["explainer_comparison"], _kind(unique, "profiles"), lineage, store),
        "failures": (),
        "config": {},
    }


class _Models:
    """Titles of the models that artifacts are of."""

    def __init__(self, lineage: Lineage) -> None:
        self.lineage = lineage
        self._titles: dict[str, str] = {}

    def title(self, item: Artifact) -> str:
        """The title of the subject behind an artifact; another subject of that title gets its recipe too."""
        subject = next(iter(self.lineage.of_kind([item], "subject")), None)
        if subject is None:
            return UNKNOWN
        if subject.hash not in self._titles:
            data = read_json(subject.file("subject.json"))
            name = str(data.get("title") or data["model"])
            taken = name in self._titles.values()
            self._titles[subject.hash] = f"{name} ({subject.hash[:8]})" if taken else name
        return self._titles[subject.hash]

    def add(self, sides: Sides, title: str, item: Artifact) -> None:
        """Add an artifact to a side, each once over all sides."""
        if all(item.hash != other.hash for items in sides.values() for other in items):
            sides.setdefault(title, []).append(item)

    def free(self, title: str, taken: Mapping[str, Any]) -> str:
        """The title, numbered where it is taken."""
        number = 2
        name = title
        while name in taken:
            name, number = f"{title}, {number}", number + 1
        return name


def _kind(artifacts: Sequence[Artifact], kind: str) -> list[Artifact]:
    return [item for item in artifacts if item.kind == kind]


def _inputs(item: Artifact, lineage: Lineage, kind: str | None = None) -> list[Artifact]:
    """The direct inputs of an artifact, which must be there."""
    found = lineage.inputs(item, kind)
    if gone := [part.id for part in found if not part.exists]:
        raise ArtifactError(
            "artifacts behind it have been removed",
            field=item.id,
            got=gone,
            next_step="run the flow again: it makes what is missing and nothing else",
        )
    return found


def _first_pair(single: dict[str, Artifact | None], lineage: Lineage) -> None:
    """Fill in the ranking of a review and the pair whose latents are shown."""
    pairs, review, agreement = (single[name] for name in ("explainer_pairs", "review", "scorer_agreement"))
    if review is not None and review.kind == "score-review":
        behind = _inputs(review, lineage)
        pairs = pairs or next(iter(_kind(behind, "explainer-pairs")), None)
        single["explainer_pairs"] = pairs
    else:
        behind = _inputs(agreement, lineage) if agreement is not None else []
    of_pairs = _inputs(pairs, lineage) if pairs is not None else []
    chosen = single["explainer_comparison"]
    known = {item.hash for item in of_pairs}
    if chosen is not None and known and chosen.hash not in known:
        raise ConfigError(
            "is not a pair of the ranking",
            field=chosen.id,
            got=pairs.id if pairs is not None else None,
            expected=" or ".join(item.id for item in of_pairs),
        )
    found = [*of_pairs, *_kind(behind, "explainer-comparison")]
    single["explainer_comparison"] = chosen or next(iter(found), None)


def _of_models(comparison: Artifact | None, models: _Models) -> tuple[Sides, dict[str, Artifact]]:
    """Health and grades of both sides of a comparison, and of its controls."""
    health: Sides = {}
    if comparison is None:
        return health, {}
    config = models.lineage.manifest(comparison)["config"]
    inputs = _inputs(comparison, models.lineage)
    items = iter(_kind(inputs, "health"))
    for name, count in zip(config["names"], config["sides"]):
        health[name] = [next(items) for _ in range(count)]
    for item in items:  # of the controls
        models.add(health, models.title(item), item)
    sides = [name for name, there in zip(config["names"], config["grades"]) if there]
    return health, dict(zip(sides, _kind(inputs, "grades")))


def _graded(review: Artifact | None, given: Sequence[Artifact], models: _Models) -> dict[str, Artifact]:
    """Grades by the model's title: of an outside table by the table's names."""
    outside = _inputs(review, models.lineage, "grades") if review is not None and review.kind == "table-review" else []
    found: dict[str, Artifact] = {}
    for item in [*outside, *(one for one in given if one not in outside)]:
        named = models.lineage.manifest(item)["config"].get("model")
        found[models.free(str(named or models.title(item)), found)] = item
    return found


def _of_interpretability(comparison: Artifact | None, models: _Models) -> dict[str, Artifact]:
    """Associations of both sides by title, then those of the controls."""
    found: dict[str, Artifact] = {}
    if comparison is None:
        return found
    config = models.lineage.manifest(comparison)["config"]
    items = iter(_inputs(comparison, models.lineage))
    for name, count in zip(config["names"], config["sides"]):
        for _ in range(count):
            found[models.free(name, found)] = next(items)
    for item in items:
        found[models.free(models.title(item), found)] = item
    return found


def _profiles(
    comparison: Artifact | None, given: Sequence[Artifact], lineage: Lineage, store: ArtifactStore
) -> list[Artifact]:
    """The given profiles, or those of the example sets that the comparison's latents were scored on."""
    if given or comparison is None:
        return list(given)
    examples = {one.hash for item in lineage.inputs(comparison, "scores") for one in lineage.inputs(item, "examples")}
    found = []
    for folder in store.folders("profiles"):
        item = open_artifact(folder)
        if any(one.hash in examples for one in lineage.inputs(item, "examples")):
            found.append(item)
    return found


def _title(single: Mapping[str, Artifact | None], enrichment: Mapping[str, Artifact]) -> str:
    review, pairs, explainers = (single[name] for name in ("review", "explainer_pairs", "explainer_comparison"))
    if review is not None:
        return f"{'Scores' if review.kind == 'score-review' else 'Layer health'} from {review.name}"
    if pairs is not None:
        return f"{listing([item.title for item in read_explainer_pairs(pairs).ranking])} as explainers"
    if explainers is not None:
        data = read_explainer_comparison(explainers)
        return f"{listing([data.title_a, data.title_b])} as explainers"
    if single["interpretability"] is not None:
        return "Interpretability of two models"
    if single["model_comparison"] is not None:
        return "Layer health of two models"
    return "Latents and tokens" if enrichment else "Layer health"
