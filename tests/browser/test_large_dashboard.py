"""Fifty thousand latents in one page; how fast it is stands in docs/benchmarks.md (`make bench-dashboard`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from browser.visiting import Visit, expect
from planted_dashboard import stretch
from planted_profiles import plant_profiles
from planted_reports import build_world

from saeinterp.artifacts import ArtifactStore
from saeinterp.report import write_report

pytestmark = pytest.mark.slow
LATENTS = 50_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("large")
    world = build_world(ArtifactStore(root / "runs"))
    report = write_report(**world.arguments(profiles=plant_profiles(world)))
    return stretch(report, root / "report", latents=LATENTS, detail=600)


def test_the_page_stays_below_ten_megabytes(folder: Path) -> None:
    assert (folder / "report.html").stat().st_size <= 10_000_000


def test_all_latents_are_sorted_filtered_plotted_and_opened(browser: Any, folder: Path) -> None:
    table = pl.read_parquet(folder / "tables" / "latents.parquet")
    visit = Visit(browser, folder)
    page = visit.page
    count = page.locator("#latent-count")
    expect(count).to_have_text(f"{LATENTS} of {LATENTS} latents shown")
    page.locator('.tabulator-col[tabulator-field="value_b"] .tabulator-col-title').first.click()
    best = table.sort("value_b", descending=True, maintain_order=True)["value_b"][0]
    assert page.locator('.tabulator-row [tabulator-field="value_b"]').first.inner_text().startswith(f"{best:.3f}")
    page.locator('.tabulator-col[tabulator-field="label_a"] input').press_sequentially("cities")
    wanted = table.filter(pl.col("explanation_a").str.contains("cities"))
    expect(count).to_have_text(f"{len(wanted)} of {LATENTS} latents shown")
    page.locator("#plot-scatter").scroll_into_view_if_needed()
    expect(page.locator("#plot-scatter .main-svg").first).to_be_visible(timeout=60_000)
    assert page.locator("#plot-scatter .point").count() == 2000
    expect(page.locator("figure", has=page.locator("#plot-scatter"))).to_contain_text("Shaded: all 50,000 latents")
    expect(page.locator(".plain-latents")).to_contain_text("The first 500 of 50,000 latents")
    visit.open_first_row()
    assert visit.problems == []
    page.context.close()
