"""Language models that explain and score: where they answer, how they are served, what they may cost."""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from saeinterp.config.base import Config, place


class BudgetConfig(Config):
    """Hard limits on what one flow run may ask of a server; a run that meets one stops and can be resumed."""

    max_requests: int | None = Field(None, ge=0)
    """Requests sent."""
    max_tokens: int | None = Field(None, ge=0)
    """Tokens, of prompts and replies together."""
    max_cost: float | None = Field(None, ge=0)
    """Cost, in the unit of the prices."""
    prompt_price: float | None = Field(None, ge=0)
    """Price of a million prompt tokens."""
    reply_price: float | None = Field(None, ge=0)
    """Price of a million reply tokens."""

    @model_validator(mode="after")
    def _has_prices(self) -> BudgetConfig:
        if self.max_cost is not None and (self.prompt_price is None or self.reply_price is None):
            raise ValueError("max_cost needs prompt_price and reply_price (per million tokens)")
        return self


class ServingConfig(Config):
    """How a run starts its own vLLM, which has a Python of its own."""

    python: str = place("")
    """Python that has vLLM installed; empty is SAEINTERP_VLLM_PYTHON, else `.venv-vllm/bin/python`, else this one."""
    dtype: str = "auto"
    """Such as `bfloat16`."""
    quantization: str | None = None
    """Such as `awq`; empty is what the checkpoint says."""
    max_model_len: int | None = Field(None, ge=1, json_schema_extra={"in_recipe": False})
    """Longest prompt and reply together, in tokens; empty is the model's own."""
    tensor_parallel: int = Field(1, ge=1, json_schema_extra={"in_recipe": False})
    """GPUs that share one copy of the model."""
    gpu_memory: float | None = Field(None, gt=0, le=1, json_schema_extra={"in_recipe": False})
    """Share of each GPU's memory that vLLM may take; empty is vLLM's default."""
    cpu_cache_gib: int = Field(2, ge=1, json_schema_extra={"in_recipe": False})
    """GiB for keys and values where vLLM runs on CPUs."""
    extra_args: tuple[str, ...] = place(())
    """Further arguments of the server, as in `["--enforce-eager", "--max-num-seqs=64"]`."""
    env: dict[str, str] = place({})
    """Further environment variables of the server; no secrets."""
    host: str = place("127.0.0.1")
    """Address it listens on."""
    port: int = Field(0, ge=0, le=65535, json_schema_extra={"in_recipe": False})
    """Port; 0 takes a free one."""
    start_seconds: float = Field(1800.0, gt=0, json_schema_extra={"in_recipe": False})
    """Longest wait until it answers; downloads count."""


class LLMConfig(Config):
    """Where completions come from."""

    provider: Literal["in-process", "openai", "vllm"] = "in-process"
    """`in-process` runs transformers here; `openai` talks to a vLLM or any OpenAI-compatible server that is there
    already; `vllm` starts one for the time it is needed."""
    model: str = "demo:smollm2-135m"
    """Model reference (in-process, vllm) or the name the server serves it under (openai)."""
    revision: str | None = None
    """Revision of the model."""
    base_url: str | tuple[str, ...] | None = place(None)
    """URL of the server, such as `http://127.0.0.1:8000/v1`, or of several that serve the same model."""
    serving: ServingConfig = ServingConfig()
    """How to start the server, for `vllm`."""
    api_key_env: str = place("OPENAI_API_KEY")
    """Environment variable that holds the key; the key itself is never stored."""
    temperature: float = Field(0.0, ge=0)
    """Sampling temperature."""
    max_tokens: int = Field(48, ge=1)
    """Longest explanation reply, in tokens."""
    seed: int = Field(0, ge=0)
    """Sampling seed sent with every request."""
    structured: bool = True
    """Ask servers for replies by JSON schema."""
    context_tokens: int | None = Field(None, ge=1, json_schema_extra={"in_recipe": False})
    """Longest prompt and reply together, where the server does not say."""
    batch_size: int = Field(16, ge=1)
    """Requests per in-process batch; part of the recipe, since low-precision results depend on it."""
    concurrency: int = Field(64, ge=1, json_schema_extra={"in_recipe": False})
    """Requests in flight at once, per server."""
    timeout_seconds: float = Field(120.0, gt=0, json_schema_extra={"in_recipe": False})
    """Longest wait for one reply."""
    retries: int = Field(5, ge=0, json_schema_extra={"in_recipe": False})
    """How often a failed request is sent again."""
    budget: BudgetConfig = place(BudgetConfig())
    """What one flow run may ask."""

    @field_validator("base_url")
    @classmethod
    def _holds_no_secret(cls, value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        for url in (value,) if isinstance(value, str) else value or ():
            parts = urlsplit(url)
            if "@" in parts.netloc or parts.query:
                raise ValueError(
                    "a URL is written down with the configuration: leave user, password and ?... out, and put the key "
                    "into the environment variable that api_key_env names"
                )
        return value

    @model_validator(mode="after")
    def _has_url(self) -> LLMConfig:
        if self.provider == "openai" and not self.base_url:
            raise ValueError("base_url is required with provider 'openai', such as http://127.0.0.1:8000/v1")
        return self
