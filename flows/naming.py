"""Names of flow runs: what a run is about, from its configuration."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pydantic import BaseModel

LONGEST = 120  # characters; lists in the UI cut longer ones


def run_name(config: BaseModel) -> str:
    """Such as `smollm2-135m, layers 5, 10 and 15, k 32: SmolLM2-135M against top-tokens`."""
    subjects = [getattr(config, name) for name in ("subject", "subject_a", "subject_b") if hasattr(config, name)]
    models = [_model(subject.model) + (" at random" if subject.weights == "random" else "") for subject in subjects]
    training = config.training  # type: ignore[attr-defined]
    parts = [" and ".join(models), _layers(config.capture.hookpoints), f"k {training.k}"]  # type: ignore[attr-defined]
    text = ", ".join(parts)
    explainers = getattr(config, "explainers", None)
    if explainers:
        text += ": " + " against ".join(explainer.title for explainer in explainers.values())
    elif hasattr(config, "explainer"):
        text += f": {config.explainer.title}"
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _model(reference: str) -> str:
    return re.split(r"[/:]", reference.rstrip("/"))[-1]


def _layers(hookpoints: Sequence[str]) -> str:
    """`layers 5, 10 and 15`; the names themselves where one is no layer; a count where they are many."""
    numbers = [name.removeprefix("layers.") for name in hookpoints]
    if not all(number.isdigit() for number in numbers):
        return ", ".join(hookpoints) if len(hookpoints) <= 3 else f"{len(hookpoints)} hookpoints"
    if len(numbers) == 1:
        return f"layer {numbers[0]}"
    if len(numbers) > 6:
        return f"{len(numbers)} layers from {numbers[0]} to {numbers[-1]}"
    return f"layers {', '.join(numbers[:-1])} and {numbers[-1]}"
