"""A real vLLM, where there is one: `make vllm` installs the CPU build."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from saeinterp.artifacts import ArtifactStore
from saeinterp.config import LLMConfig, ServingConfig
from saeinterp.errors import MissingDependencyError
from saeinterp.explain.serving import Server, find_vllm, vllm_server


@pytest.fixture(scope="session")
def serving() -> ServingConfig:
    """How the tests serve; skips where there is no vLLM."""
    config = ServingConfig(max_model_len=2048, cpu_cache_gib=1)
    try:
        find_vllm(config)
    except MissingDependencyError as error:
        pytest.skip(f"{error.problem}: make vllm (3.2 GB), or SAEINTERP_VLLM_PYTHON")
    return config


@pytest.fixture(scope="session")
def vllm_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One artifact folder for all: the demo model is converted once."""
    return tmp_path_factory.mktemp("vllm")


@pytest.fixture(scope="module")
def server(serving: ServingConfig, vllm_root: Path) -> Iterator[Server]:
    """SmolLM2-135M, served by our own code for the tests of one module."""
    config = LLMConfig(provider="vllm", serving=serving, concurrency=16)
    with vllm_server(config, store=ArtifactStore(vllm_root)) as running:
        yield running
