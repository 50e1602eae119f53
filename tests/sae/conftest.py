"""Activations of the planted subject, and random rows in a cache's clothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from saeinterp.artifacts import Artifact, ArtifactStore
from saeinterp.config import CaptureConfig, CorpusConfig, CorpusSource, SubjectConfig
from saeinterp.subject import build_corpus, collect_activations, prepare_subject


@pytest.fixture(scope="session")
def activations(planted_folder: Path, planted_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Train and health rows of the planted subject at layers.1 and layers.2."""
    store = ArtifactStore(tmp_path_factory.mktemp("sae-activations"))
    subject = prepare_subject(SubjectConfig(model=str(planted_folder)), store=store)
    corpus = build_corpus(subject, config=CorpusConfig(sources=(CorpusSource(name=str(planted_corpus)),)), store=store)
    capture = CaptureConfig(hookpoints=("layers.1", "layers.2"))
    return collect_activations(subject, corpus, config=capture, splits=("train", "health"), store=store)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """The machine is shared, and these tensors are small."""
    torch.set_num_threads(1)
