"""A folder for every page of the documentation, in which its commands are typed one after the other.

Commands share what a terminal keeps between them: the working folder and the environment.
"""

from __future__ import annotations

import contextlib
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

import pytest
import yaml
from documented import ROOT, Command, commands
from documented_commands import Real, typed
from explain.oracle import Oracle
from lab import Lab, free_port
from s3 import KEYS, TestBucket, s3_server

PATIENCE = 480.0  # seconds for one command, on a loaded machine
_NAME = re.compile(r"\b([a-z-]+)/([\w.-]+)-(?:1a2b3c4d|5e6f7a8b)\b")
SCORES = [(10, 0.51, 0.42), (11, 0.62, 0.40), (12, 0.33, 0.35), (13, 0.71, 0.60), (14, 0.44, 0.30), (15, 0.58, 0.49)]
HEALTH = "model,layer,loss_recovered,l0,dead\nm,4,0.98,31.5,0.12\nm,10,0.96,31.9,0.2\n"


class Typed(NamedTuple):
    """What came of a command."""

    shown: str
    code: int


class Terminal:
    """One page's folder, and what was typed there.

    Attributes:
        folder: Where the page begins.
        results: What came of each command that can be typed, in order; None for the others.
    """

    def __init__(self, folder: Path, environment: dict[str, str], page: str) -> None:
        self.folder = folder
        self.results: list[Typed | None] = []
        self._commands = [command for command in commands() if command.page == page]
        self._environment = environment
        self._cwd = folder
        self._port = str(free_port())
        self._kept: list[subprocess.Popen[bytes]] = []
        self._typists: list[int] = []

    def reach(self, command: Command) -> Typed | None:
        """Type the page's commands up to this one, as far as they have not been typed."""
        wanted = self._commands.index(command)
        while len(self.results) <= wanted:
            text = self._commands[len(self.results)].text
            entry = typed(command.page, text)
            self.results.append(self._type(text, entry) if entry else None)
        return self.results[wanted]

    def spoken(self, text: str, entry: Real) -> str:
        """The command with its stand-ins."""
        for shown, stand_in in entry.instead.items():
            assert shown in text, f"the stand-in for {shown!r} is for nothing in: {text}"
            text = text.replace(shown, re.sub(r"\{([a-z-]+)\}", self._meant, stand_in))
        return _NAME.sub(lambda match: self._artifact(match[1], match[2]), text)

    def _meant(self, match: re.Match[str]) -> str:
        known = {"folder": quote(str(self.folder)), "port": self._port, "repository": quote(str(ROOT))}
        return known.get(match[1]) or self._artifact(match[1])

    def _artifact(self, kind: str, name: str = "") -> str:
        """An artifact of the kind, of nearly that name."""
        found = sorted(path.parent.name for path in self.folder.glob(f"runs/{kind}/*/manifest.json"))
        assert found, f"no {kind} among {[path.name for path in self.folder.glob('runs/*')]}"
        begin = re.sub(r"layers\.\d+.*", "", name)
        return f"{kind}/{next((item for item in found if begin and begin in item), found[-1])}"

    def _type(self, text: str, entry: Real) -> Typed:
        log, after = self.folder / f".shown-{len(self.results)}", self.folder / ".after"
        after.unlink(missing_ok=True)
        spoken = self.spoken(text, entry)
        remember = f"code=$?; {{ pwd; env -0; }} > {quote(str(after))}; exit $code"
        script = f"exec {spoken}" if entry.stays or entry.kept else f"{spoken}\n{remember}"
        mine, theirs = pty.openpty()  # programs ask only where there is a terminal
        os.write(mine, entry.answer.encode())
        with log.open("wb") as out:
            process = subprocess.Popen(
                ["bash", "-c", script],
                cwd=self._cwd,
                env=self._environment,
                stdin=theirs if entry.answer else subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # Background jobs of scripts begin with this signal ignored, and hand that on.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        os.close(theirs)
        self._typists.append(mine)
        if entry.stays or entry.kept:
            self._kept.append(process)
            self._wait_for(entry.shows, log, process)
            if entry.kept:
                self._wait_for_port(process)
                return Typed(log.read_text(errors="replace"), 0)
            self._kept.remove(process)
            _interrupt(process)
            return Typed(log.read_text(errors="replace"), 0)
        try:
            process.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            pass
        finally:  # also when the tests are interrupted
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        shown = log.read_text(errors="replace")
        if after.is_file():
            place, _, variables = after.read_bytes().partition(b"\n")
            self._cwd = Path(os.fsdecode(place))
            pairs = (item.split("=", 1) for item in os.fsdecode(variables).split("\0") if "=" in item)
            self._environment = {name: value for name, value in pairs if not name.startswith("BASH_FUNC")}
        return Typed(shown, process.returncode)

    def _wait_for(self, shows: str, log: Path, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not re.search(shows, log.read_text(errors="replace"), re.DOTALL):
            if process.poll() is not None or time.monotonic() > deadline:
                return
            time.sleep(0.2)

    def _wait_for_port(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + PATIENCE
        while process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", int(self._port)), timeout=2):
                return
            time.sleep(0.2)

    def close(self) -> None:
        """End what still runs, last started first."""
        for process in reversed(self._kept):
            _interrupt(process)
        for typist in self._typists:
            os.close(typist)
        self._kept.clear()
        self._typists.clear()


def _interrupt(process: subprocess.Popen[bytes]) -> None:
    """Ctrl-C, twice where once is not enough, and then an end."""
    for how, seconds in ((signal.SIGINT, 20), (signal.SIGINT, 20), (signal.SIGKILL, 20)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=seconds)
            return


class Desk:
    """Terminals, one a page; the store that each begins with is made once."""

    def __init__(self, folder: Path, configs: dict[str, dict[str, Any]], server: Lab) -> None:
        self._folder = folder
        self._configs = configs
        self._server = server
        self._open: dict[str, Terminal] = {}
        self._servers = contextlib.ExitStack()
        self.made = folder / "made"
        self._write_files(self.made)
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli", "run", "compare-explainers", "--config", "run.yaml"],
            cwd=self.made,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def environment(self, *, server: bool = True) -> dict[str, str]:
        """A user's: a home of its own, the commands of this installation, no GPU."""
        home = self._folder / "home"
        home.mkdir(exist_ok=True)
        (home / ".gitconfig").write_text("[safe]\n\tdirectory = *\n")
        return self._server.environment(
            HOME=str(home),
            PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            OPENAI_API_KEY="sk-planted-secret",
            BROWSER="true",
            CUDA_VISIBLE_DEVICES="",
            COLUMNS="200",
            WANDB_MODE="offline",
            **(self._server.client if server else {}),
        )

    def terminal(self, page: str) -> Terminal:
        """The page's; those of other pages are closed. Pages share artifacts, but for the one that removes some."""
        for name in [name for name in self._open if name != page]:
            self._open[name].close()
        if page not in self._open:
            folder = self._folder / page.replace("/", "_").removesuffix(".md")
            folder.mkdir()
            if page.endswith("disk.md"):  # which removes
                shutil.copytree(self.made / "runs", folder / "runs")
            else:
                (folder / "runs").symlink_to(self.made / "runs")
            self._write_files(folder, page)
            if (Path(sys.prefix) / "bin" / "activate").is_file():
                (folder / ".venv").symlink_to(sys.prefix)
            # The guide to operation starts a server of its own.
            environment = self.environment(server=page != "docs/how-to/operate.md")
            if page.endswith("object-storage.md"):
                environment |= self._bucket()
            self._open[page] = Terminal(folder, environment, page)
        return self._open[page]

    def _bucket(self) -> dict[str, str]:
        """The variables with which the bucket that the pages name is there."""
        url = self._servers.enter_context(s3_server(self._folder / "s3.log"))
        with pytest.MonkeyPatch.context() as patch:
            for name, value in KEYS.items():
                patch.setenv(name, value)
            TestBucket(url, "my-bucket")
        return {**KEYS, "AWS_ENDPOINT_URL": url}

    def _write_files(self, folder: Path, page: str = "") -> None:
        """The reader's own files, of the names that the pages use."""
        folder.mkdir(exist_ok=True)
        explain, train, models = (self._configs[name] for name in ("explain", "train", "models"))
        run = train if page.endswith(("own-data.md", "own-saes.md", "training.md")) else explain
        mine = models if page.endswith("operate.md") else explain
        for name, config in (("run.yaml", run), ("mine.yaml", mine), ("train.yaml", train)):
            (folder / name).write_text(yaml.safe_dump(config))
        rows = "".join(f"| {latent} | {big} | {small} |\n" for latent, big, small in SCORES)
        report = f"# Scores of layers.4\n\n| Latent | big | small |\n|---|---|---|\n{rows}"
        if page.endswith("import-health.md"):
            report = "# m (k=32, 400 latents)\n\n| Layer | Loss Recovery | L0 | Dead |\n|---|---|---|---|\n"
            report += "| Layer 4 | 98.42% | 31.5 | 12.00% |\n| Layer 10 | 96.20% | 31.9 | 20.00% |\n"
        (folder / "report.md").write_text(report)
        (folder / "table.csv").write_text(HEALTH)
        for index, name in ((1, "big"), (2, "small")):
            body = "".join(f"{row[0]},{row[index]}\n" for row in SCORES)
            (folder / f"{name}.csv").write_text(f"latent,f1\n{body}")

    def close(self) -> None:
        for terminal in self._open.values():
            terminal.close()
        self._servers.close()


@pytest.fixture(scope="session")
def desk(tmp_path_factory: pytest.TempPathFactory, planted_folder: Path, planted_corpus: Path) -> Iterator[Desk]:
    """Terminals beside a Prefect server and an LLM that knows the planted classes."""
    base: dict[str, Any] = {
        "subject": {"model": str(planted_folder), "dtype": "float32"},
        "corpus": {"sources": [{"name": str(planted_corpus)}], "context_length": 64},
        "capture": {"hookpoints": ["layers.1", "layers.2"]},
        "training": {"num_latents": 20, "k": 1, "epochs": 4, "batch_rows": 256, "dead_after_rows": 2000},
        "launch": {"threads": 1, "together": 2},
        "absorption": {"enabled": False},
    }
    examples = {"latents": "sample:6", "window": 16, "max_share": 0.6, "score_activating": 8}
    few = {"score_random": 4, "score_similar": 4, "score_near_miss": 2}
    models = {key: value for key, value in base.items() if key != "subject"}
    models |= {"subject_a": base["subject"], "subject_b": {**base["subject"], "weights": "random"}}
    place = tmp_path_factory.mktemp("desk")
    server = Lab(tmp_path_factory.mktemp("server"), free_port())
    with Oracle() as oracle:
        llm = {"provider": "openai", "model": "oracle", "base_url": oracle.url}
        explain = {
            **base,
            "examples": {**examples, **few},
            "random_weights_control": True,
            "comparison": {"bootstrap": 200},
            "explainer_a": {"kind": "llm", "label": "oracle", "llm": llm, "logit_lens": False},
            "explainer_b": {"kind": "top-tokens"},
            "scorer": {"llm": {**llm, "max_tokens": 1}},
        }
        try:
            server.start_server()
            made = Desk(place, {"explain": explain, "train": base, "models": models}, server)
            yield made
            made.close()
        finally:
            server.close()
