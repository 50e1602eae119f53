"""Training over several machines without a scheduler's launcher: `python -m saeinterp.sae.nodes run|call|follow`.

One machine leads: `run` runs a flow whose `launch.command` is `call`. Each call is written into a folder that all
machines see, and then becomes torchrun. The others `follow`: each joins every call with torchrun of its own, until the
run has ended. The surprising choice: files, not messages, since the machines share the artifact folder anyway and a
machine that comes late, or again, finds what is going on.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from saeinterp.artifacts import read_json, write_json
from saeinterp.config import LaunchConfig
from saeinterp.sae.launch import environment

log = logging.getLogger(__name__)

END = "end.json"
_POLL_SECONDS = 1.0
_TORCHRUN = (sys.executable, "-m", "torch.distributed.run")


def calls_in(folder: Path) -> list[Path]:
    """The calls of a run, oldest first."""
    return sorted(folder.glob("call-*.json"))


def torchrun(arguments: Sequence[str], *, call: Path, leads: bool) -> list[str]:
    """The command line of one machine for one call; every call has a rendezvous of its own."""
    return [*_TORCHRUN, f"--rdzv-id={call.parent.name}-{call.stem}", f"--rdzv-conf=is_host={int(leads)}", *arguments]


def make_call(folder: Path, arguments: Sequence[str]) -> list[str]:
    """Tell the followers what to join.

    Args:
        arguments: Of torchrun: its options, then `-m MODULE ...`.

    Returns:
        The command line for this machine.
    """
    folder.mkdir(parents=True, exist_ok=True)
    number = int(calls[-1].stem.rpartition("-")[2]) + 1 if (calls := calls_in(folder)) else 1
    call = folder / f"call-{number:06d}.json"
    # What this machine was given for its training processes; speed and bits depend on it.
    names = environment({}, LaunchConfig(), None)
    values = {name: os.environ[name] for name in names if name in os.environ}
    _publish(call, {"arguments": list(arguments), "environment": values})
    return torchrun(arguments, call=call, leads=True)


def _publish(path: Path, value: object) -> None:
    draft = path.with_name(f".{path.name}")
    write_json(draft, value)
    draft.replace(path)


def lead(folder: Path, command: Sequence[str]) -> int:
    """Run a command whose training calls the followers, then let them go; its exit status.

    A command that was stopped from outside leaves them waiting: whoever goes on with it calls them again.
    """
    (folder / END).unlink(missing_ok=True)
    stopped: list[int] = []
    process = subprocess.Popen(command)

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.append(number)
        process.send_signal(number)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    code = process.wait()
    if not stopped:
        folder.mkdir(parents=True, exist_ok=True)
        _publish(folder / END, {"code": code})
    return code


def follow(folder: Path) -> int:
    """Join every call until the run has ended; its exit status.

    A call that fails here is joined again for as long as it is the last one: the leader may not have been there yet.
    """
    joined: Path | None = None
    # Without a handler the first process of a container is deaf to it.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    log.info("waiting for calls in %s", folder)
    while True:
        if (folder / END).exists():
            return int(read_json(folder / END)["code"])
        calls = calls_in(folder)
        if calls and calls[-1] != joined:
            call = calls[-1]
            log.info("joining %s", call.stem)
            told = read_json(call)
            command = torchrun(told["arguments"], call=call, leads=False)
            if _join(folder, command, env={**os.environ, **told["environment"]}) == 0:
                joined = call
        time.sleep(_POLL_SECONDS)


def _join(folder: Path, command: Sequence[str], *, env: Mapping[str, str]) -> int:
    process = subprocess.Popen(command, env=env)

    def stop(number: int, frame: FrameType | None) -> None:
        process.send_signal(number)
        process.wait()
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        while process.poll() is None:
            if (folder / END).exists():  # of a run that failed elsewhere: nobody waits for this machine
                process.terminate()
            time.sleep(_POLL_SECONDS)
    finally:
        signal.signal(signal.SIGTERM, before)
    return process.returncode


def main(arguments: list[str] | None = None) -> None:
    """Entry of each machine's process."""
    parser = argparse.ArgumentParser(prog="python -m saeinterp.sae.nodes", description=__doc__.partition("\n")[0])
    parser.add_argument("role", choices=("run", "call", "follow"))
    parser.add_argument("--calls", type=Path, required=True, help="folder that all machines see, of this run alone")
    given = sys.argv[1:] if arguments is None else arguments
    own, rest = (given[: given.index("--")], given[given.index("--") + 1 :]) if "--" in given else (given, [])
    options = parser.parse_args(own)
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(levelname)s %(message)s")
    if (options.role == "follow") == bool(rest):
        parser.error(f"{options.role} takes {'nothing' if options.role == 'follow' else 'a command'} after --")
    if options.role == "call":
        command = make_call(options.calls, rest)
        os.execv(command[0], command)
    code = follow(options.calls) if options.role == "follow" else lead(options.calls, rest)
    sys.exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main()
