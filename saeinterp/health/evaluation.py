"""The steps that measure layer health on one text: of one SAE, or of all SAEs of a subject in one pass.

Payload: `health.json`, `documents.parquet` (sums per document, from which every number and interval can be
made again, alone or jointly with another SAE's), `density.parquet` and `timing.parquet` (forward passes and
seconds, of everything measured in the same pass). The surprising choice: the masks and the mean of mean ablation
come from the activation cache that the SAE was trained on, so training and evaluation leave out the same rows and
ablate to a mean that held-out text had no part in.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from saeinterp.artifacts import TIMING, Artifact, ArtifactStore, Build, Recipe, Ref, Workspace, read_json, write_json
from saeinterp.config import HealthConfig, Placement, recipe_of
from saeinterp.errors import ConfigError, DataError, SaeinterpError
from saeinterp.health.overlap import Overlap, refuse_overlap, training_corpus, training_overlap
from saeinterp.health.reconstruction import Measured, Site, measure_sites
from saeinterp.health.summary import health_checks, health_values
from saeinterp.health.tally import Reconstruction, RowMask
from saeinterp.progress import Progress
from saeinterp.sae import TopKSae, adopted_from
from saeinterp.subject import ActivationCache, load_subject, read_contexts

log = logging.getLogger(__name__)

VERSION = 2


class EvaluatedLayers(NamedTuple):
    """What became of each SAE."""

    health: dict[str, Artifact]
    """Health by the id of the SAE."""
    failures: dict[str, SaeinterpError]
    """The error of each SAE that could not be measured, by its id."""


def evaluate_health_recipe(
    subject: Ref,
    corpus: Ref,
    activations: Ref,
    sae: Ref,
    *,
    hookpoint: str,
    config: HealthConfig,
    dataset: str | None = None,
) -> Recipe:
    """The recipe of one SAE's health on one text; `dataset` is what reports call it (default `config.name`)."""
    return Recipe(
        kind="health",
        name=f"{subject.name}-{hookpoint}",
        version=VERSION,
        config={"hookpoint": hookpoint, "dataset": dataset or config.name, **recipe_of(config)},
        inputs=(subject, corpus, activations, sae),
    )


def evaluate_health(
    subject: Artifact,
    corpus: Artifact,
    activations: Artifact,
    sae: Artifact,
    *,
    hookpoint: str,
    **arguments: Any,
) -> Artifact:
    """Measure one SAE: `evaluate_layers` of one, its error raised."""
    evaluated = evaluate_layers(subject, corpus, activations, [(hookpoint, sae)], **arguments)
    for error in evaluated.failures.values():
        raise error
    return evaluated.health[sae.id]


def evaluate_layers(
    subject: Artifact,
    corpus: Artifact,
    activations: Artifact,
    saes: Sequence[tuple[str, Artifact]],
    *,
    config: HealthConfig,
    dataset: str | None = None,
    store: ArtifactStore,
    device: str | Placement = "auto",
    progress: Progress | None = None,
) -> EvaluatedLayers:
    """Measure SAEs on the health split of a corpus in one pass over it; call again to measure only what failed.

    `config.together` of them share a pass. Each gets the artifact it would get alone, to the same bytes.

    Args:
        corpus: Its split `health` is the text; another than the SAEs' training corpus must be tokenised alike.
        activations: The cache the SAEs were trained on (of an adopted SAE: of any text read alike); gives masks and
            mean, its activations are not read.
        saes: Pairs of a hookpoint and its SAE.
        dataset: What reports call the text; default `config.name`.

    Returns:
        Health, and errors: `DataError` when an SAE does not fit its hookpoint, the text is empty or holds training
        documents, or something is NaN or infinite; `ConfigError` when cache or subject lack the hookpoint.
    """
    dataset = dataset or config.name
    health: dict[str, Artifact] = {}
    failures: dict[str, SaeinterpError] = {}
    together = config.together or max(1, len(saes))
    for start in range(0, len(saes), together):
        some = {sae.id: (hookpoint, sae) for hookpoint, sae in saes[start : start + together]}
        with contextlib.ExitStack() as stack:
            builds = {
                name: stack.enter_context(
                    store.open(
                        evaluate_health_recipe(
                            subject, corpus, activations, sae, hookpoint=hookpoint, config=config, dataset=dataset
                        )
                    )
                )
                for name, (hookpoint, sae) in some.items()
            }
            missing = {name: some[name] for name, build in builds.items() if build.artifact is None}
            if missing:
                work = _Work(subject, corpus, activations, config, dataset)
                failures |= work.measure(missing, builds, device=device, progress=progress)
            health |= {name: build.artifact for name, build in builds.items() if build.artifact is not None}
    for name, error in failures.items():
        log.error("%s on %s failed: %s", name, dataset, error)
    return EvaluatedLayers(health, failures)


def read_health(artifact: Artifact) -> dict[str, object]:
    """The content of `health.json`."""
    values: dict[str, object] = read_json(artifact.file("health.json"))
    return values


class _Work(NamedTuple):
    """One text for SAEs of one activation cache."""

    subject: Artifact
    corpus: Artifact
    activations: Artifact
    config: HealthConfig
    dataset: str

    def measure(
        self,
        saes: dict[str, tuple[str, Artifact]],
        builds: dict[str, Build],
        *,
        device: str | Placement,
        progress: Progress | None,
    ) -> dict[str, SaeinterpError]:
        """Measure SAEs together and publish each; returns the error of each that could not be."""
        started = time.monotonic()
        caches: dict[str, ActivationCache] = {}
        sites: dict[str, Site] = {}
        try:
            overlaps, failures = self._overlaps(saes)
            if not overlaps:
                return failures
            contexts = read_contexts(self.corpus, splits="health")
            loaded = load_subject(self.subject, device=device)
        except SaeinterpError as error:
            return dict.fromkeys(saes, error)
        for name in overlaps:
            hookpoint, sae = saes[name]
            try:
                cache = caches[name] = ActivationCache.open(self.activations, hookpoint)
                coder = TopKSae.load(sae.path, device=loaded.device)
                refuse_misfit(coder, d_in=cache.d_in, hookpoint=hookpoint)
            except SaeinterpError as error:
                failures[name] = error
                continue
            sites[name] = Site(hookpoint, coder, cache.mean, RowMask.of(cache))
        if not sites:
            return failures
        try:
            found = measure_sites(
                loaded,
                contexts,
                sites,
                splice=self.config.splice,
                batch_contexts=self.config.batch_contexts,
                dataset=self.dataset,
                progress=progress,
            )
        except DataError as error:
            return failures | dict.fromkeys(sites, error)
        seconds = time.monotonic() - started
        for name, result in found.results.items():
            self._write(builds[name].space, result, caches[name], overlaps[name])
            _write_timing(builds[name].space, found, tokens=result.rows, seconds=seconds)
            builds[name].publish()
        return failures | found.failures

    def _overlaps(self, saes: dict[str, tuple[str, Artifact]]) -> tuple[dict[str, Overlap], dict[str, SaeinterpError]]:
        """Training documents in the text, by SAE; and the error of each SAE that must not be measured on it."""
        overlap = training_overlap(self.corpus, self.activations)
        found: dict[str, Overlap] = {}
        failures: dict[str, SaeinterpError] = {}
        for name, (_, sae) in saes.items():
            if adopted_from(sae.manifest()["config"]):
                found[name] = overlap._replace(shared=None)
                continue
            try:
                refuse_overlap(overlap, dataset=self.dataset, allowed=self.config.allow_overlap)
            except DataError as error:
                failures[name] = error
            else:
                found[name] = overlap
        return found, failures

    def _write(self, space: Workspace, result: Reconstruction, cache: ActivationCache, overlap: Overlap) -> None:
        values = health_values(result, draws=self.config.bootstrap, seed=self.config.seed)
        checks = health_checks(values, mask_difference=self._mask_difference(result, cache))
        for check in checks:
            if not check.passed:
                where = f"{self.subject.name}, {result.hookpoint}, {self.dataset}"
                log.error("%s: integrity check failed: %s (%s)", where, check.name, check.detail)
        write_json(
            space.out / "health.json",
            {
                **values,
                "dataset": self.dataset,
                "training_overlap": overlap._asdict(),
                "checks": [check._asdict() for check in checks],
            },
        )
        result.documents.write(space.out / "documents.parquet")
        density = {
            "latent": pa.array(range(len(result.firings)), pa.int32()),
            "firings": pa.array(result.firings, pa.int64()),
        }
        pq.write_table(pa.table(density), space.out / "density.parquet", compression="zstd")
        space.counts = {key: values[key] for key in ("tokens", "documents", "num_latents", "dead")}

    def _mask_difference(self, result: Reconstruction, cache: ActivationCache) -> int | None:
        """Rows that only one of evaluation and training cache masks; None where the cache lacks this text."""
        if self.corpus.hash != training_corpus(self.activations).hash:
            return None
        try:
            rows = cache.split_rows("health")
        except ConfigError:
            return None
        here = np.concatenate(result.usable)
        there = cache.mask()[rows.start : rows.stop]
        return int((here != there).sum()) if len(here) == len(there) else result.rows


def refuse_misfit(coder: TopKSae, *, d_in: int, hookpoint: str) -> None:
    """Refuse an SAE of another width than the hookpoint's.

    Raises:
        DataError: Naming the hookpoint and both widths.
    """
    if coder.d_in != d_in:
        raise DataError(
            "the SAE does not fit the hookpoint",
            field=hookpoint,
            got=f"d_in = {coder.d_in}",
            expected=f"d_in = {d_in}",
            next_step="name the hookpoint that this SAE was trained on",
        )


def _write_timing(space: Workspace, found: Measured[str], *, tokens: int, seconds: float) -> None:
    """One row: what the pass took for all SAEs that shared it. Apart from the payload, which does not depend on it."""
    passes = found.passes
    columns: dict[str, pa.Array] = {
        "saes": pa.array([len(found.results)], pa.int32()),
        "clean_passes": pa.array([passes.clean], pa.int32()),
        "spliced_passes": pa.array([passes.spliced], pa.int32()),
        "ablated_passes": pa.array([passes.ablated], pa.int32()),
        "probe_passes": pa.array([passes.probes], pa.int32()),
        "full_passes": pa.array([passes.full], pa.float64()),
        "tokens": pa.array([tokens], pa.int64()),
        "seconds": pa.array([seconds], pa.float64()),
        "tokens_per_second": pa.array([tokens / max(seconds, 1e-9)], pa.float64()),
    }
    pq.write_table(pa.table(columns), space.out / TIMING)
