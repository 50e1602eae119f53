"""Recipes: what determines an artifact, known before anything is computed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol


class Ref(Protocol):
    """What a recipe needs to know of an input: a `Recipe` not yet built or an `Artifact` that exists."""

    @property
    def kind(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def hash(self) -> str: ...


@dataclass(frozen=True)
class Recipe:
    """What determines an artifact's content.

    Attributes:
        kind: The folder below the root, such as `sae`.
        name: Readable part of the folder name, such as `layers.9`.
        version: The step's own version; raise it whenever the same configuration gives other bytes.
        config: JSON values that change the result, and only those.
        inputs: The recipes or artifacts this one is made from, in a fixed order.
    """

    kind: str
    name: str
    version: int
    config: Mapping[str, Any]
    inputs: tuple[Ref, ...] = ()

    @cached_property
    def hash(self) -> str:
        """Sixteen hex digits of SHA-256 over the canonical JSON of the recipe."""
        body = {
            "kind": self.kind,
            "version": self.version,
            "config": self.config,
            "inputs": [[ref.kind, ref.hash] for ref in self.inputs],
        }
        text = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def folder(self) -> str:
        """The path below the root: `<kind>/<name>-<recipe8>`."""
        return folder_of(self)


def folder_of(ref: Ref) -> str:
    """`kind/name-recipe8`: the id of an artifact, and its folder below the root."""
    return f"{ref.kind}/{ref.name}-{ref.hash[:8]}"
