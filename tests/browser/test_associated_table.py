"""The table of latents and tokens in headless Chromium: filled, filtered, sorted, downloaded, without a network."""

from __future__ import annotations

import csv
import importlib.util
import io
import shutil
from collections.abc import Iterator
from typing import Any

import polars as pl
import pytest
from planted_enrichment import planted_side

from saeinterp.artifacts import Artifact, ArtifactStore
from saeinterp.config import ComparisonConfig
from saeinterp.report import write_report

pytestmark = pytest.mark.slow
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("no Chromium on PATH: apt-get install chromium", allow_module_level=True)
if importlib.util.find_spec("pytabulator") is None:
    pytest.skip("no Tabulator: pip install --no-deps pytabulator", allow_module_level=True)
api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
expect = api.expect


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    store = ArtifactStore(tmp_path_factory.mktemp("associated"))
    sides = {"Small": planted_side(store, "Small"), "Other": planted_side(store, "Other", bound=0.3)}
    return write_report(
        title="Latents and tokens",
        explainer_comparison=None,
        model_comparison=None,
        health={},
        saes={},
        failures=(),
        config=ComparisonConfig(),
        enrichment=sides,
        store=store,
    )


@pytest.fixture(scope="module")
def page(report: Artifact) -> Iterator[Any]:
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = chromium.new_context(viewport={"width": 1440, "height": 900}, accept_downloads=True).new_page()
        page.problems = []
        page.on("console", lambda message: page.problems.append(message.text))
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        url = report.file("report.html").as_uri()
        page.on("request", lambda request: page.problems.append(request.url) if request.url != url else None)
        page.goto(url)
        page.wait_for_selector("html[data-ready]", timeout=60_000)
        yield page
        chromium.close()


def test_all_latents_are_there_and_nothing_is_asked_of_a_network(page: Any, report: Artifact) -> None:
    total = pl.read_parquet(report.path / "tables" / "associated.parquet").height
    expect(page.locator("#associated-count")).to_have_text(f"{total} of {total} latents shown")
    expect(page.locator("#associated-grid .tabulator-row").first).to_be_visible()
    assert page.problems == []


def test_filters_and_sorting_use_the_numbers(page: Any, report: Artifact) -> None:
    table = pl.read_parquet(report.path / "tables" / "associated.parquet")
    column = page.locator('#associated-grid .tabulator-col[tabulator-field="mcc"]')
    column.locator("input").press_sequentially("0.9")
    wanted = table.filter(pl.col("mcc") >= 0.9)
    expect(page.locator("#associated-count")).to_have_text(f"{wanted.height} of {table.height} latents shown")
    column.locator(".tabulator-col-title").click()
    first = page.locator("#associated-grid .tabulator-row").first
    expect(first.locator('[tabulator-field="mcc"]')).to_have_text(f"{wanted['mcc'].max():.3f}")

    with page.expect_download() as download:
        page.locator("#associated-csv").click()
    text = download.value.path().read_text(encoding="utf-8-sig")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert sorted(row["Latent"] for row in rows) == sorted(wanted["id"])


def test_no_accessibility_rule_is_broken(page: Any) -> None:
    if importlib.util.find_spec("axe_playwright_python") is None:
        pytest.skip("axe is not installed: pip install --no-deps axe-playwright-python")
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21aa"]}).response["violations"]
    assert [(item["id"], [node["target"] for node in item["nodes"]][:3]) for item in found] == []
