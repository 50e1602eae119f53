"""The steps of every flow as tasks. Each calls one library function and returns its artifact.

`label` only names the task run (`train-sae layers.9`); it never enters a recipe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Literal

from pydantic import BaseModel

from saeinterp.artifacts import Artifact, ArtifactStore
from saeinterp.compare import (
    compare_explainers,
    compare_explainers_recipe,
    compare_models,
    compare_models_recipe,
    compare_pairs,
    compare_pairs_recipe,
    compare_scorers,
    compare_scorers_recipe,
)
from saeinterp.config import (
    CaptureConfig,
    ComparisonConfig,
    CorpusConfig,
    ExamplesConfig,
    ExplainerConfig,
    LaunchConfig,
    Placement,
    ScorerConfig,
    Split,
    SubjectConfig,
    TrainingConfig,
)
from saeinterp.explain import (
    control_explanations,
    control_explanations_recipe,
    describe_latents,
    describe_latents_recipe,
    explain,
    explain_recipe,
    score,
    score_recipe,
)
from saeinterp.latents import build_examples, build_examples_recipe, cache_latents, cache_latents_recipe
from saeinterp.report import Failure, write_report, write_report_recipe
from saeinterp.sae import adopt_sae, adopt_sae_recipe, train_sae, train_sae_recipe, train_saes
from saeinterp.subject import (
    build_corpus,
    build_corpus_recipe,
    collect_activations,
    collect_activations_recipe,
    prepare_subject,
    prepare_subject_recipe,
)
from tasks.cards import Need, cards, computing_here
from tasks.progress import listener
from tasks.step import ahead, step
from tasks.turns import TURN, turn


@step(prepare_subject_recipe)
def prepare_model(config: SubjectConfig, label: str) -> Artifact:
    """Find (and where needed convert) the model under study."""
    with TURN:
        return prepare_subject(config, store=ArtifactStore(), progress=listener(f"prepare {label}"))


@step(build_corpus_recipe)
def prepare_corpus(subject: Artifact, config: CorpusConfig, label: str) -> Artifact:
    """Read, split and tokenise the text."""
    return build_corpus(subject, config=config, store=ArtifactStore(), progress=listener("corpus"))


@step(collect_activations_recipe)
def capture_activations(
    subject: Artifact, corpus: Artifact, config: CaptureConfig, splits: tuple[Split, ...], device: Placement, label: str
) -> Artifact:
    """Run the model once and store the activations of every hookpoint."""
    several = config.processes > 1  # child processes, which load the subject themselves
    with TURN, cards(Need.of(device, processes=config.processes)) as held, computing_here(None if several else held):
        return collect_activations(
            subject,
            corpus,
            config=config,
            splits=splits,
            device=device if several else held.here(device),
            visible=held.visible if several else None,
            store=ArtifactStore(),
            progress=listener(f"capture {label}"),
        )


@ahead
def train_together(
    activations: Artifact,
    hookpoints: Sequence[str],
    config: TrainingConfig,
    launch: LaunchConfig,
    subject: Artifact | None,
    corpus: Artifact | None,
    capture: CaptureConfig | None,
    device: Placement,
    label: str,
) -> None:
    """Train the SAEs of several layers in one child process; what fails is left to the layer's own task."""
    with cards(Need.of_training(launch, device if subject else None)) as held:
        train_saes(
            activations,
            hookpoints=hookpoints,
            config=config,
            launch=launch,
            subject=subject,
            corpus=corpus,
            capture=capture,
            device=held.below(device),
            visible=held.visible,
            store=ArtifactStore(),
            progress=listener(f"train {label}"),
        )


@step(train_sae_recipe)
def train_layer(
    activations: Artifact,
    hookpoint: str,
    config: TrainingConfig,
    launch: LaunchConfig,
    subject: Artifact | None,
    corpus: Artifact | None,
    capture: CaptureConfig | None,
    device: Placement,
    label: str,
) -> Artifact:
    """Train one SAE in a child process."""
    with cards(Need.of_training(launch, device if subject else None)) as held:
        return train_sae(
            activations,
            hookpoint=hookpoint,
            config=config,
            launch=launch,
            subject=subject,
            corpus=corpus,
            capture=capture,
            device=held.below(device),
            visible=held.visible,
            store=ArtifactStore(),
            progress=listener(f"train {label}"),
        )


@step(adopt_sae_recipe)
def adopt_layer(folder: str, hookpoint: str, d_in: int | None, label: str) -> Artifact:
    """Take over an SAE that was trained elsewhere."""
    return adopt_sae(folder, hookpoint=hookpoint, d_in=d_in, store=ArtifactStore())


@step(cache_latents_recipe)
def cache_layer_latents(activations: Artifact, sae: Artifact, hookpoint: str, label: str) -> Artifact:
    """Encode the explain and score text with one SAE."""
    with TURN:
        return cache_latents(
            activations, sae, hookpoint=hookpoint, store=ArtifactStore(), progress=listener(f"latents {label}")
        )


@step(build_examples_recipe)
def freeze_examples(
    latents: Artifact, corpus: Artifact, sae: Artifact, hookpoint: str, config: ExamplesConfig, label: str
) -> Artifact:
    """Choose latents and freeze their examples."""
    with TURN:
        return build_examples(
            latents,
            corpus,
            sae,
            hookpoint=hookpoint,
            config=config,
            store=ArtifactStore(),
            progress=listener(f"examples {label}"),
        )


@step(describe_latents_recipe)
def describe_layer_latents(
    latents: Artifact, examples: Artifact, subject: Artifact, sae: Artifact, hookpoint: str, label: str
) -> Artifact:
    """How the latents of an example set fire and what they write, for the report."""
    with TURN:
        return describe_latents(
            latents,
            examples,
            subject,
            sae,
            hookpoint=hookpoint,
            store=ArtifactStore(),
            progress=listener(f"describe {label}"),
        )


@step(explain_recipe)
def explain_latents(
    examples: Artifact, subject: Artifact, sae: Artifact, hookpoint: str, config: ExplainerConfig, label: str
) -> Artifact:
    """Write one explanation per latent."""
    # While a server of the flow's own runs, nothing else computes here.
    asks = config.kind != "top-tokens" and config.llm.provider != "vllm"
    answers = asks and config.llm.provider == "in-process"
    with turn(Placement()) if answers else TURN if asks and config.logit_lens else nullcontext():
        return explain(
            examples,
            subject,
            sae,
            hookpoint=hookpoint,
            config=config,
            store=ArtifactStore(),
            progress=listener(f"explain {label}"),
        )


@step(control_explanations_recipe)
def make_control(explanations: Artifact, control: Literal["permuted", "empty"], seed: int, label: str) -> Artifact:
    """Replace the explanations by a control's."""
    return control_explanations(explanations, control=control, seed=seed, store=ArtifactStore())


@step(score_recipe)
def score_explanations(explanations: Artifact, examples: Artifact, config: ScorerConfig, label: str) -> Artifact:
    """Judge the explanations on examples their writer never saw."""
    with turn(Placement()) if config.llm.provider == "in-process" else nullcontext():
        return score(explanations, examples, config=config, store=ArtifactStore(), progress=listener(f"score {label}"))


@step(compare_explainers_recipe)
def compare_scores(
    a: Sequence[Artifact],
    b: Sequence[Artifact],
    controls: Mapping[str, Sequence[Artifact]],
    config: ComparisonConfig,
    label: str,
    self_scored: bool = False,
    pairs: int = 1,
) -> Artifact:
    """Pair the scores of two explainers and test the difference."""
    return compare_explainers(
        a, b, controls, config=config, self_scored=self_scored, pairs=pairs, store=ArtifactStore()
    )


@step(compare_pairs_recipe)
def rank_explainers(comparisons: Mapping[str, Artifact], config: ComparisonConfig, label: str) -> Artifact:
    """Rank explainers and adjust the tests of their pairs."""
    return compare_pairs(comparisons, config=config, store=ArtifactStore())


@step(compare_scorers_recipe)
def set_scorers_side_by_side(
    first: Mapping[str, Artifact], second: Mapping[str, Artifact], config: ComparisonConfig, label: str
) -> Artifact:
    """Whether a second scorer agrees with the first, pair by pair."""
    return compare_scorers(first, second, config=config, store=ArtifactStore())


@step(compare_models_recipe)
def compare_health(
    a: Sequence[Artifact],
    b: Sequence[Artifact],
    controls: Mapping[Literal["a", "b"], Sequence[Artifact]],
    grades: Mapping[Literal["a", "b"], Artifact],
    config: ComparisonConfig,
    names: tuple[str, str],
    label: str,
) -> Artifact:
    """Compare the layer health of two models."""
    return compare_models(a, b, controls=controls, grades=grades, config=config, names=names, store=ArtifactStore())


@step(write_report_recipe)
def render_report(
    title: str,
    explainer_comparison: Artifact | None,
    explainer_pairs: Artifact | None,
    scorer_agreement: Artifact | None,
    model_comparison: Artifact | None,
    interpretability: Artifact | None,
    enrichment: Mapping[str, Artifact],
    health: Mapping[str, Sequence[Artifact]],
    saes: Mapping[str, Sequence[Artifact]],
    grades: Mapping[str, Artifact],
    profiles: Sequence[Artifact],
    detail_latents: int,
    failures: Sequence[Failure],
    config: BaseModel,
    label: str,
) -> Artifact:
    """Write report.html, report.md, results.json and their tables."""
    return write_report(
        title=title,
        explainer_comparison=explainer_comparison,
        explainer_pairs=explainer_pairs,
        scorer_agreement=scorer_agreement,
        model_comparison=model_comparison,
        interpretability=interpretability,
        enrichment=enrichment,
        health=health,
        saes=saes,
        grades=grades,
        profiles=profiles,
        detail_latents=detail_latents,
        failures=failures,
        config=config,
        store=ArtifactStore(),
    )
