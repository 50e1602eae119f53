"""The steps that associate latents with tokens, as tasks: problems, concepts, positions, activity, association."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from saeinterp.artifacts import Artifact, ArtifactStore
from saeinterp.compare import compare_interpretability, compare_interpretability_recipe
from saeinterp.config import (
    CaptureConfig,
    ComparisonConfig,
    ConceptsConfig,
    EnrichmentConfig,
    Placement,
    PositionsConfig,
    ProblemsConfig,
)
from saeinterp.enrichment import (
    build_concepts,
    build_concepts_recipe,
    correlate_latents,
    correlate_latents_recipe,
    measure_activity,
    measure_activity_recipe,
)
from saeinterp.subject import build_problems, build_problems_recipe, collect_positions, collect_positions_recipe
from tasks.progress import listener
from tasks.step import step
from tasks.turns import TURN, turn


@step(build_problems_recipe)
def prepare_problems(subject: Artifact, config: ProblemsConfig, device: Placement, label: str) -> Artifact:
    """Read the problems, part samples from training, and tokenise them."""
    with turn(device) as place:
        return build_problems(
            subject, config=config, device=place, store=ArtifactStore(), progress=listener(f"problems {label}")
        )


@step(build_concepts_recipe)
def parse_concepts(problems: Artifact, subject: Artifact, config: ConceptsConfig, label: str) -> Artifact:
    """Parse the tokens of every sample."""
    return build_concepts(
        problems, subject, config=config, store=ArtifactStore(), progress=listener(f"concepts {label}")
    )


@step(collect_positions_recipe)
def capture_positions(
    subject: Artifact,
    problems: Artifact,
    capture: CaptureConfig,
    positions: PositionsConfig,
    device: Placement,
    label: str,
) -> Artifact:
    """Run the model over the problems once and store the activations of every hookpoint at the chosen positions."""
    with turn(device) as place:
        return collect_positions(
            subject,
            problems,
            capture=capture,
            positions=positions,
            device=place,
            store=ArtifactStore(),
            progress=listener(f"capture {label}"),
        )


@step(measure_activity_recipe)
def extract_activity(activations: Artifact, saes: Mapping[str, Artifact], label: str) -> Artifact:
    """Find which latents of one layer are active in which sample, at every position."""
    with TURN:
        return measure_activity(activations, saes, store=ArtifactStore(), progress=listener(f"activity {label}"))


@step(correlate_latents_recipe)
def associate_tokens(
    activities: Sequence[Artifact],
    concepts: Artifact,
    config: EnrichmentConfig,
    matched: Sequence[Artifact],
    label: str,
) -> Artifact:
    """Test every latent against every token, label the latents, and draw what chance would give."""
    with TURN:
        return correlate_latents(
            activities,
            concepts,
            config=config,
            matched=matched,
            store=ArtifactStore(),
            progress=listener(f"associate {label}"),
        )


@step(compare_interpretability_recipe)
def compare_sides(
    a: Sequence[Artifact],
    b: Sequence[Artifact],
    controls: Mapping[Literal["a", "b"], Sequence[Artifact]],
    config: ComparisonConfig,
    names: tuple[str, str],
    label: str,
) -> Artifact:
    """Compare how the latents of two models go with tokens."""
    return compare_interpretability(a, b, controls=controls, config=config, names=names, store=ArtifactStore())
