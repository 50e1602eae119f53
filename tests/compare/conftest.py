"""The planted subject and its random-weights control, prepared once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from planted_health import Prepared, prepare, write_repetitive_corpus

from saeinterp.artifacts import ArtifactStore


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    return ArtifactStore(tmp_path_factory.mktemp("models") / "runs")


@pytest.fixture(scope="session")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_repetitive_corpus(tmp_path_factory.mktemp("repetitive") / "documents.jsonl")


@pytest.fixture(scope="session")
def real(shared_store: ArtifactStore, planted_folder: Path, documents: Path) -> Prepared:
    return prepare(shared_store, planted_folder, documents)


@pytest.fixture(scope="session")
def control(shared_store: ArtifactStore, planted_folder: Path, documents: Path) -> Prepared:
    return prepare(shared_store, planted_folder, documents, control=True)
