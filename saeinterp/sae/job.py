"""What a training process is told: a JSON file, written by `launch` and read by `training`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from saeinterp.artifacts import Artifact
from saeinterp.config import CaptureConfig, Placement, TrainingConfig


class Member(BaseModel):
    """One SAE of a job."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hookpoint: str
    training: TrainingConfig
    out: Path
    """Gets the files of the artifact."""
    checkpoints: Path


class Text(BaseModel):
    """Where rows come from when they are streamed from the running model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    subject: Artifact
    corpus: Artifact
    capture: CaptureConfig
    device: str | Placement = "auto"


class Job(BaseModel):
    """What one training process is told."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    members: tuple[Member, ...]
    activations: Artifact
    """Held-out rows, and the training rows unless there is `text`."""
    text: Text | None
    processes: int
    spread: Literal["rows", "saes"]
    threads: int
    memory_gb: float
