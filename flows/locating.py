"""Which folder a user means on the command line: a path, an artifact's id, or the latter without its kind."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from saeinterp.artifacts import MANIFEST, ArtifactStore
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
    for place in (Path(text).expanduser(), store.root / text, *(store.root / kind / text for kind in kinds)):
        if place.is_dir():
            return place
    known = [
        path.parent.relative_to(store.root).as_posix()
        for kind in kinds
        for path in sorted(store.root.glob(f"{kind}/*/{MANIFEST}"))
    ]
    near = difflib.get_close_matches(text, known, n=3, cutoff=0.3)
    raise ConfigError(
        f"no such {what}",
        field="DIR",
        got=text,
        expected=f"a folder, or an id below {store.root}" + (f" such as {' or '.join(near)}" if near else ""),
        next_step="check the path, or give the artifact folder with --root" if not near else None,
    )
