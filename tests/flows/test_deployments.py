"""What prefect.yaml says, without a server: presets as parameters, and what names runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from lab import ROOT

from deployments.steps import preset
from flows.catalogue import FLOWS, preset_files
from flows.naming import run_name
from saeinterp.config import CompareExplainersConfig, CompareModelsConfig, TrainSaesConfig
from saeinterp.errors import ConfigError


def test_every_preset_fits_a_flow() -> None:
    for path in preset_files():
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        takers = [flow for flow, (_, model) in FLOWS.items() if set(values) <= set(model.model_fields)]
        assert takers, path.stem
        for flow in takers[:1]:
            FLOWS[flow][1].model_validate(values)
        assert path.read_text(encoding="utf-8").startswith("# "), path.stem


def test_a_preset_of_another_flow_is_refused_when_deploying() -> None:
    with pytest.raises(ConfigError, match="subject_a"):
        preset(flow="train-saes", name="compare-models-small")
    with pytest.raises(ConfigError, match="train-saes-small"):
        preset(flow="train-saes", name="nope")
    changed = preset(flow="train-saes", name="train-saes-small", changes=["training.k=3"])
    assert changed["config"]["training"] == {"num_latents": 1152, "k": 3, "epochs": 2}


@pytest.mark.parametrize(
    ("root", "expected"), [("", "Next: saeinterp ops setup --root DIR"), ("there", "-rw------- there/.prefect")]
)
def test_a_worker_prepares_private_files_and_refuses_a_run_without_a_place(
    tmp_path: Path, root: str, expected: str
) -> None:
    code = (
        "import os, stat, pathlib\nfrom deployments.steps import prepare_process\nprepare_process()\n"
        "pathlib.Path('made').touch()\n"
        "mode = stat.filemode(os.stat('made').st_mode)\n"
        "print(mode, os.path.relpath(os.environ['PREFECT_RESULTS_LOCAL_STORAGE_PATH']))\n"
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "SAEINTERP"))}
    env = {**kept, "PYTHONPATH": str(ROOT), "SAEINTERP_ROOT": root}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert expected in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (TrainSaesConfig(), "smollm2-135m, layers 5, 10 and 15, k 32"),
        (CompareModelsConfig(), "smollm2-135m and smollm2-135m at random, layers 5, 10 and 15, k 32"),
        (
            CompareExplainersConfig.model_validate(
                {"capture": {"hookpoints": ["layers.4"]}, "explainer_a": {"label": "SmolLM2"}}
            ),
            "smollm2-135m, layer 4, k 32: SmolLM2 against top-tokens",
        ),
        (
            TrainSaesConfig.model_validate({"capture": {"hookpoints": [f"layers.{n}" for n in range(16)]}}),
            "smollm2-135m, 16 layers from 0 to 15, k 32",
        ),
    ],
)
def test_a_run_is_named_by_what_it_is_about(config: Any, name: str) -> None:
    assert run_name(config) == name
