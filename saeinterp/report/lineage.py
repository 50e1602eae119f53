"""From one artifact to everything it was made from, by the manifests alone.

A report is given a handful of artifacts; examples, verdicts, corpora and subjects are found by walking
`manifest["inputs"]`. The surprising choice: an input is looked up by its recipe below the store's root,
never by a path written anywhere, so a moved store still reports; one that was removed to free the disk
(activations) is listed as gone and stops nobody.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from saeinterp.artifacts import Artifact, ArtifactStore


class Lineage:
    """Artifacts of one store and their ancestors.

    Args:
        store: Where inputs are looked up.
    """

    def __init__(self, store: ArtifactStore) -> None:
        self._store = store
        self._manifests: dict[str, dict[str, Any]] = {}
        self.gone: set[str] = set()

    def manifest(self, artifact: Artifact) -> dict[str, Any]:
        """The artifact's manifest, read once."""
        if artifact.hash not in self._manifests:
            self._manifests[artifact.hash] = artifact.manifest()
        return self._manifests[artifact.hash]

    def inputs(self, artifact: Artifact, kind: str | None = None) -> list[Artifact]:
        """The direct inputs, in the recipe's order; `kind` keeps only those."""
        found = [self._locate(item) for item in self.manifest(artifact)["inputs"]]
        return [item for item in found if kind is None or item.kind == kind]

    def walk(self, artifacts: Iterable[Artifact]) -> Iterator[Artifact]:
        """The artifacts and all ancestors that still exist, each once, every input before what it went into."""
        seen: set[str] = set()

        def visit(artifact: Artifact) -> Iterator[Artifact]:
            if artifact.hash in seen:
                return
            seen.add(artifact.hash)
            if not artifact.exists:
                self.gone.add(artifact.id)
                return
            for parent in self.inputs(artifact):
                yield from visit(parent)
            yield artifact

        for artifact in artifacts:
            yield from visit(artifact)

    def of_kind(self, artifacts: Iterable[Artifact], kind: str) -> list[Artifact]:
        """All ancestors (the artifacts included) of one kind."""
        return [item for item in self.walk(artifacts) if item.kind == kind]

    def counts(self, artifact: Artifact) -> dict[str, Any]:
        """The counts its step recorded."""
        counts: dict[str, Any] = self.manifest(artifact)["counts"]
        return counts

    def _locate(self, item: Mapping[str, str]) -> Artifact:
        return self._store.named(item)
