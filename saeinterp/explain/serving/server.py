"""A vLLM server for as long as a `with` block lasts.

The server is a child of `saeinterp.supervisor`, whose standard input this process holds open: however this process
ends, SIGKILL included, the server ends with it. The surprising choice: it is ready only when `/v1/models` names the
model; a port answers before that, and something else may be listening there.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import logging
import os
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from saeinterp.artifacts import ArtifactStore
from saeinterp.config import LLMConfig, ServingConfig
from saeinterp.errors import ArtifactError, LLMError
from saeinterp.explain.serving.command import FOREIGN, command_line, environment, find_vllm, model_reference
from saeinterp.explain.serving.failures import explain_ending

log = logging.getLogger(__name__)

STOP_SECONDS = 20.0  # between SIGTERM and SIGKILL
_POLL_SECONDS = 0.5
_LINE_SECONDS = 15.0  # between two lines that say it is still loading
_ANSWER_SECONDS = 10.0
# A proxy of the environment has no business between two processes of one machine.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Server:
    """A vLLM that was started; `vllm_server` makes one and stops it.

    Attributes:
        config: The configuration with the server's address, for clients.
        log: Its output.
    """

    def __init__(self, config: LLMConfig, *, url: str, log: Path, process: subprocess.Popen[bytes]) -> None:
        self.config = config.model_copy(update={"base_url": f"{url}/v1"})
        self.log = log
        self._url = url
        self._process = process

    def failure(self, *, patience: float = 0.0) -> LLMError | None:
        """Why it ended by itself; None while it runs.

        Args:
            patience: Seconds in which one that does not answer any more may turn out to have ended.
        """
        if patience and not self._serves(self.config.model):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(patience)
        code = self._process.poll()
        return None if code is None else explain_ending(code, log=self.log, config=self.config)

    def wait_until_ready(self, say: Callable[[str], None]) -> None:
        """Wait until it answers for its model.

        Args:
            say: Told every few seconds that it is still loading.

        Raises:
            LLMError: It ended while it was starting, or took longer than `start_seconds`.
        """
        serving, model = self.config.serving, self.config.model
        started = last = time.monotonic()
        while not self._serves(model):
            if (failure := self.failure()) is not None:
                raise failure
            now = time.monotonic()
            if now - started > serving.start_seconds:
                raise LLMError(
                    f"vLLM did not answer for {model} within {serving.start_seconds:g} s; its log is {self.log}",
                    field="llm.serving.start_seconds",
                    got=serving.start_seconds,
                    next_step="raise it where the model is still being downloaded or loaded",
                )
            if now - last > _LINE_SECONDS:
                last = now
                say(f"vLLM is loading {model}, {now - started:.0f} s")
            time.sleep(_POLL_SECONDS)
        say(f"vLLM serves {model} at {self.config.base_url} after {time.monotonic() - started:.0f} s")

    def stop(self) -> None:
        """End it and all of its processes."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(STOP_SECONDS + 10)
        except subprocess.TimeoutExpired:
            log.warning("the supervisor of vLLM (pid %d) does not end; it is killed", self._process.pid)
            self._process.kill()
            self._process.wait()

    def _serves(self, model: str) -> bool:
        try:
            with _DIRECT.open(f"{self._url}/health", timeout=_ANSWER_SECONDS):
                pass
            request = urllib.request.Request(f"{self._url}/v1/models")
            if key := os.environ.get(self.config.api_key_env):
                request.add_header("Authorization", f"Bearer {key}")
            with _DIRECT.open(request, timeout=_ANSWER_SECONDS) as reply:
                return any(item["id"] == model for item in json.load(reply)["data"])
        except (OSError, ValueError, KeyError, TypeError):
            return False


@contextlib.contextmanager
def served(config: LLMConfig, *, store: ArtifactStore) -> Iterator[LLMConfig]:
    """The configuration of a client while its model is served.

    Other providers than `vllm`, and a `base_url` that is set already, are given back unchanged.

    Raises:
        MissingDependencyError: vLLM is not installed.
        LLMError: The model does not exist, or the server does not come up.
    """
    if config.provider != "vllm" or config.base_url:
        yield config
        return
    with vllm_server(config, store=store) as server:
        yield server.config


@contextlib.contextmanager
def vllm_server(
    config: LLMConfig, *, store: ArtifactStore, visible: str | None = None, say: Callable[[str], None] = log.info
) -> Iterator[Server]:
    """Start vLLM, wait until it answers, stop it in the end; nothing of it stays, whatever happens.

    Its output is kept in `<root>/serving/<model>-<time>-<pid>.log`.

    Args:
        visible: The GPUs that it sees (`CUDA_VISIBLE_DEVICES`); None leaves what it inherits.
        say: Told how far it is.

    Raises:
        MissingDependencyError: vLLM is not installed.
        LLMError: The model does not exist, the port is taken, or the server does not come up.
    """
    vllm = find_vllm(config.serving)
    model = model_reference(config, store=store)
    port = _free_port(config.serving)
    command = command_line(config, vllm, model=model, port=port)
    path = _log_path(config.model, store)
    unset = [f"--unset={name}" for name in FOREIGN if name not in config.serving.env]
    inherited = os.environ if visible is None else {**os.environ, "CUDA_VISIBLE_DEVICES": visible}
    supervisor = [sys.executable, "-m", "saeinterp.supervisor", f"--grace={STOP_SECONDS}", *unset, "--", *command]
    with path.open("ab") as output:
        output.write(f"$ {shlex.join(command)}\n".encode())
        output.flush()
        # A session of its own: a Ctrl-C in the terminal reaches us, and we stop it.
        process = subprocess.Popen(
            supervisor,
            env=environment(config, vllm, inherited=inherited),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    server = Server(config, url=f"http://{_reachable(config.serving.host)}:{port}", log=path, process=process)
    try:
        say(f"starting {vllm} for {config.model}; its output goes to {path}")
        server.wait_until_ready(say)
        yield server
    finally:
        server.stop()


def _log_path(model: str, store: ArtifactStore) -> Path:
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", model.rstrip("/").rsplit("/", 1)[-1]).strip("-.") or "model"
    folder = store.root / "serving"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(
            f"cannot write to the artifact folder: {error.strerror}",
            field="SAEINTERP_ROOT",
            got=str(store.root),
            next_step="set SAEINTERP_ROOT to another folder or fix its permissions",
        ) from error
    name = f"{slug}-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}"
    for number in range(1, 1000):
        path = folder / (f"{name}.log" if number == 1 else f"{name}-{number}.log")
        with contextlib.suppress(FileExistsError):
            path.touch(mode=0o600, exist_ok=False)  # it may quote prompts
            return path
    raise AssertionError(f"a thousand servers in one second: {folder}")


def _free_port(serving: ServingConfig) -> int:
    """The configured port, or a free one."""
    family = socket.AF_INET6 if ":" in serving.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As servers do: connections of an earlier one that are still closing are no hindrance.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((serving.host, serving.port))
        except OSError as error:
            raise LLMError(
                f"vLLM cannot listen at {serving.host}:{serving.port} ({error.strerror})",
                field="llm.serving.port",
                got=serving.port,
                next_step="stop what listens there, or set port: 0, which takes a free one",
            ) from error
        return int(probe.getsockname()[1])


def _reachable(host: str) -> str:
    """The address under which this machine reaches a server that listens at `host`."""
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(host)
        if address.is_unspecified:
            return "127.0.0.1" if address.version == 4 else "[::1]"
        return host if address.version == 4 else f"[{host}]"
    return host
