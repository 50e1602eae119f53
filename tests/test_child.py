"""Child processes start beside whatever this process computes, and do not outlive it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from processes import survivors

from saeinterp.child import run_child

ROOT = Path(__file__).resolve().parents[1]
BESIDE_PRODUCTS = """
import os, sys, threading, numpy as np
from saeinterp.child import run_child
square, count = np.random.default_rng(0).random((200, 200)), 0
def multiply():
    global count
    while True:
        square @ square
        count += 1
threading.Thread(target=multiply, daemon=True).start()
for _ in range(60):
    done = run_child([sys.executable, "-S", "-c", ""], env=os.environ, timeout=60, on_event=print, on_line=print)
    assert done.code == 0
before = count
while count < before + 10:
    pass
print("both went on")
"""
WITH_A_CHILD = """
import os, sys
from saeinterp.child import run_child
sleeping = [sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(600)"]
run_child(sleeping, env=os.environ, timeout=600, on_event=print, on_line=lambda line: print(line, flush=True))
"""


def run(script: str) -> list[str]:
    return [sys.executable, "-c", script]


def test_a_child_starts_while_another_thread_is_inside_a_matrix_product() -> None:
    done = subprocess.run(run(BESIDE_PRODUCTS), cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "both went on\n", done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal for orphans is Linux's")
def test_a_child_ends_with_a_parent_that_is_killed() -> None:
    with subprocess.Popen(run(WITH_A_CHILD), cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    assert survivors([child], within=20) == []


def test_a_program_that_is_not_there_is_told_at_once() -> None:
    with pytest.raises(FileNotFoundError, match="no-such-program"):
        run_child(["no-such-program"], env={"PATH": "/usr/bin"}, timeout=5, on_event=print, on_line=print)


def test_a_child_that_takes_too_long_is_stopped() -> None:
    done = run_child(run("import time; time.sleep(600)"), env={}, timeout=0.5, on_event=print, on_line=print)
    assert done.code is None
