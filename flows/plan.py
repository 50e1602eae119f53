"""`saeinterp plan`: walk a flow without running it, and say what would be made, at which cost."""

from __future__ import annotations

import itertools
import math
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel
from rich.console import Console

from flows.serving import server_key
from saeinterp.artifacts import ArtifactStore, Recipe
from saeinterp.config import (
    CaptureConfig,
    CompareInterpretabilityConfig,
    CorpusConfig,
    CorpusSource,
    CorrelateTokensConfig,
    ExamplesConfig,
    ExplainerConfig,
    LLMConfig,
    ProblemsConfig,
    ScorerConfig,
    ServingConfig,
    SubjectConfig,
    TrainingConfig,
    TrainSaesConfig,
)
from saeinterp.errors import DamagedArtifactError, SaeinterpError
from saeinterp.explain.serving import find_vllm
from saeinterp.sae import adopted_from
from saeinterp.subject import activation_bytes, estimate_tokens, prepare_subject_recipe, site_names, subject_width
from tasks.step import Plan, planning


class Cost(NamedTuple):
    """Estimates of what a step takes, None where not applicable or not known."""

    size: int | None = None
    """Bytes to write."""
    requests: int | None = None
    """LLM requests."""
    tokens: int | None = None
    """Tokens through the model; SAEs that are measured together share its clean pass."""
    prompts: int | None = None
    """Prompts through the model, shared by the layers that are probed together."""


class PlannedStep(NamedTuple):
    """One step of a plan."""

    recipe: Recipe
    state: str
    cost: Cost


class FlowPlan(NamedTuple):
    """What a run would do.

    Attributes:
        steps: In order of execution.
        servers: The models that vLLM would be started for, in order, as far as it is to be started.
        missing: What would stop the run, one line each.
        whole: All steps are known; those that follow from what is missing are not.
    """

    steps: list[PlannedStep]
    servers: list[str]
    missing: list[str]
    whole: bool


def make_plan(flow: Any, config: BaseModel, *, store: ArtifactStore) -> FlowPlan:
    """Walk `flow` with `config`; nothing runs and nothing is written."""
    missing = list(dict.fromkeys([*_absent_models(config), *_absent_texts(config)]))
    whole = True
    with planning() as recorded:
        try:
            flow.fn(config)
        except SaeinterpError as error:
            whole = False
            # A model that is missing was named above, and what follows from it cannot be planned.
            missing += [] if str(error) in missing else [str(error)]
    steps: list[PlannedStep] = []
    asking: list[LLMConfig] = []
    for recipe, inputs in recorded.steps:
        try:
            state = "there" if store.find(recipe, verify=False) else "to do"
        except DamagedArtifactError:
            state = "damaged, to do again"
        steps.append(PlannedStep(recipe, state, _cost(recipe, inputs, config, recorded)))
        if state != "there":
            asking += _asked(inputs.get("config"))
    starts = [next(group) for key, group in itertools.groupby(asking, server_key) if key is not None]
    missing += _absent_vllm(starts)
    missing += _unreachable(config)
    needed = sum(step.cost.size or 0 for step in steps if step.state != "there")
    folder = store.root
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        missing.append(f"disk: about {_bytes(needed)} to write, {_bytes(free)} free at {folder}")
    return FlowPlan(steps, [llm.model for llm in starts], missing, whole)


def print_plan(flow: Any, config: BaseModel, *, store: ArtifactStore, console: Console) -> None:
    """Print the plan as lines: state, artifact, bytes, requests."""
    plan = make_plan(flow, config, store=store)
    width = max((len(step.recipe.folder) for step in plan.steps), default=0)
    for step in plan.steps:
        notes = ["adopted: trained elsewhere"] if adopted_from(step.recipe.config) else []
        if step.cost.size:
            notes.append(f"about {_bytes(step.cost.size)}")
        for count, unit in (
            (step.cost.tokens, "tokens"),
            (step.cost.prompts, "prompts"),
            (step.cost.requests, "LLM requests"),
        ):
            if count:
                notes.append(f"about {count:,} {unit}")
        console.print(f"{step.state:<8} {step.recipe.folder:<{width}}  {', '.join(notes)}".rstrip(), markup=False)
    for model in plan.servers:
        console.print(f"server   vLLM for {model} is started, and stopped when it has answered", markup=False)
    todo = [step for step in plan.steps if step.state != "there"]
    size = sum(step.cost.size or 0 for step in todo)
    requests = sum(step.cost.requests or 0 for step in todo)
    limit = "up to " if requests else ""  # a latent that is dead or rare needs none
    kinds = Counter(step.recipe.kind for step in todo)
    if kinds:
        console.print(f"to make: {', '.join(f'{count} {kind}' for kind, count in kinds.items())}", markup=False)
    console.print(
        f"{len(todo)} of {len(plan.steps)} steps to do, about {_bytes(size)} of activations to write and "
        f"{limit}{requests:,} LLM requests, below {store.shown}",
        markup=False,
    )
    if not plan.whole:
        console.print("the further steps are known once nothing is missing", markup=False)
    for line in plan.missing:
        console.print(f"missing  {line}", style="red", markup=False)


def _absent_models(config: BaseModel) -> Iterator[str]:
    """What stands in the way of each model of the configuration."""
    for _, value in config:
        if isinstance(value, SubjectConfig):
            try:
                prepare_subject_recipe(value)
            except SaeinterpError as error:
                yield str(error)


def _absent_texts(config: BaseModel) -> Iterator[str]:
    """What stands in the way of each source of text: a file that is missing, a hub that does not answer."""
    from saeinterp.subject.sources import source_recipe

    sources: list[CorpusSource] = list(getattr(getattr(config, "corpus", None), "sources", ()))
    if isinstance(config, CompareInterpretabilityConfig):
        sources += dict.fromkeys(config.side(side).corpus.source for side in ("a", "b"))
    if isinstance(config, CorrelateTokensConfig):
        sources.append(config.corpus.source)
    sources += [dataset.source for dataset in getattr(getattr(config, "health", None), "datasets", ())]
    for source in sources:
        try:
            recipe = source_recipe(source, seed=0)
        except SaeinterpError as error:
            yield str(error)
            continue
        if "content" not in recipe and (problem := _hub_problem(source)):
            yield f"dataset {source.name}: {problem}; it is read from the hub, or from the local cache of `datasets`"


def _hub_problem(source: CorpusSource) -> str | None:
    from huggingface_hub import HfApi

    from saeinterp.subject.origins import first_line, network_errors

    try:
        HfApi().dataset_info(source.name, revision=source.revision, timeout=10)
    except network_errors() as error:
        return first_line(error)
    return None


def _cost(recipe: Recipe, inputs: dict[str, Any], config: BaseModel, plan: Plan) -> Cost:
    made = {step.folder: given.get("config") for step, given in plan.steps}
    corpus = made.get(getattr(inputs.get("corpus"), "folder", ""))
    if recipe.kind == "activations" and isinstance(corpus, CorpusConfig):
        capture: CaptureConfig = inputs["config"]
        tokens = estimate_tokens(corpus, splits=inputs["splits"])
        subject = made.get(inputs["subject"].folder)
        width = subject_width(subject) if isinstance(subject, SubjectConfig) else None
        size = None if tokens is None or width is None else activation_bytes(tokens, width, capture.hookpoints)
        return Cost(size=size, tokens=tokens)
    if recipe.kind == "activations" and "positions" in inputs:
        return Cost(size=_position_bytes(inputs, made))
    if recipe.kind == "health" and isinstance(corpus, CorpusConfig):
        return Cost(tokens=estimate_tokens(corpus, splits=("health",)))
    if recipe.kind == "letter-probes":
        settings = inputs["config"]
        return Cost(prompts=int(settings.words * (1 + settings.test_fraction)))
    examples: ExamplesConfig | None = getattr(config, "examples", None)
    if examples is None or not isinstance(config, TrainSaesConfig):
        return Cost()
    count = _latents(examples, config.training, config.capture.hookpoints)
    if count is None:
        return Cost()
    if recipe.kind == "explanations" and _asked(inputs.get("config")):
        return Cost(requests=count * inputs["config"].samples)
    if recipe.kind == "scores":
        together = 1 if inputs["config"].kind == "simulation" else inputs["config"].together
        per_latent = (
            examples.score_activating + examples.score_random + examples.score_similar + examples.score_near_miss
        )
        written = made.get(getattr(inputs["explanations"], "folder", ""))
        samples = written.samples if isinstance(written, ExplainerConfig) else 1
        return Cost(requests=count * samples * math.ceil(per_latent / together))
    return Cost()


def _position_bytes(inputs: dict[str, Any], made: dict[str, Any]) -> int | None:
    """At most so much: problems that are too long, or too short for a position, take none."""
    problems, subject = (made.get(getattr(inputs[name], "folder", "")) for name in ("problems", "subject"))
    width = subject_width(subject) if isinstance(subject, SubjectConfig) else None
    if not isinstance(problems, ProblemsConfig) or width is None:
        return None
    count = problems.source.limit if problems.training is None else problems.samples + problems.training
    if count is None:
        return None
    sites = site_names(inputs["capture"].hookpoints, inputs["positions"].select)
    return activation_bytes(count, width, sites)


def _latents(examples: ExamplesConfig, training: TrainingConfig, hookpoints: Sequence[str]) -> int | None:
    """The most latents that a layer can have examples of; None where that stands in the files of an SAE."""
    if examples.named_latents is not None:
        return len(examples.named_latents)
    if examples.latents != "all":
        return int(str(examples.latents).removeprefix("sample:"))
    if training.saes:
        return None
    return max(training.at(hookpoint).num_latents for hookpoint in hookpoints)


def _asked(config: Any) -> list[LLMConfig]:
    """The model that a step with this configuration asks, if it asks one."""
    if isinstance(config, ScorerConfig) or (isinstance(config, ExplainerConfig) and config.kind != "top-tokens"):
        return [config.llm]
    return []


def _absent_vllm(starts: list[LLMConfig]) -> Iterator[str]:
    """What stands in the way of each vLLM that would be started."""
    for serving in dict.fromkeys(llm.serving.model_dump_json() for llm in starts):
        try:
            find_vllm(ServingConfig.model_validate_json(serving))
        except SaeinterpError as error:
            yield str(error)


def _unreachable(config: BaseModel) -> list[str]:
    import httpx

    servers: dict[str, str] = {}
    for _, value in config:
        for part in value if isinstance(value, tuple) else (value,):
            for llm in _asked(part):
                urls = (llm.base_url,) if isinstance(llm.base_url, str) else llm.base_url or ()
                servers |= dict.fromkeys(urls, llm.model)
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
