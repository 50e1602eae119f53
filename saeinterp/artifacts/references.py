"""References to artifacts that exist: what steps pass to each other instead of tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from saeinterp.artifacts.fetching import fetch
from saeinterp.artifacts.manifests import MANIFEST, first_problem, payload_prefix, read_manifest, remedy
from saeinterp.artifacts.mirror import Mirror, mirror_of
from saeinterp.artifacts.places import Place, mirror_root, remote_of
from saeinterp.artifacts.recipes import folder_of
from saeinterp.errors import DamagedArtifactError, DataError


class Artifact(BaseModel):
    """A small reference to a finished artifact: what tasks pass to each other instead of tensors.

    One in object storage is fetched where it is read: by `path` with all its files, by `file` one at a time. So a
    reference may travel to another process or machine.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", serialize_by_alias=True)

    kind: str
    name: str
    hash: str
    recorded: Path = Field(alias="path")
    """Where it lay for whoever made the reference."""
    url: str | None = None
    """`s3://bucket/prefix` of its store; None for one in a folder."""

    @property
    def id(self) -> str:
        """`kind/name-recipe8`, as printed in reports."""
        return folder_of(self)

    @property
    def path(self) -> Path:
        """Its folder, with all files in it: those of an artifact in object storage are fetched first.

        Raises:
            DamagedArtifactError: What was fetched does not match its manifest.
            ArtifactError: It cannot be fetched.
        """
        if (mirror := self._mirror()) is not None:
            fetch(mirror, self.id)
        return self.place

    @property
    def place(self) -> Path:
        """Where its folder is on this machine, or would be: nothing is fetched."""
        mirror = self._mirror()
        return self.recorded if mirror is None else mirror.root / self.recorded.parent.name / self.recorded.name

    @property
    def location(self) -> str:
        """Where it is, for people: its folder, or its address in object storage."""
        mirror = self._mirror()
        return str(self.recorded) if mirror is None else f"{mirror.url}/{self.id}"

    @property
    def exists(self) -> bool:
        """Whether it is there, finished; nothing but its manifest is fetched."""
        mirror = self._mirror()
        return (self.recorded / MANIFEST).exists() if mirror is None else mirror.knows(self.id)

    def manifest(self) -> dict[str, Any]:
        """The artifact's manifest: recipe, versions, inputs, counts, checksums, timings."""
        if (mirror := self._mirror()) is not None:
            mirror.knows(self.id)
        return read_manifest(self.place)

    def counts(self) -> dict[str, Any]:
        """The counts the step recorded (rows, tokens, latents ...)."""
        counts: dict[str, Any] = self.manifest()["counts"]
        return counts

    def has(self, name: str) -> bool:
        """Whether it is there and has this payload file; nothing but its manifest is fetched."""
        if (self.place / name).exists():
            return True
        return self._mirror() is not None and self.exists and name in self.manifest()["files"]

    def file(self, name: str) -> Path:
        """The path of one payload file or subfolder; raises `DamagedArtifactError` when it is not there."""
        if (mirror := self._mirror()) is not None:
            fetch(mirror, self.id, name)
        path = self.place / name
        if not path.exists():
            raise DamagedArtifactError(f"{self.id} lacks {name}", got=self.location, next_step=remedy(self.place))
        return path

    def link(self, name: str) -> str:
        """An address of a payload file for a browser: `file:`, or where users of the bucket can see it."""
        mirror = self._mirror()
        if mirror is None:
            return (self.recorded / name).as_uri()
        return mirror.bucket.page(payload_prefix(self.id, self.manifest()) + name)

    def beside(self, item: Mapping[str, str]) -> Artifact:
        """Another artifact of the same store, as a manifest names its inputs (kind, name, recipe); it may be gone."""
        place = self.place.parent.parent / item["kind"] / f"{item['name']}-{item['recipe'][:8]}"
        return Artifact(kind=item["kind"], name=item["name"], hash=item["recipe"], path=place, url=self.url)

    def _mirror(self) -> Mirror | None:
        root = self.recorded.parent.parent
        url = remote_of(root)
        if url is not None and self.url in (None, url):
            return mirror_of(Place(root, url))
        # A reference from another machine, whose mirror lay elsewhere.
        return None if self.url is None else mirror_of(Place(mirror_root(self.url), self.url))


def open_artifact(folder: str | Path) -> Artifact:
    """The finished artifact that lies in a folder, taken for what its manifest says, wherever the folder lies.

    Raises:
        DataError: The folder is not there, or holds no finished artifact.
        DamagedArtifactError: Its manifest is unreadable.
    """
    folder = Path(folder).expanduser().absolute()
    if not (folder / MANIFEST).is_file():
        raise DataError(
            f"no {MANIFEST}: not a finished artifact" if folder.is_dir() else "no such folder",
            field=str(folder),
            expected="a folder that a step has finished, such as runs/report/layer-health-1a2b3c4d",
            next_step="check the path; what is being made appears once it is done",
        )
    manifest = read_manifest(folder)
    return Artifact(
        kind=manifest.get("kind", folder.parent.name),
        name=manifest.get("name", folder.name.rpartition("-")[0]),
        hash=manifest["recipe"],
        path=folder,
        url=remote_of(folder.parent.parent),
    )


def verify_artifact(artifact: Artifact, *, only: Callable[[str], bool] | None = None) -> None:
    """Compare every payload file with the manifest's sizes and SHA-256 sums.

    A file whose size and modification time were seen before in this process is not read again.

    Args:
        only: Says by its name whether a file is compared; default is every one.

    Raises:
        DamagedArtifactError: Naming the folder and the first file that differs.
    """
    manifest = artifact.manifest()
    if only is not None and artifact.url is not None:
        for name in filter(only, manifest["files"]):
            artifact.file(name)
    problem = first_problem(artifact.path if only is None else artifact.place, manifest, only=only)
    if problem is not None:
        raise DamagedArtifactError(
            f"damaged artifact: {problem}",
            field=artifact.id,
            got=artifact.location,
            next_step=remedy(artifact.place),
        )


def dependencies(artifacts: Sequence[Artifact]) -> list[dict[str, str]]:
    """The direct inputs of the given artifacts, each once, in order of first mention."""
    seen: dict[str, dict[str, str]] = {}
    for artifact in artifacts:
        for item in artifact.manifest()["inputs"]:
            seen.setdefault(item["recipe"], item)
    return list(seen.values())
