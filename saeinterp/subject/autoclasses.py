"""transformers' auto classes, imported under a lock, and what to put around the calls to them.

transformers resolves its names on first use, and of two threads that ask at the same moment one can find the
module half made ("cannot import name 'AutoConfig'"). Steps of one flow run in threads, so they ask here.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

from saeinterp.errors import SaeinterpError, SubjectError
from saeinterp.subject.origins import first_line

_LOCK = threading.Lock()
_LOADING = threading.RLock()
_HINTS = {
    "trust_remote_code": "set trust_remote_code: true if you trust whoever wrote that checkpoint's code",
    "bitsandbytes": "pip install --upgrade 'saeinterp[quantized]'",
    "pip install": "install the package that this checkpoint's kind of quantisation needs",
}


class AutoClasses(NamedTuple):
    """The classes that read a checkpoint folder."""

    config: Any
    model: Any
    tokenizer: Any
    generation: Any


def auto_classes() -> AutoClasses:
    """`AutoConfig`, `AutoModelForCausalLM`, `AutoTokenizer` and `GenerationConfig`; safe in any thread."""
    with _LOCK:
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

        return AutoClasses(AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' progress bars out of our own; one thread at a time.

    While loading, transformers replaces torch's initialisers for the whole process. Two threads that load at once put
    them back in the wrong order, and every later load leaves weights without data.
    """
    from transformers.utils import logging as hf_logging

    with _LOADING:
        shown = hf_logging.is_progress_bar_enabled()
        hf_logging.disable_progress_bar()
        try:
            yield
        finally:
            if shown:
                hf_logging.enable_progress_bar()


@contextlib.contextmanager
def explained(model: str) -> Iterator[None]:
    """Turn what transformers and safetensors raise on unreadable checkpoints into a `SubjectError`."""
    import torch
    from safetensors import SafetensorError

    try:
        yield
    except (SaeinterpError, torch.OutOfMemoryError):
        raise
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno in (28, 122):  # full disk: the store explains that one
            raise
        hint = "check that the folder holds config.json, tokenizer files and complete *.safetensors"
        hint = next((known for word, known in _HINTS.items() if word in str(error)), hint)
        raise SubjectError(
            f"cannot be loaded: {first_line(error)}", field="subject.model", got=model, next_step=hint
        ) from error


def refuse_gaps(model: Any, loading: dict[str, Any], name: str) -> None:
    """Refuse a checkpoint without all weights: transformers fills the gaps with random ones and only warns.

    Args:
        loading: What `from_pretrained` returns with `output_loading_info`.
        name: What `subject.model` names.

    Raises:
        SubjectError: Naming a weight that is missing.
    """
    missing = sorted(loading["missing_keys"])
    if missing:
        raise SubjectError(
            f"the checkpoint lacks {len(missing)} weights of {type(model).__name__}, such as {missing[0]}",
            field="subject.model",
            got=name,
            expected="a checkpoint of a causal language model",
            next_step="use the checkpoint that has a language-modelling head",
        )
