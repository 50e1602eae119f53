"""Immutable artifact folders addressed by recipe.

Everything a step makes is a folder `<root>/<kind>/<name>-<recipe8>/` whose `manifest.json` is written
last; a folder without one is invisible. The surprising choice: a recipe hashes the recipes of its
inputs, never their bytes, so every recipe of a run is known before anything is computed (`plan` rests
on it), and equal recipes mean equal folders with or without a scheduler's memory.

The root is a folder or `s3://bucket/prefix`; the latter has a local mirror, in which everything else works.
"""

from saeinterp.artifacts.files import file_sha256, process_alive, read_json, write_atomic, write_json
from saeinterp.artifacts.manifests import FORMAT, MANIFEST, TIMING
from saeinterp.artifacts.places import size_of
from saeinterp.artifacts.recipes import Recipe, Ref, folder_of
from saeinterp.artifacts.references import Artifact, dependencies, open_artifact, verify_artifact
from saeinterp.artifacts.room import OUTBOX
from saeinterp.artifacts.store import ArtifactStore, Build
from saeinterp.artifacts.workspace import Workspace

__all__ = [
    "FORMAT",
    "MANIFEST",
    "OUTBOX",
    "TIMING",
    "Artifact",
    "ArtifactStore",
    "Build",
    "Recipe",
    "Ref",
    "Workspace",
    "dependencies",
    "file_sha256",
    "folder_of",
    "open_artifact",
    "process_alive",
    "read_json",
    "size_of",
    "verify_artifact",
    "write_atomic",
    "write_json",
]
