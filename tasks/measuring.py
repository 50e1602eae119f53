"""The steps that measure and grade trained SAEs as tasks: layer health, first-letter probes, absorption, grades.

What is cheaper for several SAEs at once runs ahead of their own tasks, which then find theirs; a retry in the UI
makes only what failed.
"""

from __future__ import annotations

from collections.abc import Sequence

from saeinterp.artifacts import Artifact, ArtifactStore
from saeinterp.config import AbsorptionConfig, GradingConfig, HealthConfig, Placement
from saeinterp.health import (
    evaluate_health,
    evaluate_health_recipe,
    evaluate_layers,
    grade_layers,
    grade_layers_recipe,
    letter_probes,
    letter_probes_recipe,
    measure_absorption,
    measure_absorption_recipe,
)
from tasks.progress import listener
from tasks.step import ahead, step
from tasks.turns import turn


@ahead
def measure_together(
    subject: Artifact,
    corpus: Artifact,
    activations: Artifact,
    saes: Sequence[Artifact | BaseException | None],
    hookpoints: Sequence[str],
    config: HealthConfig,
    dataset: str,
    device: Placement,
    label: str,
) -> None:
    """Measure the health of several SAEs in one pass; what fails is left to the SAE's own task."""
    there = [(name, sae) for name, sae in zip(hookpoints, saes, strict=True) if isinstance(sae, Artifact)]
    with turn(device) as place:
        evaluate_layers(
            subject,
            corpus,
            activations,
            there,
            config=config,
            dataset=dataset,
            device=place,
            store=ArtifactStore(),
            progress=listener(f"health {label}"),
        )


@step(evaluate_health_recipe)
def measure_health(
    subject: Artifact,
    corpus: Artifact,
    activations: Artifact,
    sae: Artifact,
    hookpoint: str,
    config: HealthConfig,
    dataset: str,
    device: Placement,
    label: str,
) -> Artifact:
    """Measure one SAE's health on one held-out text."""
    with turn(device) as place:
        return evaluate_health(
            subject,
            corpus,
            activations,
            sae,
            hookpoint=hookpoint,
            config=config,
            dataset=dataset,
            device=place,
            store=ArtifactStore(),
            progress=listener(f"health {label}"),
        )


@ahead
def probe_letters_together(
    subject: Artifact, hookpoints: Sequence[str], config: AbsorptionConfig, device: Placement, label: str
) -> None:
    """Train the first-letter probes of several layers from one pass over the prompts."""
    with turn(device) as place:
        letter_probes(
            subject,
            hookpoints=hookpoints,
            config=config,
            device=place,
            store=ArtifactStore(),
            progress=listener(f"letters {label}"),
        )


@step(letter_probes_recipe)
def probe_letters(
    subject: Artifact, hookpoint: str, config: AbsorptionConfig, device: Placement, label: str
) -> Artifact:
    """Train the first-letter probes of one layer."""
    with turn(device) as place:
        probes = letter_probes(
            subject,
            hookpoints=(hookpoint,),
            config=config,
            device=place,
            store=ArtifactStore(),
            progress=listener(f"letters {label}"),
        )
        return probes[hookpoint]


@step(measure_absorption_recipe)
def measure_layer_absorption(
    probes: Artifact, sae: Artifact, hookpoint: str, config: AbsorptionConfig, device: Placement, label: str
) -> Artifact:
    """Measure one SAE's first-letter absorption."""
    with turn(device) as place:
        return measure_absorption(
            probes,
            sae,
            hookpoint=hookpoint,
            config=config,
            device=place,
            store=ArtifactStore(),
            progress=listener(f"absorption {label}"),
        )


@step(grade_layers_recipe)
def grade_side(
    health: Sequence[Artifact], absorption: Sequence[Artifact], config: GradingConfig, label: str
) -> Artifact:
    """Grade the layers of one model."""
    return grade_layers(health, absorption, config=config, store=ArtifactStore())
