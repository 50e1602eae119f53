"""What a leading machine leaves for the others, and how they end; tests/flows/test_training_nodes.py trains with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from saeinterp.sae.nodes import calls_in, torchrun

# Stands for torchrun's options and the training: it ends at once.
NOTHING = ["--nnodes=1", "--nproc-per-node=1", "--no-such-option-ends-torchrun"]


def nodes(role: str, folder: Path, *command: str, **more: str) -> int:
    """One role as a process; its exit status."""
    words = [sys.executable, "-m", "saeinterp.sae.nodes", role, "--calls", str(folder)]
    words += ["--", *command] if command else []
    return subprocess.run(words, env={**os.environ, **more}, capture_output=True, check=False, timeout=240).returncode


def test_every_call_is_kept_with_what_bits_depend_on_and_meets_by_itself(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for threads in ("3", "4"):
        nodes("call", folder, *NOTHING, OMP_NUM_THREADS=threads, OPENAI_API_KEY="sk-planted-secret")
    first, second = calls_in(folder)
    assert '"OMP_NUM_THREADS": "3"' in first.read_text()
    assert "planted-secret" not in first.read_text()
    leader, follower = (torchrun(NOTHING, call=first, leads=leads) for leads in (True, False))
    assert leader[3] == follower[3] != torchrun(NOTHING, call=second, leads=True)[3]
    assert leader[4:5] + follower[4:5] == ["--rdzv-conf=is_host=1", "--rdzv-conf=is_host=0"]


@pytest.mark.parametrize("code", [0, 3])
def test_followers_end_as_the_run_ended(tmp_path: Path, code: int) -> None:
    assert nodes("run", tmp_path, sys.executable, "-c", f"raise SystemExit({code})") == code
    assert nodes("follow", tmp_path) == code


def test_a_follower_that_waits_leaves_when_it_is_told_to(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "saeinterp.sae.nodes", "follow", "--calls", str(tmp_path)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert "waiting for calls" in process.stdout.readline()
        process.terminate()
        assert process.wait(timeout=60) == 128 + signal.SIGTERM
    finally:
        process.kill()


def test_a_new_run_in_the_folder_takes_back_the_end_of_the_last(tmp_path: Path) -> None:
    nodes("run", tmp_path, sys.executable, "-c", "")
    asks = f"import pathlib; raise SystemExit(pathlib.Path({str(tmp_path / 'end.json')!r}).exists())"
    assert nodes("run", tmp_path, sys.executable, "-c", asks) == 0


@pytest.mark.parametrize(("role", "command"), [("run", ()), ("call", ()), ("follow", ("something",))])
def test_wrong_usage_is_refused(tmp_path: Path, role: str, command: tuple[str, ...]) -> None:
    assert nodes(role, tmp_path, *command) == 2
