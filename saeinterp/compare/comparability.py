"""Whether two sides of a comparison may be compared: read from the manifests behind them, not from what was meant.

The surprising choice: the check walks the inputs of both artifacts through the store and compares recipes
and checksums, so two runs that merely *say* the same configuration but differ in data cannot pass.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import polars as pl
from pydantic import BaseModel, ConfigDict

from saeinterp.artifacts import Artifact
from saeinterp.errors import ComparabilityError

Severity = Literal["hard", "soft"]
_ABSENT = "not known"
_PACKAGES = ("saeinterp", "torch", "transformers")
_JUDGE = ("llm", "identity")
"""Parts of a scorer's configuration that say which model judges."""
_MODEL_KINDS = ("llm", "contrastive")
"""Explainers that ask a model."""
_FORM = ("kind", "chain_of_thought")
"""Fields of an explainer that choose its prompt: explainers that differ in one are compared for it."""


class ComparabilityRow(BaseModel):
    """One thing that should be equal on both sides."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    field: str
    """What is compared."""
    a: str
    """Its value on side a, as printed."""
    b: str
    """Its value on side b."""
    severity: Severity
    """`hard`: a mismatch makes the comparison meaningless. `soft`: it is named."""
    ok: bool
    """Whether the sides agree."""
    note: str = ""
    """What a mismatch means."""


def comparability_row(field: str, a: object, b: object, *, severity: Severity, note: str = "") -> ComparabilityRow:
    """A row that is ok when both values are equal; None prints as not known and equals only None."""
    shown_a, shown_b = (_ABSENT if value is None else str(value) for value in (a, b))
    return ComparabilityRow(field=field, a=shown_a, b=shown_b, severity=severity, ok=a == b, note=note)


def require_comparable(rows: Sequence[ComparabilityRow], *, allow_unmatched: bool) -> bool:
    """Whether no hard row differs.

    Raises:
        ComparabilityError: A hard row differs and `allow_unmatched` is off; every such row is named.
    """
    broken = [row for row in rows if row.severity == "hard" and not row.ok]
    if broken and not allow_unmatched:
        named = "; ".join(f"{row.field}: {row.a} on one side, {row.b} on the other" for row in broken)
        raise ComparabilityError(
            f"the sides differ in {len(broken)} thing(s) that should be equal: {named}",
            field="comparison",
            next_step="make them equal, or set comparison.allow_unmatched to compare all the same under a banner",
        )
    return not broken


def fold_rows(rows: Mapping[str, Sequence[ComparabilityRow]]) -> list[ComparabilityRow]:
    """Rows per hookpoint as one list: a field that agrees everywhere is one row, else each hookpoint that differs."""
    by_field: dict[tuple[str, str], dict[str, ComparabilityRow]] = {}
    for hookpoint, items in rows.items():
        for row in items:
            by_field.setdefault((row.field, row.severity), {})[hookpoint] = row
    folded: list[ComparabilityRow] = []
    for (field, _), found in by_field.items():
        differing_rows = {hookpoint: row for hookpoint, row in found.items() if not row.ok}
        values_a = list(dict.fromkeys(row.a for row in found.values()))
        values_b = list(dict.fromkeys(row.b for row in found.values()))
        if differing_rows and (len(values_a) > 1 or len(values_b) > 1):
            folded += [
                row.model_copy(update={"field": f"{hookpoint}: {field}"}) for hookpoint, row in differing_rows.items()
            ]
        else:
            row = next(iter(found.values()))
            folded.append(row.model_copy(update={"a": ", ".join(values_a), "b": ", ".join(values_b)}))
    return folded


@dataclass(frozen=True)
class Node:
    """One artifact in a lineage; `manifest` is empty when its folder is gone."""

    kind: str
    name: str
    recipe: str
    artifact: Artifact
    manifest: Mapping[str, Any]

    @property
    def id(self) -> str:
        """`name-recipe8`, as printed."""
        return f"{self.name}-{self.recipe[:8]}"

    @property
    def config(self) -> Mapping[str, Any]:
        """The configuration in the recipe."""
        config: Mapping[str, Any] = self.manifest.get("config", {})
        return config

    def inputs(self, kind: str | None = None) -> list[Node]:
        """The direct inputs, in the recipe's order; `kind` keeps only those."""
        found = [_node(self.artifact.beside(item)) for item in self.manifest.get("inputs", ())]
        return [node for node in found if kind is None or node.kind == kind]

    def ancestors(self, kind: str) -> list[Node]:
        """Every ancestor of one kind, each once, nearest first."""
        queue, seen, found = self.inputs(), {self.recipe}, []
        while queue:
            node = queue.pop(0)
            if node.recipe in seen:
                continue
            seen.add(node.recipe)
            if node.kind == kind:
                found.append(node)
            queue += node.inputs()
        return found


def lineage(artifact: Artifact) -> Node:
    """The artifact as the root of its lineage; inputs are found below the same store."""
    return Node(artifact.kind, artifact.name, artifact.hash, artifact, artifact.manifest())


def flatten(config: Mapping[str, Any], *, prefix: str = "") -> dict[str, Any]:
    """Nested configuration as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, prefix=f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Dotted keys whose values differ, with both values (None where a side lacks the key)."""
    first, second = flatten(a), flatten(b)
    keys = list(dict.fromkeys([*first, *second]))
    return [(key, first.get(key), second.get(key)) for key in keys if first.get(key) != second.get(key)]


def check_comparability(a: Artifact, b: Artifact, *, self_scored: bool = False) -> list[ComparabilityRow]:
    """What should be equal between two `scores` artifacts of one hookpoint, and whether it is.

    Hard: SAE, its shape, model under study, corpus, example set (by checksum), examples shown to the explainers,
    scorer configuration and prompts, prompts of explainers that are asked for the same, latent set. Soft: the scorer is
    also an explainer (two things change at once), package versions.

    Args:
        self_scored: Every explainer was judged by its own model: that the judging models differ is then soft.
    """
    left, right = lineage(a), lineage(b)
    rows = [
        _by_recipe("model under study", left, right, "subject"),
        _by_recipe("corpus", left, right, "corpus"),
        _by_recipe("SAE", left, right, "sae"),
        comparability_row("SAE latents and k", _sae_shape(left), _sae_shape(right), severity="hard"),
        comparability_row("example set", _examples_hash(left), _examples_hash(right), severity="hard"),
        comparability_row(
            "examples shown to the explainer", _shown_examples(left), _shown_examples(right), severity="hard"
        ),
        comparability_row("latents", _latent_set(a), _latent_set(b), severity="hard"),
        comparability_row("scoring code", left.manifest.get("version"), right.manifest.get("version"), severity="hard"),
    ]
    rows += _scorer(left, right, self_scored=self_scored)
    rows += _explainer_prompts(left, right)
    titles = [explainer_title(node) for node in (left, right)]
    for title, side, node in zip(titles, "AB", (left, right)):
        # Among several pairs one explainer is A here and B there: its name tells which.
        if row := _self_scored(title if titles[0] != titles[1] else side, node):
            rows.append(row)
    if _versions(left) != _versions(right):
        # Listed only where they differ: what a run was made with is no part of its result.
        rows.append(comparability_row("package versions", _versions(left), _versions(right), severity="soft"))
    return rows


def explainer_difference(a: Artifact, b: Artifact) -> list[tuple[str, str, str]]:
    """The fields in which the explainers' configurations differ: what the comparison is about."""
    rows = []
    for key, x, y in differing(_explainer_config(lineage(a)), _explainer_config(lineage(b))):
        rows.append((key, _ABSENT if x is None else str(x), _ABSENT if y is None else str(y)))
    return rows


def explanations_of(scores: Node) -> Node | None:
    """The explanations that a scores artifact judged."""
    return next(iter(scores.inputs("explanations")), None)


def scorer_name(scores: Node) -> str | None:
    """The judging model, such as `demo:smollm2-135m (detection)`."""
    model, kind = _value(scores.config, "model"), _value(scores.config, "kind")
    if model is None:
        return None
    return f"{model} ({kind})" if kind else str(model)


def _node(artifact: Artifact) -> Node:
    manifest = artifact.manifest() if artifact.exists else {}
    return Node(artifact.kind, artifact.name, artifact.hash, artifact, manifest)


def _by_recipe(field: str, a: Node, b: Node, kind: str) -> ComparabilityRow:
    return comparability_row(field, _ids(a.ancestors(kind)), _ids(b.ancestors(kind)), severity="hard")


def _ids(nodes: Iterable[Node]) -> str | None:
    return ", ".join(sorted(node.id for node in nodes)) or None


def _sae_shape(scores: Node) -> str | None:
    for sae in scores.ancestors("sae"):
        latents, k = _value(sae.config, "num_latents"), _value(sae.config, "k")
        if latents is not None:
            return f"{latents} latents, k = {k}"
    return None


def _examples_hash(scores: Node) -> str | None:
    for examples in scores.inputs("examples"):
        file = examples.manifest.get("files", {}).get("examples.parquet")
        return f"sha256 {file['sha256'][:16]}" if file else examples.id
    return None


def _shown_examples(scores: Node) -> str | None:
    explanations = explanations_of(scores)
    return _ids(explanations.ancestors("examples")[:1]) if explanations else None


def _latent_set(scores: Artifact) -> str:
    table = pl.read_parquet(scores.file("scores.parquet"), columns=["hookpoint", "latent"])
    rows = sorted(table.unique().iter_rows())
    digest = hashlib.sha256(repr(rows).encode()).hexdigest()[:8]
    return f"{len(rows)} latents ({digest})"


def _scorer(a: Node, b: Node, *, self_scored: bool) -> list[ComparabilityRow]:
    found = [(key.removeprefix("scorer."), x, y) for key, x, y in differing(a.config, b.config)]
    judges = [item for item in found if self_scored and item[0].partition(".")[0] in _JUDGE]
    rows = [
        comparability_row(f"scorer {key}", x, y, severity="hard") for key, x, y in found if (key, x, y) not in judges
    ]
    if judges:
        note = "each explainer is judged by its own model: two things change at once, the explainer and its judge"
        model = comparability_row("scorer model", scorer_name(a), scorer_name(b), severity="soft", note=note)
        rows.append(model.model_copy(update={"ok": False}))
    return rows or [comparability_row("scorer", scorer_name(a), scorer_name(b), severity="hard")]


def _explainer_prompts(a: Node, b: Node) -> list[ComparabilityRow]:
    """Prompts, where both sides should have been asked alike; what they were asked for may be what is compared."""
    first, second = (flatten(_explainer_config(node)) for node in (a, b))
    if any(first.get(name) != second.get(name) for name in _FORM):
        return []
    keys = sorted(key for key in {*first, *second} if "prompt" in key)
    return [comparability_row(f"explainer {key}", first.get(key), second.get(key), severity="hard") for key in keys]


def _explainer_config(scores: Node) -> Mapping[str, Any]:
    explanations = explanations_of(scores)
    if explanations is None:
        return {}
    config = explanations.config
    nested = config.get("explainer")
    return {**config, **nested} if isinstance(nested, Mapping) else config


def explainer_title(scores: Node) -> str:
    """The name of whoever wrote the explanations that were judged."""
    explanations = explanations_of(scores)
    if explanations is None:
        return scores.name
    artifact, file = explanations.artifact, "explanations.parquet"
    if not artifact.has(file):
        return explanations.name
    names = pl.read_parquet(artifact.file(file), columns=["explainer"])["explainer"].unique().to_list()
    return str(names[0]) if len(names) == 1 else explanations.name


def _self_scored(explainer_name: str, scores: Node) -> ComparabilityRow | None:
    config = _explainer_config(scores)
    if config.get("kind") not in _MODEL_KINDS:
        return None
    explainer, scorer = _value(config, "model"), _value(scores.config, "model")
    return ComparabilityRow(
        field=f"scorer independent of explainer {explainer_name}",
        a=f"explainer {explainer}",
        b=f"scorer {scorer}",
        severity="soft",
        ok=explainer is None or explainer != scorer,
        note="the explainer scores itself: two things change at once" if explainer == scorer else "",
    )


def _versions(scores: Node) -> str | None:
    versions = scores.manifest.get("made", {}).get("versions", {})
    return ", ".join(f"{name} {versions[name]}" for name in _PACKAGES if versions.get(name)) or None


def _value(config: Mapping[str, Any], leaf: str) -> Any:
    """The value under the first dotted key that ends in `leaf`."""
    for key, value in flatten(config).items():
        if key.rpartition(".")[2] == leaf:
            return value
    return None
