"""Images and compose without a container engine: linted, valid, and every name in them leads somewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from shipped_files import ROOT, compose, example, instructions, left_out, placeholders, wrong

from saeinterp.config import CompareExplainersConfig, parse_config, read_yaml

BIN = Path(sys.executable).parent


def _lint(*dockerfiles: Path) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / "hadolint"), "--no-color", *map(str, dockerfiles)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _validate(file: Path) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / "check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The files that images are made of, to be damaged."""
    for name in ("docker", "deployments"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", ".env"))
    (tmp_path / "tests/vllm").mkdir(parents=True)
    for name in ("pyproject.toml", "constraints.txt", "README.md", "LICENSE", ".dockerignore"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "tests/vllm/constraints.txt", tmp_path / "tests/vllm")
    for name in ("saeinterp", "tasks", "flows"):
        (tmp_path / name).mkdir()
    return tmp_path


def test_dockerfiles_pass_the_linter_and_a_bad_one_does_not(tmp_path: Path) -> None:
    done = _lint(*sorted((ROOT / "docker").glob("*.Dockerfile")))
    assert done.returncode == 0, done.stdout
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM debian\nRUN cd /tmp\n")
    assert _lint(bad).returncode != 0


def test_compose_follows_its_specification_and_a_misspelt_key_does_not(tmp_path: Path) -> None:
    done = _validate(ROOT / "docker/compose.yaml")
    assert done.returncode == 0, done.stdout
    bad = tmp_path / "compose.yaml"
    bad.write_text((ROOT / "docker/compose.yaml").read_text().replace("stop_grace_period", "stop_grace"))
    assert "stop_grace" in _validate(bad).stdout


def test_every_name_in_the_images_and_compose_leads_somewhere(copy: Path) -> None:
    assert wrong(ROOT) == []
    assert wrong(copy) == []


@pytest.mark.parametrize(
    ("file", "right", "planted"),
    [
        ("docker/worker.Dockerfile", "COPY tasks tasks", "COPY taks tasks"),
        ("docker/worker.Dockerfile", ".[adapters,quantized]", ".[adapters,quantised]"),
        ("docker/worker.Dockerfile", "import FILES_ONLY", "import FILE_ONLY"),
        ("docker/worker.Dockerfile", "SAEINTERP_ROOT=", "SAEINTERP_ROOTS="),
        ("docker/worker.Dockerfile", '"--pool", "gpu"', '"--pools", "gpu"'),
        ("docker/worker.Dockerfile", "VLLM_VERSION=0.3", "VLLM_VERSION=9.3"),
        ("docker/worker.Dockerfile", "AS worker\n", "AS workers\n"),
        ("docker/worker.Dockerfile", "CUDA_IMAGE=nvidia/cuda:13", "CUDA_IMAGE=nvidia/cuda:12"),
        ("docker/worker.Dockerfile", 'ARG TORCH_INDEX=""', 'ARG TORCH_URL=""'),
        ("docker/server.Dockerfile", "install --no-cache-dir prefect ", "install --no-cache-dir perfect "),
        ("docker/server.Dockerfile", '"server", "start"', '"server", "begin"'),
        ("docker/server.Dockerfile", '"--port", "4200"', '"--port", "4300"'),
        (".dockerignore", "!flows\n", ""),
        ("docker/env.example", "POSTGRES_PASSWORD=", "PG_PASSWORD="),
        ("docker/env.example", "PREFECT_AUTH_STRING=\n", "PREFECT_AUTH_STRING=admin:admin\n"),
        ("docker/compose.yaml", "PREFECT_SERVER_DATABASE_HOST", "PREFECT_SERVER_DB_HOST"),
        ("docker/compose.yaml", "DATABASE_HOST: database", "DATABASE_HOST: postgres"),
        ("docker/compose.yaml", "http://server:4200", "http://server:4300"),
        ("docker/compose.yaml", "networks: [database, default]", "networks: [database]"),
        ("docker/compose.yaml", "setup --root", "set-up --root"),
        ("docker/compose.yaml", "--gpus ${WORKER", "--cards ${WORKER"),
        ("docker/compose.yaml", "--prefect-file", "--file"),
        ("docker/compose.yaml", "127.0.0.1:${PREFECT_PORT", "0.0.0.0:${PREFECT_PORT"),
        ("docker/compose.yaml", "127.0.0.1:8080/health", "127.0.0.1:8081/health"),
        ("docker/compose.yaml", "VLLM_NO_USAGE_STATS", "VLLM_NO_STATS"),
        ("docker/compose.yaml", "HF_HOME:", "HF_HOMES:"),
        ("docker/compose.yaml", "--enable-prompt-tokens-details", "--enable-prompt-token-details"),
        ("docker/compose.yaml", "artifacts:/data", "artefacts:/data"),
        ("docker/compose.yaml", "docker/server.Dockerfile", "docker/Server.Dockerfile"),
        ("docker/compare-explainers.yaml", "http://scorer:8000", "http://judge:8000"),
        ("docker/compare-explainers.yaml", "Qwen2.5-7B-Instruct", "Qwen2.5-8B-Instruct"),
    ],
)
def test_a_wrong_name_is_found(copy: Path, file: str, right: str, planted: str) -> None:
    text = (copy / file).read_text()
    assert right in text
    (copy / file).write_text(text.replace(right, planted))
    assert wrong(copy) != []


def test_each_secret_is_required_with_a_message_and_none_is_written_down() -> None:
    needed = {name for name, required in placeholders(ROOT).items() if required}
    assert needed == {"PREFECT_AUTH_STRING", "POSTGRES_PASSWORD", "OPENAI_API_KEY"}
    for name in needed:
        with pytest.raises(ValueError, match=f"set {name} .*in docker/.env"):
            compose(ROOT, **{name: ""})
    assert {name: value for name, value in example(ROOT).items() if value} == {
        "WORKER_GPUS": "1",
        "PREFECT_PORT": "4200",
    }
    assert left_out(ROOT, "docker/.env")
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert {"docker/.env", "docker/compose.override.yaml"} <= set(ignored)


@pytest.mark.parametrize(("index", "more"), [("", []), ("https://torch.example/cu126", ["--no-deps", "--index-url"])])
def test_torch_comes_from_the_index_that_is_given(index: str, more: list[str]) -> None:
    known = instructions(ROOT / "docker/worker.Dockerfile")
    step = next(text for name, text in known if name == "RUN" and "TORCH_INDEX" in text)
    script = f"pip() {{ printf '%s\\n' \"$@\"; }}; {step}"
    done = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, env={"PATH": os.environ["PATH"], "TORCH_INDEX": index}, capture_output=True
    )
    _, torch, *rest = done.stdout.decode().split()
    assert torch.startswith("torch==")
    assert rest == ["-c", "constraints.txt", *more, *([index] if index else [])]


def test_the_database_is_asked_where_others_reach_it() -> None:
    assert "--host=127.0.0.1" in compose(ROOT)["services"]["database"]["healthcheck"]["test"]


def test_long_running_services_are_restarted_and_healthy_before_others_start() -> None:
    services = compose(ROOT)["services"]
    for name, service in services.items():
        if name != "setup":
            assert service["restart"] == "unless-stopped", name
            assert service["healthcheck"]["test"], name
    conditions = {
        (name, other): item["condition"]
        for name, service in services.items()
        for other, item in service.get("depends_on", {}).items()
    }
    assert conditions["worker", "setup"] == "service_completed_successfully"
    assert {value for (_, other), value in conditions.items() if other != "setup"} == {"service_healthy"}


def test_cards_are_named_once_each_and_counted_by_the_set_up() -> None:
    services = compose(ROOT)["services"]
    cards = {
        name: device["device_ids"]
        for name, service in services.items()
        for device in service.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", [])
    }
    assert set(cards) == {"worker", "explainer-a", "explainer-b", "scorer"}
    assert str(len(cards["worker"])) == example(ROOT)["WORKER_GPUS"]
    for name in ("explainer-a", "explainer-b", "scorer"):
        assert not set(cards[name]) & set(cards["worker"])
        width = [word for word in services[name]["command"] if word.startswith("--tensor-parallel-size=")]
        assert len(cards[name]) == int(width[0].split("=")[1] if width else 1)


def test_the_packaged_run_is_the_preset_with_other_servers() -> None:
    file = ROOT / "docker/compare-explainers.yaml"
    parse_config(CompareExplainersConfig, read_yaml(file), source=str(file))
    run = yaml.safe_load(file.read_text())
    preset = yaml.safe_load((ROOT / "deployments/presets/qwen-7b-vs-72b-designed.yaml").read_text())
    del preset["training"]["saes"]
    for values in (run, preset):
        for part in ("explainer_a", "explainer_b", "scorer"):
            for name in ("provider", "base_url", "serving"):
                values[part]["llm"].pop(name, None)
    assert run == preset
