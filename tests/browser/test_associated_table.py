"""Latents and tokens in headless Chromium: the table, pages of latents, latents of a token, the volcano plot."""

from __future__ import annotations

import csv
import importlib.util
import io
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from browser.visiting import Visit, expect
from planted_enrichment import planted_side

from saeinterp.artifacts import Artifact, ArtifactStore
from saeinterp.config import ComparisonConfig
from saeinterp.report import write_report
from saeinterp.report.format import number

pytestmark = pytest.mark.slow
if importlib.util.find_spec("pytabulator") is None:
    pytest.skip("no Tabulator: pip install --no-deps pytabulator", allow_module_level=True)

EVIL = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">{{7*7}}\x00\u202e"
GRID = "#associated-grid"


def write(folder: Path, sides: dict[str, dict[str, Any]]) -> Artifact:
    store = ArtifactStore(folder)
    made = {title: planted_side(store, f"model {place}", **extra) for place, (title, extra) in enumerate(sides.items())}
    return write_report(
        title="Latents and tokens",
        explainer_comparison=None,
        model_comparison=None,
        health={},
        saes={},
        failures=(),
        config=ComparisonConfig(),
        enrichment=made,
        store=store,
    )


def table(report: Artifact, name: str) -> pl.DataFrame:
    return pl.read_parquet(report.path / "tables" / f"{name}.parquet")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Two models whose latents have the same ids; some of the first one's go with two tokens."""
    sides = {"Small": {"second": 0.6}, "Other": {"bound": 0.3}}
    return write(tmp_path_factory.mktemp("associated"), sides)


@pytest.fixture
def visit(browser: Any, report: Artifact) -> Iterator[Visit]:
    opened = Visit(browser, report.path)
    yield opened
    opened.page.context.close()


@pytest.fixture
def page(visit: Visit) -> Any:
    return visit.page


def open_latent(page: Any, place: int = 0) -> Any:
    """Open a row's latent and give back the dialog, once it is filled."""
    page.locator(f"{GRID} .tabulator-row button").nth(place).click()
    dialog = page.locator("dialog[data-shown]")
    expect(dialog).to_be_visible()
    return dialog


def test_all_latents_are_there_and_nothing_is_asked_of_a_network(visit: Visit, report: Artifact) -> None:
    page = visit.page
    total = table(report, "associated").height
    expect(page.locator("#associated-count")).to_have_text(f"{total} of {total} latents shown")
    expect(page.locator(f"{GRID} .tabulator-row").first).to_be_visible()
    open_latent(page)
    assert (visit.problems, visit.requests) == ([], [])


def test_filters_and_sorting_use_the_numbers(page: Any, report: Artifact) -> None:
    rows = table(report, "associated")
    column = page.locator(f'{GRID} .tabulator-col[tabulator-field="mcc"]')
    column.locator("input").press_sequentially("0.9")
    wanted = rows.filter(pl.col("mcc") >= 0.9)
    expect(page.locator("#associated-count")).to_have_text(f"{wanted.height} of {rows.height} latents shown")
    column.locator(".tabulator-col-title").click()
    first = page.locator(f"{GRID} .tabulator-row").first
    expect(first.locator('[tabulator-field="mcc"]')).to_have_text(f"{wanted['mcc'].max():.3f}")

    with page.expect_download() as download:
        page.locator("#associated-csv").click()
    text = download.value.path().read_text(encoding="utf-8-sig")
    found = list(csv.DictReader(io.StringIO(text)))
    assert sorted(row["Latent"] for row in found) == sorted(wanted["id"])


def test_a_latent_opens_by_keyboard_steps_in_the_tables_order_and_gives_the_focus_back(
    page: Any, report: Artifact
) -> None:
    rows = table(report, "associated")
    keys = list(dict.fromkeys(rows.select("side", "id").iter_rows()))
    page.locator(f'{GRID} .tabulator-row[tabindex="0"]').first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    dialog = page.locator("dialog[data-shown]")
    expect(dialog.locator("h2")).to_have_text(keys[1][1])
    expect(page.locator("#latent-layer")).to_contain_text(f"{keys[1][0]}, layers.")
    expect(page.locator("#latent-place")).to_have_text(f"2 of {len(keys)}")
    expect(page).to_have_url(re.compile(f"#{keys[1][1]}(@{keys[1][0].lower()})?$"))
    page.keyboard.press("ArrowRight")
    expect(dialog.locator("h2")).to_have_text(keys[2][1])
    page.keyboard.press("Escape")
    expect(page.locator("dialog[open]")).to_have_count(0)
    row = next(place for place, key in enumerate(rows.select("side", "id").iter_rows()) if key == keys[2])
    expect(page.locator(f"{GRID} .tabulator-row:focus")).to_have_attribute("data-index", str(row))
    expect(page).to_have_url(re.compile(r"report\.html$"))


def test_every_number_of_a_latents_page_is_that_of_its_row(page: Any, report: Artifact) -> None:
    pairs = table(report, "pairs").filter("kept")
    first = table(report, "associated").row(0, named=True)
    key = (pl.col("side") == first["side"]) & (pl.col("id") == first["id"])
    dialog = open_latent(page)
    for preset in pairs.filter(key)["preset"].unique(maintain_order=True):
        section = dialog.locator("section", has=page.get_by_role("heading", name=f"Tokens by the {preset} rules"))
        shown = section.locator("tbody").first.locator("tr:not(.group)")
        wanted = pairs.filter(key & (pl.col("preset") == preset)).rows(named=True)
        expect(shown).to_have_count(len(wanted))
        for place, row in enumerate(wanted):
            cells = (
                shown.nth(place)
                .locator("th, td")
                .evaluate_all("cells => cells.map(cell => cell.firstChild.textContent)")
            )
            assert cells == [
                row["token"],
                *(number(row[name], "count") for name in "abcd"),
                "∞" if row["c"] == 0 else number(row["enrichment"], "plain"),
                number(row["odds_ratio"], "plain"),
                *(number(row[name], "p") for name in ("p_value", "q_value")),
                number(row["mcc"], "score"),
                *(number(row[f"odds_ratio_{half}"], "plain") for half in ("first", "second")),
                "yes" if row["replicated"] else "no",
            ]
            halves = " / ".join(str(row[f"{name}_first"]) for name in "abcd")
            expect(shown.nth(place)).to_contain_text(halves)
    firing, total = first["a"] + first["b"], sum(first[name] for name in "abcd")
    expect(dialog).to_contain_text(f"Active in {firing} of {total} problems")
    expect(dialog.locator(".rules .what").first).to_contain_text(first["label"])


@pytest.mark.parametrize("side", ["Small", "Other"])
def test_a_link_opens_the_latent_of_its_model(browser: Any, report: Artifact, side: str) -> None:
    rows = table(report, "associated")
    shared = set.intersection(*(set(rows.filter(pl.col("side") == name)["id"]) for name in ("Small", "Other")))
    latent = min(shared)
    page = Visit(browser, report.path, at=f"#{latent}@{side.lower()}").page
    dialog = page.locator("dialog[data-shown]")
    expect(dialog.locator("h2")).to_have_text(latent)
    expect(page.locator("#latent-layer")).to_contain_text(f"{side}, ")
    # The back button of the browser closes the page, an address typed anew opens another.
    page.evaluate(f"location.hash = '#{max(shared)}@{side.lower()}'")
    expect(dialog.locator("h2")).to_have_text(max(shared))
    page.go_back()
    expect(dialog.locator("h2")).to_have_text(latent)
    page.context.close()


def test_a_token_filters_the_table_to_all_latents_that_go_with_it(page: Any, report: Artifact) -> None:
    pairs, rows = table(report, "pairs").filter("kept"), table(report, "associated")
    joined = pairs.join(rows, on=["side", "preset", "id"], suffix="_first_token")
    token = joined.filter(pl.col("token") != pl.col("token_first_token"))["token"][0]
    wanted = pairs.filter(pl.col("token") == token)
    assert wanted.height > rows.filter(pl.col("token") == token).height
    page.locator("#associated-token").fill(token)
    expect(page.locator("#associated-count")).to_contain_text(
        f"{wanted.height} of {wanted.height} latents that go with {token} shown"
    )
    with page.expect_download() as download:
        page.locator("#associated-csv").click()
    found = list(csv.DictReader(io.StringIO(download.value.path().read_text(encoding="utf-8-sig"))))
    assert {row["Token"] for row in found} == {token}
    # The numbers are those of the pair with this token, shown as raw as they are stored.
    stored = {(row["side"], row["preset"], row["id"]): row for row in wanted.iter_rows(named=True)}
    assert len(found) == len(stored)
    for row in found:
        pair = stored[row["Model"], row["Rules"], row["Latent"]]
        assert float(row["Odds ratio"]) == pair["odds_ratio"]
        assert float(row["MCC"]) == pair["mcc"]
    shown = page.locator(f'{GRID} .tabulator-row [tabulator-field="mcc"]').first.inner_text()
    assert shown in {number(row["mcc"], "score") for row in stored.values()}

    page.locator("#associated-token").fill("no such token")
    page.keyboard.press("Tab")
    expect(page.locator("#associated-count")).to_have_text("No latent of this table goes with no such token")
    page.get_by_role("button", name="Any token").click()
    expect(page.locator("#associated-count")).to_have_text(f"{rows.height} of {rows.height} latents shown")
    expect(page.locator("#associated-token")).to_be_focused()


def test_a_token_of_a_latents_page_leads_to_its_other_latents(page: Any, report: Artifact) -> None:
    dialog = open_latent(page)
    button = dialog.locator(".tokens-of button.link").first
    token = button.inner_text()
    button.focus()
    page.keyboard.press("Enter")
    expect(page.locator("dialog[open]")).to_have_count(0)
    expect(page.locator("#associated-token")).to_have_value(token)
    count = table(report, "pairs").filter(pl.col("kept") & (pl.col("token") == token)).height
    expect(page.locator("#associated-count")).to_contain_text(f"{count} of {count} latents that go with {token}")
    # Stepping now goes through these latents alone.
    open_latent(page)
    latents = table(report, "pairs").filter(pl.col("kept") & (pl.col("token") == token)).select("side", "id").n_unique()
    expect(page.locator("#latent-place")).to_have_text(f"1 of {latents}")


def test_a_mark_of_the_volcano_plot_opens_its_latent_and_so_does_its_row(visit: Visit, report: Artifact) -> None:
    page = visit.page
    marks = table(report, "volcano").filter((pl.col("side") == "Small") & (pl.col("preset") == "robust"))
    plot = page.locator("#plot-volcano-robust-0")
    plot.scroll_into_view_if_needed()
    expect(plot.locator(".point").first).to_be_visible(timeout=60_000)
    assert plot.locator(".point").count() == marks.height
    # Marks are drawn trace by trace, those that are not kept first.
    kept = marks.filter("kept")
    plot.locator(".trace").nth(1).locator(".point").first.click(force=True)
    dialog = page.locator("dialog[data-shown]")
    expect(dialog.locator("h2")).to_have_text(re.compile(f"^({'|'.join(kept['id'])})$"))
    expect(page.locator("#latent-layer")).to_contain_text("Small, ")
    page.keyboard.press("Escape")

    figure = page.locator("figure", has=plot)
    figure.locator("summary").click()
    figure.locator("tbody button").first.focus()
    page.keyboard.press("Enter")
    expect(page.locator("dialog[data-shown] h2")).to_have_text(marks["id"][0])
    assert visit.problems == []


def test_pages_beside_the_report_are_loaded_from_disk(
    browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saeinterp.report.pages.details.INSIDE", 4)
    report = write(tmp_path / "runs", {"Small": {}})
    visit = Visit(browser, report.path)
    dialog = open_latent(visit.page, 8)
    expect(dialog.locator(".rules .what").first).to_be_visible()
    assert visit.problems == []
    assert visit.requests == [(report.path / "latents" / "pairs-00000.js").as_uri()]
    visit.page.context.close()
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copyfile(report.file("report.html"), alone / "report.html")
    page = browser.new_page()
    page.goto((alone / "report.html").as_uri())
    page.wait_for_selector("html[data-ready]", timeout=60_000)
    expect(open_latent(page, 8)).to_contain_text(
        "The tokens of this latent are in latents/pairs-00000.js, which is not"
    )
    page.close()


def test_hostile_tokens_and_titles_do_not_run_and_can_be_chosen(browser: Any, tmp_path: Path) -> None:
    tokens = [f"{EVIL}{index}" for index in range(12)]
    report = write(
        tmp_path / "runs", {EVIL: {"tokens": tokens, "draws": 0}, f"{EVIL}2": {"tokens": tokens, "draws": 0}}
    )
    visit = Visit(browser, report.path)
    page = visit.page
    dialog = open_latent(page)
    expect(dialog.locator(".tokens-of code").first).to_contain_text("<img src=x")
    expect(dialog.locator(".tokens-of code").first).to_contain_text("{{7*7}}␀⟨U+202E⟩")
    dialog.locator(".tokens-of button.link").first.click()
    expect(page.locator("#associated-count")).to_contain_text("latents that go with </script>")
    visit.scroll_through()
    assert page.title() == "Latents and tokens"
    assert page.locator("img").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") == 1440
    assert (visit.problems, visit.requests) == ([], [])
    page.context.close()


def test_on_a_narrow_screen_nothing_is_wider_than_the_page(browser: Any, report: Artifact) -> None:
    page = Visit(browser, report.path, width=390, dark=True).page
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    open_latent(page)
    assert page.evaluate("document.getElementById('latent-page').scrollWidth") <= 390
    page.context.close()


def test_without_scripts_and_in_print_the_table_is_there(browser: Any, report: Artifact, page: Any) -> None:
    rows = table(report, "associated").height
    context = browser.new_context(java_script_enabled=False)
    still = context.new_page()
    still.goto(report.file("report.html").as_uri())
    assert still.locator("#associated .plain-latents tbody tr").count() == rows
    assert still.locator("#associated .plain-latents").is_visible()
    assert not still.locator("#associated-token").is_visible()
    context.close()
    page.emulate_media(media="print")
    assert page.locator("#associated .plain-latents").is_visible()
    assert not page.locator(GRID).is_visible()
    page.emulate_media(media="screen")
    open_latent(page)
    page.emulate_media(media="print")
    assert page.locator("#latent-page").is_visible()  # what is open is what is printed
    assert not page.locator("main").is_visible()
    page.emulate_media(media="screen")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1440, 390])
def test_no_accessibility_rule_is_broken(browser: Any, report: Artifact, width: int, dark: bool) -> None:
    if importlib.util.find_spec("axe_playwright_python") is None:
        pytest.skip("axe is not installed: pip install --no-deps axe-playwright-python")
    from axe_playwright_python.sync_playwright import Axe

    page = Visit(browser, report.path, dark=dark, width=width).page
    for opened in (False, True):
        if opened:
            open_latent(page)
        found = (
            Axe()
            .run(page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]})
            .response["violations"]
        )
        broken = [(item["id"], [node["target"] for node in item["nodes"]][:3]) for item in found]
        assert broken == [], f"opened={opened}"
    page.context.close()
