"""Two models by the health of their layers, SAEs trained alike on the same text.

There is one SAE per layer and side, so everything here is conditional on these SAEs: another seed of training
is not in any interval. The surprising choice: "beats its control" is said per metric, since on a model with
random weights ΔCE is small whatever the SAE does (its layers hardly change the loss), and FVU may be lower.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from saeinterp.artifacts import Artifact, ArtifactStore, Recipe, Ref, Workspace, write_json
from saeinterp.compare.comparability import (
    ComparabilityRow,
    Node,
    Severity,
    comparability_row,
    differing,
    fold_rows,
    lineage,
    require_comparable,
)
from saeinterp.compare.layers import LayerHealth, LayerSummary, Side, by_hookpoint, compare_layers, pair_layers
from saeinterp.compare.model_sentences import (
    ADJUSTMENT,
    CONDITION,
    LayerResult,
    headline,
    layer_results,
    sentences,
)
from saeinterp.compare.results import Result, Sentence
from saeinterp.config import ComparisonConfig
from saeinterp.errors import ComparabilityError
from saeinterp.health import read_health

VERSION = 1
FORMAT = 1
_SOFT = {"health batch_contexts", "health bootstrap", "health seed", "capture dtype", "capture batch_contexts"}
_SOFT_STEPS = ("SAE training launch.",)
_PACKAGES = ("saeinterp", "torch", "transformers")


class FailedCheck(Result):
    """An integrity check that failed on one side."""

    side: Side
    hookpoint: str
    name: str
    detail: str


class SubjectDifference(Result):
    """A field in which the two models' recipes differ: what is compared."""

    step: str
    field: str
    a: str
    b: str


class ModelComparison(Result):
    """Everything a report prints of two models compared layer by layer."""

    format: int = FORMAT
    title_a: str
    title_b: str
    condition: str = CONDITION
    adjustment: str = ADJUSTMENT
    alpha: float
    bootstrap: int
    seed: int
    interval_method: str | None
    control: Side | None
    """The side with random weights, where exactly one has them."""
    layers: tuple[LayerResult, ...]
    summary: tuple[LayerSummary, ...]
    sentence: str
    sentences: tuple[Sentence, ...]
    comparability: tuple[ComparabilityRow, ...]
    matched: bool
    """No hard row of `comparability` differs."""
    configuration: tuple[SubjectDifference, ...]
    failed_checks: tuple[FailedCheck, ...]


def compare_models_recipe(
    a: Sequence[Ref], b: Sequence[Ref], *, config: ComparisonConfig, names: tuple[str, str]
) -> Recipe:
    """The recipe of a comparison of two models.

    Args:
        a: Health of side a, one per layer.
        b: Health of side b.
        names: Titles of the sides.
    """
    slug = "-vs-".join(re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-.") for name in names)
    values = config.model_dump(mode="json", include={"alpha", "bootstrap", "seed", "allow_unmatched"})
    return Recipe(
        kind="model-comparison",
        name=slug[:80] or "models",
        version=VERSION,
        config={"names": list(names), "sides": [len(a), len(b)], **values},
        inputs=(*a, *b),
    )


def compare_models(
    a: Sequence[Artifact],
    b: Sequence[Artifact],
    *,
    config: ComparisonConfig,
    names: tuple[str, str],
    store: ArtifactStore,
) -> Artifact:
    """Compare the health of two models' layers, matched by hookpoint.

    Payload: `comparison.json` (a `ModelComparison`) and `layers.parquet` (one row per layer and metric).

    Raises:
        ComparabilityError: No layer is on both sides, or corpus, SAE training or health settings differ and
            `allow_unmatched` is off.
        ConfigError: A hookpoint comes twice on one side.
    """
    recipe = compare_models_recipe(a, b, config=config, names=names)

    def write(space: Workspace) -> None:
        result = _compare(by_hookpoint(a, side="a"), by_hookpoint(b, side="b"), config=config, names=names)
        write_json(space.out / "comparison.json", result.model_dump(mode="json"))
        _write_layers(space, result)
        space.counts = {
            "layers": len(result.layers),
            "missing": sum(layer.missing is not None for layer in result.layers),
        }

    return store.build(recipe, write)


def check_models(a: Mapping[str, Artifact], b: Mapping[str, Artifact]) -> list[ComparabilityRow]:
    """What should be equal between two sides of health artifacts (by hookpoint), and whether it is.

    Hard: corpus, SAE training, activation capture, health settings and code. Soft: the set of layers (missing
    ones are shown), evaluated tokens, width, depth, compute type, batch sizes, seeds of resampling, packages.
    """
    shared = [hookpoint for hookpoint in a if hookpoint in b]
    rows = {hookpoint: _layer_rows(a[hookpoint], b[hookpoint]) for hookpoint in shared}
    names = [", ".join(sorted(side, key=lambda name: (len(name), name))) for side in (a, b)]
    layers = comparability_row("layers", *names, severity="soft", note="only layers of both sides are compared")
    return [layers, *fold_rows(rows)]


def _compare(
    a: Mapping[str, Artifact], b: Mapping[str, Artifact], *, config: ComparisonConfig, names: tuple[str, str]
) -> ModelComparison:
    if not set(a) & set(b):
        raise ComparabilityError(
            "the sides share no layer",
            field="hookpoints",
            got=f"{', '.join(a) or 'none'} and {', '.join(b) or 'none'}",
            expected="at least one hookpoint on both sides",
            next_step="see which layers failed, and name the same hookpoints for both models",
        )
    rows = check_models(a, b)
    matched = require_comparable(rows, allow_unmatched=config.allow_unmatched)
    pairs = pair_layers(
        {name: LayerHealth.read(artifact) for name, artifact in a.items()},
        {name: LayerHealth.read(artifact) for name, artifact in b.items()},
    )
    found = compare_layers(
        pairs,
        titles=names,
        same_documents=all(row.ok for row in rows if row.field.endswith("corpus")),
        draws=config.bootstrap,
        alpha=config.alpha,
        seed=config.seed,
    )
    first = next(name for name in pairs if name in a and name in b)
    control = _control(a[first], b[first])
    layers = layer_results(pairs, found.metrics, control=control, names=names, alpha=config.alpha)
    return ModelComparison(
        title_a=names[0],
        title_b=names[1],
        alpha=config.alpha,
        bootstrap=config.bootstrap,
        seed=config.seed,
        interval_method=found.interval_method,
        control=control,
        layers=layers,
        summary=found.summary,
        sentence=headline(layers, control=control, names=names),
        sentences=sentences(layers, found.summary, names=names, alpha=config.alpha),
        comparability=tuple(rows),
        matched=matched,
        configuration=_subject_differences(a[first], b[first]),
        failed_checks=(*_failed_checks("a", a), *_failed_checks("b", b)),
    )


def _layer_rows(a: Artifact, b: Artifact) -> list[ComparabilityRow]:
    left, right = lineage(a), lineage(b)

    def equal(field: str, x: object, y: object, note: str = "") -> ComparabilityRow:
        severity: Severity = "soft" if field in _SOFT or field.startswith(_SOFT_STEPS) else "hard"
        return comparability_row(field, x, y, severity=severity, note=note)

    rows = [
        equal("corpus", _id(left, "corpus"), _id(right, "corpus"), "other text or another tokenizer"),
        *_config_rows("SAE training", _input(left, "sae"), _input(right, "sae"), equal),
        *_config_rows("capture", _input(left, "activations"), _input(right, "activations"), equal, skip="hookpoints"),
        *_config_rows("health", left, right, equal),
    ]
    first, second = read_health(a), read_health(b)
    for field, key in (("evaluated tokens", "tokens"), ("SAE latents", "num_latents"), ("k", "k")):
        severity: Severity = "soft" if key == "tokens" else "hard"
        note = "the norm mask leaves out other rows" if key == "tokens" else ""
        rows.append(comparability_row(field, first[key], second[key], severity=severity, note=note))
    subjects = [_input(side, "subject") for side in (left, right)]
    for field in ("d_model", "num_layers", "vocab_size"):
        x, y = (subject.manifest.get("counts", {}).get(field) if subject else None for subject in subjects)
        rows.append(comparability_row(field, x, y, severity="soft"))
    x, y = (subject.config.get("dtype") if subject else None for subject in subjects)
    rows.append(comparability_row("compute type", x, y, severity="soft"))
    rows.append(comparability_row("package versions", _versions(left), _versions(right), severity="soft"))
    return rows


def _config_rows(
    step: str, a: Node | None, b: Node | None, equal: Any, *, skip: str | None = None
) -> list[ComparabilityRow]:
    """One row per setting that differs, else one row for the step; code versions are settings too."""
    if a is None or b is None or not a.manifest or not b.manifest:
        return [equal(step, a and a.id, b and b.id, "a recipe behind it is gone")]
    first, second = ({**node.config, "code version": node.manifest["version"]} for node in (a, b))
    rows = [
        equal(f"{step} {key.removeprefix('training.')}", x, y)
        for key, x, y in differing(first, second)
        if key.rpartition(".")[2] != skip
    ]
    return rows or [equal(step, "equal settings", "equal settings")]


def _control(a: Artifact, b: Artifact) -> Side | None:
    """The side whose model has random weights, where the other's has not."""
    subjects = [_input(lineage(artifact), "subject") for artifact in (a, b)]
    random = [subject is not None and subject.config.get("weights") == "random" for subject in subjects]
    if random[0] == random[1]:
        return None
    return "a" if random[0] else "b"


def _subject_differences(a: Artifact, b: Artifact) -> tuple[SubjectDifference, ...]:
    first, second = (_input(lineage(artifact), "subject") for artifact in (a, b))
    if first is None or second is None:
        return ()
    return tuple(
        SubjectDifference(step="subject", field=key, a=_shown(x), b=_shown(y))
        for key, x, y in differing(first.config, second.config)
        if key != "fingerprint"
    )


def _failed_checks(side: Side, health: Mapping[str, Artifact]) -> list[FailedCheck]:
    found = []
    for hookpoint, artifact in health.items():
        checks: Any = read_health(artifact)["checks"]
        found += [
            FailedCheck(side=side, hookpoint=hookpoint, name=check["name"], detail=check["detail"])
            for check in checks
            if not check["passed"]
        ]
    return found


def _write_layers(space: Workspace, result: ModelComparison) -> None:
    rows = []
    for layer in result.layers:
        for row in layer.metrics:
            values = row.model_dump(
                include={"hookpoint", "metric", "difference", "low", "high", "verdict", "n_documents"}
            )
            for name, side in (("a", row.a), ("b", row.b)):
                values |= {name: side.value, f"{name}_low": side.low, f"{name}_high": side.high}
            rows.append({**values, "note": row.reason})
    numbers = ("a", "b", "a_low", "a_high", "b_low", "b_high", "difference", "low", "high")
    schema = pa.schema(
        [
            ("hookpoint", pa.string()),
            ("metric", pa.string()),
            *((name, pa.float64()) for name in numbers),
            ("verdict", pa.string()),
            ("n_documents", pa.int32()),
            ("note", pa.string()),
        ]
    )
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), space.out / "layers.parquet", compression="zstd")


def _input(node: Node, kind: str) -> Node | None:
    return next(iter(node.inputs(kind)), None)


def _id(node: Node, kind: str) -> str | None:
    found = _input(node, kind)
    return found.id if found else None


def _versions(node: Node) -> str | None:
    versions = node.manifest.get("made", {}).get("versions", {})
    return ", ".join(f"{name} {versions[name]}" for name in _PACKAGES if versions.get(name)) or None


def _shown(value: object) -> str:
    return "not known" if value is None else str(value)
