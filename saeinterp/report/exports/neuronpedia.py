"""Latents of a report in the files that Neuronpedia exports and imports, one folder per source.

Follows its exporter (`utils/neuronpedia-utils/neuronpedia_utils/export-data.py`), its importer
(`apps/webapp/lib/db/import.ts`) and the tables behind both (`apps/webapp/prisma/schema.prisma`). The surprising choice:
a column is written only where those three say what it holds and the report knows it. So there are no scores, which no
importer reads, no embeddings, no histograms, no logits (ours are less what the mean decoder direction gives), and the
names of explainer types and models, which must be known to the instance, are written only when they are given.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from saeinterp.errors import ConfigError, DataError
from saeinterp.report.explainer_results import ExplainerSection
from saeinterp.report.stored import read_results
from saeinterp.report.tables import read_table, rows_of_latents

BATCH = 1024
"""Features in a file, as its exporter has it."""
_ID = re.compile(r"[A-Za-z0-9._-]+")
_BLOCK = re.compile(r"(?:.*\.)?(?:layers|h|blocks)\.(\d+)$")

Row = dict[str, Any]


class Target(NamedTuple):
    """Where in Neuronpedia the latents belong; every name is the instance's own."""

    model_id: str
    """Such as `gpt2-small`."""
    source_set: str
    """Such as `res-jb`; a layer's source is then `6-res-jb`."""
    author_id: str | None = None
    """User that explanations and features belong to; without one the files lack it, and its importer needs it."""
    type_name: str | None = None
    """Explainer type, such as `oai_token-act-pair`."""
    model_name: str | None = None
    """Explainer model, such as `gpt-4o-mini`."""


class Exported(NamedTuple):
    """What was written."""

    files: list[Path]
    sources: list[str]
    features: int
    explanations: int
    activations: int


def write_neuronpedia(folder: Path, out: Path, *, target: Target, sides: Sequence[str] = ("a", "b")) -> Exported:
    """Write `<out>/<model>/<source>/{features,explanations,activations}/batch-<n>.jsonl.gz`, equal bytes every time.

    Args:
        folder: A report with explained latents.
        out: Is made where it is missing.
        target: Names in the Neuronpedia instance.
        sides: Explainers whose explanations are written, of `a` and `b`.

    Raises:
        DataError: The report holds no latents, or is of another version's format.
        ConfigError: A name that cannot be part of an id, or hookpoints that would share a source.
    """
    section = _section(folder)
    for name, value in target._asdict().items():
        if value is not None and not _ID.fullmatch(value) and name in ("model_id", "source_set"):
            raise ConfigError(
                "cannot be part of an id",
                field=f"--{name.replace('_', '-')}",
                got=value,
                expected="letters, digits, . _ -",
            )
    latents = read_table(folder / "tables", "latents")
    if latents is None:
        raise DataError("the report holds no latents", field=str(folder), next_step="give a report of explainers")
    sources = _sources(list(dict.fromkeys(latents["hookpoint"])), target)
    titles: dict[str, str] = {side.key: side.title for side in section.sides}
    files: list[Path] = []
    counts = dict.fromkeys(("features", "explanations", "activations"), 0)
    for hookpoint, source in sources.items():
        chosen = [index for index, name in enumerate(latents["hookpoint"]) if name == hookpoint]
        chosen.sort(key=lambda index: latents["latent"][index])
        for number, start in enumerate(range(0, len(chosen), BATCH)):
            batch = chosen[start : start + BATCH]
            # A batch at a time: the examples of all latents can be more than fit into memory.
            peaks = _activations(rows_of_latents(folder / "tables", "examples", latents, batch), sources, target)
            tables: dict[str, list[Row]] = {
                "features": [_feature(latents, index, source, target, peaks) for index in batch],
                "explanations": [
                    row
                    for index in batch
                    for side in sides
                    if (row := _explanation(latents, index, side, titles[side], source, target)) is not None
                ],
                "activations": [row for index in batch for row in peaks.get((hookpoint, latents["latent"][index]), ())],
            }
            if not all("frac_nonzero" in row for row in tables["features"]):
                # Its column takes no null, and 0 would say that the latent never fires.
                for row in tables["features"]:
                    row.pop("frac_nonzero", None)
            for name, rows in tables.items():
                counts[name] += len(rows)
                if rows:
                    place = out / target.model_id / source / name / f"batch-{number}.jsonl.gz"
                    files.append(_written(place, rows))
    return Exported(files, list(sources.values()), **counts)


def _section(folder: Path) -> ExplainerSection:
    results = read_results(folder)
    if results is None:
        raise DataError(
            "the report is of another version's format",
            field=str(folder),
            next_step="make it again: saeinterp report DIR",
        )
    if results.explainers is None:
        raise DataError("the report holds no explained latents", field=str(folder), expected="a report of explainers")
    return results.explainers


def _sources(hookpoints: Sequence[str], target: Target) -> dict[str, str]:
    """Hookpoint -> id of its source: `<layer>-<set>`."""
    found: dict[str, str] = {}
    for name in hookpoints:
        block = _BLOCK.match(name)
        if block is None:
            raise ConfigError(
                "is not the output of a block, and Neuronpedia names a source by its layer",
                field="hookpoint",
                got=name,
                expected="layers.N",
            )
        source = f"{block[1]}-{target.source_set}"
        if source in found.values():
            raise ConfigError(
                "is the second hookpoint of its layer, and both would be one source",
                field="hookpoint",
                got=name,
                expected="one hookpoint per layer",
            )
        found[name] = source
    return found


def _feature(
    latents: Mapping[str, list[Any]], index: int, source: str, target: Target, peaks: Mapping[Any, Sequence[Row]]
) -> Row:
    key = latents["hookpoint"][index], latents["latent"][index]
    row: Row = {
        "modelId": target.model_id,
        "layer": source,
        "index": str(key[1]),
        "sourceSetName": target.source_set,
    }
    if (density := latents.get("density", [None] * (index + 1))[index]) is not None:
        row["frac_nonzero"] = density
    if key in peaks:
        row["maxActApprox"] = max(item["maxValue"] for item in peaks[key])
    return row | ({"creatorId": target.author_id} if target.author_id is not None else {})


def _explanation(
    latents: Mapping[str, list[Any]], index: int, side: str, title: str, source: str, target: Target
) -> Row | None:
    """One explanation; None where there is none."""
    text = latents[f"explanation_{side}"][index]
    if text is None or not text.strip():
        return None
    latent = str(latents["latent"][index])
    row: Row = {
        "id": _id(target.model_id, source, latent, side, text),
        "modelId": target.model_id,
        "layer": source,
        "index": latent,
        "description": text,
        "notes": f"explainer: {title}",
    }
    given = {"authorId": target.author_id, "typeName": target.type_name, "explanationModelName": target.model_name}
    return row | {name: value for name, value in given.items() if value is not None}


def _activations(
    examples: Mapping[tuple[str, int], Sequence[Row]], sources: Mapping[str, str], target: Target
) -> dict[tuple[str, int], list[Row]]:
    """(Hookpoint, latent) -> its examples in which it fires, strongest first."""
    found: dict[tuple[str, int], list[Row]] = {}
    for row in (row for rows in examples.values() for row in rows):
        strengths = [float(value) for value in row["activations"]]
        if not any(strengths):
            continue
        source, latent = sources[row["hookpoint"]], str(row["latent"])
        item: Row = {
            "id": _id(target.model_id, source, latent, str(row["example_id"]), row["role"]),
            "modelId": target.model_id,
            "layer": source,
            "index": latent,
            "tokens": list(row["tokens"]),
            "values": strengths,
            "maxValue": max(strengths),
            "minValue": min(strengths),
            "maxValueTokenIndex": strengths.index(max(strengths)),
        }
        if target.author_id is not None:
            item["creatorId"] = target.author_id
        found.setdefault((row["hookpoint"], row["latent"]), []).append(item)
    for rows in found.values():
        rows.sort(key=lambda item: (-item["maxValue"], item["id"]))
    return found


def _id(*parts: str) -> str:
    """An id of the length of Neuronpedia's, the same for the same thing."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:25]


def _written(path: Path, rows: Sequence[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Its importer takes the columns of a file from the first line.
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [json.dumps({name: row.get(name) for name in names}, allow_nan=False) for row in rows]
    path.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode(), compresslevel=5, mtime=0))
    return path
