"""Which GPU a task computes on where several runs share a machine: one slot per card, kept by the Prefect server.

Off unless `SAEINTERP_GPU_SLOTS` says how many cards have one: `2` is `gpu-0` and `gpu-1`, `node7:2` is `node7-0` and
`node7-1`. What runs in child processes is shown its cards alone (`CUDA_VISIBLE_DEVICES`). The surprising choice: what
runs in this process is not, because tasks are threads that share one environment; it is given its card by name, and
gives the memory back before it gives back the slot.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import re
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import ConcurrencyLeaseHolder
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.sync import concurrency
from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import ObjectNotFound
from prefect.logging import get_run_logger

from saeinterp.config import LaunchConfig, Placement
from saeinterp.errors import ConfigError

SLOTS = "SAEINTERP_GPU_SLOTS"
SERVER_SLOT = "vllm"
LEASE_SECONDS = 120.0
"""A killed holder's slot is free after so long, at most; renewed well before, so that a server may be restarted."""
_POLL_SECONDS = 2.0


class Need(NamedTuple):
    """The cards that something computes on."""

    number: int = 0
    """Any so many; ignored where `named` is given."""
    named: tuple[int, ...] = ()
    """Numbers that a configuration names."""
    every: bool = False
    """Every card there is: what spreads over GPUs takes what is free on each."""

    @classmethod
    def of(cls, placement: Placement, *, processes: int = 1) -> Need:
        """The cards of a subject, or of several that run side by side."""
        if isinstance(placement.device_map, dict):
            return cls(named=_numbers(placement.device_map.values()))
        if placement.device == "cpu":
            return cls()
        if placement.device_map == "single":
            return cls(number=processes, named=_numbers([placement.device]))
        limited = _numbers(placement.max_memory or ())
        return cls(named=limited, every=not limited)

    @classmethod
    def of_training(cls, launch: LaunchConfig, streamed: Placement | None) -> Need:
        """The cards of a training process, or of several; `streamed` is the subject it runs, where it runs one.

        A launcher of one's own may start processes on other machines, so it is left alone.
        """
        if launch.command:
            return cls()
        subject = cls() if streamed is None else cls.of(streamed)
        return subject if subject.named or subject.every else cls(number=launch.processes)


class Cards:
    """The cards that a task holds.

    Attributes:
        numbers: Among those that this process sees; empty where slots are off, or where none is needed.
    """

    def __init__(self, numbers: Sequence[int] = ()) -> None:
        self.numbers = tuple(numbers)

    @property
    def visible(self) -> str | None:
        """`CUDA_VISIBLE_DEVICES` of child processes; None leaves what they inherit."""
        if not self.numbers:
            return None
        inherited = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
        return ",".join(inherited[number] if inherited else str(number) for number in self.numbers)

    def here(self, placement: Placement) -> Placement:
        """A subject's placement in this process."""
        if not self.numbers or placement.device_map != "single" or not _cuda():
            return placement
        return placement.model_copy(update={"device": f"cuda:{self.numbers[0]}"})

    def below(self, placement: Placement) -> Placement:
        """A subject's placement in child processes, which count the cards that they see."""
        if not self.numbers:
            return placement
        again = {str(number): index for index, number in enumerate(self.numbers)}
        if isinstance(placement.device_map, dict):
            renamed = {
                module: again.get(str(device).removeprefix("cuda:"), device)
                for module, device in placement.device_map.items()
            }
            return placement.model_copy(update={"device_map": renamed})
        if placement.max_memory is not None:
            limits = {str(again.get(key, key)): size for key, size in placement.max_memory.items()}
            return placement.model_copy(update={"max_memory": limits})
        return placement.model_copy(update={"device": "cuda"}) if ":" in placement.device else placement


@contextlib.contextmanager
def cards(need: Need, *, server: bool = False) -> Iterator[Cards]:
    """Hold the slots of so many cards while the body runs; waits until they are free.

    Args:
        server: Also hold the slot of servers.

    Raises:
        ConfigError: The setting cannot be read, more cards are needed than have a slot, or the server lacks a limit.
    """
    slots = slot_names()
    choices = [()] if not slots else _choices(need, slots)
    if not slots or (choices == [()] and not server):
        yield Cards()
        return
    extra = [SERVER_SLOT] if server else []
    with _held([[*extra, *(slots[number] for number in choice)] for choice in choices]) as chosen:
        yield Cards(choices[chosen])


@contextlib.contextmanager
def computing_here(held: Cards | None) -> Iterator[None]:
    """In the body `cuda` means the card held, if one is; afterwards its memory is given back."""
    if held is None or not held.numbers or not _cuda():
        yield
        return
    import torch

    from saeinterp.explain.in_process import unload_models

    with torch.cuda.device(held.numbers[0]):
        try:
            yield
        finally:
            unload_models()
            release_gpu_memory()


def release_gpu_memory() -> None:
    """Give back what torch keeps of GPUs for its next tensors."""
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


def slot_names() -> list[str]:
    """The slots by the number of their card; empty where they are off.

    Raises:
        ConfigError: The setting cannot be read.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":  # this process was told to see no card
        return []
    text = os.environ.get(SLOTS, "").strip()
    match = re.fullmatch(r"(?:([A-Za-z0-9_-]+):)?(\d+)", text)
    if text and not match:
        raise ConfigError("cannot be read", field=SLOTS, got=text, expected="a number of cards, or name:number")
    return [f"{match[1] or 'gpu'}-{number}" for number in range(int(match[2]))] if match else []


def _choices(need: Need, slots: Sequence[str]) -> list[tuple[int, ...]]:
    """The sets of cards that would do."""
    wanted = max(number + 1 for number in need.named) if need.named else need.number
    if wanted > len(slots):
        raise ConfigError(
            f"{wanted} cards are needed" if not need.named else f"card {wanted - 1} has no slot",
            field=SLOTS,
            got=os.environ[SLOTS],
            next_step="raise it to the number of cards (`saeinterp ops setup` makes the slots), or ask for fewer",
        )
    if need.every:
        return [tuple(range(len(slots)))]
    return [need.named] if need.named else list(itertools.combinations(range(len(slots)), need.number))


@contextlib.contextmanager
def _held(choices: Sequence[list[str]]) -> Iterator[int]:
    """Hold the first of these sets of slots that is free; waits until one is."""
    logger = get_run_logger()
    told = False
    while True:
        # Looked at first, because Prefect logs an error for every slot that is asked for and taken.
        free = _free({name for names in choices for name in names})
        for number, names in enumerate(choices):
            if not free.issuperset(names):
                continue
            with contextlib.ExitStack() as stack:
                try:
                    stack.enter_context(_lease(names))
                except ConcurrencySlotAcquisitionError as error:
                    if not _passing(error):
                        raise
                    continue
                logger.info("holds %s", ", ".join(names))
                yield number
                return
        if not told:
            told = True
            logger.info("waits for %s", " or ".join(" and ".join(names) for names in choices))
        time.sleep(_POLL_SECONDS)


@contextlib.contextmanager
def _lease(names: list[str]) -> Iterator[None]:
    """Hold all of these slots or none, so that two runs cannot wait for each other's halves."""
    lease = concurrency(names, occupy=1, strict=True, max_retries=0, lease_duration=LEASE_SECONDS, holder=_holder())
    lease.__enter__()
    try:
        yield
    finally:
        try:
            lease.__exit__(*sys.exc_info())
        except httpx.TransportError as error:
            # What was computed is no worse for it.
            get_run_logger().warning(
                "the server is away (%s): %s come free by themselves in %.0f s", error, ", ".join(names), LEASE_SECONDS
            )


def _passing(error: ConcurrencySlotAcquisitionError) -> bool:
    """Whether the slot is taken, or the server away for a moment."""
    cause = error.__cause__
    taken = isinstance(cause, httpx.HTTPStatusError) and cause.response.status_code == httpx.codes.LOCKED
    return taken or isinstance(cause, httpx.TransportError)


def _holder() -> ConcurrencyLeaseHolder | None:
    """Who holds it, for the server's own pages."""
    if task := TaskRunContext.get():
        return ConcurrencyLeaseHolder(type="task_run", id=task.task_run.id)
    flow = FlowRunContext.get()
    return ConcurrencyLeaseHolder(type="flow_run", id=flow.flow_run.id) if flow and flow.flow_run else None


def _free(names: Collection[str]) -> set[str]:
    """Those of these slots that nobody holds; none while the server is away.

    Raises:
        ConfigError: The server lacks one; a set of slots would be granted without it.
    """
    free = set()
    with get_client(sync_client=True) as client:
        for name in sorted(names):
            try:
                limit = client.read_global_concurrency_limit_by_name(name)
            except ObjectNotFound as error:
                raise ConfigError(
                    "the Prefect server has no such concurrency limit",
                    field=SLOTS,
                    got=name,
                    next_step=f"make it: `saeinterp ops setup`, or `prefect gcl create {name} --limit 1`",
                ) from error
            except httpx.TransportError:
                return set()
            if limit.active_slots < limit.limit:
                free.add(name)
    return free


def _numbers(devices: Any) -> tuple[int, ...]:
    """Numbers of the cards among these names of devices."""
    found = {str(device).removeprefix("cuda:") for device in devices}
    return tuple(sorted(int(name) for name in found if name.isdigit()))


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()
