"""Layer health, examples, explainers, scorers and comparisons."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from saeinterp.config.base import Config, place
from saeinterp.config.subject import CorpusConfig, CorpusSource, SplitFractions, SplitTokens


class HealthDataset(Config):
    """Text of its own on which layer health is measured, cut into contexts as the corpus is."""

    name: str = Field(min_length=1)
    """What reports call it, such as `SQuAD`."""
    source: CorpusSource
    """Where it comes from; every document counts as held out."""
    max_tokens: int | None = Field(None, ge=1)
    """Evaluate at most so many tokens (whole contexts are kept); empty means all."""

    def corpus(self, like: CorpusConfig) -> CorpusConfig:
        """The corpus that holds this text alone, all of it in the split `health`."""
        return like.model_copy(
            update={
                "sources": (self.source,),
                "fractions": SplitFractions(train=0, health=1, explain=0, score=0),
                "max_tokens": SplitTokens(health=self.max_tokens),
            }
        )


class HealthConfig(Config):
    """Layer health on held-out text: the corpus's own, and that of further datasets."""

    name: str = place("held-out")
    """What reports call the corpus's own held-out split."""
    datasets: tuple[HealthDataset, ...] = place(())
    """Further texts, each with a row of its own beside the held-out split."""
    allow_overlap: bool = False
    """Also evaluate on text that holds training documents; how many is printed."""
    splice: Literal["all", "unmasked"] = "all"
    """Replace the hookpoint at every position, or only where tokens are not masked."""
    batch_contexts: int = Field(16, ge=1)
    """Contexts per forward pass."""
    together: int | None = Field(None, ge=1, json_schema_extra={"in_recipe": False})
    """SAEs measured in one pass over the text; empty is all of a subject, which their weights must fit."""
    bootstrap: int = Field(2000, ge=100)
    """Bootstrap draws over documents."""
    seed: int = Field(0, ge=0)
    """Seed of the bootstrap."""

    @model_validator(mode="after")
    def _names_differ(self) -> HealthConfig:
        names = [self.name, *(dataset.name for dataset in self.datasets)]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two datasets are called {name!r} (health.name counts); give each a name of its own")
        return self


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
