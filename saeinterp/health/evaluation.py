"""The step that measures one SAE's layer health on the held-out split.

Payload: `health.json`, `documents.parquet` (sums per document, from which every number and interval can be
made again, alone or jointly with another SAE's) and `density.parquet`. The surprising choice: the masks and
the mean of mean ablation come from the activation cache that the SAE was trained on, so training and
evaluation leave out the same rows and ablate to a mean that held-out text had no part in.
"""

from __future__ import annotations

import logging

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from saeinterp.artifacts import Artifact, ArtifactStore, Recipe, Ref, Workspace, read_json, write_json
from saeinterp.config import HealthConfig, Placement, recipe_of
from saeinterp.errors import ConfigError, DataError
from saeinterp.health.reconstruction import measure_reconstruction
from saeinterp.health.summary import health_checks, health_values
from saeinterp.health.tally import Reconstruction, RowMask
from saeinterp.progress import Progress
from saeinterp.sae import TopKSae
from saeinterp.subject import ActivationCache, load_subject, read_contexts

log = logging.getLogger(__name__)

VERSION = 1


def evaluate_health_recipe(
    subject: Ref, corpus: Ref, activations: Ref, sae: Ref, *, hookpoint: str, config: HealthConfig
) -> Recipe:
    """The recipe of one layer's health."""
    return Recipe(
        kind="health",
        name=f"{subject.name}-{hookpoint}",
        version=VERSION,
        config={"hookpoint": hookpoint, **recipe_of(config)},
        inputs=(subject, corpus, activations, sae),
    )


def evaluate_health(
    subject: Artifact,
    corpus: Artifact,
    activations: Artifact,
    sae: Artifact,
    *,
    hookpoint: str,
    config: HealthConfig,
    store: ArtifactStore,
    device: str | Placement = "auto",
    progress: Progress | None = None,
) -> Artifact:
    """Measure one SAE on the health split of the corpus.

    Args:
        activations: The cache the SAE was trained on; gives masks and mean, its activations are not read.

    Raises:
        DataError: The SAE does not fit the hookpoint, the split is empty, or something is NaN or infinite.
        ConfigError: The cache has no such hookpoint.
    """
    recipe = evaluate_health_recipe(subject, corpus, activations, sae, hookpoint=hookpoint, config=config)

    def write(space: Workspace) -> None:
        cache = ActivationCache.open(activations, hookpoint)
        contexts = read_contexts(corpus, splits="health")
        loaded = load_subject(subject, device=device)
        coder = TopKSae.load(sae.path, device=loaded.device)
        if coder.d_in != cache.d_in:
            raise DataError(
                "the SAE does not fit the hookpoint",
                field=hookpoint,
                got=f"d_in = {coder.d_in}",
                expected=f"d_in = {cache.d_in}",
                next_step="name the hookpoint that this SAE was trained on",
            )
        result = measure_reconstruction(
            loaded,
            contexts,
            {hookpoint: coder},
            means={hookpoint: cache.mean},
            masks={hookpoint: RowMask.of(cache)},
            splice=config.splice,
            batch_contexts=config.batch_contexts,
            progress=progress,
        )[hookpoint]
        values = health_values(result, draws=config.bootstrap, seed=config.seed)
        checks = health_checks(values, mask_difference=_mask_difference(result, cache))
        for check in checks:
            if not check.passed:
                log.error("%s: integrity check failed: %s (%s)", recipe.folder, check.name, check.detail)
        write_json(space.out / "health.json", {**values, "checks": [check._asdict() for check in checks]})
        result.documents.write(space.out / "documents.parquet")
        density = {
            "latent": pa.array(range(len(result.firings)), pa.int32()),
            "firings": pa.array(result.firings, pa.int64()),
        }
        pq.write_table(pa.table(density), space.out / "density.parquet", compression="zstd")
        space.counts = {key: values[key] for key in ("tokens", "documents", "num_latents", "dead")}

    return store.build(recipe, write)


def read_health(artifact: Artifact) -> dict[str, object]:
    """The content of `health.json`."""
    values: dict[str, object] = read_json(artifact.file("health.json"))
    return values


def _mask_difference(result: Reconstruction, cache: ActivationCache) -> int | None:
    """Rows that only one of evaluation and training cache masks; None where the cache lacks the split."""
    try:
        rows = cache.split_rows("health")
    except ConfigError:
        return None
    here = np.concatenate(result.usable)
    there = cache.mask()[rows.start : rows.stop]
    return int((here != there).sum()) if len(here) == len(there) else result.rows
