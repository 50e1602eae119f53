"""`saeinterp plan`: walk a flow without running it, and say what would be made, at which cost."""

from __future__ import annotations

import shutil
from typing import Any, NamedTuple

from pydantic import BaseModel
from rich.console import Console

from saeinterp.artifacts import ArtifactStore, Recipe
from saeinterp.config import CaptureConfig, ExamplesConfig, LLMConfig
from saeinterp.errors import DamagedArtifactError, SaeinterpError
from saeinterp.subject import activation_bytes, estimate_tokens, subject_width
from tasks.step import planning


class PlannedStep(NamedTuple):
    """One step of a plan; `size` in bytes and `requests` are estimates, None where not applicable."""

    recipe: Recipe
    state: str
    size: int | None
    requests: int | None


class FlowPlan(NamedTuple):
    """What a run would do.

    Attributes:
        steps: In order of execution.
        missing: What would stop the run, one line each.
    """

    steps: list[PlannedStep]
    missing: list[str]


def make_plan(flow: Any, config: BaseModel, *, store: ArtifactStore) -> FlowPlan:
    """Walk `flow` with `config`; nothing runs and nothing is written."""
    missing: list[str] = []
    with planning() as recorded:
        try:
            flow.fn(config)
        except SaeinterpError as error:
            missing.append(str(error))
    steps = []
    for recipe, inputs in recorded.steps:
        try:
            state = "there" if store.find(recipe, verify=False) else "to do"
        except DamagedArtifactError:
            state = "damaged, to do again"
        size, requests = _cost(recipe, inputs, config)
        steps.append(PlannedStep(recipe, state, size, requests))
    missing += _unreachable(config)
    needed = sum(step.size or 0 for step in steps if step.state != "there")
    folder = store.root
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        missing.append(f"disk: about {_bytes(needed)} to write, {_bytes(free)} free at {folder}")
    return FlowPlan(steps, missing)


def print_plan(flow: Any, config: BaseModel, *, store: ArtifactStore, console: Console) -> None:
    """Print the plan as lines: state, artifact, bytes, requests."""
    plan = make_plan(flow, config, store=store)
    width = max((len(step.recipe.folder) for step in plan.steps), default=0)
    for step in plan.steps:
        notes = []
        if step.size:
            notes.append(f"about {_bytes(step.size)}")
        if step.requests:
            notes.append(f"about {step.requests:,} LLM requests")
        console.print(f"{step.state:<8} {step.recipe.folder:<{width}}  {', '.join(notes)}".rstrip(), markup=False)
    todo = [step for step in plan.steps if step.state != "there"]
    size = sum(step.size or 0 for step in todo)
    requests = sum(step.requests or 0 for step in todo)
    console.print(
        f"{len(todo)} of {len(plan.steps)} steps to do, about {_bytes(size)} of activations to write and "
        f"{requests:,} LLM requests, below {store.root}",
        markup=False,
    )
    for line in plan.missing:
        console.print(f"missing  {line}", style="red", markup=False)


def _cost(recipe: Recipe, inputs: dict[str, Any], config: BaseModel) -> tuple[int | None, int | None]:
    if recipe.kind == "activations":
        capture: CaptureConfig = inputs["config"]
        tokens = estimate_tokens(config.corpus, splits=inputs["splits"])  # type: ignore[attr-defined]
        subject = getattr(config, "subject", None) or config.subject_a  # type: ignore[attr-defined]
        width = subject_width(subject)
        if tokens is None or width is None:
            return None, None
        return activation_bytes(tokens, width, capture.hookpoints), None
    examples: ExamplesConfig | None = getattr(config, "examples", None)
    count = _latents(examples) if examples else None
    if examples is None or count is None:
        return None, None
    if recipe.kind == "explanations" and "config" in inputs and inputs["config"].kind == "llm":
        return None, count
    if recipe.kind == "scores":
        per_latent = (
            examples.score_activating + examples.score_random + examples.score_similar + examples.score_near_miss
        )
        return None, count * per_latent
    return None, None


def _latents(examples: ExamplesConfig) -> int | None:
    text = examples.latents
    if not isinstance(text, str):
        return len(text)
    if text.startswith("sample:"):
        return int(text.removeprefix("sample:"))
    start, colon, stop = text.partition(":")
    return int(stop) - int(start) if colon else None


def _unreachable(config: BaseModel) -> list[str]:
    import httpx

    servers: dict[str, str] = {}
    for _, value in config:
        if isinstance(value, BaseModel):
            llm = getattr(value, "llm", None)
            if isinstance(llm, LLMConfig) and llm.provider == "openai" and llm.base_url:
                servers[llm.base_url] = llm.model
    problems = []
    for url, model in servers.items():
        try:
            httpx.get(f"{url.rstrip('/')}/models", timeout=5)
        except httpx.HTTPError as error:
            problems.append(f"LLM server {url} for {model} does not answer ({type(error).__name__}): start it first")
    return problems


def _bytes(count: int) -> str:
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
