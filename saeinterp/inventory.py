"""What lies below an artifact root, and what was made from what: by the manifests alone.

The surprising choice: payloads are never looked at. Sizes stand in the manifests, so that a store of terabytes is
listed as fast as its manifests are read.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from saeinterp.artifacts import MANIFEST, TIMING, Artifact, ArtifactStore
from saeinterp.errors import ConfigError, DamagedArtifactError


class Stored(NamedTuple):
    """One finished artifact."""

    artifact: Artifact
    bytes: int
    """Of all its files; of the manifest alone where that cannot be read."""
    made: datetime
    """UTC; where the manifest cannot be read, when it was last written."""
    inputs: tuple[str, ...]
    """Ids of what it was made from, whether they are still there or not."""
    problem: str | None = None
    """Why its manifest cannot be read."""

    @property
    def id(self) -> str:
        """`kind/name-recipe8`."""
        return self.artifact.id


class Inventory:
    """The artifacts of one store by id."""

    def __init__(self, artifacts: Iterable[Stored]) -> None:
        self.artifacts = {item.id: item for item in artifacts}
        self._dependents: dict[str, list[str]] = {}
        for item in self.artifacts.values():
            for name in dict.fromkeys(item.inputs):
                self._dependents.setdefault(name, []).append(item.id)

    def dependents(self, artifact: str) -> list[str]:
        """Ids of what was made directly from an artifact."""
        return self._dependents.get(artifact, [])

    def needed(self, artifacts: Iterable[str]) -> set[str]:
        """Ids of these and of everything they were made from."""
        found: set[str] = set()
        waiting = list(artifacts)
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                waiting += self.artifacts[name].inputs if name in self.artifacts else ()
        return found

    def locate(self, text: str) -> Stored:
        """The artifact that a user means: its id, or the path of its folder.

        Raises:
            ConfigError: There is none.
        """
        if text in self.artifacts:
            return self.artifacts[text]
        path = Path(text).expanduser().absolute()
        for item in self.artifacts.values():
            if item.artifact.place == path or item.artifact.location == text:
                return item
        near = difflib.get_close_matches(text, self.artifacts, n=3, cutoff=0.5)
        raise ConfigError(
            "no such artifact",
            field="ID",
            got=text,
            expected=f"an id such as {' or '.join(near)}" if near else "kind/name-recipe8",
            next_step="`saeinterp artifacts list` names them",
        )


_OURS = re.compile(r".+-[0-9a-f]{8}")


def take_inventory(store: ArtifactStore) -> Inventory:
    """Read every manifest below the root; folders without one, or named otherwise than `<name>-<recipe8>`, are none of
    ours.
    """
    return Inventory(_read(store, folder) for folder in store.folders() if _OURS.fullmatch(folder.name))


def _read(store: ArtifactStore, path: Path) -> Stored:
    kind, folder = path.relative_to(store.root).parts
    name, _, short = folder.rpartition("-")
    artifact = store.named({"kind": kind, "name": name, "recipe": short})
    own = sum(file.stat().st_size for file in (path / MANIFEST, path / TIMING) if file.exists())
    try:
        manifest = artifact.manifest()
        if manifest["recipe"][:8] != short:
            raise DamagedArtifactError("manifest belongs to another recipe", got=artifact.location)
        artifact = artifact.model_copy(update={"hash": manifest["recipe"]})
        return Stored(
            artifact,
            own + sum(file["bytes"] for file in manifest["files"].values()),
            datetime.strptime(manifest["made"]["at"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC),
            tuple(_id(item) for item in manifest["inputs"]),
        )
    except (DamagedArtifactError, KeyError, TypeError, ValueError) as error:
        made = datetime.fromtimestamp((path / MANIFEST).stat().st_mtime, tz=UTC)
        problem = error.problem if isinstance(error, DamagedArtifactError) else "unreadable manifest"
        return Stored(artifact, own, made, (), problem)


def _id(item: dict[str, Any]) -> str:
    return f"{item['kind']}/{item['name']}-{item['recipe'][:8]}"
