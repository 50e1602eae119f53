"""Which folder a user means on the command line: a path, an artifact's id, or the latter without its kind."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from saeinterp.artifacts import MANIFEST, ArtifactStore, open_artifact
from saeinterp.errors import ConfigError


def locate(text: str, store: ArtifactStore, *, kinds: Sequence[str], what: str) -> Path:
    """The folder that a user means.

    Args:
        text: A path, an id such as `sae/layers.9-1a2b3c4d`, or its last part.
        store: Where ids are looked up.
        kinds: Kinds that may be left out of an id, and of which near ones are offered.
        what: What is looked for, for the error.

    Raises:
        ConfigError: There is none.
    """
    given = Path(text).expanduser()
    if given.is_dir():
        return _with_files(given)
    there = None if store.url is None else store.folders()
    text = text if store.url is None else text.removeprefix(f"{store.url}/")
    for place in (store.root / text, *(store.root / kind / text for kind in kinds)):
        if place.is_dir() and (there is None or place in there):
            return _with_files(place)
    there = store.folders() if there is None else there
    known = [place.relative_to(store.root).as_posix() for place in there if place.parent.name in kinds]
    near = difflib.get_close_matches(text, known, n=3, cutoff=0.3)
    raise ConfigError(
        f"no such {what}",
        field="DIR",
        got=text,
        expected=f"a folder, or an id below {store.shown}" + (f" such as {' or '.join(near)}" if near else ""),
        next_step="check the path, or give the artifact folder with --root" if not near else None,
    )


def _with_files(folder: Path) -> Path:
    """The folder as given; what it mirrors is fetched from object storage first."""
    if (folder / MANIFEST).is_file():
        artifact = open_artifact(folder)
        if artifact.url is not None:
            return artifact.path
    return folder
