"""Training over several machines without a scheduler's launcher: `python -m saeinterp.sae.nodes run|call|follow`.

One machine leads: `run` runs a flow whose `launch.command` is `call`. Each call is written into a folder that all
machines see, and then becomes torchrun. The others `follow`: each joins every call with torchrun of its own, until the
run has ended. The surprising choice: files, not messages, since the machines share the artifact folder anyway and a
machine that comes late, or again, finds what is going on.
"""

from __future__ import annotations

import argparse
import contextlib
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
from saeinterp.errors import TrainingError
from saeinterp.sae.launch import environment

log = logging.getLogger(__name__)

END = "end.json"
_STOPPING = "stopping"
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

    Raises:
        TrainingError: The run was told to end.
    """
    if (folder / _STOPPING).exists():
        raise TrainingError("the run was told to end", field="calls", got=str(folder), next_step="start it again")
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


def lead(folder: Path, command: Sequence[str], *, again: int = 0) -> int:
    """Run a command whose training calls the followers, then let them go; its exit status.

    A command that was stopped from outside leaves them waiting: whoever goes on with it calls them again.

    Args:
        again: How often a command that called and then failed runs once more; it goes on from what it has finished.
            A follower that is taken away fails the call it was in, and its successor joins the next.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / END).unlink(missing_ok=True)
    (folder / _STOPPING).unlink(missing_ok=True)
    stopped: list[int] = []
    while True:
        before = calls_in(folder)
        process = subprocess.Popen(command, process_group=0)
        _hand_on(process, stopped, folder)
        code = process.wait()
        if stopped:
            return code
        if code == 0 or not again or calls_in(folder) == before:
            _publish(folder / END, {"code": code})
            return code
        log.warning("the run ended with exit status %d after calls to other machines; running it again", code)
        again -= 1


def _hand_on(process: subprocess.Popen[bytes], stopped: list[int], folder: Path) -> None:
    """Pass signals on to the process at hand and its training, as a Ctrl-C would; also one that came just before it.

    A flow that is told to end still waits for its steps, those of other layers too: the training at hand has to be
    told, and the next ones make no call.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.append(number)
        (folder / _STOPPING).touch()
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    if stopped:
        stop(stopped[-1], None)


def follow(folder: Path) -> int:
    """Join every call until the run has ended; its exit status.

    A call that fails here is joined again for as long as it is the last one: the leader may not have been there yet.
    """
    joined: Path | None = None
    # Without a handler the first process of a container is deaf to it.
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    log.info("waiting for calls in %s", folder)
    while not stopped:
        if (folder / END).exists():
            return int(read_json(folder / END)["code"])
        calls = calls_in(folder)
        if calls and calls[-1] != joined:
            call = calls[-1]
            log.info("joining %s", call.stem)
            told = read_json(call)
            command = torchrun(told["arguments"], call=call, leads=False)
            if _join(call, command, env={**os.environ, **told["environment"]}, stopped=stopped) == 0:
                joined = call
        time.sleep(_POLL_SECONDS)
    return 128 + stopped[0]


def _join(call: Path, command: Sequence[str], *, env: Mapping[str, str], stopped: list[int]) -> int:
    """One call to its end; leave it when this machine is to stop, the run has ended, or the leader makes another."""
    process = subprocess.Popen(command, env=env)
    leaving = False
    while process.poll() is None:
        # Nobody else comes to a call that is not the last: its leader, or the run, failed elsewhere.
        over = stopped or (call.parent / END).exists() or calls_in(call.parent)[-1] != call
        if over and not leaving:
            log.info("leaving %s", call.stem)
            process.terminate()  # once: a second one would cut its own clean-up short
            leaving = True
        time.sleep(_POLL_SECONDS)
    return process.returncode


def main(arguments: list[str] | None = None) -> None:
    """Entry of each machine's process."""
    parser = argparse.ArgumentParser(prog="python -m saeinterp.sae.nodes", description=__doc__.partition("\n")[0])
    parser.add_argument("role", choices=("run", "call", "follow"))
    parser.add_argument("--calls", type=Path, required=True, help="folder that all machines see, of this run alone")
    parser.add_argument("--again", type=int, default=0, help="how often a run that called and failed runs once more")
    given = sys.argv[1:] if arguments is None else arguments
    own, rest = (given[: given.index("--")], given[given.index("--") + 1 :]) if "--" in given else (given, [])
    options = parser.parse_args(own)
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(levelname)s %(message)s")
    if (options.role == "follow") == bool(rest):
        parser.error(f"{options.role} takes {'nothing' if options.role == 'follow' else 'a command'} after --")
    if options.again and options.role != "run":
        parser.error("--again is for run")
    if options.role == "call":
        try:
            command = make_call(options.calls, rest)
        except TrainingError as error:
            parser.exit(1, f"{error}\n")
        os.execv(command[0], command)
    code = follow(options.calls) if options.role == "follow" else lead(options.calls, rest, again=options.again)
    sys.exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main()
