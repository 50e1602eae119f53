"""Which vLLM runs when a flow explains and scores: one at a time, for as long as something asks it.

A server is started only where something of its stage is not there yet, and stays while the next stage wants the same
one. The surprising choice: before the first one starts, everything else the flow has under way is awaited, because a
server takes most of a GPU's memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from types import TracebackType

from prefect.context import FlowRunContext
from prefect.logging import get_run_logger

from saeinterp.artifacts import ArtifactStore
from saeinterp.config import LLMConfig
from saeinterp.errors import ConfigError
from saeinterp.explain.serving import Server, find_vllm, vllm_server
from tasks.cards import SLOTS, Need, cards, release_gpu_memory, slot_names
from tasks.step import Pending, is_planning, wait_for

_PATIENCE = 5.0  # seconds between the last answer of a server and the end of its processes


def server_key(llm: LLMConfig) -> str | None:
    """Equal for configurations that one server answers; None where the flow starts none."""
    if llm.provider != "vllm" or llm.base_url:
        return None
    return llm.model_dump_json(include={"model", "revision", "serving", "api_key_env"})


class Servers:
    """The vLLM servers of one flow run, used as a context manager; leaving it stops the one that runs.

    Args:
        after: What is awaited, however it ends, before the first server starts.

    Attributes:
        endings: One line per server that ended by itself.
    """

    def __init__(self, *, after: Iterable[Pending] = ()) -> None:
        self.endings: list[str] = []
        self._after = list(after)
        self._key: str | None = None
        self._server: Server | None = None
        self._using: list[Pending] = []
        self._stack = ExitStack()

    def __enter__(self) -> Servers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            wait_for(self._using)
        self._stop()

    def ask(
        self, llm: LLMConfig, submit: Callable[[LLMConfig], dict[str, Pending]], *, needed: Callable[[], bool]
    ) -> dict[str, Pending]:
        """Submit what asks a model, with its server running where a flow starts one.

        Args:
            submit: Given the model's configuration, with the server's address.
            needed: Whether anything is left to ask; called only for models that a flow serves.

        Raises:
            LLMError: The server does not come up.
        """
        key = server_key(llm)
        if key is None and llm.provider == "in-process" and slot_names() and not is_planning():
            # These tasks take a card, which a server that is up may hold: it gives it back first, and none starts
            # before they have ended.
            wait_for(self._using)
            self._stop()
            pending = submit(llm)
            self._after += pending.values()
            return pending
        if key is None or is_planning() or not needed():
            return submit(llm)
        if self._server is None or key != self._key or self._server.failure(patience=_PATIENCE) is not None:
            wait_for(self._using)
            self._stop()
            wait_for(self._after)
            release_gpu_memory()
            _refuse_distance()
            held = self._stack.enter_context(cards(_need(llm), server=True))
            self._server = self._stack.enter_context(
                vllm_server(llm, store=ArtifactStore(), visible=held.visible, say=get_run_logger().info)
            )
            self._key = key
        pending = submit(llm.model_copy(update={"base_url": self._server.config.base_url}))
        self._using += pending.values()
        return pending

    def _stop(self) -> None:
        self._using = []
        if self._server is not None and (failure := self._server.failure(patience=_PATIENCE)) is not None:
            self.endings.append(str(failure))
            get_run_logger().error("%s", failure)
        self._server = None
        self._stack.close()


def _refuse_distance() -> None:
    """A server of the flow's own listens on the loopback of the flow's machine.

    Raises:
        ConfigError: Tasks run on others.
    """
    context = FlowRunContext.get()
    other_machines = getattr(context.task_runner, "other_machines", None) if context else None
    if other_machines is not None and (names := other_machines()):
        raise ConfigError(
            "a server that the run starts is reached from its own machine alone, and Dask workers are elsewhere",
            field="llm.provider",
            got=", ".join(names),
            next_step="start the server yourself, and name it in llm.base_url",
        )


def _need(llm: LLMConfig) -> Need:
    """The cards of a server; the CPU build takes none.

    Raises:
        ConfigError: The configuration names its cards, and slots are to choose them.
    """
    if not slot_names() or find_vllm(llm.serving).cpu:
        return Need()
    if "CUDA_VISIBLE_DEVICES" in llm.serving.env:
        raise ConfigError(
            f"{SLOTS} chooses the cards",
            field="llm.serving.env",
            got="CUDA_VISIBLE_DEVICES",
            next_step="leave it out, and set llm.serving.tensor_parallel to the number of cards",
        )
    return Need(number=llm.serving.tensor_parallel)
