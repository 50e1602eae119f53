"""The flow, the server or the network between them ends in the middle of explaining and of scoring.

The same command again then ends in the same bytes, and the server is asked nothing twice but what was in flight. The
server is a process of its own that writes down every request before it answers.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from processes import family, survivors
from wire import Wire

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow

CONCURRENCY = 2
TASKS_AT_ONCE = 2
IN_FLIGHT = CONCURRENCY * TASKS_AT_ONCE
ASKED = ("explanations", "scores", "explainer-comparison", "report")
"""Kinds of artifacts that follow from replies."""
TABLES = {"explanations.parquet", "verdicts.parquet", "scores.parquet", "comparison.json", "latents.parquet"}
DELAY = 0.02  # of every answer, so that there is a middle


class Server:
    """The oracle in a process of its own; the requests it was sent outlive it."""

    def __init__(self, folder: Path) -> None:
        self.port = 0
        self._requests = folder / "requests.jsonl"
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        """The base URL for clients."""
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self, *, delay: float = DELAY) -> None:
        """Listen; at the second time on the port of the first."""
        command = [sys.executable, "-m", "explain.oracle", "--port", str(self.port), "--delay", str(delay)]
        env = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
        command += ["--requests", str(self._requests)]
        self._process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def asked(self) -> list[str]:
        """The whole requests so far, as JSON text."""
        text = self._requests.read_text() if self._requests.exists() else ""
        return [line for line in text.splitlines(keepends=True) if line.endswith("\n")]


def explaining(request: str) -> bool:
    return not json.loads(request).get("logprobs")


def judging(request: str) -> bool:
    return not explaining(request)


class Reference(NamedTuple):
    """An uninterrupted run: what it published, and what it asked."""

    tables: dict[str, str]
    asked: Counter[str]

    def half(self, stage: Callable[[str], bool]) -> int:
        """Half of the requests of a stage."""
        return sum(map(stage, self.asked)) // 2


class Case(NamedTuple):
    """One folder, configuration and server; `url` is where the flow looks for the server."""

    root: Path
    config: Path
    server: Server
    prefect: str

    @contextmanager
    def started(self, url: str, together: int, **llm: object) -> Iterator[subprocess.Popen[str]]:
        command = [sys.executable, "-m", "flows.cli", "run", "compare-explainers", "-c", str(self.config)]
        command += ["--root", str(self.root), "--set", f"scorer.examples_per_prompt={together}"]
        for role in ("explainer_a", "scorer"):
            for name, value in {"base_url": url, **llm}.items():
                command += ["--set", f"{role}.llm.{name}={json.dumps(value)}"]
        env = {**os.environ, "PREFECT_API_URL": self.prefect, "SAEINTERP_WORKERS": str(TASKS_AT_ONCE)}
        with subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True) as process:
            try:
                yield process
            finally:
                process.kill()

    def complete(self, url: str, together: int) -> None:
        """Run to the end."""
        with self.started(url, together) as process:
            _, said = process.communicate(timeout=280)
        assert process.returncode == 0, said

    def wait_for(self, stage: Callable[[str], bool], count: int, process: subprocess.Popen[str]) -> None:
        """Until the server was sent so many requests of a stage."""
        deadline = time.monotonic() + 200
        while sum(map(stage, self.server.asked())) < count:
            assert process.poll() is None, "the run ended before its middle"
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def ends_as(self, reference: Reference) -> None:
        """The same bytes, the same questions, and no more of them twice than were in flight."""
        assert published(self.root) == reference.tables
        asked = Counter(self.server.asked())
        assert set(asked) == set(reference.asked)
        assert asked.total() - reference.asked.total() <= IN_FLIGHT


def published(root: Path) -> dict[str, str]:
    """SHA-256 of every table that follows from replies."""
    found = {}
    for path in root.glob("*/*/manifest.json"):
        if path.parent.parent.name in ASKED:
            files = json.loads(path.read_text())["files"]
            folder = path.parent.relative_to(root).as_posix()
            found |= {f"{folder}/{name}": item["sha256"] for name, item in files.items() if Path(name).name in TABLES}
    assert {Path(name).name for name in found} == TABLES
    return found


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, planted_config: Path) -> Path:
    values: dict[str, Any] = yaml.safe_load(planted_config.read_text())
    values["capture"]["hookpoints"] = ["layers.1"]
    # No question may be asked by two tasks, as equal layers do, or two latents whose equal texts `permuted` swaps.
    values |= {"random_weights_control": False, "controls": ["empty"]}
    for role in ("explainer_a", "scorer"):
        values[role]["llm"] |= {"concurrency": CONCURRENCY}
    path = tmp_path_factory.mktemp("interrupted") / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


class References:
    """Uninterrupted runs by the number of examples a request, in folders that share what needs no reply."""

    def __init__(self, factory: pytest.TempPathFactory, config: Path, prefect: str) -> None:
        self._factory, self._config, self._prefect = factory, config, prefect
        self._trained: Path | None = None
        self._known: dict[int, Reference] = {}

    def of(self, together: int) -> Reference:
        if together not in self._known:
            case = self.case(self._factory.mktemp("reference"))
            case.server.start(delay=0)
            try:
                case.complete(case.server.url, together)
            finally:
                case.server.kill()
            self._trained = self._trained or case.root
            asked = Counter(case.server.asked())
            assert asked.total() == len(asked)
            self._known[together] = Reference(published(case.root), asked)
        return self._known[together]

    def case(self, folder: Path) -> Case:
        """A folder in which everything is there up to the examples, once there was a run, and no reply."""
        root = folder / "root"
        if self._trained is not None:
            skipped = shutil.ignore_patterns(*ASKED, "llm-cache")
            shutil.copytree(self._trained, root, ignore=skipped, symlinks=True)
        return Case(root, self._config, Server(folder), self._prefect)


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory, config: Path, prefect_url: str) -> References:
    return References(tmp_path_factory, config, prefect_url)


@pytest.fixture
def case(references: References, tmp_path: Path) -> Iterator[Case]:
    references.of(5)
    case = references.case(tmp_path)
    case.server.start()
    yield case
    case.server.kill()


@pytest.mark.parametrize(
    ("stage", "together"),
    [(explaining, 5), (judging, 5), (judging, 1)],
    ids=["explaining", "scoring five at once", "scoring one at a time"],
)
def test_a_flow_killed_in_the_middle(
    case: Case, references: References, stage: Callable[[str], bool], together: int
) -> None:
    url = case.server.url
    with case.started(url, together) as process:
        case.wait_for(stage, references.of(together).half(stage), process)
        running = family(process.pid)
        os.kill(process.pid, signal.SIGKILL)
    assert survivors(running, within=15) == []
    case.complete(url, together)
    case.ends_as(references.of(together))


@pytest.mark.parametrize("stage", [explaining, judging], ids=["explaining", "scoring"])
def test_a_server_killed_in_the_middle(case: Case, references: References, stage: Callable[[str], bool]) -> None:
    url = case.server.url
    with case.started(url, 5) as process:
        case.wait_for(stage, references.of(5).half(stage), process)
        case.server.kill()
        _, said = process.communicate(timeout=200)
    assert process.returncode == 1
    assert "the server is gone" in said
    assert "replies are kept and only the rest is sent" in said
    case.server.start()
    case.complete(url, 5)
    case.ends_as(references.of(5))


@pytest.mark.parametrize(
    ("stage", "state"), [(explaining, "cut"), (judging, "held")], ids=["cut while explaining", "held while scoring"]
)
def test_a_network_that_goes_in_the_middle(
    case: Case, references: References, stage: Callable[[str], bool], state: Any
) -> None:
    with Wire(case.server.port) as wire:
        with case.started(wire.url, 5, timeout_seconds=1, retries=1) as process:
            case.wait_for(stage, references.of(5).half(stage), process)
            wire.state = state
            _, said = process.communicate(timeout=200)
        assert process.returncode == 1
        assert "replies are kept and only the rest is sent" in said
        wire.state = "open"
        case.complete(wire.url, 5)
    case.ends_as(references.of(5))


def test_a_network_that_comes_back_within_the_retries_costs_no_second_run(case: Case, references: References) -> None:
    with Wire(case.server.port) as wire, case.started(wire.url, 5, timeout_seconds=1) as process:
        case.wait_for(judging, references.of(5).half(judging), process)
        wire.state = "held"
        time.sleep(1.5)
        wire.state = "open"
        _, said = process.communicate(timeout=200)
    assert process.returncode == 0, said
    case.ends_as(references.of(5))
