"""Documents that an SAE saw in training must not pass as held out.

The surprising choice: documents are compared by a hash of their text as read, not by id, so a dataset that repeats
training text under another name, tokenizer or order is found. A document that shares only a paragraph is not.
"""

from __future__ import annotations

from typing import NamedTuple

import pyarrow.compute as pc
import pyarrow.parquet as pq

from saeinterp.artifacts import Artifact
from saeinterp.errors import DataError


class Overlap(NamedTuple):
    """Evaluated documents that are training documents too."""

    shared: int | None
    """None where the SAE was trained elsewhere: its training text is not known."""
    documents: int
    """All evaluated documents."""


def training_corpus(activations: Artifact) -> Artifact:
    """The corpus that an activation cache, and so its SAEs, come from."""
    (found,) = (item for item in activations.manifest()["inputs"] if item["kind"] == "corpus")
    return activations.beside(found)


def training_overlap(corpus: Artifact, activations: Artifact) -> Overlap:
    """How many documents of the corpus's health split are in the train split behind the activations."""
    trained = _texts(training_corpus(activations), "train")
    evaluated = _texts(corpus, "health")
    return Overlap(len(evaluated & trained), len(evaluated))


def refuse_overlap(overlap: Overlap, *, dataset: str, allowed: bool) -> None:
    """Raise unless no document is shared, or sharing is allowed.

    Raises:
        DataError: Naming the dataset and how many of its documents are shared.
    """
    if overlap.shared and not allowed:
        raise DataError(
            f"{overlap.shared} of {overlap.documents} documents are training documents of these SAEs: nothing measured "
            "on them is held out",
            field=f"health.datasets, {dataset}",
            next_step="evaluate on other text or split, or set health.allow_overlap: true to go on; their number is "
            "then printed",
        )


def _texts(corpus: Artifact, split: str) -> set[str]:
    table = pq.read_table(corpus.file("documents.parquet"), columns=["split", "sha256"])
    return set(table.filter(pc.equal(table.column("split"), split)).column("sha256").to_pylist())
