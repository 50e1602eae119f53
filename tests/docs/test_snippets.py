"""Settings that the documentation shows are settings that there are; its Python runs, or imports what it names."""

from __future__ import annotations

import ast
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from documented import ROOT, Block, blocks, pages
from pydantic import BaseModel

from flows.catalogue import FLOWS
from saeinterp import config as configs
from saeinterp.config import load_config, read_yaml
from saeinterp.errors import ConfigError

KNOWN = ("", "bash", "sh", "text", "yaml", "json", "python", "ini")
ELSEWHERE = {
    "docs/how-to/notebook.md": "tests/test_notebook.py",
    "docs/how-to/serving.md": "tests/vllm",
}
"""Pages whose Python another test runs, since it trains or starts a server."""


def _named(block: Block) -> str:
    return block.place


def test_every_block_is_of_a_kind_that_is_checked() -> None:
    fences = sum(line.lstrip().startswith("```") for path in pages() for line in path.read_text().splitlines())
    assert len(blocks(*KNOWN)) == fences // 2
    assert all((ROOT / path).exists() for path in ELSEWHERE.values())


class _Loader(yaml.SafeLoader):
    """Also reads compose's `!override`."""


_Loader.add_constructor("!override", lambda loader, node: loader.construct_sequence(node, deep=True))


def _check_compose(given: dict[str, Any], folder: Path) -> None:
    """A piece of an override changes what docker/compose.yaml has, in words of its specification."""
    there = read_yaml(ROOT / "docker" / "compose.yaml")
    for part in given:
        assert set(given[part]) <= set(there[part])
    file = folder / "compose.override.yaml"
    file.write_text(yaml.safe_dump(given))
    check = [Path(sys.executable).parent / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", file]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("block", blocks("yaml"), ids=_named)
def test_settings_are_accepted_by_a_flow_or_by_what_they_belong_to(block: Block, tmp_path: Path) -> None:
    given = _Loader(block.text).get_single_data()
    if set(given) <= {"services", "volumes"}:
        _check_compose(given, tmp_path)
        return
    if set(given) == {"work_pool"}:
        pool = read_yaml(ROOT / "deployments" / "prefect.yaml")["definitions"][given["work_pool"]["name"]]
        assert set(given["work_pool"]) <= set(pool)
        assert set(given["work_pool"]["job_variables"]) <= set(pool["job_variables"])
        return
    if set(given) == {"llm"}:
        configs.LLMConfig.model_validate(given["llm"])
        return
    file = tmp_path / "shown.yaml"
    file.write_text(block.text)
    models: list[type[BaseModel]] = [model for _, model in FLOWS.values() if set(given) <= set(model.model_fields)]
    assert models, f"{block.place}: no flow has all of {sorted(given)}"
    refused = []
    for model in models:
        try:
            load_config(model, file, [])
        except ConfigError as error:
            refused.append(f"{model.__name__}: {error}")
        else:
            return
    raise AssertionError(f"{block.place}: " + "\n".join(refused))


@pytest.mark.parametrize("block", blocks("json"), ids=_named)
def test_json_is_json(block: Block) -> None:
    json.loads(block.text)


@pytest.mark.parametrize("block", blocks("ini"), ids=_named)
def test_a_service_starts_a_command_that_there_is(block: Block) -> None:
    import typer

    from flows.cli import app

    (line,) = [line for line in block.text.splitlines() if line.startswith("ExecStart=")]
    program, *words = shlex.split(line.removeprefix("ExecStart="))
    assert program == "%h/saeinterp/.venv/bin/saeinterp"
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    command.make_context("saeinterp", words)


@pytest.mark.parametrize("block", blocks("python"), ids=_named)
def test_python_imports_what_it_names(block: Block) -> None:
    imports = [node for node in ast.parse(block.text).body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert imports
    exec(compile(ast.Module(imports, []), block.place, "exec"), {})


def _prepare(block: Block, desk: Any) -> dict[str, Any]:
    """What a reader has at this point of the page."""
    import numpy as np
    import polars as pl

    from saeinterp.artifacts import open_artifact

    if "associate" in block.text:
        rng = np.random.default_rng(0)
        present = rng.random((400, 3)) < 0.3
        return {"present": present, "active": np.column_stack([present[:, 0], rng.random(400) < 0.3])}
    if "score_verdicts" in block.text:
        rows = [(latent, truth, truth) for latent in (1, 2) for truth in (True, True, False, False)]
        return {"frame": pl.DataFrame(rows, schema=["latent", "truth", "prediction"], orient="row")}
    if "artifact.file" in block.text:
        (path, *_) = sorted((desk.made / "runs" / "scores").glob("*"))
        return {"artifact": open_artifact(path)}
    return {}


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("block", [block for block in blocks("python") if block.page not in ELSEWHERE], ids=_named)
def test_python_runs(block: Block, desk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = desk.terminal(block.page)
    monkeypatch.chdir(terminal.folder)
    text = block.text
    if "/data/llama2-run/layers.4" in text:
        (sae, *_) = sorted((terminal.folder / "runs" / "sae").glob("*layers.1*"))
        text = text.replace("/data/llama2-run/layers.4", str(sae)).replace("layers.4", "layers.1")
    exec(compile(text, block.place, "exec"), _prepare(block, desk))
