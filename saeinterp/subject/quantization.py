"""Weights in 8 or 4 bits, by transformers and bitsandbytes.

Every linear layer inside the blocks is quantised when the checkpoint is loaded; embedding, norms and unembedding keep
their type. Checkpoints that are quantised already (GPTQ, AWQ, FP8, bitsandbytes) need none of this: they load by
their own `quantization_config`. The surprising choice: `int8` is LLM.int8, whose products run in float16 whatever
`subject.dtype` says, with the outlier columns of each batch kept apart.
"""

from __future__ import annotations

import importlib.util
import logging
from typing import Any

from saeinterp.config import SubjectConfig
from saeinterp.errors import ConfigError, MissingDependencyError

_INSTALL = "pip install 'saeinterp[quantized]', or set subject.quantization: none"


def check_quantization(config: SubjectConfig) -> None:
    """Refuse what cannot be quantised here, before anything is fetched.

    Raises:
        ConfigError: Of random weights.
        MissingDependencyError: bitsandbytes is not installed.
    """
    if config.quantization == "none":
        return
    if config.weights == "random":
        raise ConfigError(
            "random weights are drawn in full, there is no checkpoint to quantise",
            field="subject.quantization",
            got=config.quantization,
            expected="'none' with weights: random",
            next_step="set subject.quantization: none for the control",
        )
    _require_bitsandbytes(config.quantization)


def refuse_quantized(description: Any, config: SubjectConfig) -> None:
    """Refuse to quantise again what a transformers configuration says is quantised.

    Raises:
        ConfigError: Naming the method of the checkpoint.
    """
    own = own_quantization(description)
    if own is not None:
        raise ConfigError(
            f"{config.model} is quantised already ({own}) and loads by its own configuration",
            field="subject.quantization",
            got=config.quantization,
            expected="'none'",
            next_step="set subject.quantization: none, or name the checkpoint before quantisation",
        )


def own_quantization(description: Any) -> str | None:
    """The method by which a checkpoint is quantised, such as `gptq`; None when it is not."""
    settings = getattr(description, "quantization_config", None)
    if settings is None:
        return None
    values = settings if isinstance(settings, dict) else settings.to_dict()
    method = values.get("quant_method", "unknown method")
    return str(getattr(method, "value", method))


def quantization_settings(quantization: str, dtype: Any) -> Any:
    """What `from_pretrained` takes as `quantization_config`.

    Args:
        quantization: `int8` or `nf4`.
        dtype: torch type of the products of `nf4`.

    Raises:
        MissingDependencyError: bitsandbytes is not installed.
    """
    _require_bitsandbytes(quantization)
    from transformers import BitsAndBytesConfig

    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def silence_casts() -> None:
    """Keep bitsandbytes from warning, at every product of every layer, that `int8` casts to float16."""
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)


def _require_bitsandbytes(quantization: str) -> None:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingDependencyError(
            "bitsandbytes is not installed", field="subject.quantization", got=quantization, next_step=_INSTALL
        )
