"""Frozen configuration models, the same for YAML, Python and the Prefect form.

Unknown keys are errors that offer the nearest valid name. Values that only change where or how fast a
result is computed are declared with `place()`: `recipe_of` leaves them out of recipes.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from saeinterp.errors import ConfigError

Split = Literal["train", "health", "explain", "score"]
SPLITS: tuple[Split, ...] = get_args(Split)


def place(default: Any) -> Any:
    """A field that says where or how fast, not what: it never enters a recipe."""
    return Field(default, json_schema_extra={"in_recipe": False})


class Config(BaseModel):
    """Base of every configuration: frozen, unknown keys refused, field docstrings become descriptions."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


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
        return self

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


class TrainingConfig(Config):
    """One TopK SAE."""

    num_latents: int = Field(1152, ge=1)
    """Dictionary size M."""
    k: int = Field(32, ge=1)
    """Latents active per token."""
    activation: Literal["topk", "abs_topk"] = "topk"
    """`topk`: ReLU, then the k largest. `abs_topk`: the k largest magnitudes, signs kept."""
    epochs: int = Field(4, ge=1)
    """Passes over the training rows."""
    batch_rows: int = Field(512, ge=1)
    """Rows per step, over all processes."""
    optimizer: Literal["adam", "signum"] = "adam"
    """Adam, or SignSGD with momentum."""
    lr: float | None = Field(None, gt=0)
    """Peak learning rate; empty takes the rule of the method page for this size and optimizer."""
    warmup_fraction: float = Field(0.05, ge=0, lt=1)
    """Share of the steps with rising learning rate."""
    decay_fraction: float = Field(0.2, ge=0, le=1)
    """Share of the steps, at the end, with the learning rate falling to zero."""
    aux_coefficient: float = Field(1 / 32, ge=0)
    """Weight of AuxK, which revives dead latents; 0 turns it off."""
    dead_after_rows: int = Field(20_000, ge=1)
    """A latent silent for so many rows counts as dead."""
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    """Type of the large products; `auto` is bfloat16 where the hardware multiplies it fast. Weights stay float32."""
    seed: int = Field(0, ge=0)
    """Seed of initialisation and shuffle."""
    log_every: int = Field(20, ge=1)
    """Steps between rows of the curves."""
    eval_rows: int = Field(4096, ge=1)
    """Held-out rows for the FVU of the curves."""
    checkpoint_seconds: float = place(60.0)
    """Seconds between checkpoints."""
    overrides: dict[str, dict[str, Any]] = Field(default_factory=dict, json_schema_extra={"in_recipe": False})
    """Fields that differ at some hookpoints, as in `{layers.15: {k: 64, lr: 0.002}}`."""

    @model_validator(mode="after")
    def _fits(self) -> TrainingConfig:
        if self.k > self.num_latents:
            raise ValueError(f"k = {self.k} exceeds num_latents = {self.num_latents}; lower k or raise num_latents")
        for hookpoint in self.overrides:
            self.at(hookpoint)
        return self

    def at(self, hookpoint: str) -> TrainingConfig:
        """The configuration of one hookpoint's SAE, `overrides` applied and dropped.

        Raises:
            ValueError: An override names no field of this model, or has a value the field refuses.
        """
        changed = self.overrides.get(hookpoint, {})
        unknown = [name for name in changed if name not in type(self).model_fields or name == "overrides"]
        if unknown:
            known = sorted(set(type(self).model_fields) - {"overrides"})
            near = difflib.get_close_matches(unknown[0], known, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known)}"
            raise ValueError(f"overrides.{hookpoint}: no field {unknown[0]!r}{hint}")
        values = {**self.model_dump(exclude={"overrides"}), **changed}
        try:
            return TrainingConfig.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in ("overrides", hookpoint, *first["loc"]))
            shown = f" (got {first['input']!r})" if first["loc"] else ""
            raise ValueError(f"{place}: {first['msg'].removeprefix('Value error, ')}{shown}") from error


class LaunchConfig(Config):
    """How training is started. `processes`, `threads` and `spread` change the rounding, so they enter the recipe."""

    processes: int = Field(1, ge=1)
    """Processes per SAE (data parallel)."""
    parallel: int = place(2)
    """Layers worked on at once."""
    together: int | None = Field(None, ge=1, json_schema_extra={"in_recipe": False})
    """SAEs of one shape that a process trains as one batched problem; empty is all when streaming, else one."""
    spread: Literal["rows", "saes"] = "rows"
    """Several processes split every batch (`rows`), or each trains SAEs of its own (`saes`, with `together` > 1)."""
    command: tuple[str, ...] = place(())
    """A launcher of your own, as in `[srun, torchrun, --nnodes, "2", ...]`; `-m saeinterp.sae.training --job FILE`
    is added."""
    threads: int | None = Field(None, ge=1)
    """CPU threads per training process; empty shares the cores out over `parallel`."""
    timeout_minutes: float = place(24 * 60.0)
    """Stop a layer's training after this long."""
    memory_gb: float = place(4.0)
    """Training rows each process copies into memory; where they take more, they are read from the mapped files."""


class HealthConfig(Config):
    """Layer health on held-out text."""

    splice: Literal["all", "unmasked"] = "all"
    """Replace the hookpoint at every position, or only where tokens are not masked."""
    batch_contexts: int = Field(16, ge=1)
    """Contexts per forward pass."""
    bootstrap: int = Field(2000, ge=100)
    """Bootstrap draws over documents."""
    seed: int = Field(0, ge=0)
    """Seed of the bootstrap."""


class ExamplesConfig(Config):
    """Frozen example sets, shared by every explainer and scorer."""

    latents: str | tuple[int, ...] = "sample:4"
    """`"10:21"` (a range), a list of indices, `"sample:N"` (seeded, uniform over alive latents) or `"all"`."""
    window: int = Field(32, ge=4)
    """Tokens per example window."""
    explain_activating: int = Field(12, ge=1)
    """Activating examples shown to the explainer."""
    score_activating: int = Field(15, ge=1)
    """Activating examples to be scored, over the quantiles."""
    score_random: int = Field(5, ge=0)
    """Non-activating windows drawn at random."""
    score_similar: int = Field(5, ge=0)
    """Windows where a latent with a near decoder direction fires but this one is silent."""
    score_near_miss: int = Field(5, ge=0)
    """Windows holding the latent's top token while it is silent."""
    quantiles: int = Field(10, ge=1)
    """Activation quantiles over which positives are spread."""
    min_windows: int = Field(10, ge=1)
    """Fewer activating windows in a split make a latent `too_rare`."""
    max_share: float = Field(0.8, gt=0, le=1)
    """Activity in a larger share of windows makes a latent `too_dense`."""
    seed: int = Field(0, ge=0)
    """Seed of every draw."""


class LLMConfig(Config):
    """Where completions come from."""

    provider: Literal["in-process", "openai"] = "in-process"
    """`in-process` runs transformers here; `openai` talks to a vLLM or any OpenAI-compatible server."""
    model: str = "demo:smollm2-135m"
    """Model reference (in-process) or the name the server serves it under."""
    revision: str | None = None
    """Revision of the model."""
    base_url: str | None = place(None)
    """URL of the server, such as `http://127.0.0.1:8000/v1`."""
    api_key_env: str = place("OPENAI_API_KEY")
    """Environment variable that holds the key; the key itself is never stored."""
    temperature: float = Field(0.0, ge=0)
    """Sampling temperature."""
    max_tokens: int = Field(48, ge=1)
    """Longest explanation reply, in tokens."""
    seed: int = Field(0, ge=0)
    """Sampling seed sent with every request."""
    batch_size: int = Field(16, ge=1)
    """Requests per in-process batch; part of the recipe, since low-precision results depend on it."""
    concurrency: int = place(32)
    """Requests in flight at once (openai)."""
    timeout_seconds: float = place(120.0)
    """Longest wait for one reply."""
    retries: int = place(5)
    """How often a failed request is sent again (openai)."""

    @model_validator(mode="after")
    def _has_url(self) -> LLMConfig:
        if self.provider == "openai" and not self.base_url:
            raise ValueError("base_url is required with provider 'openai', such as http://127.0.0.1:8000/v1")
        return self


class ExplainerConfig(Config):
    """Who writes the explanations."""

    kind: Literal["llm", "top-tokens"] = "llm"
    """`llm` asks a model; `top-tokens` lists the most associated tokens, without one."""
    label: str | None = None
    """Name in reports; default is the model's or the kind's."""
    llm: LLMConfig = LLMConfig()
    """The model, for `llm`."""
    logit_lens: bool = True
    """Show the tokens that the decoder direction promotes most."""

    @property
    def title(self) -> str:
        """The name reports use."""
        if self.label:
            return self.label
        return self.kind if self.kind != "llm" else self.llm.model.rsplit("/", 1)[-1]


class ScorerConfig(Config):
    """Who judges the explanations; fixed and independent of the explainers."""

    kind: Literal["detection"] = "detection"
    """`detection`: does the text match the explanation?"""
    llm: LLMConfig = LLMConfig(max_tokens=1)
    """The judging model."""
    threshold: float = Field(0.5, gt=0, lt=1)
    """P(match) above which a verdict is true."""
    min_coverage: float = Field(0.95, ge=0, le=1)
    """Below this share of usable verdicts the run ends `completed with failures`."""


class ComparisonConfig(Config):
    """What is tested, frozen before anything is scored."""

    metric: Literal["f1", "accuracy", "balanced_accuracy", "auroc"] = "f1"
    """Primary endpoint, per latent, averaged over latents."""
    margin: float = Field(0.05, gt=0)
    """Equivalence margin."""
    alpha: float = Field(0.05, gt=0, lt=1)
    """Two-sided significance level."""
    bootstrap: int = Field(2000, ge=100)
    """Bootstrap draws."""
    seed: int = Field(0, ge=0)
    """Seed of resampling."""
    allow_unmatched: bool = False
    """Compare sides that differ in what should be equal; the report then carries a banner."""


def _overrides_have_a_hookpoint(config: Any) -> Any:
    """Refuse overrides for hookpoints that are not captured: a typing error would go unseen."""
    known = config.capture.hookpoints
    for name in config.training.overrides:
        if name not in known:
            raise ValueError(f"training.overrides: {name!r} is not among capture.hookpoints ({', '.join(known)})")
    return config


class TrainSaesConfig(Config):
    """Train one SAE per hookpoint and grade each layer's health."""

    subject: SubjectConfig = SubjectConfig()
    corpus: CorpusConfig = CorpusConfig()
    capture: CaptureConfig = CaptureConfig()
    training: TrainingConfig = TrainingConfig()
    launch: LaunchConfig = LaunchConfig()
    health: HealthConfig = HealthConfig()

    _overrides = model_validator(mode="after")(_overrides_have_a_hookpoint)


class ExplainFeaturesConfig(TrainSaesConfig):
    """Train, then explain and score latents of every layer with one explainer."""

    examples: ExamplesConfig = ExamplesConfig()
    explainer: ExplainerConfig = ExplainerConfig()
    scorer: ScorerConfig = ScorerConfig()
    comparison: ComparisonConfig = ComparisonConfig()


class CompareExplainersConfig(TrainSaesConfig):
    """Two explainers on the same latents and examples, scored by one fixed scorer."""

    examples: ExamplesConfig = ExamplesConfig()
    explainer_a: ExplainerConfig = ExplainerConfig()
    explainer_b: ExplainerConfig = ExplainerConfig(kind="top-tokens")
    controls: tuple[Literal["permuted", "empty"], ...] = ("permuted", "empty")
    """Control explanations: another latent's (`permuted`) and none (`empty`)."""
    scorer: ScorerConfig = ScorerConfig()
    comparison: ComparisonConfig = ComparisonConfig()
    random_weights_control: bool = True
    """Also train and grade SAEs on the subject with random weights: the floor."""


class CompareModelsConfig(Config):
    """Layer health of two subjects, same corpus and same SAE recipe."""

    subject_a: SubjectConfig = SubjectConfig()
    subject_b: SubjectConfig = SubjectConfig(weights="random")
    corpus: CorpusConfig = CorpusConfig()
    capture: CaptureConfig = CaptureConfig()
    training: TrainingConfig = TrainingConfig()
    launch: LaunchConfig = LaunchConfig()
    health: HealthConfig = HealthConfig()
    comparison: ComparisonConfig = ComparisonConfig()

    _overrides = model_validator(mode="after")(_overrides_have_a_hookpoint)


C = TypeVar("C", bound=BaseModel)


def recipe_of(config: BaseModel) -> dict[str, Any]:
    """The JSON values of a configuration that change results (fields declared with `place` left out)."""
    result: dict[str, Any] = {}
    for name, info in type(config).model_fields.items():
        extra = info.json_schema_extra
        if isinstance(extra, Mapping) and extra.get("in_recipe") is False:
            continue
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            result[name] = recipe_of(value)
        elif isinstance(value, tuple) and any(isinstance(item, BaseModel) for item in value):
            result[name] = [recipe_of(item) for item in value]
        else:
            result[name] = json.loads(json.dumps(value))
    return result


def parse_config(cls: type[C], data: Mapping[str, Any], *, source: str = "configuration") -> C:
    """Validate plain data as `cls`.

    Raises:
        ConfigError: Naming every wrong field; unknown keys come with the nearest valid name.
    """
    try:
        return cls.model_validate(dict(data))
    except ValidationError as error:
        problems = [_explain(cls, item) for item in error.errors()]
        raise ConfigError(
            "; ".join(problems),
            field=source,
            next_step=f"fix {'it' if len(problems) == 1 else 'them'} and run again",
        ) from error


def load_config(cls: type[C], path: str | Path | None, overrides: Sequence[str] = ()) -> C:
    """Read a YAML file (None: all defaults) and apply `a.b=value` overrides (values are YAML).

    Raises:
        ConfigError: The file is missing, not YAML, or holds a wrong value.
    """
    data: Any = {}
    source = "configuration"
    if path is not None:
        source = str(path)
        try:
            data = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        except FileNotFoundError as error:
            raise ConfigError("no such file", field="--config", got=source, next_step="check the path") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"not valid YAML: {error}", field=source) from error
        if not isinstance(data, dict):
            raise ConfigError("holds no mapping", field=source, got=type(data).__name__, expected="'key: value' lines")
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ConfigError("not an assignment", field="--set", got=override, expected="a.b=value")
        node = data
        *parents, leaf = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ConfigError(f"{parent} is a value, not a section", field="--set", got=override)
        node[leaf] = yaml.safe_load(text)
    return parse_config(cls, data, source=source)


def dump_config(config: BaseModel) -> str:
    """The configuration as YAML that `load_config` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _explain(cls: type[BaseModel], item: Any) -> str:
    where = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        valid = _fields_at(cls, item["loc"][:-1])
        nearest = difflib.get_close_matches(str(item["loc"][-1]), valid, n=1, cutoff=0.5)
        hint = f"did you mean '{nearest[0]}'?" if nearest else f"valid keys: {', '.join(valid)}"
        return f"unknown key '{where}' ({hint})"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error" or isinstance(item["input"], dict):
        return f"{where}: {message}" if where else message
    return f"{where}: {message} (got {item['input']!r})"


def _fields_at(cls: type[BaseModel], loc: Sequence[Any]) -> list[str]:
    current: Any = cls
    for part in loc:
        if isinstance(part, int):
            continue
        info = current.model_fields.get(part)
        if info is None:
            return []
        current = info.annotation
        models = [a for a in (current, *get_args(current)) if isinstance(a, type) and issubclass(a, BaseModel)]
        if not models:
            return []
        current = models[0]
    return list(current.model_fields)
