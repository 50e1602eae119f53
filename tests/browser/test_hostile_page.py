"""What models and data sets write is shown as text: nothing runs, nothing leaves its place, all of it can be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from browser.visiting import Visit, expect
from planted_profiles import plant_profiles
from planted_reports import THEMES, build_world

from saeinterp.artifacts import ArtifactStore
from saeinterp.report import write_report
from saeinterp.report.format import visible

pytestmark = pytest.mark.slow

OWN = "document.title='owned'"
HOSTILE = (
    f"</script><script>{OWN}</script>",
    f'<img src=x onerror="{OWN}">',
    f"<svg/onload={OWN}>",
    f'"><a href="javascript:{OWN}">x</a>',
    f"' autofocus onfocus={OWN} x='",
    "{{ 7 * 7 }}{% raw %}${7*7}#{7*7}<%= 7*7 %>",
    "\u202egnp.exe\u202c \u2066a\u2069 \u200b\ufeff",
    "\x00\x07\x1b[31mred\x1b[0m\x7f",
    "<!--", "]]>", "&lt;b&gt;&#x3c;", "=HYPERLINK(1)",
)  # fmt: skip
LONG = "x" * 10_000
EVERYTHING = " ".join(HOSTILE)


@pytest.mark.parametrize("width", [1440, 390])
def test_hostile_texts_are_shown_and_do_nothing(browser: Any, tmp_path: Path, width: int) -> None:
    themes = tuple((theme[0], (*HOSTILE, LONG), EVERYTHING, f"{EVERYTHING} {LONG}") for theme in THEMES)
    world = build_world(
        ArtifactStore(tmp_path / "runs"),
        control=False,
        hookpoints=("layers.5",),
        themes=themes,
        hostile_reply=f"{EVERYTHING} {LONG}",
        hostile_name=f"model {EVERYTHING}",
    )
    arguments = world.arguments(title=f"Report {EVERYTHING}", profiles=plant_profiles(world))
    visit = Visit(browser, write_report(**arguments).path, width=width)
    page = visit.page
    title = page.title()
    assert title == visible(arguments["title"])
    opened = visit.open_first_row()
    opened.locator("summary").first.click()
    text = opened.text_content()
    for part in HOSTILE:
        shown = visible(part)
        assert shown in text  # in labels, replies and tokens
    assert LONG in text
    page.keyboard.press("Escape")
    expect(opened).to_have_count(0)
    visit.scroll_through()
    if width > 640:  # narrower, labels lie below their rows and have no filter
        page.locator('.tabulator-col[tabulator-field="label_b"] input').press_sequentially("{{ 7 * 7 }}")
    expect(page.locator("#latent-count")).to_contain_text("7 of 7 latents shown")
    # Nothing ran, nothing was made of it, nothing is wider than the window.
    assert page.title() == title
    assert (
        page.locator("img, iframe, object, embed, a[href^='javascript'], [onerror], [onload], [onfocus]").count() == 0
    )
    assert page.locator("script[src]").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert (
        page.locator('meta[http-equiv="Content-Security-Policy"]')
        .get_attribute("content")
        .startswith("default-src 'none'; script-src 'sha256-")
    )
    assert visit.problems == []
    assert visit.requests == []
    page.context.close()


def test_the_policy_refuses_what_markup_could_do(browser: Any, tmp_path: Path) -> None:
    """Were a text ever put in as markup, the page's policy would still run nothing and send nothing."""
    world = build_world(ArtifactStore(tmp_path / "runs"), control=False, hookpoints=("layers.5",))
    visit = Visit(browser, write_report(**world.arguments()).path)
    page = visit.page
    page.evaluate(
        """() => {
          const image = '<img src="https://example.invalid/x.png" onerror="document.title=1">';
          document.body.insertAdjacentHTML("beforeend", image);
          const script = document.createElement("script");
          script.textContent = "document.title = 'owned'";
          document.body.append(script);
          fetch("https://example.invalid/").catch(() => {});
        }"""
    )
    page.wait_for_timeout(200)
    assert page.title() == world.arguments()["title"]
    assert len(visit.problems) >= 3  # each refused by the policy, in words
    assert all("Content Security Policy" in problem for problem in visit.problems)
    page.context.close()
