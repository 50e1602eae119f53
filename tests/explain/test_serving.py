"""vLLM as a managed child: started, reached, explained when it fails, and gone without a trace in every case.

A stand-in with real processes and real HTTP; the real one is in tests/vllm.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import psutil
import pytest
from explain.fake_vllm import write_python
from processes import family, survivors

from saeinterp.artifacts import ArtifactStore
from saeinterp.config import LLMConfig, ServingConfig
from saeinterp.errors import ConfigError, LLMError, MissingDependencyError
from saeinterp.explain.serving import find_vllm, served, vllm_server
from saeinterp.explain.serving.command import VLLM, command_line, environment
from saeinterp.explain.serving.failures import explain_ending


@pytest.fixture
def python(tmp_path: Path) -> Path:
    return write_python(tmp_path)


def config(python: Path, model: Path, *, env: dict[str, str] | None = None, **options: object) -> LLMConfig:
    serving = {"python": str(python), "env": env or {}, **options}
    return LLMConfig(provider="vllm", model=str(model), api_key_env="PLANTED_KEY", serving=serving)


def logs(store: ArtifactStore) -> list[str]:
    return [path.read_text() for path in sorted((store.root / "serving").glob("*.log"))]


def processes(log: str) -> list[psutil.Process]:
    """The processes of a stand-in: server, engine (another session, deaf to SIGTERM), helper."""
    found = re.search(r"^PIDS (\d+) (\d+) (\d+)$", log, re.MULTILINE)
    assert found, log
    return [psutil.Process(int(pid)) for pid in found.groups()]


@pytest.fixture
def earlier() -> list[psutil.Process]:
    """Processes below this one that other tests started, such as a server for a whole session."""
    return family(os.getpid())


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL follows SIGTERM soon."""
    monkeypatch.setattr("saeinterp.explain.serving.server.STOP_SECONDS", 0.5)


@pytest.mark.usefixtures("impatient")
def test_a_server_answers_inside_the_block_and_none_of_its_processes_is_left_behind(
    python: Path, planted_folder: Path, store: ArtifactStore
) -> None:
    asked = config(python, planted_folder)
    with served(asked, store=store) as client:
        assert client == asked.model_copy(update={"base_url": client.base_url})
        with urllib.request.urlopen(f"{client.base_url}/models") as reply:
            assert json.load(reply)["data"][0]["id"] == str(planted_folder)
        running = processes(logs(store)[0])
        assert survivors(running, within=0) == running
    assert survivors(running, within=0.5) == []


@pytest.mark.usefixtures("impatient")
def test_an_exception_inside_the_block_stops_it_too(python: Path, planted_folder: Path, store: ArtifactStore) -> None:
    running: list[psutil.Process] = []

    def work() -> None:
        with served(config(python, planted_folder), store=store):
            running.extend(processes(logs(store)[0]))
            raise RuntimeError("ours")

    with pytest.raises(RuntimeError, match="ours"):
        work()
    assert len(running) == 3
    assert survivors(running, within=0.5) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_end_of_the_process_that_started_it_is_its_end(
    python: Path, planted_folder: Path, store: ArtifactStore, number: signal.Signals
) -> None:
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a suite in the background ignores it
        "from saeinterp.artifacts import ArtifactStore\n"
        "from saeinterp.config import LLMConfig\n"
        "from saeinterp.explain.serving import served, server\n"
        "server.STOP_SECONDS = 0.5\n"
        "with served(LLMConfig.model_validate_json(sys.argv[1]), store=ArtifactStore(sys.argv[2])):\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(600)\n"
    )
    given = config(python, planted_folder).model_dump_json()
    with subprocess.Popen([sys.executable, "-c", code, given, str(store.root)], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"ready\n"
        running = processes(logs(store)[0])
        running.append(psutil.Process(running[0].ppid()))
        owner.send_signal(number)
        owner.wait(timeout=60)
    assert survivors(running, within=60) == []


@pytest.mark.usefixtures("impatient")
def test_two_servers_run_side_by_side_on_ports_of_their_own(
    python: Path, planted_folder: Path, store: ArtifactStore
) -> None:
    asked = config(python, planted_folder)
    with served(asked, store=store) as one, served(asked, store=store) as other:
        assert one.base_url != other.base_url
        running = [item for log in logs(store) for item in processes(log)]
    assert len(running) == 6
    assert survivors(running, within=0.5) == []


def test_servers_that_are_there_already_are_left_alone(store: ArtifactStore) -> None:
    for given in (
        LLMConfig(provider="openai", base_url="http://127.0.0.1:9/v1"),
        LLMConfig(provider="vllm", base_url="http://127.0.0.1:9/v1"),
        LLMConfig(),
    ):
        with served(given, store=store) as client:
            assert client == given
    assert not (store.root / "serving").exists()


@pytest.mark.usefixtures("impatient")
def test_a_server_that_dies_while_it_starts_is_explained_by_its_log(
    python: Path, planted_folder: Path, store: ArtifactStore, earlier: list[psutil.Process]
) -> None:
    last = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"
    asked = config(
        python, planted_folder, env={"FAKE_DIES": f"(EngineCore pid=7) ERROR 11-21 10:00:00 [core.py:9] {last}"}
    )
    with pytest.raises(LLMError) as caught, served(asked, store=store):
        pytest.fail("it never came up")
    assert caught.value.field == "llm.serving.gpu_memory"
    assert f"\n    {last}" in caught.value.problem
    assert "tensor_parallel" in str(caught.value.next_step)
    (log,) = (store.root / "serving").glob("*.log")
    assert str(log) in caught.value.problem
    assert survivors(set(family(os.getpid())) - set(earlier), within=0.5) == []


@pytest.mark.usefixtures("impatient")
def test_a_server_that_never_answers_is_given_up_and_stopped(
    python: Path, planted_folder: Path, store: ArtifactStore, earlier: list[psutil.Process]
) -> None:
    asked = config(python, planted_folder, env={"FAKE_DEAF": "1"}, start_seconds=1.5)
    with pytest.raises(LLMError, match=r"within 1\.5 s") as caught, served(asked, store=store):
        pytest.fail("it never came up")
    assert caught.value.field == "llm.serving.start_seconds"
    assert "PIDS" in logs(store)[0]
    assert survivors(set(family(os.getpid())) - set(earlier), within=0.5) == []


@pytest.mark.usefixtures("impatient")
def test_a_server_that_dies_later_says_how(python: Path, planted_folder: Path, store: ArtifactStore) -> None:
    with vllm_server(config(python, planted_folder), store=store) as server:
        assert server.failure() is None
        running = processes(logs(store)[0])
        running[0].kill()
        assert survivors(running, within=60) == []  # its orphans are not left to the end of the block
        failure = server.failure(patience=30)
        assert failure is not None
        assert "SIGKILL" in failure.problem
        assert "memory" in str(failure.next_step)


def test_a_port_in_use_is_refused_before_anything_starts(
    python: Path, planted_folder: Path, store: ArtifactStore
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(LLMError, match=f"cannot listen at 127.0.0.1:{port}") as caught,
            served(config(python, planted_folder, port=port), store=store),
        ):
            pytest.fail("the port was taken")
    assert caught.value.field == "llm.serving.port"
    assert not (store.root / "serving").exists()


def test_a_model_that_does_not_exist_is_refused_before_anything_starts(
    python: Path, tmp_path: Path, store: ArtifactStore
) -> None:
    with (
        pytest.raises(LLMError, match="no such folder or file") as caught,
        served(config(python, tmp_path / "absent"), store=store),
    ):
        pytest.fail("there is no model")
    assert caught.value.field == "llm.model"


@pytest.mark.usefixtures("impatient")
def test_the_key_is_asked_for_and_written_nowhere(
    python: Path, planted_folder: Path, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLANTED_KEY", "sk-planted-secret")
    with served(config(python, planted_folder), store=store) as client:
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"{client.base_url}/models")
        for process in processes(logs(store)[0]):
            assert "sk-planted-secret" not in " ".join(process.cmdline())
    written = [path for path in store.root.rglob("*") if path.is_file() and b"sk-planted-secret" in path.read_bytes()]
    assert written == []


def test_a_key_among_the_arguments_is_refused(planted_folder: Path) -> None:
    asked = config(Path("python"), planted_folder, extra_args=["--api-key=sk-1"])
    with pytest.raises(ConfigError, match="seen by everyone"):
        command_line(asked, VLLM(Path("python"), "1", cpu=False), model="m", port=1)


def test_settings_become_arguments_and_those_of_the_user_come_last() -> None:
    serving = ServingConfig(
        dtype="float16",
        quantization="awq",
        max_model_len=4096,
        tensor_parallel=4,
        gpu_memory=0.8,
        extra_args=("--max-num-seqs=64",),
    )
    asked = LLMConfig(provider="vllm", model="Qwen/Qwen2.5-72B-Instruct-AWQ", revision="main", serving=serving)
    line = command_line(asked, VLLM(Path("/opt/python"), "1", cpu=False), model=asked.model, port=8000)
    assert line[:3] == ["/opt/python", "-m", "vllm.entrypoints.openai.api_server"]
    assert line[-1] == "--max-num-seqs=64"
    values = dict(itertools.pairwise(line))
    expected = {
        "--model": "Qwen/Qwen2.5-72B-Instruct-AWQ",
        "--served-model-name": "Qwen/Qwen2.5-72B-Instruct-AWQ",
        "--revision": "main",
        "--dtype": "float16",
        "--quantization": "awq",
        "--max-model-len": "4096",
        "--tensor-parallel-size": "4",
        "--gpu-memory-utilization": "0.8",
        "--generation-config": "vllm",
    }
    assert {name: values[name] for name in expected} == expected
    assert json.loads(values["--structured-outputs-config"])["disable_any_whitespace"] is True
    assert "--enforce-eager" not in line


def test_a_build_for_cpus_gets_what_it_needs(tmp_path: Path) -> None:
    python = write_python(tmp_path, packages={"vllm": "0.30.0+cpu", "torch": "2.13.0"})
    vllm = find_vllm(ServingConfig(python=str(python)))
    assert vllm.cpu
    asked = LLMConfig(provider="vllm", serving=ServingConfig(cpu_cache_gib=3, gpu_memory=0.5))
    line = command_line(asked, vllm, model="/somewhere", port=8000)
    assert "--enforce-eager" in line
    assert line[line.index("--dtype") + 1] == "bfloat16"
    assert "--gpu-memory-utilization" not in line
    env = environment(asked, vllm, inherited={"VLLM_CPU_OMP_THREADS_BIND": "7", "OPENAI_API_KEY": "sk-1"})
    assert env["VLLM_CPU_KVCACHE_SPACE"] == "3"
    assert env["TORCHDYNAMO_DISABLE"] == "1"
    assert env["VLLM_CPU_OMP_THREADS_BIND"] == "7"  # the user's own
    assert env["VLLM_API_KEY"] == "sk-1"


def test_a_build_for_gpus_is_told_apart(tmp_path: Path) -> None:
    python = write_python(tmp_path, packages={"vllm": "0.32.0", "torch": "2.13.0+cu130"})
    assert find_vllm(ServingConfig(python=str(python))) == VLLM(python, "0.32.0", cpu=False)


def test_without_vllm_the_error_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SAEINTERP_VLLM_PYTHON", raising=False)
    with pytest.raises(MissingDependencyError, match="make vllm"):
        find_vllm(ServingConfig())
    monkeypatch.setenv("SAEINTERP_VLLM_PYTHON", str(tmp_path / "absent"))
    with pytest.raises(MissingDependencyError, match="SAEINTERP_VLLM_PYTHON: this Python does not run"):
        find_vllm(ServingConfig())
    with pytest.raises(MissingDependencyError, match=r"llm\.serving\.python: this Python has no vLLM"):
        find_vllm(ServingConfig(python=str(write_python(tmp_path, packages={"torch": "2.13.0"}))))


ENDINGS = {
    "llm.serving.extra_args": "usage: api_server.py\napi_server.py: error: unrecognized arguments: --no-such-flag",
    "llm.serving.max_model_len": "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n"
    "  Value error, User-specified max_model_len (100000) is greater than the derived max_model_len "
    "(max_position_embeddings=8192.0). To allow overriding this maximum, set VLLM_ALLOW_LONG_MAX_MODEL_LEN=1.",
    "llm.serving.quantization": "pydantic_core._pydantic_core.ValidationError: 1 validation error for VllmConfig\n"
    "  Value error, Cannot find the config file for awq [type=value_error]",
    "llm.model": "huggingface_hub.errors.LocalEntryNotFoundError: Cannot find an appropriate cached snapshot folder",
    "llm.serving.python": "RuntimeError: operator torchvision::nms does not exist",
}


@pytest.mark.parametrize("field", ENDINGS)
def test_what_vllm_writes_when_it_fails_names_the_setting(tmp_path: Path, field: str) -> None:
    path = tmp_path / "server.log"
    noise = "(APIServer pid=1) INFO 11-21 19:34:35 [utils.py:1] about to fail with an Error: no, not yet\n"
    cause = ENDINGS[field]
    end = "(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above.\n"
    path.write_text(f"$ python -m vllm --dtype auto\n{noise}Traceback (most recent call last):\n{cause}\n{end}")
    error = explain_ending(1, log=path, config=LLMConfig(provider="vllm"))
    assert error.field == field
    shown = error.problem.splitlines()[1:]
    assert shown == [f"    {cause.splitlines()[-1].strip()}"]
