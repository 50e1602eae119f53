"""The report in headless Chromium: complete without a network, usable by keyboard, safe with hostile text."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from browser.visiting import Visit, expect
from planted_profiles import plant_profiles
from planted_reports import World, build_world

from saeinterp.artifacts import Artifact, ArtifactStore
from saeinterp.report import write_report
from saeinterp.report.format import number, with_interval

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build_world(ArtifactStore(tmp_path_factory.mktemp("world")))


@pytest.fixture(scope="module")
def report(world: World) -> Artifact:
    return write_report(**world.arguments(profiles=plant_profiles(world, dead=2)))


@pytest.fixture
def visit(browser: Any, report: Artifact) -> Iterator[Visit]:
    opened = Visit(browser, report.path)
    yield opened
    opened.page.context.close()


@pytest.mark.parametrize(("width", "dark"), [(1440, False), (390, True)])
def test_the_page_makes_no_request_and_no_complaint(browser: Any, report: Artifact, width: int, dark: bool) -> None:
    visit = Visit(browser, report.path, width=width, dark=dark)
    visit.scroll_through()
    visit.open_first_row()
    assert visit.requests == []
    assert visit.problems == []
    assert visit.page.evaluate("document.documentElement.scrollWidth") == width
    visit.page.context.close()


def test_every_number_of_the_verdict_card_is_the_one_in_the_results_file(visit: Visit) -> None:
    shown = visit.page.eval_on_selector_all(
        "#verdict data", "items => items.map(item => [item.dataset.path, item.value, item.textContent])"
    )
    assert len(shown) >= 12
    for path, value, text in shown:
        stored: Any = visit.results
        for part in path.split("."):
            stored = stored[int(part)] if part.isdigit() else stored[part]
        assert float(value) == stored["value"]
        assert text == with_interval(stored["value"], stored["low"], stored["high"], stored["style"])[0]
    assert visit.page.locator("#verdict .sentence").first.inner_text() == visit.results["explainers"]["sentence"]


def test_the_first_screen_holds_the_whole_answer(visit: Visit) -> None:
    box = visit.page.locator("#verdict .tiles").bounding_box()
    assert box is not None
    assert box["y"] + box["height"] < 900


def test_columns_sort_by_value_with_missing_ones_last(visit: Visit) -> None:
    head = visit.page.locator('.tabulator-col[tabulator-field="value_b"] .tabulator-col-title').first
    head.click()
    column = visit.page.locator('.tabulator-col[tabulator-field="value_b"]')
    expect(column).to_have_attribute("aria-sort", "descending")
    texts = visit.page.eval_on_selector_all(
        '.tabulator-row [tabulator-field="value_b"] > span', "cells => cells.map(cell => cell.firstChild.data)"
    )
    known = [float(text) for text in texts if text != "NA"]
    assert known == sorted(known, reverse=True)
    assert len(known) > 5


def test_one_button_puts_the_latents_first_on_which_the_sides_differ_most(visit: Visit, report: Artifact) -> None:
    button = visit.page.get_by_role("button", name="Largest differences first")
    button.click()
    expect(button).to_have_attribute("aria-pressed", "true")
    table = pl.read_parquet(report.path / "tables" / "latents.parquet").with_columns(pl.col("delta").abs())
    known = table.drop_nulls("delta").sort("delta", descending=True, maintain_order=True)["id"].to_list()
    assert visit.shown()[:5] == known[:5]
    visit.page.locator('.tabulator-col[tabulator-field="value_b"] .tabulator-col-title').first.click()
    expect(button).to_have_attribute("aria-pressed", "false")


def test_header_and_quick_filters_say_how_many_are_left(visit: Visit) -> None:
    count = visit.page.locator("#latent-count")
    expect(count).to_have_attribute("aria-live", "polite")
    expect(count).to_have_text("21 of 21 latents shown")
    visit.page.get_by_role("button", name="Failed (3)").click()
    expect(count).to_have_text("3 of 21 latents shown")
    assert visit.shown() == ["L5_F302", "L10_F302", "L15_F302"]
    visit.page.get_by_role("button", name="All (21)").click()
    visit.page.locator('.tabulator-col[tabulator-field="label_b"] input').press_sequentially("paris")
    expect(count).to_have_text("3 of 21 latents shown")
    visit.page.locator('.tabulator-col[tabulator-field="value_b"] input').press_sequentially("0.7")
    # A slow machine filters by "0" and "0." on the way: wait for the rows, not for the first change of the count.
    visit.page.wait_for_function(
        """() => {
          const cells = [...document.querySelectorAll('.tabulator-row [tabulator-field="value_b"] > span')];
          return cells.length > 0 && cells.every((cell) => Number(cell.firstChild.data) >= 0.7);
        }"""
    )
    expect(count).to_have_text(f"{len(visit.shown())} of 21 latents shown")


def test_the_row_detail_opens_by_keyboard_steps_and_gives_the_focus_back(visit: Visit) -> None:
    page = visit.page
    page.locator('.tabulator-row[tabindex="0"]').first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    drawer = page.locator("dialog[open]")
    expect(drawer.locator("h2")).to_have_text("L5_F108")
    expect(page).to_have_url(re.compile("#L5_F108$"))
    assert drawer.locator("tbody tr:not(.band-row)").count() >= 35
    expect(drawer.locator(".pair")).to_contain_text("Loop statements and iteration")
    page.keyboard.press("ArrowRight")
    expect(drawer.locator("h2")).to_have_text("L5_F205")
    page.keyboard.press("Escape")
    expect(drawer).to_have_count(0)
    expect(page.locator(".tabulator-row:focus")).to_have_attribute("data-index", "2")


def test_rows_stay_in_the_page_when_the_table_scrolls_into_view(visit: Visit) -> None:
    """Putting them in anew would swallow a click that is on its way."""
    taken = visit.page.evaluate(
        """async () => {
          const grid = document.getElementById("latent-grid");
          const go = (where) => new Promise((done) => {
            where.scrollIntoView({ behavior: "instant" });
            new IntersectionObserver((entries, self) => {
              if (!entries[0].isIntersecting) return;
              self.disconnect();
              requestAnimationFrame(() => requestAnimationFrame(done));
            }).observe(where);
          });
          let taken = 0;
          new MutationObserver((changes) => { for (const change of changes) taken += change.removedNodes.length; })
            .observe(grid.querySelector(".tabulator-table"), { childList: true });
          for (let time = 0; time < 2; time += 1) {
            await go(document.querySelector("h1"));
            await go(grid);
          }
          return taken;
        }"""
    )
    assert taken == 0


@pytest.mark.parametrize("change", ["filter", "width"])
def test_a_press_on_a_row_is_a_click_even_when_rows_are_due_to_be_redrawn(visit: Visit, change: str) -> None:
    page = visit.page
    button = page.locator(".tabulator-row button").first
    button.scroll_into_view_if_needed()
    box = button.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    if change == "filter":
        # Tabulator filters a moment after the last key, or at once when the press takes the focus from the field.
        page.locator('.tabulator-col[tabulator-field="id"] input').press_sequentially("8")
    page.mouse.down()
    if change == "width":
        # The table alone: another window width would also wrap the text above and move the row from under the mouse.
        page.evaluate(
            """() => new Promise((done) => {
              document.getElementById("latent-grid").style.width = "1000px";
              requestAnimationFrame(() => requestAnimationFrame(done));
            })"""
        )
    page.mouse.up()
    expect(page.locator("dialog[open]")).to_be_visible()
    # What waited for the release has been done.
    if change == "filter":
        expect(page.locator("#latent-count")).not_to_have_text("21 of 21 latents shown")
        assert all("8" in shown for shown in visit.shown())
    else:
        page.evaluate("document.getElementById('latent-grid').style.width = ''")
        page.wait_for_function(
            """() => {
              const width = (name) => document.querySelector(name).clientWidth;
              return Math.abs(width(".tabulator-row") - width(".tabulator-tableholder")) <= 1;
            }"""
        )


def test_activating_tokens_are_marked_by_colour_and_by_underline(visit: Visit) -> None:
    token = visit.open_first_row().locator(".tok").first
    style = token.evaluate(
        "node => [getComputedStyle(node).backgroundColor, getComputedStyle(node).textDecorationLine]"
    )
    assert style[0] not in ("rgba(0, 0, 0, 0)", "transparent")
    assert style[1] == "underline"
    assert (token.get_attribute("title") or "").startswith("activation ")


@pytest.mark.parametrize("words", ["with a wrong or missing verdict", "on which A and B disagree"])
def test_examples_can_be_reduced_to_those_that_say_something(visit: Visit, words: str) -> None:
    drawer = visit.open_first_row()
    toggle = drawer.get_by_role("button", name=words)
    expected = int(toggle.inner_text().split()[2])
    toggle.click()
    rows = drawer.locator(".examples").first.locator("tbody tr:not(.band-row)")
    expect(rows).to_have_count(expected)
    assert 0 < expected < 35
    expect(rows.filter(has_not=visit.page.locator(".ko"))).to_have_count(0)
    if "disagree" in words:
        for cells in rows.all():
            a, b = (cells.locator("td.v").nth(place).inner_text() for place in (1, 2))
            assert ("✓" in a) != ("✓" in b)


def test_numbers_are_filtered_by_what_is_typed_before_them(visit: Visit) -> None:
    count, field = visit.page.locator("#latent-count"), visit.page.locator('[tabulator-field="value_b"] input')

    def shown_by(text: str) -> list[float]:
        field.fill("")
        field.press_sequentially(text)
        visit.page.wait_for_timeout(600)  # Tabulator filters a moment after the last key
        cells = visit.page.eval_on_selector_all(
            '.tabulator-row [tabulator-field="value_b"] > span', "cells => cells.map(cell => cell.firstChild.data)"
        )
        return [float(cell) for cell in cells if cell != "NA"]

    assert all(value >= 0.7 for value in shown_by("0,7"))
    below = shown_by("< 0.7")
    assert below
    assert all(value < 0.7 for value in below)
    assert not field.evaluate("input => input.matches(':invalid')")
    assert len(shown_by("0.7x")) > len(below)
    assert field.evaluate("input => input.matches(':invalid')")
    visit.page.get_by_role("button", name="All (21)").click()
    expect(count).to_have_text("21 of 21 latents shown")
    expect(field).to_have_value("")


def test_columns_sort_by_keyboard(visit: Visit) -> None:
    column = visit.page.locator('.tabulator-col[tabulator-field="delta"]')
    column.focus()
    visit.page.keyboard.press("Enter")
    expect(column).to_have_attribute("aria-sort", "descending")


def test_plots_stay_and_keep_their_filter_when_the_window_changes(visit: Visit) -> None:
    visit.scroll_through()
    page = visit.page
    page.get_by_role("button", name="Failed (3)").click()
    faded = page.locator('#plot-scatter .point[style*="opacity: 0.12"]')
    expect(faded).not_to_have_count(0)
    for width in (700, 1440):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(600)
        expect(page.locator("#plots .main-svg").first).to_be_visible()
        assert page.locator("#plots figure:not(:has(.main-svg))").count() == 0
        expect(faded).not_to_have_count(0)


def test_nothing_offers_to_send_a_plot_anywhere(visit: Visit) -> None:
    visit.scroll_through()
    visit.page.locator("#plot-scatter").hover()
    assert visit.page.locator(".modebar, .modebar-btn").count() == 0
    assert visit.page.evaluate("document.body.innerText.match(/plotly cloud|share chart/i)") is None


@pytest.mark.parametrize("dark", [False, True])
def test_on_paper_everything_is_open_drawn_and_light(browser: Any, report: Artifact, dark: bool) -> None:
    visit = Visit(browser, report.path, dark=dark)
    page = visit.page
    expect(page.locator(".plot .loading")).to_have_count(0, timeout=60_000)  # also those that nobody scrolled to
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    assert page.locator("main details:not([open])").evaluate_all("all => all.every((d) => d.closest('figure, aside'))")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    expect(page.locator(".plain-latents tbody tr").first).to_be_visible()
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.locator("main details[open]").count() == 0
    page.context.close()


def test_a_link_to_a_latent_opens_it(browser: Any, report: Artifact) -> None:
    page = browser.new_page()
    page.goto(report.file("report.html").as_uri() + "#L15_F11")
    expect(page.locator("dialog[open] h2")).to_have_text("L15_F11")
    page.close()


def test_a_mark_of_the_scatter_opens_its_latent_and_filters_dim_the_rest(visit: Visit) -> None:
    visit.scroll_through()
    page = visit.page
    page.get_by_role("button", name="Failed (3)").click()
    expect(page.locator('#plot-scatter .point[style*="opacity: 0.12"]')).not_to_have_count(0)
    page.locator("#plot-scatter").scroll_into_view_if_needed()
    page.locator("#plot-scatter .point").first.click(force=True)
    expect(page.locator("dialog[open] h2")).to_have_text(re.compile("^L"))


def test_the_download_holds_the_filtered_rows_with_raw_numbers(visit: Visit) -> None:
    visit.page.get_by_role("button", name="Failed (3)").click()
    expect(visit.page.locator("#latent-count")).to_have_text("3 of 21 latents shown")
    with visit.page.expect_download() as download:
        visit.page.locator("#latent-csv").click()
    path = Path(download.value.path())
    rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"))))
    assert [row["Latent"] for row in rows] == ["L5_F302", "L10_F302", "L15_F302"]
    assert len(rows[0]["F1 B"]) > len(number(float(rows[0]["F1 B"]), "score"))


def test_without_scripts_every_table_is_still_there(browser: Any, report: Artifact) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.file("report.html").as_uri())
    assert page.locator(".plain-latents tbody tr").count() == 21
    assert page.locator("#verdict .sentence").first.is_visible()
    context.close()
