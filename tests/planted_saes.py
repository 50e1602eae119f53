"""SAEs of the planted subject, trained as a user trains them."""

from __future__ import annotations

import sys
from pathlib import Path

from saeinterp.artifacts import Artifact, ArtifactStore
from saeinterp.config import CaptureConfig, CorpusConfig, CorpusSource, LaunchConfig, SubjectConfig, TrainingConfig
from saeinterp.sae import train_saes
from saeinterp.subject import build_corpus, collect_activations, prepare_subject

HOOKPOINTS = ("layers.1", "layers.2")


def train_planted_saes(root: Path, *, subject: Path, corpus: Path) -> dict[str, Artifact]:
    """Two small SAEs below `root`, by hookpoint, trained in one process; takes some seconds."""
    store = ArtifactStore(root)
    model = prepare_subject(SubjectConfig(model=str(subject)), store=store)
    text = build_corpus(model, config=CorpusConfig(sources=(CorpusSource(name=str(corpus)),)), store=store)
    capture = CaptureConfig(hookpoints=HOOKPOINTS)
    activations = collect_activations(model, text, config=capture, splits=("train", "health"), store=store)
    trained = train_saes(
        activations,
        hookpoints=HOOKPOINTS,
        config=TrainingConfig(num_latents=20, k=1, epochs=2, batch_rows=256, dead_after_rows=2000, log_every=10),
        launch=LaunchConfig(threads=1, together=2),
        store=store,
        launcher=lambda job, launch: [sys.executable, "-m", "saeinterp.sae.training", "--job", str(job)],
    )
    assert not trained.failures
    return trained.saes
