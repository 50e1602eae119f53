"""A report made again from an older one, or anew from comparisons, health and grades; nothing else is computed.

The surprising choice: a published report is never written into, since its manifest holds the checksums of its files.
What this version makes of it is published beside it under its own recipe, or written to a folder of the user's.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from saeinterp.artifacts import MANIFEST, TIMING, Artifact, ArtifactStore, verify_artifact
from saeinterp.config import ReportConfig
from saeinterp.errors import ArtifactError, ConfigError, DamagedArtifactError, DataError
from saeinterp.progress import Progress
from saeinterp.report.composing import KINDS, SINGLE, compose
from saeinterp.report.lineage import Lineage
from saeinterp.report.results import Failure
from saeinterp.report.stored import RESULTS, is_data, read_results
from saeinterp.report.writing import render, write_report

KIND = "report"


class Rebuilt(NamedTuple):
    """What a rebuild left behind."""

    folder: Path
    """Where the report lies."""
    made: bool
    """False where this version had made that report before."""


def rebuild(
    artifacts: Sequence[Artifact],
    *,
    title: str | None = None,
    out: Path | None = None,
    progress: Progress | None = None,
) -> Rebuilt:
    """Make the report of one report folder again, or a new one of other artifacts.

    A report is made again from the artifacts it was made from, and published as this version of the software makes it
    (its recipe holds the version, so the old folder stays as it is). With `out` its pages are rendered again from the
    `results.json` and tables in it, which needs no other artifact; where those are of an older format, from the
    artifacts. Of comparisons, health, grades and the like a new report is written.

    Args:
        artifacts: One report, or one or more of the kinds of `composing.KINDS`, of one store.
        title: Heading of a new report; default follows from what is compared.
        out: A new or empty folder that gets the report's files; no artifact is written into.

    Raises:
        ConfigError: Artifacts that make no report together, or `out` cannot be used.
        DamagedArtifactError: A file does not match its manifest.
        ArtifactError: What the report was made from has been removed; named.
    """
    store = _store_of(artifacts)
    if out is not None:
        out = _free(out)
    if any(item.kind == KIND for item in artifacts):
        if len(artifacts) > 1:
            raise ConfigError(
                "a report is made again alone",
                field="DIR",
                got=[item.id for item in artifacts],
                expected="one report, or several other artifacts",
            )
        report = artifacts[0]
        verify_artifact(report, only=is_data)
        if title is not None:
            raise ConfigError("a report that is made again keeps its title", field="--title", got=title)
        if out is not None and read_results(report.path) is not None:
            return Rebuilt(render_to(report.path, out), True)
        arguments = stored_arguments(report, store)
    else:
        for item in artifacts:
            if item.kind not in KINDS:
                raise ConfigError(
                    "no report is made of this",
                    field=item.id,
                    got=item.kind,
                    expected=f"a report, or any of {', '.join(KINDS)}",
                )
        arguments = compose(artifacts, title=title, store=store)
    made = _written(arguments, store, progress)
    return made if out is None else Rebuilt(render_to(made.folder, out), True)


def stored_arguments(report: Artifact, store: ArtifactStore) -> dict[str, Any]:
    """The arguments that `write_report` was called with, from a report's manifest; whatever version wrote it.

    Raises:
        ArtifactError: One of its inputs has been removed.
    """
    config = report.manifest()["config"]
    inputs = Lineage(store).inputs(report)
    gone = [item.id for item in inputs if not item.exists]
    if gone:
        raise _removed(report.id, gone, _readable(report.path))
    single = {name: next((item for item in inputs if item.kind in kinds), None) for name, kinds in SINGLE.items()}
    named: dict[str, list[Artifact]] = {}
    for item in inputs:
        named.setdefault(item.kind, []).append(item)
    return {
        **single,
        "title": config["title"],
        "health": _sides(config.get("health", ()), named.get("health", [])),
        "saes": _sides(config.get("saes", ()), named.get("sae", [])),
        "grades": dict(zip(config.get("grades", ()), named.get("grades", []))),
        "enrichment": dict(zip(config.get("enrichment", ()), named.get("enrichment", []))),
        "profiles": named.get("profiles", []),
        "detail_latents": config.get("detail_latents", ReportConfig().latents),
        "failures": tuple(Failure.model_validate(item) for item in config.get("failures", ())),
        "config": config.get("config", {}),
    }


def render_to(source: Path, out: Path) -> Path:
    """Copy a report's results and tables to a new folder and render its pages there; all of it appears at once."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        folder = Path(scratch) / "report"
        folder.mkdir()
        shutil.copyfile(source / RESULTS, folder / RESULTS)
        if (source / "tables").is_dir():
            shutil.copytree(source / "tables", folder / "tables")
        if (source / TIMING).exists():  # of the steps behind the report, whichever pages show them
            shutil.copyfile(source / TIMING, folder / TIMING)
        render(folder)
        if out.exists():
            out.rmdir()
        os.rename(folder, out)
    return out


def _written(arguments: Mapping[str, Any], store: ArtifactStore, progress: Progress | None) -> Rebuilt:
    """Write the report; what has been removed on the way to its inputs is named."""
    known = {path.name for path in store.folders(KIND)}
    for item in _given(arguments):
        # Weights are not read here, and are large.
        verify_artifact(item, only=lambda name: not name.endswith(".safetensors"))
    try:
        made = write_report(**arguments, store=store, progress=progress)
    except ArtifactError as error:
        lineage = Lineage(store)
        for _ in lineage.walk(_given(arguments)):
            pass
        if lineage.gone:
            raise _removed(str(arguments["title"]), sorted(lineage.gone), readable=False) from error
        raise
    return Rebuilt(made.path, made.path.name not in known)


def _given(arguments: Mapping[str, Any]) -> list[Artifact]:
    """Every artifact among the arguments of `write_report`."""
    found: list[Artifact] = []
    for value in arguments.values():
        for item in value.values() if isinstance(value, Mapping) else [value]:
            found += [part for part in (item if isinstance(item, list) else [item]) if isinstance(part, Artifact)]
    return found


def _removed(field: str, gone: Sequence[str], readable: bool) -> ArtifactError:
    return ArtifactError(
        "cannot be made again: artifacts behind it have been removed",
        field=field,
        got=list(gone),
        expected="every artifact it was made from, below the same folder",
        next_step="give --out FOLDER to render its pages from the results stored in it"
        if readable
        else "run the flow again: it makes what is missing and nothing else",
    )


def _readable(folder: Path) -> bool:
    try:
        return read_results(folder) is not None
    except (DataError, DamagedArtifactError):
        return False


def _sides(counts: Sequence[Sequence[Any]], items: Sequence[Artifact]) -> dict[str, list[Artifact]]:
    """Artifacts by side; `counts` are pairs of a side's title and how many are its own."""
    rest = iter(items)
    return {title: [next(rest) for _ in range(count)] for title, count in counts}


def _store_of(artifacts: Sequence[Artifact]) -> ArtifactStore:
    roots = {item.place.parent.parent for item in artifacts}
    if len(roots) != 1:
        raise ConfigError(
            "the artifacts lie below different folders" if roots else "no artifact was given",
            field="DIR",
            got=sorted(map(str, roots)),
            expected="artifacts of one folder, since inputs are looked up beside them",
        )
    return ArtifactStore(roots.pop())


def _free(out: Path) -> Path:
    """The folder to write to, if nothing lies there."""
    out = out.expanduser().absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(
            "is there already",
            field="--out",
            got=str(out),
            expected="a new or empty folder",
            next_step="choose another, or remove this one",
        )
    inside = next((folder for folder in out.parents if (folder / MANIFEST).is_file()), None)
    if inside is not None:
        raise ConfigError(
            "lies in an artifact, which never changes",
            field="--out",
            got=str(out),
            expected="a folder outside of artifacts",
        )
    return out
