"""What a leading machine leaves for the others, and how they end; tests/flows/test_training_nodes.py trains with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lab import free_port

from saeinterp.sae.nodes import calls_in, torchrun

# Stands for torchrun's options and the training: it ends at once.
NOTHING = ["--nnodes=1", "--nproc-per-node=1", "--no-such-option-ends-torchrun"]


def nodes(role: str, folder: Path, *command: str, again: int = 0, **more: str) -> int:
    """One role as a process; its exit status."""
    words = [sys.executable, "-m", "saeinterp.sae.nodes", role, "--calls", str(folder)]
    words += ["--again", str(again)] if again else []
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


def test_a_follower_leaves_the_rendezvous_of_a_failed_call_for_the_next_one(tmp_path: Path) -> None:
    meet = [f"--rdzv-endpoint=127.0.0.1:{free_port()}", "--rdzv-backend=c10d", "--local-addr=127.0.0.1"]
    meet += ["--nnodes=2", "--nproc-per-node=1", "--no-python"]
    log = tmp_path / "log"
    with log.open("wb") as file:
        words = [sys.executable, "-m", "saeinterp.sae.nodes", "follow", "--calls", str(tmp_path)]
        follower = subprocess.Popen(words, stdout=file, stderr=file)
    try:
        assert nodes("call", tmp_path, *meet, "false") == 1
        for _ in range(600):
            if log.read_text().count("joining call-000001") == 2:
                break
            time.sleep(0.2)
        assert nodes("call", tmp_path, *meet, "true") == 0, log.read_text()
        assert nodes("run", tmp_path, "true") == 0
        assert follower.wait(timeout=60) == 0, log.read_text()
        assert "leaving call-000001" in log.read_text()
    finally:
        follower.kill()
        follower.wait()


@pytest.mark.parametrize(("again", "code"), [(1, 3), (2, 0)])
def test_a_run_that_called_and_failed_runs_again_as_often_as_it_may(tmp_path: Path, again: int, code: int) -> None:
    third = (
        "import pathlib, sys; from saeinterp.sae.nodes import calls_in, make_call; "
        "folder = pathlib.Path(sys.argv[1]); make_call(folder, []); sys.exit(0 if len(calls_in(folder)) == 3 else 3)"
    )
    assert nodes("run", tmp_path, sys.executable, "-c", third, str(tmp_path), again=again) == code
    assert len(calls_in(tmp_path)) == again + 1
    assert nodes("follow", tmp_path) == code


def test_a_run_that_failed_before_it_called_does_not_run_again(tmp_path: Path) -> None:
    once = "import pathlib, sys; pathlib.Path(sys.argv[1]).touch(exist_ok=False); sys.exit(2)"
    assert nodes("run", tmp_path / "calls", sys.executable, "-c", once, str(tmp_path / "ran"), again=3) == 2


def test_a_run_that_is_told_to_end_takes_its_training_along_and_calls_no_more(tmp_path: Path) -> None:
    waits = (
        "import signal, subprocess; signal.signal(signal.SIGTERM, lambda *_: None); print('waiting', flush=True); "
        "subprocess.run(['sleep', '600']); raise SystemExit(5)"
    )
    words = [sys.executable, "-m", "saeinterp.sae.nodes", "run", "--calls", str(tmp_path), "--", sys.executable, "-c"]
    process = subprocess.Popen([*words, waits], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert "waiting" in process.stdout.readline()
        time.sleep(1)
        process.terminate()
        assert process.wait(timeout=60) == 5
        assert not (tmp_path / "end.json").exists()
        assert nodes("call", tmp_path, *NOTHING) == 1
        assert calls_in(tmp_path) == []
    finally:
        process.kill()


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
