"""A real Prefect server, an oracle behind real HTTP, and the command line as a child process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from explain.oracle import Oracle
from lab import free_port
from operations import Operations

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def prefect_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The API address of a Prefect server of this test session's own."""
    home = tmp_path_factory.mktemp("prefect-home")
    port = free_port()
    env = {
        **os.environ,
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_UI_ENABLED": "false",
    }
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (home / "server.log").open("w") as log:
        server = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}/api"
    try:
        for _ in range(240):
            try:
                if httpx.get(f"{url}/health", timeout=2).status_code == 200:
                    break
            except httpx.HTTPError:
                time.sleep(0.5)
            assert server.poll() is None, (home / "server.log").read_text()
        yield url
    finally:
        server.terminate()
        server.wait(timeout=30)


@pytest.fixture(scope="session")
def oracle() -> Iterator[Oracle]:
    """An OpenAI-compatible server that knows the planted classes."""
    with Oracle() as server:
        yield server


@pytest.fixture(scope="session")
def planted_config(
    tmp_path_factory: pytest.TempPathFactory, planted_folder: Path, planted_corpus: Path, oracle: Oracle
) -> Path:
    """`compare-explainers` over the planted subject: oracle against top tokens, judged by the oracle."""
    llm = {"provider": "openai", "model": "oracle", "base_url": oracle.url}
    config: dict[str, Any] = {
        "subject": {"model": str(planted_folder), "dtype": "float32"},
        "corpus": {"sources": [{"name": str(planted_corpus)}], "context_length": 64},
        "capture": {"hookpoints": ["layers.0", "layers.1", "layers.2"]},
        "training": {"num_latents": 20, "k": 1, "epochs": 8, "batch_rows": 256, "dead_after_rows": 2000},
        "launch": {"threads": 1, "together": 2},
        "examples": {
            "latents": "all",
            "window": 16,
            "max_share": 0.6,
            "score_activating": 8,
            "score_random": 4,
            "score_similar": 4,
            "score_near_miss": 2,
        },
        "explainer_a": {"kind": "llm", "label": "oracle", "llm": llm, "logit_lens": False},
        "explainer_b": {"kind": "top-tokens"},
        "scorer": {"llm": {**llm, "max_tokens": 1}},
    }
    path = tmp_path_factory.mktemp("config") / "planted.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture
def cli(prefect_url: str) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `saeinterp ARGS` against the test server; keyword arguments are environment variables."""

    def call(*args: str, timeout: float = 280, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "flows.cli", *args],
            cwd=ROOT,
            env={**os.environ, "PREFECT_API_URL": prefect_url, "OPENAI_API_KEY": "sk-planted-secret", **env},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return call


@pytest.fixture(scope="session")
def operations(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operations]:
    """A server with authentication and a process worker, as a lab runs them."""
    lab = Operations(tmp_path_factory.mktemp("operations"))
    try:
        lab.start_server()
        lab.start_worker()
        yield lab
    finally:
        lab.stop()


@pytest.fixture(scope="session")
def tiny_training(planted_folder: Path, planted_corpus: Path) -> dict[str, Any]:
    """`train-saes` over three layers of the planted subject, in seconds."""
    return {
        "subject": {"model": str(planted_folder), "dtype": "float32"},
        "corpus": {"sources": [{"name": str(planted_corpus)}], "context_length": 64},
        "capture": {"hookpoints": ["layers.0", "layers.1", "layers.2"]},
        "training": {"num_latents": 20, "k": 1, "epochs": 2, "batch_rows": 256, "dead_after_rows": 2000},
        "launch": {"threads": 1},
        "absorption": {"enabled": False},
    }
