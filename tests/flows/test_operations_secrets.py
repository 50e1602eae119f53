"""Secrets are planted wherever a lab keeps them, a whole run uses them, and then nothing that was written holds one."""

from __future__ import annotations

import base64
import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from explain.oracle import Oracle
from operations import AUTH, HF_TOKEN, TERMINAL, Operations

from saeinterp.config import LLMConfig, parse_config
from saeinterp.errors import ConfigError

KEY = "sk-planted-block-7f3a9c"
KNOWN = (KEY, HF_TOKEN, AUTH.partition(":")[2])


@pytest.mark.slow
def test_a_whole_run_writes_no_secret_anywhere(
    operations: Operations, planted_config: Path, oracle: Oracle, tmp_path: Path
) -> None:
    block = {"name": "planted-key", "block_type_id": None, "block_schema_id": None, "data": {"value": KEY}}
    kind = operations.call("GET", "/block_types/slug/secret")["id"]
    (schema, *_) = operations.call(
        "POST", "/block_schemas/filter", {"block_schemas": {"block_type_id": {"any_": [kind]}}}
    )
    operations.call("POST", "/block_documents/", {**block, "block_type_id": kind, "block_schema_id": schema["id"]})
    config: dict[str, Any] = copy.deepcopy(yaml.safe_load(planted_config.read_text()))
    config["capture"]["hookpoints"] = ["layers.1"]
    config["random_weights_control"] = False
    config["absorption"] = {"enabled": False}
    root = tmp_path / "secret-run"
    # A worker fills the block in when it starts the run; the deployment names it alone.
    deployment = operations.deploy(
        "compare-explainers",
        "flows/compare_explainers.py:compare_explainers",
        root=root,
        env={
            "OPENAI_API_KEY": "{{ prefect.blocks.secret.planted-key }}",
            "SAEINTERP_VERBOSE": "1",
            "PREFECT_LOGGING_LEVEL": "DEBUG",
        },
    )
    run = operations.submit(deployment, config)
    assert operations.wait(run, *TERMINAL)["type"] == "COMPLETED", operations.story(run)
    assert f"Bearer {KEY}" in oracle.keys, "the run did not use the key"

    places = [root, operations.home]
    assert {path.name for path in places for path in path.rglob("*")} >= {"llm-cache", "prefect.db", "worker.log"}
    assert _holding(places) == []
    for path in ("/flow_runs/filter", "/task_runs/filter", "/deployments/filter", "/artifacts/filter", "/logs/filter"):
        assert not any(secret in str(operations.call("POST", path, {"limit": 200})) for secret in KNOWN), path
    # Replies are for the user alone, whoever may look into the rest.
    assert root.stat().st_mode & 0o077 == 0
    for path in (root / "llm-cache").iterdir():
        assert path.stat().st_mode & 0o077 == 0


def test_a_url_with_a_password_or_a_key_is_refused_and_not_repeated() -> None:
    for url in ("http://me:hunter22@127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1?api_key=hunter22"):
        with pytest.raises(ConfigError, match="api_key_env") as caught:
            parse_config(LLMConfig, {"provider": "openai", "base_url": url})
        assert "hunter22" not in str(caught.value)


def _holding(places: list[Path]) -> list[str]:
    """Files in which a secret stands, in whatever of these spellings."""
    spellings = [text for secret in KNOWN for text in (secret.encode(), base64.b64encode(secret.encode()).rstrip(b"="))]
    spellings.append(base64.b64encode(AUTH.encode()))
    found = []
    for place in places:
        for path in place.rglob("*"):
            if path.is_file() and not path.is_symlink():
                data = path.read_bytes()
                found += [f"{path} holds {text.decode()}" for text in spellings if text in data]
    return found
