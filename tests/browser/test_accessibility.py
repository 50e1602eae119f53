"""axe-core finds nothing, in light and dark, with a latent's page open and without."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from browser.visiting import Visit
from planted_profiles import plant_profiles
from planted_reports import build_world

from saeinterp.artifacts import ArtifactStore
from saeinterp.report import Failure, write_report

pytestmark = pytest.mark.slow
if importlib.util.find_spec("axe_playwright_python") is None:
    pytest.skip("no axe: pip install --no-deps axe-playwright-python", allow_module_level=True)
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    world = build_world(ArtifactStore(tmp_path_factory.mktemp("world")), third=True, second_scorer=True)
    failure = Failure(stage="training", hookpoint="layers.10", side="subject", error="The loss is NaN.")
    return write_report(**world.arguments(profiles=plant_profiles(world, dead=2), failures=(failure,))).path


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1440, 390])
def test_no_accessibility_rule_is_broken(browser: Any, folder: Path, dark: bool, width: int) -> None:
    from axe_playwright_python.sync_playwright import Axe

    visit = Visit(browser, folder, dark=dark, width=width)
    visit.scroll_through()
    for opened in (False, True):
        if opened:
            visit.open_first_row()
            visit.page.wait_for_selector("dialog[data-shown]")
        # axe is injected by the tester, outside the page's policy.
        found = Axe().run(visit.page, options={"runOnly": RULES}).response["violations"]
        broken = [(item["id"], item["impact"], [node["target"] for node in item["nodes"]][:3]) for item in found]
        assert broken == [], f"opened={opened}"
    visit.page.context.close()


def test_nothing_is_told_by_colour_alone(browser: Any, folder: Path) -> None:
    """Sides have letters and shapes, verdicts words and signs, grades words, tokens an underline."""
    visit = Visit(browser, folder)
    page = visit.page
    assert page.locator("#grades td[class*=grade-pass] .outcome").first.inner_text() == "pass"
    shapes = {
        page.locator(f".versus .tag.{side}").first.evaluate("n => getComputedStyle(n).borderRadius") for side in "ab"
    }
    assert len(shapes) == 2
    opened = visit.open_first_row()
    for cell in opened.locator(".examples td.v.ok, .examples td.v.ko").all_text_contents():
        assert cell[1] in "✓✗–"  # after the side's letter
    assert opened.locator(".tok").first.evaluate("n => getComputedStyle(n).textDecorationLine") == "underline"
    page.context.close()
