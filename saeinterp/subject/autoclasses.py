"""transformers' auto classes, imported under a lock.

transformers resolves its names on first use, and of two threads that ask at the same moment one can find the
module half made ("cannot import name 'AutoConfig'"). Steps of one flow run in threads, so they ask here.
"""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

_LOCK = threading.Lock()


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
