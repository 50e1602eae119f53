"""What a flow leaves in a real Prefect server: a summary, tables and a link, small and safe."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from planted_reports import THEMES, build_world
from prefect.settings import PREFECT_API_URL, temporary_settings

from saeinterp.artifacts import Artifact, ArtifactStore
from saeinterp.report import Failure, write_report
from tasks.publish import publish, publish_report, slugged

EVIL = "</script><script>alert(1)</script>[x](javascript:alert(1))\x00\u202e"


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """A report of explainers with hostile text, and one of health alone."""
    store = ArtifactStore(tmp_path_factory.mktemp("published"))
    themes = tuple((theme[0], theme[1], EVIL, EVIL) for theme in THEMES)
    world = build_world(store, hookpoints=("layers.5",), themes=themes)
    failures = [Failure(stage="training", hookpoint=f"layers.{n}", side="subject", error=EVIL) for n in range(30)]
    return {
        "whole": write_report(**world.arguments(title=EVIL, failures=failures)),
        "health": write_report(**world.arguments(title="Health", explainer_comparison=None, model_comparison=None)),
    }


@pytest.fixture
def server(prefect_url: str) -> Iterator[str]:
    with temporary_settings({PREFECT_API_URL: prefect_url}):
        yield prefect_url


def stored(server: str, prefix: str) -> dict[str, dict[str, Any]]:
    """The newest artifacts of a server whose keys begin so, by key."""
    answer = httpx.post(f"{server}/artifacts/latest/filter", json={"limit": 200}, timeout=30)
    answer.raise_for_status()
    return {item["key"]: item for item in answer.json() if item["key"].startswith(prefix)}


def test_a_report_is_a_summary_tables_and_a_link(server: str, reports: dict[str, Artifact]) -> None:
    publish_report(reports["whole"], key="published-whole")  # a key that no flow of this server uses
    found = stored(server, "published-whole-")
    assert {key: item["type"] for key, item in found.items()} == {
        "published-whole-summary": "markdown",
        "published-whole-report": "markdown",
        "published-whole-metrics": "table",
        "published-whole-layers": "table",
    }
    for key, item in found.items():
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", key)
        assert len(json.dumps(item["data"]).encode()) < 100_000
        assert isinstance(json.loads(item["data"]) if item["type"] == "table" else item["data"], (list, str))
    summary = found["published-whole-summary"]["data"]
    assert "30 steps failed" in summary
    assert "show no detectable difference" in summary
    assert str(reports["whole"].path / "report.html") in summary
    assert reports["whole"].path.as_uri() in found["published-whole-report"]["data"]
    assert "By latent" not in summary
    for item in found.values():
        assert "<script" not in item["data"]
        assert "\x00" not in item["data"]
    rows = json.loads(found["published-whole-layers"]["data"])
    assert [row["model"] for row in rows] == ["subject", "random weights"]


def test_health_alone_has_its_layers(server: str, reports: dict[str, Artifact]) -> None:
    publish_report(reports["health"], key="Train SAEs")
    found = stored(server, "train-saes-")
    assert set(found) == {"train-saes-summary", "train-saes-report", "train-saes-layers"}


def test_rows_that_do_not_fit_are_counted(server: str, reports: dict[str, Artifact], tmp_path: Path) -> None:
    rows = [{"layer": f"layers.{number}", "why": "x" * 500} for number in range(400)]
    page = reports["health"].file("report.html")
    publish(reports["health"], key="many", summary="# Many\n", page=page, tables={"rows": rows})
    found = stored(server, "many-")["many-rows"]
    kept = json.loads(found["data"])
    assert 100 < len(kept) < 400
    assert kept == rows[: len(kept)]
    assert f"the first {len(kept)} of 400 rows" in found["description"]


def test_any_name_becomes_a_key() -> None:
    assert slugged("Compare_Explainers & more!") == "compare-explainers-more"
    assert slugged("***") == "report"
