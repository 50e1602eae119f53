"""The servers of docker/compose.yaml, as far as vLLM itself can judge them without their models."""

from __future__ import annotations

import json
import subprocess

import pytest
from shipped_files import ROOT, compose

from saeinterp.config import ServingConfig
from saeinterp.explain.serving import find_vllm

CODE = """
import json, sys
import vllm.envs
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
command, names = json.load(sys.stdin)
parsed = make_arg_parser(FlexibleArgumentParser()).parse_args(command)
unknown = [name for name in names if name.startswith("VLLM_") and name not in vllm.envs.environment_variables]
print(json.dumps([parsed.model, parsed.port, unknown]))
"""


@pytest.mark.parametrize("name", ["explainer-a", "explainer-b", "scorer"])
def test_vllm_takes_the_arguments_and_variables_of_compose(serving: ServingConfig, name: str) -> None:
    service = compose(ROOT)["services"][name]

    def ask(command: list[str]) -> subprocess.CompletedProcess[str]:
        given = json.dumps([command, list(service["environment"])])
        python = str(find_vllm(serving).python)
        return subprocess.run([python, "-c", CODE], input=given, capture_output=True, text=True, check=False)

    done = ask(service["command"])
    assert done.returncode == 0, done.stderr[-2000:]
    model, port, unknown = json.loads(done.stdout.splitlines()[-1])
    assert f"--served-model-name={model}" in service["command"]
    assert (port, unknown) == (8000, [])
    assert "--no-such-flag" in ask([*service["command"], "--no-such-flag"]).stderr
