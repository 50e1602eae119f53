"""Why a vLLM ended, from its log: the lines that matter among hundreds, and what to do about them.

The surprising choice: its last line is passed over where it can be. When an engine process fails, that line says only
that one did; the cause stands above.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from saeinterp.config import LLMConfig
from saeinterp.errors import LLMError

_TAIL_BYTES = 200_000
_SHOWN_LINES = 4
_SHOWN_CHARACTERS = 400
_PREFIX = re.compile(r"^(\x1b\[[0-9;]*m)*(\(\S+( pid=\d+)?\)(\x1b\[[0-9;]*m)* )?([A-Z]+ [\d-]+ [\d:]+ \[\S+\] )?")
_CAUSE = re.compile(r"(^[\w.]*(Error|Exception|Exit)\b:? |^\S+: error: |^\s*Value error, )")
_EMPTY = re.compile(
    r"validation errors? for |Engine core initialization failed|EngineDeadError|See (stack trace|root cause)"
)


class _Hint(NamedTuple):
    """What a line of the log means for the configuration."""

    pattern: re.Pattern[str]
    field: str
    next_step: str


_MEMORY = "take a smaller or a quantised checkpoint (llm.serving.quantization)"
_HINTS = [
    _Hint(
        re.compile(r"address already in use", re.IGNORECASE),
        "llm.serving.port",
        "stop what listens there, or set port: 0, which takes a free one",
    ),
    _Hint(
        re.compile(r"unrecognized arguments|api_server\.py: error: "),
        "llm.serving.extra_args",
        "correct the arguments: they are those of `python -m vllm.entrypoints.openai.api_server --help=all`",
    ),
    _Hint(
        re.compile(r"KV cache|cache blocks", re.IGNORECASE),
        "llm.serving.max_model_len",
        f"lower it, raise gpu_memory (on CPUs cpu_cache_gib) or tensor_parallel, or {_MEMORY}",
    ),
    _Hint(
        re.compile(r"out of memory|OutOfMemoryError|Free memory on device|Cannot allocate memory", re.IGNORECASE),
        "llm.serving.gpu_memory",
        f"free the memory that other processes hold, raise tensor_parallel, lower max_model_len, or {_MEMORY}",
    ),
    _Hint(
        re.compile(r"max_model_len|max_position_embeddings"), "llm.serving.max_model_len", "lower it, or leave it empty"
    ),
    _Hint(
        re.compile(r"quantization|config file for ", re.IGNORECASE),
        "llm.serving.quantization",
        "leave it empty: vLLM then reads the checkpoint's own",
    ),
    _Hint(
        re.compile(r"tensor parallel|world size|number of (attention )?heads|visible devices", re.IGNORECASE),
        "llm.serving.tensor_parallel",
        "set it to a number of GPUs that are there and that divides the model's attention heads",
    ),
    _Hint(
        re.compile(r"infer device type|no CUDA|CUDA driver|libcuda", re.IGNORECASE),
        "llm.serving.python",
        "without a GPU vLLM needs its CPU build, which `make vllm` installs",
    ),
    _Hint(
        re.compile(r"trust_remote_code"),
        "llm.serving.extra_args",
        'if you trust the code of that repository, add "--trust-remote-code"',
    ),
    _Hint(
        re.compile(r"RepositoryNotFound|GatedRepo|LocalEntryNotFound|not a valid model identifier|HfHubHTTPError"),
        "llm.model",
        "check the name and revision; gated and private repositories need HF_TOKEN; HF_HUB_OFFLINE forbids downloads",
    ),
    _Hint(
        re.compile(r"ModuleNotFoundError|ImportError|undefined symbol|torchvision"),
        "llm.serving.python",
        "this installation of vLLM is incomplete: install it anew",
    ),
]


def explain_ending(code: int, *, log: Path, config: LLMConfig) -> LLMError:
    """The error of a server that ended by itself.

    Args:
        code: Its exit status, 128 and more for signals as shells give it; negative where its supervisor was killed.
    """
    lines = significant_lines(log)
    text = "\n".join(lines)
    hint = next((hint for hint in _HINTS if hint.pattern.search(text)), None)
    field, next_step = "llm.serving", "read the log, then run again: finished steps and received replies are kept"
    if hint is not None:
        field, next_step = hint.field, hint.next_step
    ended = f"exit status {code}"
    number = -code if code < 0 else code - 128
    if number in set(signal.Signals):
        ended = signal.Signals(number).name
        if hint is None and number == signal.SIGKILL:
            next_step = "if the machine was short of memory, take a smaller model or context; then run again"
    shown = "".join(f"\n    {line}" for line in lines)
    return LLMError(
        f"vLLM for {config.model} ended ({ended}); its log is {log}{':' if lines else ''}{shown}",
        field=field,
        next_step=next_step,
    )


def significant_lines(log: Path) -> list[str]:
    """The lines of a log that name errors, the last few; its last lines where none does."""
    with log.open("rb") as handle:
        handle.seek(0, 2)
        handle.seek(max(0, handle.tell() - _TAIL_BYTES))
        text = handle.read().decode("utf-8", "replace")
    plain = [_PREFIX.sub("", line).rstrip() for line in re.split(r"[\r\n]+", text)]
    plain = [line for line in plain if line and not line.startswith("$ ")]
    causes = list(dict.fromkeys(_causes(plain))) or plain
    return [line.strip()[:_SHOWN_CHARACTERS] for line in causes[-_SHOWN_LINES:]]


def _causes(lines: list[str]) -> Iterator[str]:
    for line in lines:
        if _CAUSE.search(line) and not _EMPTY.search(line):
            yield line
