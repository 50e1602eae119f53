"""The step of `probe-latents`, as a task."""

from __future__ import annotations

from collections.abc import Sequence

from saeinterp.artifacts import Artifact, ArtifactStore
from saeinterp.config import Placement, SparseProbingConfig
from saeinterp.health import probe_labels, probe_labels_recipe
from tasks.progress import listener
from tasks.step import step
from tasks.turns import turn


@step(probe_labels_recipe)
def probe_table(
    subject: Artifact,
    activations: Artifact,
    saes: Sequence[Artifact],
    hookpoints: Sequence[str],
    config: SparseProbingConfig,
    device: Placement,
    label: str,
) -> Artifact:
    """Probe the SAEs of every layer for the classes of a labelled table."""
    with turn(device) as place:
        return probe_labels(
            subject,
            activations,
            saes,
            hookpoints=hookpoints,
            config=config,
            device=place,
            store=ArtifactStore(),
            progress=listener(f"probe {label}"),
        )
