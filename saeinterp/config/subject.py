"""The model under study, its text, and the activations collected from it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, model_validator

from saeinterp.config.base import Config, place


def _text_keys(value: Any) -> Any:
    """YAML reads the key of `{0: 20GiB}` as a number."""
    return {str(key): item for key, item in value.items()} if isinstance(value, Mapping) else value


def _known_map(value: Any) -> Any:
    """One message for a mistyped name, instead of one per alternative."""
    if isinstance(value, str) and value not in get_args(_Spread):
        raise ValueError(f"{value!r} is none of {', '.join(get_args(_Spread))}, nor a device per module")
    return _text_keys(value)


_Spread = Literal["single", "auto", "balanced", "balanced_low_0", "sequential"]
DeviceMap = Annotated[_Spread | dict[str, int | str], BeforeValidator(_known_map)]
MaxMemory = Annotated[dict[str, str], BeforeValidator(_text_keys)]


def _check_placement(device: str, device_map: DeviceMap, max_memory: MaxMemory | None) -> None:
    """Refuse what could only be ignored.

    Raises:
        ValueError: Naming the field.
    """
    if device_map == "single":
        if max_memory is not None:
            raise ValueError("max_memory has no meaning with device_map 'single'; set device_map: auto or leave it out")
        return
    if isinstance(device_map, dict):
        if device != "auto":
            raise ValueError(f"device {device!r} has no meaning where device_map names devices; leave device: auto")
        if max_memory is not None:
            raise ValueError("max_memory has no meaning where device_map names devices; leave it out")
    elif device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device_map {device_map!r} spreads over devices, but device names one ({device!r}); use auto")
    for key, size in (max_memory or {}).items():
        if key != "cpu" and not key.isdigit():
            raise ValueError(f"max_memory: {key!r} is neither the number of a GPU nor 'cpu'")
        if key != "cpu" and device == "cpu":
            raise ValueError(f"max_memory: GPU {key} has no meaning with device 'cpu'")
        if not re.fullmatch(r"\d+(\.\d+)?\s?([KMG]i?B)", size):
            raise ValueError(f"max_memory: {size!r} is no amount of memory, such as 20GiB or 500MB")


class Placement(Config):
    """Where a subject's weights lie while it runs; see `SubjectConfig` for the fields."""

    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`."""
    device_map: DeviceMap = "single"
    """`single`, or how the weights are spread."""
    max_memory: MaxMemory | None = None
    """Limits of a spread model."""

    @model_validator(mode="after")
    def _makes_sense(self) -> Placement:
        _check_placement(self.device, self.device_map, self.max_memory)
        return self


class SubjectConfig(Config):
    """The model under study."""

    model: str = "demo:smollm2-135m"
    """Hub id, local folder, local .gguf file, or `demo:smollm2-135m` (the packaged demo model)."""
    revision: str | None = None
    """Hub revision: commit, tag or branch."""
    adapter: str | None = None
    """A PEFT adapter (LoRA and the like) to merge into `model`: a local folder or a hub id (extra `adapters`)."""
    adapter_revision: str | None = None
    """Hub revision of the adapter."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """`random` keeps architecture and tokenizer and draws fresh weights: the control."""
    weights_seed: int = Field(0, ge=0)
    """Seed of the random weights."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Compute type; `auto` is bfloat16 where the hardware multiplies it fast, else float32."""
    trust_remote_code: bool = False
    """Run code shipped with the checkpoint. Leave off for models you do not trust."""
    quantization: Literal["none", "int8", "nf4"] = "none"
    """Load the weights of linear layers in 8 or 4 bits (bitsandbytes, extra `quantized`); `none` loads a checkpoint as
    it is, quantised ones included."""
    device: str = place("auto")
    """`auto`, `cpu`, `cuda`, `cuda:1`."""
    device_map: DeviceMap = place("single")
    """`single` puts the model on `device`; `auto`, `balanced`, `balanced_low_0` and `sequential` spread it over the
    visible GPUs, then memory, then disk; or name a device per module, as in `{"": 0, lm_head: cpu}`."""
    max_memory: MaxMemory | None = place(None)
    """With a `device_map`, at most so much per GPU and in memory, as in `{0: 20GiB, cpu: 60GiB}`; devices left out get
    nothing, and what fits nowhere is read from disk at every pass."""

    @model_validator(mode="after")
    def _fits_together(self) -> SubjectConfig:
        _check_placement(self.device, self.device_map, self.max_memory)
        if self.weights == "random" and self.quantization != "none":
            raise ValueError(
                f"quantization {self.quantization!r} with random weights: they are drawn in full, and there is no "
                "checkpoint to quantise; set quantization: none"
            )
        if self.weights == "random" and self.adapter is not None:
            raise ValueError(
                f"adapter {self.adapter!r} with random weights: it was trained for weights that are not there; leave "
                "adapter out (the control of a fine-tuned model is that of its base)"
            )
        if self.adapter is None and self.adapter_revision is not None:
            raise ValueError(f"adapter_revision {self.adapter_revision!r} without an adapter; name one or leave it out")
        return self

    def control(self, *, seed: int = 0) -> SubjectConfig:
        """The same architecture with random weights; an adapter and quantisation fall away, as they change none."""
        dropped = {"adapter": None, "adapter_revision": None, "quantization": "none"}
        return self.model_copy(update={"weights": "random", "weights_seed": seed, **dropped})

    @property
    def placement(self) -> Placement:
        """Where the weights lie, apart from what they are."""
        return Placement(device=self.device, device_map=self.device_map, max_memory=self.max_memory)


class CorpusSource(Config):
    """One source of documents."""

    name: str
    """`builtin:python-reference`, `builtin:word-problems`, a local .txt/.jsonl/.parquet file, or a hub dataset."""
    hub_config: str | None = None
    """Configuration of a hub dataset, such as `wikitext-103-raw-v1`."""
    split: str = "train"
    """Split or slice of a hub dataset, such as `train[:5%]`."""
    text_column: str | tuple[str, ...] = "text"
    """Column with the text (jsonl, parquet, hub); several, as in `[question, answer]`, are joined by line ends."""
    revision: str | None = None
    """Hub revision of the dataset; pin it, because recipes cannot see a hub dataset change."""
    limit: int | None = Field(None, ge=1)
    """Take at most so many documents."""


class SplitFractions(Config):
    """Share of documents per split; documents are assigned by a hash of their text."""

    train: float = Field(0.70, ge=0)
    """Share used to train the SAEs."""
    health: float = Field(0.10, ge=0)
    """Share held out for layer health and the curves' FVU."""
    explain: float = Field(0.10, ge=0)
    """Share shown to explainers."""
    score: float = Field(0.10, ge=0)
    """Share judged by scorers, unseen by explainers."""

    @model_validator(mode="after")
    def _sum(self) -> SplitFractions:
        total = self.train + self.health + self.explain + self.score
        if abs(total - 1) > 1e-9:
            raise ValueError(f"fractions must add up to 1, they add up to {total:g}")
        return self


class SplitTokens(Config):
    """Upper limit on tokens per split (whole contexts are kept); empty means all."""

    train: int | None = Field(None, ge=1)
    """Limit of the training split."""
    health: int | None = Field(None, ge=1)
    """Limit of the held-out split."""
    explain: int | None = Field(None, ge=1)
    """Limit of the explainers' split."""
    score: int | None = Field(None, ge=1)
    """Limit of the scorers' split."""


class CorpusConfig(Config):
    """The text: where it comes from, how it is split and cut into contexts."""

    sources: tuple[CorpusSource, ...] = (CorpusSource(name="builtin:python-reference"),)
    """Sources, read in order."""
    context_length: int = Field(128, ge=8)
    """Tokens per context."""
    packing: bool = False
    """Fill contexts with several documents (separated by the end token) instead of cutting each on its own."""
    chat_template: bool = False
    """Wrap each document as a user message by the tokenizer's chat template."""
    fractions: SplitFractions = SplitFractions()
    """Share of documents per split."""
    max_tokens: SplitTokens = SplitTokens()
    """Upper limit on tokens per split."""
    seed: int = Field(0, ge=0)
    """Seed of the word-problem generator and of the split hash."""


class CaptureConfig(Config):
    """Which activations are collected, and how."""

    hookpoints: tuple[str, ...] = ("layers.5", "layers.10", "layers.15")
    """Module outputs to capture; `layers.9` is the residual stream after block 9."""
    dtype: Literal["auto", "bfloat16", "float16"] = "auto"
    """Storage type; `auto` is bfloat16 unless the subject computes in float16."""
    batch_contexts: int = Field(16, ge=1)
    """Contexts per forward pass."""
    norm_multiple: float = Field(10.0, gt=1)
    """Rows whose norm exceeds this multiple of the median are masked (attention sinks), in training and evaluation."""
    disk_budget_gb: float = place(50.0)
    """Refuse to write more than this."""
    processes: int = Field(1, ge=1, json_schema_extra={"in_recipe": False})
    """Processes that share the text out, each with the subject on a GPU of its own (all on the one that
    `subject.device` names); the bytes are those of one."""
    source: Literal["auto", "cache", "stream"] = place("auto")
    """Where training rows come from: files of activations (`cache`), or the running model through a mixing buffer
    (`stream`); `auto` streams when the files would exceed `disk_budget_gb`."""
    buffer_rows: int = place(131_072)
    """Rows of the mixing buffer when streaming; every SAE sees them in an order of its own."""
