"""A model card of an SAE release for the Hugging Face hub: a README.md made from artifacts alone.

The surprising choice: what no artifact says is not guessed. A licence, the model's id on the hub or a training text
that is not known is left out of the front matter and said to be unknown below it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from saeinterp.artifacts import Artifact, ArtifactStore, file_sha256, open_artifact, read_json, write_atomic
from saeinterp.errors import ConfigError, DataError
from saeinterp.report.collect import layer_health, layer_training, titles_of
from saeinterp.report.composing import compose
from saeinterp.report.format import listing
from saeinterp.report.grade_results import GradedModel
from saeinterp.report.grades import absorption_of, grade_section
from saeinterp.report.lineage import Lineage
from saeinterp.report.markdown import markdown_environment
from saeinterp.report.reasons import fold_reasons
from saeinterp.report.results import HEALTH_COLUMNS, LayerHealth, LayerTraining
from saeinterp.report.values import Number
from saeinterp.sae import adopted_from
from saeinterp.sae.formats import SAE_LENS_WEIGHTS, detect
from saeinterp.sae.topk import CONFIG, WEIGHTS

CARD = "README.md"
MARK = "<!-- Written by `saeinterp export --format model-card`; that command replaces it. -->"
TAGS = ("sparse-autoencoder", "sae", "interpretability", "mechanistic-interpretability")
_HUB = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9._-]+")
_LIBRARIES = {"sae-lens": "saelens", "sparsify": "saeinterp"}
"""Layout of the SAE folders to the hub's name of a library that loads them."""


class Folder(NamedTuple):
    """One SAE folder of the release."""

    name: str
    """Below the release."""
    layout: str
    title: str | None
    """Of the SAE in it; None where it is none of the card's."""


class Row(NamedTuple):
    """One SAE of the card."""

    training: LayerTraining
    summary: Mapping[str, Any]
    """`training.json`."""
    settings: Mapping[str, Any]
    """Of its training; empty where it was trained elsewhere."""
    origin: str | None
    """Of an SAE that was trained elsewhere."""
    digest: str
    """SHA-256 of its weights."""


def write_model_card(
    artifacts: Sequence[Artifact],
    out: Path,
    *,
    store: ArtifactStore,
    licence: str | None = None,
    repository: str | None = None,
) -> Path:
    """Write `<out>/README.md` for SAEs, with the health that was measured of them.

    Args:
        artifacts: `sae` artifacts, and `health`, `grades` or a `model-comparison` of them; of SAEs alone every health
            artifact of the store is taken.
        out: The folder of the release; SAE folders in it (`saeinterp sae convert` writes them) are named in the card.
        store: Where inputs are looked up.
        licence: Identifier of the licence of the SAEs, such as `apache-2.0`.
        repository: Its id on the hub, such as `me/my-saes`, for the lines that load it.

    Raises:
        DataError: No SAE is among the artifacts or behind them.
        ConfigError: `repository` is no hub id, or a README.md of another hand lies there.
    """
    if repository is not None and not _HUB.fullmatch(repository):
        raise ConfigError("is no id on the hub", field="--repo", got=repository, expected="OWNER/NAME")
    lineage = Lineage(store)
    given = list(artifacts)
    if {item.kind for item in given} == {"sae"}:
        given += _health_of(given, lineage, store)
    parts = compose(given, title=None, store=store)
    saes, health, grades = (parts[name] for name in ("saes", "health", "grades"))
    if not any(saes.values()):
        raise DataError("no SAE is among them", field="DIR", got=[item.id for item in given], expected="sae artifacts")
    titles = {**titles_of(saes, lineage), **titles_of(health, lineage)}
    rows = [_row(side, item, titles[side, item.id], lineage) for side, items in saes.items() for item in items]
    absorption = absorption_of(grades)
    layers = tuple(
        layer_health(side, item, title=titles[side, item.id], absorption=absorption.get((side, item.id)))
        for side, items in health.items()
        for item in items
    )
    section = grade_section(grades)
    roots = [item for items in saes.values() for item in items]
    subjects = [read_json(item.file("subject.json")) for item in lineage.of_kind(roots, "subject")]
    corpora = lineage.of_kind(roots, "corpus")
    folders = _folders(out, rows)
    out.mkdir(parents=True, exist_ok=True)
    path = out / CARD
    if path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace"):
        raise ConfigError(
            "lies there and was not written by this command",
            field=str(path),
            expected="a folder without one",
            next_step="move it away, or choose another folder",
        )
    text = (
        markdown_environment()
        .get_template("model_card.md.jinja")
        .render(
            front=_front(subjects, corpora, folders, licence, lineage),
            title=_title(rows, subjects),
            mark=MARK,
            rows=rows,
            layers=layers,
            missing=_reasons(layers),
            intervals=_intervals(layers),
            health_columns=[(name, LayerHealth.model_fields[name]) for name in HEALTH_COLUMNS],
            training_fields=LayerTraining.model_fields,
            datasets=list(dict.fromkeys(layer.dataset for layer in layers)),
            graded=_graded(section.models) if section is not None else [],
            grades=section,
            subjects=subjects,
            corpora=[_corpus(item) for item in corpora],
            licence=licence,
            folders=folders,
            repository=repository,
            versions=_versions(roots, lineage),
        )
    )
    write_atomic(path, text.encode())
    return path


def _health_of(saes: Sequence[Artifact], lineage: Lineage, store: ArtifactStore) -> list[Artifact]:
    """Every health artifact of the store that is of one of these SAEs, in the order of the SAEs."""
    found: dict[str, list[Artifact]] = {sae.hash: [] for sae in saes}
    for folder in store.folders("health"):
        item = open_artifact(folder)
        for sae in lineage.inputs(item, "sae"):
            found.get(sae.hash, []).append(item)
    return [item for items in found.values() for item in items]


def _row(side: str, item: Artifact, title: str, lineage: Lineage) -> Row:
    summary = read_json(item.file("training.json"))
    manifest = lineage.manifest(item)
    return Row(
        training=layer_training(side, item, title=title),
        summary=summary,
        settings=manifest["config"].get("training", {}) if not adopted_from(summary) else {},
        origin=adopted_from(summary),
        digest=next((entry["sha256"] for name, entry in manifest["files"].items() if name == WEIGHTS), ""),
    )


def _front(
    subjects: Sequence[Mapping[str, Any]],
    corpora: Sequence[Artifact],
    folders: Sequence[Folder],
    licence: str | None,
    lineage: Lineage,
) -> str:
    """The YAML front matter; a key whose value is not known is left out."""
    layouts = list(dict.fromkeys(folder.layout for folder in folders))
    # One layout decides; SAELens' library is the one that the hub itself knows.
    layout = layouts[0] if len(layouts) == 1 else "sae-lens" if "sae-lens" in layouts else "sparsify"
    models = list(dict.fromkeys(data["model"] for data in subjects if data.get("revision")))
    datasets = list(dict.fromkeys(name for item in corpora for name in _hub_sources(item, lineage)))
    values = {
        "library_name": _LIBRARIES[layout],
        "license": licence,
        "base_model": models[0] if len(models) == 1 else models,
        "datasets": datasets,
        "tags": list(TAGS),
    }
    kept = {name: value for name, value in values.items() if value}
    return yaml.safe_dump(kept, sort_keys=False, allow_unicode=True, width=10_000)


def _hub_sources(corpus: Artifact, lineage: Lineage) -> list[str]:
    """Datasets of the hub in a corpus; a local file's recipe holds a hash of its content, a hub dataset's none."""
    sources = lineage.manifest(corpus)["config"].get("sources", ())
    return [
        item["title"]
        for item in sources
        if isinstance(item, Mapping) and "content" not in item and _HUB.fullmatch(str(item.get("title", "")))
    ]


def _corpus(item: Artifact) -> Mapping[str, Any]:
    data: Mapping[str, Any] = read_json(item.file("corpus.json"))
    return data


def _title(rows: Sequence[Row], subjects: Sequence[Mapping[str, Any]]) -> str:
    models = listing([str(data.get("title") or data["model"]) for data in subjects])
    return f"Sparse autoencoders of {models}" if models else "Sparse autoencoders"


def _folders(out: Path, rows: Sequence[Row]) -> list[Folder]:
    """SAE folders in a release: up to two levels down, each with the SAE of the card that it holds."""
    found = []
    for config in sorted([*out.glob(f"*/{CONFIG}"), *out.glob(f"*/*/{CONFIG}")]):
        folder = config.parent
        try:
            layout = detect(folder)
        except DataError:
            continue
        found.append(Folder(folder.relative_to(out).as_posix(), layout, _held(folder, layout, rows)))
    return found


def _held(folder: Path, layout: str, rows: Sequence[Row]) -> str | None:
    """The title of the SAE that a folder holds: by the hash of its weights, or by the hookpoint it records."""
    if layout == "sparsify":
        digest = file_sha256(folder / WEIGHTS)
        same = [row.training for row in rows if row.digest == digest]
        # Layers that pass activations on unchanged have equal SAEs.
        named = [item for item in same if item.hookpoint == folder.name]
        return next((item.title for item in [*named, *same]), None)
    assert (folder / SAE_LENS_WEIGHTS).exists()
    metadata = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("metadata", {})
    at = [row.training.title for row in rows if row.training.hookpoint == metadata.get("hookpoint")]
    return at[0] if len(at) == 1 else None


def _cells(layers: Sequence[LayerHealth]) -> list[tuple[str, Number]]:
    """The numbers of the health table, each with its heading."""
    titles = {name: str(LayerHealth.model_fields[name].title) for name in HEALTH_COLUMNS}
    return [(title, getattr(layer, name)) for layer in layers for name, title in titles.items()]


def _intervals(layers: Sequence[LayerHealth]) -> list[str]:
    """What the brackets are."""
    return list(dict.fromkeys(item.interval for _, item in _cells(layers) if item.interval))


def _reasons(layers: Sequence[LayerHealth]) -> list[tuple[str, str]]:
    """Reasons of NA cells with the columns they are in."""
    found: dict[str, list[str]] = {}
    for title, item in _cells(layers):
        if item.value is None:
            found.setdefault((item.reason or "").rstrip("."), []).append(title)
    return [(reason, listing(list(dict.fromkeys(titles)))) for reason, titles in fold_reasons(found)]


def _graded(models: Sequence[GradedModel]) -> list[tuple[str, str, str]]:
    """Model, layer and grade."""
    return [(model.title, layer.title, layer.grade) for model in models for layer in model.layers]


def _versions(roots: Sequence[Artifact], lineage: Lineage) -> dict[str, str]:
    found: dict[str, dict[str, None]] = {}
    for item in roots:
        for name, version in lineage.manifest(item)["made"]["versions"].items():
            if version and name in ("saeinterp", "torch", "transformers"):
                found.setdefault(name, {})[version] = None
    return {name: ", ".join(values) for name, values in found.items()}
