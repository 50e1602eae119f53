"""One made-up world of artifacts and its report, shared by the tests that only read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest
from planted_reports import World, build_world

from saeinterp.artifacts import Artifact, ArtifactStore
from saeinterp.report import Results, write_report


class Report(NamedTuple):
    """A written report and what it was written from."""

    world: World
    artifact: Artifact
    results: Results
    html: str
    markdown: str


def read_report(world: World, artifact: Artifact) -> Report:
    """The report's files."""
    results = Results.model_validate(json.loads(artifact.file("results.json").read_text(encoding="utf-8")))
    pages = (artifact.file(name).read_text(encoding="utf-8") for name in ("report.html", "report.md"))
    return Report(world, artifact, results, *pages)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Two explainers on three layers, and the control with random weights."""
    return build_world(ArtifactStore(tmp_path_factory.mktemp("world")))


@pytest.fixture(scope="session")
def report(world: World) -> Report:
    """The report of that world."""
    return read_report(world, write_report(**world.arguments()))


@pytest.fixture
def golden() -> Path:
    """Where reviewed outputs lie."""
    return Path(__file__).parent / "golden"
