"""Train the SAEs of several hookpoints of one activation cache; a layer that fails fails alone."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

from saeinterp.artifacts import Artifact, ArtifactStore
from saeinterp.config import LaunchConfig, TrainingConfig
from saeinterp.errors import SaeinterpError
from saeinterp.progress import Progress
from saeinterp.sae.launch import train_sae

log = logging.getLogger(__name__)


class TrainedLayers(NamedTuple):
    """What became of each hookpoint."""

    saes: dict[str, Artifact]
    """The finished SAEs by hookpoint."""
    failures: dict[str, SaeinterpError]
    """The error of each hookpoint that failed."""


def train_saes(
    activations: Artifact,
    *,
    hookpoints: Sequence[str],
    config: TrainingConfig,
    launch: LaunchConfig | None = None,
    store: ArtifactStore,
    progress: Progress | None = None,
) -> TrainedLayers:
    """Train one SAE per hookpoint, one after the other; call again to train only what failed.

    Args:
        hookpoints: Names in the cache, such as `layers.5`.
        progress: As of `train_sae`, for each layer anew.
    """
    saes: dict[str, Artifact] = {}
    failures: dict[str, SaeinterpError] = {}
    for hookpoint in hookpoints:
        try:
            saes[hookpoint] = train_sae(
                activations, hookpoint=hookpoint, config=config, launch=launch, store=store, progress=progress
            )
        except SaeinterpError as error:
            log.error("%s failed: %s", hookpoint, error)
            failures[hookpoint] = error
    return TrainedLayers(saes, failures)
