"""The planted road up to a trained SAE and its latent cache, once per session."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from saeinterp.artifacts import Artifact, ArtifactStore
from saeinterp.config import CaptureConfig, CorpusConfig, CorpusSource, LaunchConfig, SubjectConfig, TrainingConfig
from saeinterp.latents import cache_latents
from saeinterp.sae import train_sae
from saeinterp.subject import build_corpus, collect_activations, prepare_subject


class Road(NamedTuple):
    """Artifacts of the planted subject."""

    store: ArtifactStore
    corpus: Artifact
    training: Artifact
    activations: Artifact
    sae: Artifact
    latents: Artifact


@pytest.fixture(scope="session")
def road(tmp_path_factory: pytest.TempPathFactory, planted_folder: Path, planted_corpus: Path) -> Road:
    store = ArtifactStore(tmp_path_factory.mktemp("latents-road"))
    subject = prepare_subject(SubjectConfig(model=str(planted_folder), dtype="float32"), store=store)
    source = CorpusConfig(sources=(CorpusSource(name=str(planted_corpus)),), context_length=64)
    corpus = build_corpus(subject, config=source, store=store)
    capture = CaptureConfig(hookpoints=("layers.1",))
    training = collect_activations(subject, corpus, config=capture, splits=("train", "health"), store=store)
    activations = collect_activations(subject, corpus, config=capture, splits=("explain", "score"), store=store)
    config = TrainingConfig(num_latents=20, k=1, epochs=8, batch_rows=256, dead_after_rows=2000)
    sae = train_sae(training, hookpoint="layers.1", config=config, launch=LaunchConfig(threads=1), store=store)
    latents = cache_latents(activations, sae, hookpoint="layers.1", store=store)
    return Road(store, corpus, training, activations, sae, latents)
