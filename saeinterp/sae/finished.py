"""A finished SAE read back: what it is, how it was trained, its curves.

Everything but the weights, so that nothing heavy is loaded. The surprising choice: a folder is taken for what its
manifest says, wherever it lies, so an artifact that was copied to another machine reads the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from saeinterp.artifacts import TIMING, Artifact, open_artifact
from saeinterp.errors import DamagedArtifactError, DataError

SUMMARY = "training.json"
CURVES = "curves.parquet"
ADOPTED = "adopted"
_KIND = "sae"


class FinishedSae(NamedTuple):
    """The files of an `sae` artifact, its weights left out."""

    artifact: Artifact
    manifest: dict[str, Any]
    summary: dict[str, Any]
    """`training.json`."""
    curves: list[dict[str, float]]
    """Rows of `curves.parquet` by field (`CurveRow`), in order of the steps; none where it was trained elsewhere."""
    timing: list[dict[str, float]]
    """Rows of `timing.parquet` by field (`TimingRow`), one for each of `curves`."""


def open_sae(folder: str | Path) -> Artifact:
    """The artifact that lies in a folder.

    Raises:
        DataError: The folder is not there, or holds no finished SAE of ours.
        DamagedArtifactError: Its manifest is unreadable.
    """
    artifact = open_artifact(folder)
    if artifact.kind != _KIND:
        raise DataError(
            "not an SAE", field=artifact.location, got=artifact.kind, expected=f"an artifact of kind {_KIND!r}"
        )
    return artifact


def adopted_from(values: Mapping[str, Any]) -> str | None:
    """`sha256 …` of the weights of an SAE that was trained elsewhere, else None.

    Args:
        values: Its `training.json`, or the configuration in its recipe.
    """
    adopted = values.get(ADOPTED)
    if adopted is None:
        return None
    return next(f"sha256 {digest}" for name, digest in adopted["files"].items() if name.endswith(".safetensors"))


def read_finished(sae: Artifact | str | Path) -> FinishedSae:
    """Read an SAE's manifest, summary and curves.

    Raises:
        DataError: No finished SAE lies there.
        DamagedArtifactError: A file is missing or unreadable, or the two tables do not fit each other.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    artifact = sae if isinstance(sae, Artifact) else open_sae(sae)
    try:
        summary = json.loads(artifact.file(SUMMARY).read_text(encoding="utf-8"))
        if adopted_from(summary):
            return FinishedSae(artifact, artifact.manifest(), summary, [], [])
        curves, timing = (pq.read_table(artifact.file(name)).to_pylist() for name in (CURVES, TIMING))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise _damaged(artifact, f"unreadable file: {error}") from error
    if not curves or [row["step"] for row in curves] != [row["step"] for row in timing]:
        raise _damaged(artifact, f"{CURVES} and {TIMING} are of different runs or empty")
    return FinishedSae(artifact, artifact.manifest(), summary, curves, timing)


def _damaged(artifact: Artifact, problem: str) -> DamagedArtifactError:
    return DamagedArtifactError(
        problem,
        field=artifact.id,
        got=artifact.location,
        next_step=f"remove {artifact.place} and run the training again; it will be rebuilt",
    )
